"""The gates of SwiGLU and GEGLU: twin, gradient, extreme values, threads."""

import math

import numpy as np
import pytest
from gradients import assert_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import DTYPES, EDGE_COLUMNS, Out, assert_equals_twin, assert_same_bits
from twins import run_rows as run

from fastformer.kernels.activation import CHUNK, EXACT_GELU, GELU, SILU
from fastformer.kernels.gated import (
    gated_backward,
    gated_backward_reference,
    gated_forward,
    gated_forward_reference,
)

EACH = pytest.mark.parametrize(
    "activation", [SILU, GELU, EXACT_GELU], ids=["silu", "gelu", "exact_gelu"]
)


def check(rng, activation, *shape):
    gate, x, dout = 3 * rng.standard_normal((3, *shape))
    assert_equals_twin(gated_forward, gated_forward_reference, gate, x, activation, Out(shape))
    outs = activation, Out(shape), Out(shape)
    assert_equals_twin(gated_backward, gated_backward_reference, dout, gate, x, *outs)


@pytest.mark.smoke
@EACH
@pytest.mark.parametrize("columns", EDGE_COLUMNS)
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_equals_twin(rng, activation, rows, columns):
    check(rng, activation, rows, columns)


@EACH
@pytest.mark.parametrize("size", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
def test_chunk_edges_equal_twin(rng, activation, size):
    check(rng, activation, 1, size)


@EACH
@settings(max_examples=25)
@given(rows=st.integers(0, 50), columns=st.integers(0, 200), seed=st.integers(0, 2**32))
def test_equals_twin_for_any_shape(activation, rows, columns, seed):
    check(np.random.default_rng(seed), activation, rows, columns)


FORMULAS = {
    SILU: lambda z: z / (1 + np.exp(-z)),
    GELU: lambda z: z / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))),
    EXACT_GELU: lambda z: z / 2 * np.vectorize(math.erfc)(-z / math.sqrt(2)),
}


@EACH
def test_is_its_formula(activation):
    gate, x = np.linspace(-6, 20, 1001), np.linspace(3, -2, 1001)
    (out,) = run(gated_forward, gate, x, activation, Out(x.shape), dtype=np.float64)
    np.testing.assert_allclose(out, FORMULAS[activation](gate) * x, rtol=1e-12)


@EACH
def test_gradient(rng, activation):
    def forward(gate, x):
        given = gate, x, activation, Out(x.shape)
        return run(gated_forward_reference, *given, dtype=np.float64)[0]

    def backward(dout, gate, x):
        outs = activation, Out(x.shape), Out(x.shape)
        return run(gated_backward_reference, dout, gate, x, *outs, dtype=np.float64)

    gate, x = 2 * rng.standard_normal((2, 4, 5))
    assert_gradients(forward, backward, gate, x)


@EACH
@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_gates(activation, dtype):
    gate = np.array([1e4, np.inf, -1e4, 0.0, 1e-30])
    ones, outs = np.ones(5), (activation, Out((5,)), Out((5,)))
    (out,) = run(gated_forward, gate, ones, activation, Out((5,)), dtype=dtype)
    np.testing.assert_allclose(out, np.array([1e4, np.inf, 0, 0, 5e-31], dtype), rtol=1e-6)
    dgate, dx = run(gated_backward, ones, gate, ones, *outs, dtype=dtype)
    np.testing.assert_allclose(dgate, [1, 1, 0, 0.5, 0.5], rtol=1e-6)
    np.testing.assert_array_equal(dx, out)


@EACH
@pytest.mark.parametrize("backward", [gated_backward, gated_backward_reference])
@pytest.mark.parametrize("dtype", DTYPES)
def test_slope_is_zero_or_one_from_far_out_to_infinity(activation, backward, dtype):
    largest = float(np.finfo(dtype).max)
    far = np.array([2e3, largest**0.6, 0.3 * largest, largest])
    ones, outs = np.ones(far.shape), (activation, Out(far.shape), Out(far.shape))
    for gate, slope in ((far, 1), (-far, 0)):
        dgate, dx = run(backward, ones, gate, ones, *outs, dtype=dtype)
        np.testing.assert_array_equal(dgate, slope)
        np.testing.assert_array_equal(dx, gate.astype(dtype) * slope)


@EACH
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_nan_stays_visible(rng, activation, dtype, which):
    arrays = list(rng.standard_normal((3, 37)))
    arrays[which][[0, 15, 36]] = np.nan
    outs = activation, Out((37,)), Out((37,))
    dgate, dx = run(gated_backward, *arrays, *outs, dtype=dtype)
    np.testing.assert_array_equal(np.isnan(dgate), np.isnan(arrays[which]))
    if which < 2:
        np.testing.assert_array_equal(np.isnan(dx), np.isnan(arrays[which]))
    if which > 0:
        (out,) = run(gated_forward, *arrays[1:], activation, Out((37,)), dtype=dtype)
        np.testing.assert_array_equal(np.isnan(out), np.isnan(arrays[which]))


@EACH
def test_in_place_over_several_tasks(rng, activation):
    """A task that strays into the next one's chunk would apply the gate twice."""
    gate, x, dout = rng.standard_normal((3, 3, CHUNK + 37)).astype(np.float32)
    outs = activation, Out(x.shape), Out(x.shape)
    expected = run(gated_backward_reference, dout, gate, x, *outs)
    dgate, dx = np.empty_like(x), dout.copy()
    gated_backward(dx, gate, x, activation, dgate, dx)
    np.testing.assert_allclose(dgate, expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dx, expected[1], rtol=1e-5, atol=1e-6)
    out = gate.copy()
    gated_forward(out, x, activation, out)
    (expected,) = run(gated_forward_reference, gate, x, activation, Out(x.shape))
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


@EACH
def test_same_bits_for_any_threads(rng, activation):
    gate, x, dout = rng.standard_normal((3, 4, CHUNK + 5))
    assert x.size > 3 * CHUNK
    assert_same_bits(gated_forward, gate, x, activation, Out(x.shape))
    outs = activation, Out(x.shape), Out(x.shape)
    assert_same_bits(gated_backward, dout, gate, x, *outs)
