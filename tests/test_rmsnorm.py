"""Root mean square normalisation: twin, gradient, extreme rows, accumulation, threads."""

import platform

import numpy as np
import pytest
from gradients import assert_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import (
    DTYPES,
    EDGE_COLUMNS,
    Out,
    assembly,
    assert_equals_twin,
    assert_same_bits,
    called,
    has_full_width_fma,
    run,
)

from fastformer.kernels._rows import row_tasks
from fastformer.kernels.rmsnorm import (
    _rmsnorm_forward_row,
    rmsnorm_backward,
    rmsnorm_backward_reference,
    rmsnorm_forward,
    rmsnorm_forward_reference,
)

row_tasks = called(row_tasks)

EPSILON = 1e-5
NONE = np.empty((0, 0))


def forward_arguments(x, weight):
    return x, weight, EPSILON, Out(x.shape), Out(x.shape[:1])


def saved(x):
    """Return rrms in float64."""
    arguments = forward_arguments(x, np.ones(x.shape[1]))
    return run(rmsnorm_forward_reference, *arguments, dtype=np.float64)[1]


def backward_arguments(dout, x, weight, residual, start=0.0):
    dweight = Out(weight.shape, start, scale=1.0)
    return dout, x, weight, saved(x), residual, Out(x.shape, scale=1.0), dweight


def check(rng, rows, columns):
    x, dout, residual = rng.standard_normal((3, rows, columns))
    weight, start = rng.standard_normal((2, columns))
    assert_equals_twin(
        rmsnorm_forward, rmsnorm_forward_reference, *forward_arguments(2 * x + 1, weight)
    )
    for other in (residual, NONE):
        assert_equals_twin(
            rmsnorm_backward,
            rmsnorm_backward_reference,
            *backward_arguments(dout, x, weight, other, start),
        )


@pytest.mark.smoke
@pytest.mark.parametrize("columns", EDGE_COLUMNS)
@pytest.mark.parametrize("rows", [0, 1, 17])
def test_equals_twin(rng, rows, columns):
    check(rng, rows, columns)


@settings(max_examples=30)
@given(rows=st.integers(0, 60), columns=st.integers(1, 200), seed=st.integers(0, 2**32))
def test_equals_twin_for_any_shape(rows, columns, seed):
    check(np.random.default_rng(seed), rows, columns)


def test_several_tasks_equal_twin(rng):
    check(rng, 200, 130)


def test_long_rows_equal_twin(rng):
    """A chain of equal terms is rounded in one direction: it would be off by 100 roundings."""
    x = np.full((2, 65_536), 0.7)
    x[1] = rng.standard_normal(x.shape[1])
    weight = np.ones(x.shape[1])
    assert_equals_twin(rmsnorm_forward, rmsnorm_forward_reference, *forward_arguments(x, weight))
    arguments = backward_arguments(np.full(x.shape, 1.3), x, weight, NONE)
    assert_equals_twin(rmsnorm_backward, rmsnorm_backward_reference, *arguments)


@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (2, 1)])
def test_gradient(rng, rows, columns):
    def forward(x, weight):
        arguments = forward_arguments(x, weight)
        return run(rmsnorm_forward_reference, *arguments, dtype=np.float64)[0]

    def backward(dout, x, weight):
        arguments = backward_arguments(dout, x, weight, NONE)
        return run(rmsnorm_backward_reference, *arguments, dtype=np.float64)

    x = 2 * rng.standard_normal((rows, columns)) + 1
    assert_gradients(forward, backward, x, rng.standard_normal(columns))


def test_residual_is_added(rng):
    x, dout, residual = rng.standard_normal((3, 5, 19))
    weight = rng.standard_normal(19)
    plain = run(rmsnorm_backward, *backward_arguments(dout, x, weight, NONE), dtype=np.float64)
    full = run(rmsnorm_backward, *backward_arguments(dout, x, weight, residual), dtype=np.float64)
    np.testing.assert_allclose(full[0], plain[0] + residual, rtol=1e-14)


def test_rows_of_zeros_and_of_one_value(rng):
    """Zeros stay zeros; a row of one value becomes the weight, with its sign."""
    weight = rng.standard_normal(20).astype(np.float32)
    x = np.full((3, 20), [[0.0], [5.0], [-1e4]])
    out, rrms = run(rmsnorm_forward, *forward_arguments(x, weight))
    np.testing.assert_array_equal(out[0], 0 * weight)
    np.testing.assert_allclose(out[1:], [weight, -weight], rtol=1e-6)
    np.testing.assert_allclose(rrms, [1 / np.sqrt(EPSILON), 0.2, 1e-4], rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_squares_beyond_the_dtype_are_not_hidden(dtype):
    x = np.full((2, 19), [[1.0], [float(np.finfo(dtype).max) / 4]])
    for function in (rmsnorm_forward, rmsnorm_forward_reference):
        with np.errstate(over="ignore"):
            out, rrms = run(function, *forward_arguments(x, np.ones(19)), dtype=dtype)
        assert np.isnan(rrms[1]) and np.isnan(out[1]).all()
        assert np.isfinite(out[0]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("column", [0, 15, 16, 36])
def test_nan_stays_visible(rng, dtype, column):
    x = rng.standard_normal((3, 37))
    x[1, column] = np.nan
    out, rrms = run(rmsnorm_forward, *forward_arguments(x, np.ones(37)), dtype=dtype)
    for values in (out, rrms):
        assert np.isnan(values[1]).all()
        assert np.isfinite(values[[0, 2]]).all()


def test_second_backward_doubles_the_gradient_of_the_weight(rng):
    x, dout = rng.standard_normal((2, 300, 37)).astype(np.float32)
    weight, rrms = rng.standard_normal(37).astype(np.float32), saved(x).astype(np.float32)
    dx, dweight = np.full_like(x, np.nan), np.zeros(37, np.float32)
    once = None
    for _ in range(2):
        rmsnorm_backward(dout, x, weight, rrms, NONE.astype(np.float32), dx, dweight)
        once = once or (dx.copy(), dweight.copy())
    np.testing.assert_array_equal(dx, once[0])
    np.testing.assert_array_equal(dweight, 2 * once[1])


def test_same_bits_for_any_threads(rng):
    x, dout, residual = rng.standard_normal((3, 300, 67))
    weight = rng.standard_normal(67)
    assert row_tasks(*x.shape) > 3
    assert_same_bits(rmsnorm_forward, *forward_arguments(x, weight))
    assert_same_bits(rmsnorm_backward, *backward_arguments(dout, x, weight, residual))


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads x86 assembly")
@pytest.mark.parametrize("dtype", DTYPES)
def test_has_fused_multiply_adds_of_full_width(dtype):
    x, row = np.empty((1, 1), dtype), np.empty(1, dtype)
    assert has_full_width_fma(assembly(_rmsnorm_forward_row, 0, x, row, EPSILON, x, row))
