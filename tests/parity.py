"""The same model trained by fastformer and by PyTorch: what each computes, and their comparison.

Dropout is 0 everywhere: the two draw different random numbers, and a mask that is given to both
is one of the kernels' cases, not of a model's. Sequences have several lengths, so what is compared
is also that packed batches are what PyTorch computes with padding and masks.
"""

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from models import use_one_thread

import fastformer as ff

STEPS = 200
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.01
SIZES = {
    "vocab_size": 23,
    "embed_dim": 32,
    "num_heads": 4,
    "num_layers": 2,
    "ffn_dim": 64,
    "max_seq_len": 9,
}
BATCHES, SEQUENCES = 8, 6

# What each option can be. Dropout stays 0, and the sizes are what every model has.
OPTIONS: dict[str, tuple[Any, ...]] = {
    "norm": ("post", "pre"),
    "norm_type": ("layernorm", "rmsnorm"),
    "activation": ("relu", "gelu", "gelu_exact", "mish", "swiglu", "geglu"),
    "positions": ("sinusoidal", "learned"),
    "qkv_bias": (False, True),
    "layernorm_epsilon": (1e-5, 1e-2),
    "num_kv_heads": (0, 2),
    "qk_norm": (False, True),
}
# Of options that choose a layer's formula, the usual ones.
FORMS = {
    "norm_type": ("layernorm",), "activation": ("relu", "gelu"), "num_kv_heads": (0,),
    "qk_norm": (False,),
}  # fmt: skip
# What the attention is told of positions, with fewer values of what it does not meet.
RELATIVE: dict[str, tuple[Any, ...]] = {
    "activation": ("gelu",),
    "positions": ("rotary", "alibi"),
    "layernorm_epsilon": (1e-5,),
    "num_kv_heads": (0, 2),
    "qk_norm": (True,),
}
# Options that do not meet others: each by itself, and all at once.
OWN: dict[str, Any] = {
    "head_size": 6,
    "attention_output_bias": True,
    "ffn_bias": False,
    "norm_bias": False,
    "output_bias": False,
    "embedding_norm": True,
    "rotary_base": 500.0,
    "rotary_scaling": 4.0,
}
KINDS: dict[str, tuple[type, dict[str, tuple[Any, ...]]]] = {
    "encoder": (ff.TransformerConfig, {"pooling": ("first", "mean", "last")}),
    "decoder": (ff.DecoderConfig, {"tied_embeddings": (True, False)}),
}

# An encoder that reads out each token, and has other classes than token ids.
TAGGER: dict[str, Any] = {"pooling": "none", "num_classes": 5}

# Models that between them have each value of each option, for the long runs.
TRAINED = {
    "encoder": ("encoder", {}),
    "encoder, pre-norm, mean": (
        "encoder",
        {"norm": "pre", "activation": "gelu", "positions": "learned", "pooling": "mean"},
    ),
    "encoder, biases, last": (
        "encoder",
        {
            "activation": "gelu_exact",
            "qkv_bias": True,
            "attention_output_bias": True,
            "positions": "rotary",
            "pooling": "last",
        },
    ),
    "decoder": ("decoder", {}),
    "decoder, post-norm, untied": (
        "decoder",
        {
            "norm": "post",
            "activation": "relu",
            "positions": "sinusoidal",
            "tied_embeddings": False,
        },
    ),
    "encoder of tokens": ("encoder", TAGGER),
    "encoder, RMSNorm, SwiGLU": (
        "encoder",
        {"norm": "pre", "norm_type": "rmsnorm", "activation": "swiglu"},
    ),
    "decoder, RMSNorm, Mish": ("decoder", {"norm_type": "rmsnorm", "activation": "mish"}),
    "decoder, biases, epsilon": (
        "decoder",
        {
            "qkv_bias": True,
            "attention_output_bias": True,
            "layernorm_epsilon": 1e-2,
            "activation": "geglu",
            "positions": "alibi",
            "num_kv_heads": 2,
            "qk_norm": True,
        },  # fmt: skip
    ),
}

Gradients = dict[str, np.ndarray]
Batch = tuple[ff.PackedBatch, np.ndarray]


@dataclass(frozen=True)
class Run:
    """What a training run computed.

    Attributes:
        logits, gradients: of the first step, before the weights change.
        losses: (steps,) of each step.    weights: after the last step.
    """

    logits: np.ndarray
    gradients: Gradients
    losses: np.ndarray
    weights: dict[str, np.ndarray]


class NoBiasCorrection(ff.AdamW):
    """Begins as if it had made a million steps: then there is nothing to correct."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.steps = 1_000_000


class DecaysAll(ff.AdamW):
    """Decays biases and norms too."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.parameters.__dict__["decaying"] = self.parameters.values.size


