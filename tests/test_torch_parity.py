"""The same weights give PyTorch's logits, loss, gradients and training; and would it show if not.

In float64 the two agree to the last digits, so nothing but the formula can be wrong; in float32,
which people train in, as closely as float32 can say.
"""

import dataclasses
from typing import Any

import numpy as np
import pytest
from parity import (
    STEPS,
    TRAINED,
    DecaysAll,
    NoBiasCorrection,
    Run,
    assert_same_losses,
    assert_same_step,
    config_of,
    every_config,
    initial_weights,
    name_of,
    train_ours,
    train_torch,
)

import fastformer as ff
from fastformer.models.config import ModelConfig

# Of float64, which has 16 digits, and of float32, in which PyTorch's own gradients are 1e-6 away
# from the true ones.
TOLERANCES = {"float64": 1e-12, "float32": 2e-6}
FIRST_LOSSES = {"float64": 1e-11, "float32": 1e-5}
# In float32, what is rounded otherwise is learned otherwise as time goes on.
ALL_LOSSES = {"float64": 1e-9, "float32": 1e-3}


def test_every_option_of_the_configs_is_compared() -> None:
    compared = {key for _, options in every_config() for key in options}
    sizes = {"vocab_size", "embed_dim", "num_heads", "num_layers", "ffn_dim", "max_seq_len"}
    for config_class in (ff.TransformerConfig, ff.DecoderConfig):
        options = {field.name for field in dataclasses.fields(config_class)} - sizes
        assert options - {"dropout"} <= compared
    for name in ("encoder", "decoder"):
        every = [options for kind, options in every_config() if kind == name]
        trained = [config_of(kind, **options) for kind, options in TRAINED.values() if kind == name]
        shared = set(every[0]) & {field.name for field in dataclasses.fields(ModelConfig)}
        own = set(every[0]) - shared
        for key in own:
            values = {options[key] for options in every if key in options}
            assert {getattr(c, key) for c in trained} == values
    both = [config_of(kind, **options) for kind, options in TRAINED.values()]
    for key in shared:
        values = {options[key] for options in every if key in options}
        assert {getattr(c, key) for c in both} == values, key


@pytest.mark.needs("torch")
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [("numba", "float32"), ("numba", "float64"), ("reference", "float64")],
)
def test_logits_loss_and_gradients(kind: str, backend: str, dtype: str) -> None:
    compared = 0
    for its_kind, options in every_config():
        if its_kind != kind:
            continue
        config = config_of(kind, **options)
        ours = train_ours(config, 1, backend=backend, dtype=dtype)
        theirs = train_torch(config, 1, dtype=dtype)
        try:
            assert_same_step(ours, theirs, TOLERANCES[dtype])
        except AssertionError as error:
            raise AssertionError(f"{name_of(kind, options)}: {error}") from None
        compared += 1
    assert compared >= 64


@pytest.mark.needs("torch")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_label_smoothing(kind: str, dtype: str) -> None:
    """Of the decoder, whose ignored targets count nothing, too."""
    config = config_of(kind)
    options = {"dtype": dtype, "label_smoothing": 0.2}
    ours, theirs = train_ours(config, STEPS, **options), train_torch(config, STEPS, **options)
    assert_same_step(ours, theirs, TOLERANCES[dtype])
    assert_same_losses(ours, theirs, FIRST_LOSSES[dtype], ALL_LOSSES[dtype])
    with pytest.raises(AssertionError, match="errors above"):
        assert_same_step(train_ours(config, 1, dtype=dtype), theirs, TOLERANCES[dtype])


@pytest.mark.needs("torch")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", TRAINED)
def test_training(name: str, dtype: str) -> None:
    kind, options = TRAINED[name]
    config = config_of(kind, **options)
    ours, theirs = train_ours(config, STEPS, dtype=dtype), train_torch(config, STEPS, dtype=dtype)
    assert ours.losses[-1] < ours.losses[0] / 2, "nothing was learned, so little was compared"
    assert_same_losses(ours, theirs, FIRST_LOSSES[dtype], ALL_LOSSES[dtype])


@pytest.mark.needs("torch")
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_training_on_the_reference_backend(kind: str) -> None:
    config = config_of(kind)
    ours, theirs = train_ours(config, 20, backend="reference"), train_torch(config, 20)
    assert_same_losses(ours, theirs, FIRST_LOSSES["float32"], ALL_LOSSES["float32"])


def assert_same_training(found: Run, expected: Run) -> None:
    assert_same_step(found, expected, TOLERANCES["float32"])
    assert_same_losses(found, expected, FIRST_LOSSES["float32"], ALL_LOSSES["float32"])


@pytest.mark.parametrize(
    "fault",
    ["epsilon", "activation", "norm", "bias correction", "decay", "a weight", "a gradient", "NaN"],
)
def test_a_fault_would_show(fault: str) -> None:
    """Of one backend beside the other, for this must be known without PyTorch as well."""
    config = config_of("decoder", qkv_bias=True, attention_output_bias=True)
    weights = initial_weights(config)
    expected = train_ours(config, 12, backend="reference", weights=weights)
    assert_same_training(train_ours(config, 12, weights=weights), expected)

    changes: dict[str, dict[str, Any]] = {
        "epsilon": {"layernorm_epsilon": 1.2e-5},
        "activation": {"activation": "relu"},
        "norm": {"norm": "post"},
    }
    optimizers = {"bias correction": NoBiasCorrection, "decay": DecaysAll}
    config = dataclasses.replace(config, **changes.get(fault, {}))
    if fault == "norm":
        weights = {name: w for name, w in weights.items() if not name.startswith("final_norm")}
    if fault == "a weight":
        name = "blocks.1.attention.query.weight"
        weights = weights | {name: np.ascontiguousarray(weights[name].T)}
    optimizer_class = optimizers.get(fault, ff.AdamW)
    found = train_ours(config, 12, weights=weights, optimizer_class=optimizer_class)
    if fault in ("a gradient", "NaN"):
        gradient = found.gradients["blocks.0.norm1.bias"]
        gradient[3] = np.nan if fault == "NaN" else gradient[3] * 1.001
    with pytest.raises(AssertionError, match="^(errors above|of the first)"):
        assert_same_training(found, expected)
