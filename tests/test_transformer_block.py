"""The block: both norms, its gradients, and the saving for one row per sequence."""

import numpy as np
import pytest
from models import (
    BACKENDS,
    assert_equal_gradients,
    assert_gradients_on_both_backends,
    dlogits_for,
    forward_and_backward,
    make_batch,
    make_config,
    make_model,
    same_bits,
    shaken,
)

import fastformer as ff
from fastformer.errors import FastformerError, InvalidTypeError
from fastformer.layers.dropout import DropoutCounter

WIDTH = 6
BATCH = make_batch((3, 1, 4))
ROWS = {"first": BATCH.offsets[:-1].copy(), "last": BATCH.offsets[1:] - 1}
SIZES = {"embed_dim": WIDTH, "num_heads": 2, "ffn_dim": 10}
ROTARY, ALIBI = {"positions": "rotary", "num_heads": 3}, {"positions": "alibi"}
NORMS = ("post", "pre")
OPTIONS = [
    {},
    {"dropout": 0.3, "activation": "gelu"},
    {"norm_type": "rmsnorm", "activation": "swiglu"},
    ROTARY,
    ALIBI,
]


def make_block(backend="numba", dtype="float64", causal=False, **options):
    counter = DropoutCounter(seed=3)
    counter.training, counter.forwards = True, 2
    config = make_config("encoder", **SIZES | options)
    return shaken(
        ff.TransformerBlock(
            config, causal=causal, counter=counter, seed=1, backend=backend, dtype=dtype
        )
    )


@pytest.mark.parametrize("dout", [np.zeros((8, WIDTH + 1)), np.zeros((7, WIDTH)), None])
def test_a_gradient_of_another_shape_never_reaches_the_kernels(rng, dout):
    block = make_block()
    block.forward(rng.standard_normal((8, WIDTH)), BATCH)
    with pytest.raises(FastformerError, match="dout must be"):
        block.backward(dout)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("norm_type", ["layernorm", "rmsnorm"])
def test_formula(rng, backend, norm, norm_type):
    """As its docstring has it, from layers of its own with the same weights."""
    block = make_block(backend, norm=norm, norm_type=norm_type)
    norm_class = ff.RMSNorm if norm_type == "rmsnorm" else ff.LayerNorm
    weights = block.state_dict()
    options = {"backend": backend, "dtype": "float64"}
    layers = {
        "attention": ff.MultiHeadAttention(WIDTH, 2, **options),
        "norm1": norm_class(WIDTH, **options),
        "feed_forward": ff.FeedForward(WIDTH, 10, **options),
        "norm2": norm_class(WIDTH, **options),
    }
    for name, layer in layers.items():
        layer.load_state_dict(
            {k.removeprefix(f"{name}."): v for k, v in weights.items() if k.startswith(f"{name}.")}
        )

    def apply(name, *arguments):
        return layers[name].forward(*arguments).copy()

    x = rng.standard_normal((8, WIDTH))
    if norm == "post":
        b = apply("norm1", x + apply("attention", x, BATCH))
        expected = apply("norm2", b + apply("feed_forward", b))
    else:
        b = x + apply("attention", apply("norm1", x), BATCH)
        expected = b + apply("feed_forward", apply("norm2", b))
    np.testing.assert_allclose(block.forward(x, BATCH), expected, 1e-10, 1e-12)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("rows", [None, "first", "last"])