def config_of(kind: str, **options: Any) -> Any:
    """Return the settings of a small model."""
    return KINDS[kind][0](**SIZES | options)


def every_config() -> list[tuple[str, dict[str, Any]]]:
    """Return (kind, options) for the combinations of all options' values.

    With FORMS that are not the usual ones, all other options are at their first value, or at their
    last: each form is one layer's own, and hundreds of combinations more would say no more.
    """
    found = []
    for kind, (_, own) in KINDS.items():
        relative = OPTIONS | RELATIVE | own
        found += [
            (kind, dict(zip(relative, chosen, strict=True)))
            for chosen in product(*relative.values())
        ]
        values = OPTIONS | own
        others = [name for name in values if name not in ("norm", *FORMS)]
        for chosen in product(*values.values()):
            options = dict(zip(values, chosen, strict=True))
            unusual = [name for name, forms in FORMS.items() if options[name] not in forms]
            fixed = others
            if "num_kv_heads" in unusual or "qk_norm" in unusual:
                fixed = [*others, "norm_type", "activation"]
            if not unusual or any(
                all(options[o] == values[o][end] for o in fixed) for end in (0, -1)
            ):
                found.append((kind, options))
        usual: dict[str, Any] = {"positions": "rotary"}
        usual |= {"tied_embeddings": False} if kind == "decoder" else {}
        found += [(kind, {**usual, name: value}) for name, value in OWN.items()]
        found.append((kind, {**usual, **OWN, "qkv_bias": True, "num_kv_heads": 2}))
    found += [("encoder", TAGGER | {"norm": norm}) for norm in OPTIONS["norm"]]
    found.append(("encoder", {"pooling": "mean", "num_classes": 29}))
    return found


def name_of(kind: str, options: dict[str, Any]) -> str:
    """Return for instance `encoder, pre, gelu`."""
    return ", ".join([kind, *(f"{key}={value}" for key, value in options.items())])


def make_model(config: Any, backend: str = "numba", dtype: str = "float32") -> Any:
    """Return fastformer's model of a config."""
    is_encoder = isinstance(config, ff.TransformerConfig)
    model_class = ff.Transformer if is_encoder else ff.TransformerDecoder
    return model_class(config, seed=3, backend=backend, dtype=dtype)


def initial_weights(config: Any) -> dict[str, np.ndarray]:
    """Return float32 weights of which none is 0 or 1, the same for every dtype."""
    random = np.random.default_rng(5)
    weights = make_model(config).state_dict()
    return {
        name: value + (0.1 * random.standard_normal(value.shape)).astype(np.float32)
        for name, value in weights.items()
    }


def make_batches(config: Any, count: int = BATCHES, seed: int = 1) -> list[Batch]:
    """Return batches of several lengths with targets that can be learned.

    With this seed no ReLU's input is so close to 0 that rounding decides its sign: one that does
    takes the weights a thousand times further from those in float64 than all other rounding, in
    either library.
    """
    random = np.random.default_rng(seed)
    batches = []
    for _ in range(count):
        lengths = random.integers(1, config.max_seq_len + 1, SEQUENCES)
        lengths[0] = config.max_seq_len
        batch = ff.pack([random.integers(0, config.vocab_size, n).tolist() for n in lengths])
        if isinstance(config, ff.TransformerConfig) and config.pooling != "none":
            targets = (batch.tokens[batch.offsets[:-1]] + lengths) % config.num_logits
        else:
            targets = (3 * batch.tokens + batch.positions) % config.num_logits
            targets[random.random(targets.size) < 0.2] = -1
        batches.append((batch, targets))
    return batches


