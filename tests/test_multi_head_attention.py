"""Multi-head attention: the formula, the gradient of each weight by name, packing, chosen rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import (
    BACKENDS,
    assert_each_slope,
    assert_gradients_on_both_backends,
    make_batch,
    same_bits,
    shaken,
)

import fastformer as ff
from fastformer.errors import FastformerError, InvalidTypeError, InvalidValueError
from fastformer.kernels.attention import attention_gradient
from fastformer.kernels.dropout import dropout
from fastformer.layers.dropout import DropoutCounter
from fastformer.layers.relative_positions import RelativePositions
from fastformer.program import Program

WIDTH, HEADS = 6, 2
BATCH = make_batch((3, 1, 4))
OPTIONS = [
    {"qkv_bias": True, "output_bias": True}, {"dropout": 0.3},
    {"num_kv_heads": 1, "qkv_bias": True, "output_bias": True}, {"head_size": 5},
    {"num_kv_heads": 1, "qk_norm": True, "head_size": 4},
]  # fmt: skip
CHOSEN = {"last": np.array([2, 3, 7]), "first": np.array([0, 3, 4])}
PROJECTIONS = {"W_q": "query", "W_k": "key", "W_v": "value", "W_o": "output"}


def rotary_positions(width, heads):
    return RelativePositions("rotary", width, heads, 9, dtype="float64")


def make_layer(backend="numba", dtype="float64", dropout=0.0, **options):
    counter = DropoutCounter(seed=3)
    counter.training, counter.forwards = dropout > 0, 2
    options |= {"dropout": dropout, "counter": counter, "seed": 1}
    return shaken(ff.MultiHeadAttention(WIDTH, HEADS, **options, backend=backend, dtype=dtype))


def formula(x, weights, batch, causal):
    """Compute the layer one sequence, head and query at a time; return it and the weights."""
    q, k, v = (x @ weights[f"{name}.weight"] for name in ("query", "key", "value"))
    if "query.bias" in weights:
        q, k, v = (
            y + weights[f"{name}.bias"]
            for y, name in zip((q, k, v), ("query", "key", "value"), strict=True)
        )
    attended = np.zeros_like(x)
    kept = np.zeros((batch.num_sequences, HEADS, batch.longest, batch.longest))
    D = WIDTH // HEADS
    for b, (first, last) in enumerate(zip(batch.offsets[:-1], batch.offsets[1:], strict=True)):
        for head in range(HEADS):
            part = slice(head * D, (head + 1) * D)
            for i in range(first, last):
                seen = slice(first, i + 1 if causal else last)
                e = np.exp(k[seen, part] @ q[i, part] / np.sqrt(D))
                p = e / e.sum()
                kept[b, head, i - first, : p.size] = p
                attended[i, part] = p @ v[seen, part]
    return attended @ weights["output.weight"] + weights.get("output.bias", 0), kept


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_formula(rng, backend, causal, bias):
    layer = make_layer(backend, causal=causal, qkv_bias=bias, output_bias=bias)
    weights = layer.state_dict()
    shapes = {f"{name}.weight": (WIDTH, WIDTH) for name in PROJECTIONS.values()}
    shapes |= {f"{name}.bias": (WIDTH,) for name in PROJECTIONS.values() if bias}
    assert {name: value.shape for name, value in weights.items()} == shapes
    x, residual = rng.standard_normal((2, 8, WIDTH))
    expected, kept = formula(x, weights, BATCH, causal)
    np.testing.assert_allclose(layer.forward(x, BATCH), expected, 1e-10, 1e-12)
    np.testing.assert_allclose(layer.weights(), kept, 1e-10, 1e-14)
    assert (layer.weights() == 0)[kept == 0].all()
    out = layer.forward(x, BATCH, residual=residual)
    np.testing.assert_allclose(out, expected + residual, 1e-10, 1e-12)


def gradients_of_weights(layer, x):
    """Return a loss, and run backward for it."""
    dout = np.random.default_rng(4).standard_normal(x.shape)
    layer.zero_grad()
    layer.forward(x, BATCH)
    layer.backward(dout.copy())
    return lambda: float(np.vdot(dout, layer.forward(x, BATCH)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_gradient_of_each_weight(rng, backend, causal, projection):
    """Each element of W_q, W_k, W_v and W_o against differences."""
    layer = make_layer(backend, causal=causal)
    loss = gradients_of_weights(layer, rng.standard_normal((8, WIDTH)))
    views = {name: (value, gradient) for name, value, gradient in layer.parameters()}
    value, gradient = views[f"{PROJECTIONS[projection]}.weight"]
    assert_each_slope(loss, value, gradient, projection)


@pytest.mark.smoke
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wrong", ["W_q", "W_k"])
def test_the_value_s_gradient_for_queries_or_keys_is_noticed(rng, monkeypatch, backend, wrong):
    """llmlearn gives W_q and W_k the gradient of W_v; the check above must fail then."""
    right = Program.add

    def planted(self, op, **fields):
        made = right(self, op, **fields)
        if op is attention_gradient:
            wrong_place = fields["dq" if wrong == "W_q" else "dk"]
            copied = {"rate": 0.0, "seed": 0, "call": 0, "place": 0, "out": wrong_place}
            right(self, dropout, x=fields["dv"], **copied)
        return made

    monkeypatch.setattr(Program, "add", planted)
    layer = make_layer(backend)
    loss = gradients_of_weights(layer, rng.standard_normal((8, WIDTH)))
    for name, value, gradient in layer.parameters():
        if name == f"{PROJECTIONS[wrong]}.weight":
            with pytest.raises(AssertionError, match="Not equal to tolerance"):
                assert_each_slope(loss, value, gradient, name)
        else:
            assert_each_slope(loss, value, gradient, name)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "options",
    OPTIONS,
)
def test_gradients(rng, causal, options):
    """By x, by the residual, and by each parameter, biases too."""
    x, residual = rng.standard_normal((2, 8, WIDTH))
    assert_gradients_on_both_backends(
        lambda backend: make_layer(backend, causal=causal, **options),
        lambda layer, x, residual: layer.forward(x, BATCH, residual=residual),
        lambda layer, dout: (layer.backward(dout), dout),
        *(x, residual),
    )


@pytest.mark.parametrize(("rows", "causal"), [("first", 0), ("last", 0), ("last", 1)])
@pytest.mark.parametrize(
    "options",
    OPTIONS,
)
def test_gradients_of_chosen_rows(rng, rows, causal, options):
    """By x and by the residual, which has those rows alone."""
    assert_gradients_on_both_backends(
        lambda backend: make_layer(backend, causal=bool(causal), **options),
        lambda layer, x, residual: layer.forward(x, BATCH, rows=rows, residual=residual),
        lambda layer, dout: (layer.backward(dout), dout),
        *(rng.standard_normal((8, WIDTH)), rng.standard_normal((3, WIDTH))),
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("rows", "causal"), [("first", 0), ("last", 0), ("last", 1)])
def test_chosen_rows_are_those_of_all(rng, backend, rows, causal):
    layer = make_layer(backend, causal=bool(causal))
    x = rng.standard_normal((8, WIDTH))
    expected = layer.forward(x, BATCH)[CHOSEN[rows]].copy()
    weights = layer.weights()
    np.testing.assert_allclose(layer.forward(x, BATCH, rows=rows), expected, 1e-12, 1e-14)
    for b, query in enumerate(CHOSEN[rows] - BATCH.offsets[:-1]):
        np.testing.assert_allclose(layer.weights()[b, :, 0], weights[b, :, query], 1e-12, 1e-15)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [None, "last"])
def test_shared_heads_are_a_layer_whose_heads_have_the_same_weights(rng, backend, rows):
    options = {
        "causal": True,
        "qkv_bias": True,
        "output_bias": True,
        "positions": rotary_positions(8, 4),
    }
    shared, full = (
        shaken(
            ff.MultiHeadAttention(8, 4, num_kv_heads=n, backend=backend, **options, dtype="float64")
        )
        for n in (2, 0)
    )
    weights = shared.state_dict()
    for name in ("key.weight", "value.weight", "key.bias", "value.bias"):
        columns = weights[name].reshape(*weights[name].shape[:-1], 2, 1, 2)
        spread = np.broadcast_to(columns, (*columns.shape[:-2], 2, 2))
        weights[name] = spread.reshape(*weights[name].shape[:-1], 8)
    full.load_state_dict(weights)
    x = rng.standard_normal((8, 8))
    expected = full.forward(x, BATCH, rows=rows)
    np.testing.assert_allclose(shared.forward(x, BATCH, rows=rows), expected, 1e-12, 1e-14)
    np.testing.assert_allclose(shared.weights(), full.weights(), 1e-12, 1e-14)
    dout = rng.standard_normal(expected.shape)
    np.testing.assert_allclose(shared.backward(dout), full.backward(dout), 1e-11, 1e-13)
    assert "num_kv_heads=2" in repr(shared) and "num_kv_heads" not in repr(full)


@settings(max_examples=15)
@given(lengths=st.lists(st.integers(1, 9), min_size=2, max_size=5), causal=st.booleans())
def test_sequences_do_not_see_each_other(lengths, causal):
    """Other tokens elsewhere change no bit here, and alone a sequence gives the same."""
    random = np.random.default_rng(0)
    layer = make_layer(causal=causal)
    batch = make_batch(lengths)
    x = random.standard_normal((batch.num_tokens, WIDTH))
    out = layer.forward(x, batch).copy()
    for first, last in zip(batch.offsets[:-1], batch.offsets[1:], strict=True):
        others = random.standard_normal(x.shape)
        others[first:last] = x[first:last]
        assert same_bits(layer.forward(others, batch)[first:last], out[first:last])
        alone = layer.forward(x[first:last].copy(), make_batch([last - first]))
        np.testing.assert_allclose(alone, out[first:last], 1e-12, 1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_stay_in_their_sequence(rng, backend):
    layer = make_layer(backend)
    layer.forward(rng.standard_normal((8, WIDTH)), BATCH)
    dout = np.zeros((8, WIDTH))
    dout[3] = 1
    dx = layer.backward(dout)
    assert np.flatnonzero(dx.any(axis=1)).tolist() == [3]


VALUE, TYPE = InvalidValueError, InvalidTypeError


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((8, 3), {}, VALUE, r"num_heads must divide embed_dim, got num_heads=3 .* nearest .* 2;"),
        ((8, 16), {}, VALUE, r"num_heads must divide embed_dim, got num_heads=16"),
        ((8, 0), {}, VALUE, r"num_heads must be an integer >= 1, got 0"),
        ((8, True), {}, TYPE, r"num_heads must be an integer >= 1, got True"),
        ((-8, 2), {}, VALUE, r"embed_dim must be an integer >= 1, got -8"),
        ((8.0, 2), {}, TYPE, r"embed_dim must be an integer >= 1, got 8.0"),
        ((8, 2), {"causal": 1}, TYPE, r"causal must be True or False, got 1"),
        ((8, 2), {"qkv_bias": "yes"}, TYPE, r"qkv_bias must be True or False, got 'yes'"),
        ((8, 2), {"output_bias": 1}, TYPE, r"bias must be True or False, got 1"),
        ((8, 3), {"head_size": -4}, VALUE, r"head_size must be an integer >= 0, got -4"),
        ((8, 4), {"num_kv_heads": 3}, VALUE, r"got num_kv_heads=3 and num_heads=4; .* is [24]$"),
        ((8, 4), {"num_kv_heads": 8}, VALUE, r"num_kv_heads must divide num_heads"),
        ((8, 4), {"num_kv_heads": -1}, VALUE, r"num_kv_heads must be an integer >= 0, got -1"),
        ((8, 2), {"dropout": 2}, VALUE, r"must be .*>= 0 and < 1, got 2"),
    ],
)
def test_construction_refuses(arguments, options, error, message):
    with pytest.raises(error, match=message):
        ff.MultiHeadAttention(*arguments, **options)


def test_rows_that_change_after_forward(rng):
    layer, rows = make_layer(), np.array([1, 3, 5])
    x, dout = rng.standard_normal((8, WIDTH)), rng.standard_normal((3, WIDTH))
    expected = layer.forward(x, BATCH)[rows].copy()
    np.testing.assert_allclose(layer.forward(x, BATCH, rows=rows), expected, 1e-12, 1e-14)
    dx = layer.backward(dout).copy()
    for planted in (0, 10**12, -1):
        rows[:] = 1, 3, 5
        layer.forward(x, BATCH, rows=rows)
        rows[:] = planted
        assert same_bits(layer.backward(dout), dx)
        with pytest.raises(InvalidValueError, match="rows must be"):
            layer.forward(x, BATCH, rows=rows)


@pytest.mark.parametrize(
    "rows",
    [
        np.array([0, 3, 8]), np.array([-1, 3, 7]), np.array([0, 3]), np.array([0.0, 3.0, 4.0]),
        np.array([[0, 3, 4]]), np.array([0, 3, 4], np.int32), np.array([2**40, 3, 4]),
        [0, 3, 4], "all", 1,
    ],
)  # fmt: skip
def test_rows_outside_never_reach_a_kernel(rows):
    with pytest.raises(FastformerError, match="rows must be"):
        make_layer("reference").forward(np.zeros((8, WIDTH)), BATCH, rows=rows)


def test_a_causal_layer_s_first_rows_are_refused():
    with pytest.raises(InvalidValueError, match="rows must be 'last' or None"):
        make_layer(causal=True).forward(np.zeros((8, WIDTH)), BATCH, rows="first")
    with pytest.raises(InvalidValueError, match="rows must be 'last' or None"):
        make_layer(causal=True).forward(np.zeros((8, WIDTH)), BATCH, rows=np.array([2, 3, 7]))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("residual", [np.zeros((7, WIDTH)), np.zeros((8, WIDTH), np.float32)])
def test_a_residual_that_does_not_fit_is_refused(dropout, residual):
    layer = make_layer("reference", dropout=dropout)
    with pytest.raises(FastformerError, match=r"residual must be \(8, 6\) float64"):
        layer.forward(np.zeros((8, WIDTH)), BATCH, residual=residual)
