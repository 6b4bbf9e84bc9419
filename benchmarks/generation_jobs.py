"""Generation beside transformers, with the same weights: tokens per second of greedy texts."""

import time
from typing import Any

import numpy as np

from fastformer.bench.equivalence import NotEqualError
from fastformer.bench.stepper import Array

# nanoGPT's model for a CPU, with GPT-2's biases, for more tokens.
SIZES = {
    "vocab_size": 65, "embed_dim": 128, "num_heads": 4, "num_layers": 4, "ffn_dim": 512,
    "max_seq_len": 256, "qkv_bias": True, "attention_output_bias": True,
}  # fmt: skip
NEW_TOKENS = 128
# Tokens of each text that must be the same: later ones depend on the rounding of near ties.
CHECKED = 16


def prepare(path: str, seed: int = 1) -> dict[str, Any]:
    """Draw the weights of the model into a file."""
    from fastformer.models.config import DecoderConfig
    from fastformer.models.decoder import TransformerDecoder

    model = TransformerDecoder(DecoderConfig(**SIZES), seed=seed)  # type: ignore[arg-type]
    random = np.random.default_rng(seed)
    weights = model.state_dict()
    # Sharper than initial weights are, so that the likeliest token is clear.
    for name, array in weights.items():
        if name != "embedding.weight" and array.ndim == 2:
            array *= 3
        elif name.endswith("bias"):
            array += random.normal(0, 0.05, array.shape).astype(array.dtype)
    np.savez(path, allow_pickle=False, **weights)
    return {"path": path}


def prompts_of(count: int) -> list[list[int]]:
    """Return prompts of several lengths."""
    random = np.random.default_rng(count)
    lengths = random.integers(16, 64, count)
    return [random.integers(0, int(SIZES["vocab_size"]), length).tolist() for length in lengths]


def write(system: str, path: str, prompts: int) -> dict[str, Any]:
    """Let one system write, once to warm up and then against the clock.

    Returns:
        seconds, of all texts together; tokens, the first ones of each text.
    """
    with np.load(path) as file:
        weights = {name: file[name] for name in file.files}
    given = prompts_of(prompts)
    generate = _ours(weights) if system == "numba" else _transformers(weights)
    found = generate(given)
    started = time.perf_counter()
    generate(given)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "tokens": [row[:CHECKED] for row in found]}


def require_equal(first: list[list[int]], second: list[list[int]]) -> None:
    """Raise unless two systems write the same tokens."""
    differ = sum(a != b for a, b in zip(first, second, strict=True))
    if differ:
        raise NotEqualError(
            f"{differ} of {len(first)} texts differ within their first {CHECKED} tokens: the "
            "systems do not have the same model"
        )


def _ours(weights: dict[str, Array]) -> Any:
    from fastformer.generation import generate
    from fastformer.models.config import DecoderConfig
    from fastformer.models.decoder import TransformerDecoder

    model = TransformerDecoder(DecoderConfig(**SIZES))  # type: ignore[arg-type]
    model.load_state_dict(weights)

    def write(prompts: list[list[int]]) -> list[list[int]]:
        return [one.tokens for one in generate(model, prompts, max_new_tokens=NEW_TOKENS)]

    return write


def _transformers(weights: dict[str, Array]) -> Any:
    import torch
    import transformers

    config = transformers.GPT2Config(
        vocab_size=SIZES["vocab_size"], n_positions=SIZES["max_seq_len"],
        n_embd=SIZES["embed_dim"], n_layer=SIZES["num_layers"], n_head=SIZES["num_heads"],
        n_inner=SIZES["ffn_dim"], bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    model.load_state_dict({n: torch.from_numpy(a) for n, a in _named(weights).items()})

    def write(prompts: list[list[int]]) -> list[list[int]]:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in prompts])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts])
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW_TOKENS,
                use_cache=True,
            )  # fmt: skip
        rows: list[list[int]] = out[:, longest:].tolist()
        return rows

    return write


def _named(weights: dict[str, Array]) -> dict[str, Array]:
    """Return weights by the names that transformers has for a GPT-2."""
    found = {
        "transformer.wte.weight": weights["embedding.weight"],
        "transformer.wpe.weight": weights["positions.weight"],
        "transformer.ln_f.weight": weights["final_norm.weight"],
        "transformer.ln_f.bias": weights["final_norm.bias"],
        "lm_head.weight": weights["embedding.weight"],
    }
    pairs = {
        "ln_1": "norm1", "ln_2": "norm2", "attn.c_proj": "attention.output",
        "mlp.c_fc": "feed_forward.expand", "mlp.c_proj": "feed_forward.contract",
    }  # fmt: skip
    for block in range(int(SIZES["num_layers"])):
        ours, theirs = f"blocks.{block}.", f"transformer.h.{block}."
        for kind in ("weight", "bias"):
            for their, own in pairs.items():
                found[f"{theirs}{their}.{kind}"] = weights[f"{ours}{own}.{kind}"]
            parts = [
                weights[f"{ours}attention.{part}.{kind}"] for part in ("query", "key", "value")
            ]
            found[f"{theirs}attn.c_attn.{kind}"] = np.concatenate(parts, axis=-1)
    return found