def train_ours(
    config: Any,
    steps: int,
    *,
    backend: str = "numba",
    dtype: str = "float32",
    optimizer_class: Any = ff.AdamW,
    weights: dict[str, np.ndarray] | None = None,
    label_smoothing: float = 0.0,
) -> Run:
    """Train fastformer's model with AdamW from `initial_weights`, or from others."""
    use_one_thread()
    model = make_model(config, backend, dtype)
    model.load_state_dict(weights or initial_weights(config))
    optimizer = optimizer_class(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    loss_fn = ff.CrossEntropyLoss(label_smoothing=label_smoothing, backend=backend)
    batches = make_batches(config)
    losses, logits, gradients = [], None, None
    for step in range(steps):
        batch, targets = batches[step % len(batches)]
        found = model.forward(batch)
        losses.append(loss_fn.forward(found, targets))
        model.zero_grad()
        model.backward(loss_fn.backward())
        if step == 0:
            logits, gradients = found, model.grad_dict()
        optimizer.step()
    return Run(logits, gradients, np.array(losses), model.state_dict())


def train_torch(
    config: Any, steps: int, *, dtype: str = "float32", label_smoothing: float = 0.0
) -> Run:
    """Train PyTorch's model likewise, on one thread."""
    import torch
    import torch.nn.functional as F

    from benchmarks.peers.torch_models import Model, as_fastformer, load

    # Two thread pools in one process would wait for each other.
    torch.set_num_threads(1)
    model = Model(config, config.max_seq_len, getattr(torch, dtype))
    load(model, initial_weights(config))
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE)
    batches = [_padded(batch, targets, config.max_seq_len) for batch, targets in
               make_batches(config)]  # fmt: skip
    losses, logits, gradients = [], None, None
    for step in range(steps):
        tokens, lengths, targets = (torch.from_numpy(x) for x in batches[step % len(batches)])
        found = model(tokens, lengths)
        options = {"ignore_index": -1, "label_smoothing": label_smoothing}
        loss = F.cross_entropy(found, targets, **options)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            logits, gradients = found.detach().numpy(), as_fastformer(model, gradients=True)
        optimizer.step()
        losses.append(loss.item())
    return Run(logits, gradients, np.array(losses), as_fastformer(model))


def _padded(batch: ff.PackedBatch, targets: np.ndarray, T: int) -> tuple[np.ndarray, ...]:
    """Return (tokens (B, T), lengths (B,), targets), with a token that exists as padding."""
    lengths = np.diff(batch.offsets)
    tokens = np.full((lengths.size, T), 1)
    tokens[np.arange(T) < lengths[:, None]] = batch.tokens
    return tokens, lengths, targets


def relative_error(found: np.ndarray, expected: np.ndarray, scale: float = 0.0) -> float:
    """Return the largest difference, relative to `scale` or to the largest expected value."""
    if found.shape != expected.shape:
        return float("inf")
    scale = scale or float(np.max(np.abs(expected))) or 1.0
    return float(np.max(np.abs(np.float64(found) - expected))) / scale


def has_no_gradient(name: str) -> bool:
    """Tell whether a parameter's true gradient is 0, so that Adam makes steps of its rounding.

    A softmax does not see a number that is added to all its scores, as a key's bias does.
    """
    return name.endswith("attention.key.bias")


def gradient_errors(found: Gradients, expected: Gradients, scale: float = 0.0) -> dict[str, float]:
    """Return each gradient's largest error, relative to the largest element of all, or `scale`.

    That is what a step of the whole model sees. Relative to its own largest element, a gradient
    in float32 is 2e-6 from PyTorch's in the worst of these models; both are then 1e-6 from that
    in float64, for what it is summed from cancels.
    """
    if found.keys() != expected.keys():
        return dict.fromkeys(found.keys() ^ expected.keys(), float("inf"))
    scale = scale or max(float(np.max(np.abs(gradient))) for gradient in expected.values())
    return {
        name: relative_error(found[name], gradient, scale) for name, gradient in expected.items()
    }


def assert_same_step(found: Run, expected: Run, tolerance: float) -> None:
    """Compare logits, loss and all gradients of the first step."""
    errors = {"logits": relative_error(found.logits, expected.logits)}
    errors["loss"] = relative_error(found.losses[:1], expected.losses[:1])
    errors |= gradient_errors(found.gradients, expected.gradients)
    # Not `error > tolerance`, which a NaN would pass.
    wrong = {name: error for name, error in errors.items() if not error <= tolerance}
    assert not wrong, f"errors above {tolerance:.0e}: {wrong}"


def loss_differences(found: Run, expected: Run) -> np.ndarray:
    """Return the absolute difference of the losses of each step."""
    assert found.losses.shape == expected.losses.shape
    return np.abs(found.losses - expected.losses)


def assert_same_losses(found: Run, expected: Run, first: float, all_: float) -> None:
    """Compare the losses of the first ten steps, and those of all."""
    differences = loss_differences(found, expected)
    for what, part, tolerance in (("ten", differences[:10], first), ("all", differences, all_)):
        worst = int(np.argmax(part))
        assert part[worst] <= tolerance, (
            f"of the first {what} steps, step {worst} has a loss that differs by "
            f"{part[worst]:.1e}, more than {tolerance:.0e}"
        )


def distance(weights: dict[str, np.ndarray], truth: dict[str, np.ndarray]) -> float:
    """Return the Euclidean distance of all weights, but for those that have no gradient."""
    return float(
        np.sqrt(
            sum(
                np.sum((np.float64(weights[name]) - value) ** 2)
                for name, value in truth.items()
                if not has_no_gradient(name)
            )
        )
    )
