"""Small random models of the `transformers` library give the same logits and gradients here.

In float64, in which nothing but a formula can be wrong; but where the library itself computes norms
and angles in float32, as closely as that can say. Each family has options that others have not:
biases, shared heads, norms of queries and keys, head sizes, bases of rotary positions.
"""

from typing import Any

import numpy as np
import pytest
from models import use_one_thread

import fastformer as ff

pytestmark = pytest.mark.needs("transformers")

V, C, F, HEADS, LAYERS, LONGEST = 31, 16, 24, 4, 2, 9
LENGTHS = (9, 4, 7)
LLAMA = {
    "vocab_size": V, "hidden_size": C, "intermediate_size": F, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
}  # fmt: skip
OURS = {
    "vocab_size": V, "embed_dim": C, "ffn_dim": F, "num_heads": HEADS, "num_layers": LAYERS,
    "max_seq_len": LONGEST, "norm_type": "rmsnorm", "activation": "swiglu", "positions": "rotary",
    "ffn_bias": False, "output_bias": False,
}  # fmt: skip

# Its name, its class and settings there, and the settings here beside OURS.
DECODERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "Llama": (
        "Llama",
        LLAMA | {"num_key_value_heads": 2, "rope_theta": 500.0, "tie_word_embeddings": False},
        {"num_kv_heads": 2, "rotary_base": 500.0, "tied_embeddings": False},
    ),
    "Llama, biases, scaled positions": (
        "Llama",
        LLAMA | {
            "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True,
            "rope_scaling": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
        },
        {"qkv_bias": True, "attention_output_bias": True, "ffn_bias": True, "rotary_scaling": 4.0},
    ),
    "Mistral, heads of their own size": (
        "Mistral",
        LLAMA | {"head_dim": 6, "num_key_value_heads": 1, "sliding_window": None},
        {"head_size": 6, "num_kv_heads": 1, "tied_embeddings": False},
    ),
    "Qwen2": (
        "Qwen2", LLAMA | {"num_key_value_heads": 2, "tie_word_embeddings": True},
        {"num_kv_heads": 2, "qkv_bias": True},
    ),
    "Qwen3": (
        "Qwen3", LLAMA | {"num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True},
        {"num_kv_heads": 2, "head_size": 8, "qk_norm": True},
    ),
    "GPT-2": (
        "GPT2",
        {
            "vocab_size": V, "n_embd": C, "n_inner": F, "n_layer": LAYERS, "n_head": HEADS,
            "n_positions": LONGEST, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
        },
        {
            "norm_type": "layernorm", "activation": "gelu", "positions": "learned",
            "qkv_bias": True, "attention_output_bias": True, "ffn_bias": True,
        },
    ),
}  # fmt: skip
# Names here and there, of a block that the second half is in.
LAYER = {
    "attention.query": "self_attn.q_proj", "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj", "attention.output": "self_attn.o_proj",
    "attention.query_norm": "self_attn.q_norm", "attention.key_norm": "self_attn.k_norm",
    "norm1": "input_layernorm", "norm2": "post_attention_layernorm",
    "feed_forward.expand": "mlp.up_proj", "feed_forward.gate": "mlp.gate_proj",
    "feed_forward.contract": "mlp.down_proj",
}  # fmt: skip
GPT2_LAYER = {
    "attention.output": "attn.c_proj", "norm1": "ln_1", "norm2": "ln_2",
    "feed_forward.expand": "mlp.c_fc", "feed_forward.contract": "mlp.c_proj",
}  # fmt: skip
BERT_LAYER = {
    "attention.query": "attention.self.query", "attention.key": "attention.self.key",
    "attention.value": "attention.self.value", "attention.output": "attention.output.dense",
    "norm1": "attention.output.LayerNorm", "norm2": "output.LayerNorm",
    "feed_forward.expand": "intermediate.dense", "feed_forward.contract": "output.dense",
}  # fmt: skip


def in_ours(name: str, theirs: dict[str, np.ndarray], kind: str) -> np.ndarray:
    """Return what a parameter of ours is there; ours are (in, out)."""
    stem, _, last = name.rpartition(".")
    if stem.startswith("blocks."):
        _, index, inner = stem.split(".", 2)
        part = {"query": 0, "key": 1, "value": 2}.get(inner.removeprefix("attention."))
        if kind == "GPT2" and part is not None:
            whole = theirs[f"transformer.h.{index}.attn.c_attn.{last}"]
            return np.split(whole, 3, axis=-1)[part]
        prefix, layer = {
            "GPT2": ("transformer.h", GPT2_LAYER), "Bert": ("encoder.layer", BERT_LAYER),
        }.get(kind, ("model.layers", LAYER))  # fmt: skip
        found = theirs[f"{prefix}.{index}.{layer[inner]}.{last}"]
        transposed = kind != "GPT2" and found.ndim == 2
        return found.T if transposed else found
    names = {
        "embedding": "model.embed_tokens", "final_norm": "model.norm", "output": "lm_head"
    } if kind not in ("GPT2", "Bert") else {
        "embedding": "transformer.wte" if kind == "GPT2" else "embeddings.word_embeddings",
        "positions": "transformer.wpe" if kind == "GPT2" else "embeddings.position_embeddings",
        "final_norm": "transformer.ln_f", "embedding_norm": "embeddings.LayerNorm",
    }  # fmt: skip
    found = theirs[f"{names[stem]}.{last}"]
    return found.T if stem == "output" else found


