"""The gate of SwiGLU: twin, gradient, extreme values, threads."""

import numpy as np
import pytest
from gradients import assert_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import DTYPES, EDGE_COLUMNS, Out, assert_equals_twin, assert_same_bits
from twins import run_rows as run

from fastformer.kernels.activation import CHUNK
from fastformer.kernels.swiglu import (
    swiglu_backward,
    swiglu_backward_reference,
    swiglu_forward,
    swiglu_forward_reference,
)


def check(rng, *shape):
    gate, x, dout = 3 * rng.standard_normal((3, *shape))
    assert_equals_twin(swiglu_forward, swiglu_forward_reference, gate, x, Out(shape))
    outs = Out(shape), Out(shape)
    assert_equals_twin(swiglu_backward, swiglu_backward_reference, dout, gate, x, *outs)


@pytest.mark.smoke
@pytest.mark.parametrize("columns", EDGE_COLUMNS)
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_equals_twin(rng, rows, columns):
    check(rng, rows, columns)


@pytest.mark.parametrize("size", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
def test_chunk_edges_equal_twin(rng, size):
    check(rng, 1, size)


@settings(max_examples=25)
@given(rows=st.integers(0, 50), columns=st.integers(0, 200), seed=st.integers(0, 2**32))
def test_equals_twin_for_any_shape(rows, columns, seed):
    check(np.random.default_rng(seed), rows, columns)


def test_is_its_formula():
    gate, x = np.linspace(-20, 20, 1001), np.linspace(3, -2, 1001)
    (out,) = run(swiglu_forward, gate, x, Out(x.shape), dtype=np.float64)
    np.testing.assert_allclose(out, gate / (1 + np.exp(-gate)) * x, rtol=1e-12)


def test_gradient(rng):
    def forward(gate, x):
        return run(swiglu_forward_reference, gate, x, Out(x.shape), dtype=np.float64)[0]

    def backward(dout, gate, x):
        outs = Out(x.shape), Out(x.shape)
        return run(swiglu_backward_reference, dout, gate, x, *outs, dtype=np.float64)

    gate, x = 2 * rng.standard_normal((2, 4, 5))
    assert_gradients(forward, backward, gate, x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_gates(dtype):
    gate = np.array([1e4, np.inf, -1e4, 0.0, 1e-30])
    ones, outs = np.ones(5), (Out((5,)), Out((5,)))
    (out,) = run(swiglu_forward, gate, ones, Out((5,)), dtype=dtype)
    np.testing.assert_allclose(out, np.array([1e4, np.inf, 0, 0, 5e-31], dtype), rtol=1e-6)
    dgate, dx = run(swiglu_backward, ones, gate, ones, *outs, dtype=dtype)
    np.testing.assert_allclose(dgate, [1, 1, 0, 0.5, 0.5], rtol=1e-6)
    np.testing.assert_array_equal(dx, out)


@pytest.mark.parametrize("backward", [swiglu_backward, swiglu_backward_reference])
@pytest.mark.parametrize("dtype", DTYPES)
def test_slope_is_zero_or_one_from_far_out_to_infinity(backward, dtype):
    largest = float(np.finfo(dtype).max)
    far = np.array([2e3, largest**0.6, 0.3 * largest, largest])
    ones, outs = np.ones(far.shape), (Out(far.shape), Out(far.shape))
    for gate, slope in ((far, 1), (-far, 0)):
        dgate, dx = run(backward, ones, gate, ones, *outs, dtype=dtype)
        np.testing.assert_array_equal(dgate, slope)
        np.testing.assert_array_equal(dx, gate.astype(dtype) * slope)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_nan_stays_visible(rng, dtype, which):
    arrays = list(rng.standard_normal((3, 37)))
    arrays[which][[0, 15, 36]] = np.nan
    outs = Out((37,)), Out((37,))
    dgate, dx = run(swiglu_backward, *arrays, *outs, dtype=dtype)
    np.testing.assert_array_equal(np.isnan(dgate), np.isnan(arrays[which]))
    if which < 2:
        np.testing.assert_array_equal(np.isnan(dx), np.isnan(arrays[which]))
    if which > 0:
        (out,) = run(swiglu_forward, *arrays[1:], Out((37,)), dtype=dtype)
        np.testing.assert_array_equal(np.isnan(out), np.isnan(arrays[which]))


def test_in_place_over_several_tasks(rng):
    """As the feed-forward layer calls it: the gradient that comes in is overwritten."""
    gate, x, dout = rng.standard_normal((3, 3, CHUNK + 37)).astype(np.float32)
    outs = Out(x.shape), Out(x.shape)
    expected = run(swiglu_backward_reference, dout, gate, x, *outs)
    dgate, dx = np.empty_like(x), dout.copy()
    swiglu_backward(dx, gate, x, dgate, dx)
    np.testing.assert_allclose(dgate, expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dx, expected[1], rtol=1e-5, atol=1e-6)
    out = gate.copy()
    swiglu_forward(out, x, out)
    (expected,) = run(swiglu_forward_reference, gate, x, Out(x.shape))
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_same_bits_for_any_threads(rng):
    gate, x, dout = rng.standard_normal((3, 4, CHUNK + 5))
    assert x.size > 3 * CHUNK
    assert_same_bits(swiglu_forward, gate, x, Out(x.shape))
    assert_same_bits(swiglu_backward, dout, gate, x, Out(x.shape), Out(x.shape))