@pytest.mark.parametrize("options", OPTIONS)
def test_gradients(rng, norm, rows, options):
    """By x and by each element of each parameter, with all rows and with chosen ones."""
    assert_gradients_on_both_backends(
        lambda backend: make_block(backend, norm=norm, **options),
        lambda block, x: block.forward(x, BATCH, rows),
        lambda block, dout: (block.backward(dout),),
        rng.standard_normal((8, WIDTH)),
    )


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_of_a_causal_block(rng, norm):
    assert_gradients_on_both_backends(
        lambda backend: make_block(
            backend, causal=True, norm=norm, qkv_bias=True, attention_output_bias=True
        ),
        lambda block, x: block.forward(x, BATCH),
        lambda block, dout: (block.backward(dout),),
        rng.standard_normal((8, WIDTH)),
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("options", [{}, ROTARY, ALIBI])
def test_chosen_rows_are_those_of_all(rng, backend, norm, rows, options):
    """The saving changes no result: output, gradient of x, gradients of parameters."""
    block = make_block(backend, norm=norm, qkv_bias=True, attention_output_bias=True, **options)
    x, chosen = rng.standard_normal((8, WIDTH)), ROWS[rows]
    dout = rng.standard_normal((3, WIDTH))
    expected = block.forward(x, BATCH)[chosen].copy()
    everywhere = np.zeros((8, WIDTH))
    everywhere[chosen] = dout
    expected_dx = block.backward(everywhere).copy()
    expected_gradients = block.grad_dict()
    block.zero_grad()
    np.testing.assert_allclose(block.forward(x, BATCH, rows), expected, 1e-11, 1e-13)
    np.testing.assert_allclose(block.backward(dout), expected_dx, 1e-10, 1e-12)
    assert_equal_gradients(block.grad_dict(), expected_gradients, 1e-10, 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("pooling", ROWS)
@pytest.mark.parametrize("options", [{}, {"positions": "rotary"}, ALIBI])
def test_the_last_block_of_a_model_saves_rows_and_changes_nothing(backend, norm, pooling, options):
    """The model's logits and gradients against all rows of all blocks, of which some are read."""
    model = make_model("encoder", backend=backend, norm=norm, pooling=pooling, **options)
    logits, gradients = forward_and_backward(model, BATCH)
    assert model.blocks[-1].feed_forward.expand.x.shape[0] == 3, "nothing was saved"

    chosen = ROWS[pooling]
    x = model.embedding.forward(BATCH, model.positions)
    norms = [model.final_norm] if norm == "pre" else []
    for block in model.blocks:
        x = block.forward(x, BATCH)
    for layer in norms:
        x = layer.forward(x)
    np.testing.assert_allclose(model.output.forward(x[chosen]), logits, 1e-11, 1e-12)
    model.zero_grad()
    dx = np.zeros(x.shape)
    dx[chosen] = model.output.backward(dlogits_for(logits))
    for layer in (*norms, *reversed(model.blocks)):
        dx = layer.backward(dx)
    model.embedding.backward(dx)
    assert_equal_gradients(model.grad_dict(), gradients, 1e-10, 1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_a_causal_block_does_not_see_what_comes_later(rng, norm):
    block = make_block(causal=True, norm=norm)
    x = rng.standard_normal((8, WIDTH))
    out = block.forward(x, BATCH).copy()
    for row in range(8):
        changed = x.copy()
        changed[row] = rng.standard_normal(WIDTH)
        same = [
            same_bits(before, after)
            for before, after in zip(out, block.forward(changed, BATCH), strict=True)
        ]
        sequence = np.searchsorted(BATCH.offsets, row, side="right")
        later = range(row, BATCH.offsets[sequence])
        assert [i for i in range(8) if not same[i]] == list(later)


def test_names():
    """Every part of the block has its own names, and biases come with their options alone."""
    plain = set(make_block().state_dict())
    biased = set(make_block(qkv_bias=True, attention_output_bias=True).state_dict())
    parts = ("query", "key", "value", "output")
    assert plain == {
        *(f"attention.{part}.weight" for part in parts),
        *(f"{norm}.{name}" for norm in ("norm1", "norm2") for name in ("weight", "bias")),
        *(
            f"feed_forward.{part}.{name}"
            for part in ("expand", "contract")
            for name in ("weight", "bias")
        ),
    }
    assert biased - plain == {f"attention.{part}.bias" for part in parts}


@pytest.mark.parametrize("config", [None, {"embed_dim": 8}, 8])
def test_a_config_of_another_class_is_refused(config):
    with pytest.raises(InvalidTypeError, match=r"config must be"):
        ff.TransformerBlock(config)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("rows", [np.array([0, 3, 8]), np.array([0, 3]), [0, 3, 4], "middle"])
def test_rows_outside_never_reach_a_kernel(norm, rows):
    with pytest.raises(FastformerError, match="rows must be"):
        make_block("reference", norm=norm).forward(np.zeros((8, WIDTH)), BATCH, rows)