def shaken(module: Any, torch: Any) -> Any:
    """Return a model whose parameters are none of them 0 or 1."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module.double().eval()


def arrays_of(module: Any, gradients: bool = False) -> dict[str, np.ndarray]:
    named = {name: p.grad if gradients else p for name, p in module.named_parameters()}
    return {name: value.detach().numpy() for name, value in named.items() if value is not None}


@pytest.mark.parametrize("name", DECODERS)
def test_decoders(name: str) -> None:
    import torch
    import transformers

    use_one_thread()
    torch.set_num_threads(1)
    kind, settings, options = DECODERS[name]
    tolerance = 1e-9 if kind == "GPT2" else 2e-5
    config = getattr(transformers, f"{kind}Config")(**settings)
    config._attn_implementation = "eager"
    theirs = shaken(getattr(transformers, f"{kind}ForCausalLM" if kind != "GPT2"
                            else "GPT2LMHeadModel")(config), torch)  # fmt: skip
    ours = ff.TransformerDecoder(ff.DecoderConfig(**(OURS | options)), dtype="float64")
    weights = arrays_of(theirs)
    ours.load_state_dict({n: in_ours(n, weights, kind) for n in ours.state_dict()})
    random = np.random.default_rng(0)
    sequences = [random.integers(0, V, length).tolist() for length in LENGTHS]
    batch = ff.pack(sequences)
    logits = ours.forward(batch)
    targets = random.integers(0, V, batch.num_tokens)
    loss = 0
    for b, ids in enumerate(sequences):
        first, last = batch.offsets[b : b + 2]
        found = theirs(torch.tensor([ids])).logits[0]
        np.testing.assert_allclose(logits[first:last], found.detach().numpy(), tolerance, tolerance)
        wanted = torch.from_numpy(targets[first:last].copy())
        loss = loss + torch.nn.functional.cross_entropy(found, wanted, reduction="sum")
    (loss / batch.num_tokens).backward()
    loss_fn = ff.CrossEntropyLoss()
    mean = loss_fn.forward(logits, targets)
    np.testing.assert_allclose(mean * batch.num_tokens, loss.item(), tolerance)
    ours.zero_grad()
    ours.backward(loss_fn.backward())
    gradients = arrays_of(theirs, gradients=True)
    scale = max(float(np.abs(gradient).max()) for gradient in gradients.values())
    for own, gradient in ours.grad_dict().items():
        expected = in_ours(own, gradients, kind)
        np.testing.assert_allclose(gradient, expected, 0, tolerance * scale, err_msg=own)
    prompt = sequences[0][:3]
    from fastformer.generation import generate

    (own_way,) = generate(ours, [prompt], max_new_tokens=5)
    going = torch.tensor([prompt])
    for _ in range(5):
        going = torch.cat([going, theirs(going).logits[:, -1:].argmax(-1)], 1)
    assert own_way.tokens == going[0, 3:].tolist()


def test_bert() -> None:
    """The encoder's first state: norms behind sums, one of the embedding, and exact GELU."""
    import torch
    import transformers

    use_one_thread()
    torch.set_num_threads(1)
    config = transformers.BertConfig(
        vocab_size=V, hidden_size=C, intermediate_size=F, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, max_position_embeddings=LONGEST, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    config._attn_implementation = "eager"
    theirs = shaken(transformers.BertModel(config, add_pooling_layer=False), torch)
    ours = ff.Transformer(
        ff.TransformerConfig(
            vocab_size=V, embed_dim=C, ffn_dim=F, num_heads=HEADS, num_layers=LAYERS,
            max_seq_len=LONGEST, positions="learned", activation="gelu_exact", qkv_bias=True,
            attention_output_bias=True, embedding_norm=True, layernorm_epsilon=1e-12,
        ),
        dtype="float64",
    )  # fmt: skip
    weights = arrays_of(theirs)
    loaded = {n: in_ours(n, weights, "Bert") for n in ours.state_dict() if "output." not in n
              or n.startswith("blocks")}  # fmt: skip
    loaded["positions.weight"] = (
        loaded["positions.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
    )
    read_out = np.random.default_rng(1).standard_normal((C, V))
    loaded |= {"output.weight": read_out, "output.bias": np.zeros(V)}
    ours.load_state_dict(loaded)
    random = np.random.default_rng(0)
    sequences = [random.integers(0, V, length).tolist() for length in LENGTHS]
    logits = ours.forward(ff.pack(sequences))
    for b, ids in enumerate(sequences):
        state = theirs(torch.tensor([ids])).last_hidden_state[0, 0].detach().numpy()
        np.testing.assert_allclose(logits[b], state @ read_out, 1e-9, 1e-10)
