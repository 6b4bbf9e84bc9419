"""Layer normalisation: twin, gradient, extreme rows, accumulation, threads."""

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
from fastformer.kernels.layernorm import (
    _layernorm_forward_row,
    layernorm_backward,
    layernorm_backward_reference,
    layernorm_forward,
    layernorm_forward_reference,
)

row_tasks = called(row_tasks)

EPSILON = 1e-5
NONE = np.empty((0, 0))


def forward_arguments(x, weight, bias):
    mean = Out(x.shape[:1], scale=1.0)
    return x, weight, bias, EPSILON, Out(x.shape), mean, Out(x.shape[:1])


def saved(x):
    """Return mean and rstd in float64."""
    ones = np.ones(x.shape[1])
    return run(layernorm_forward_reference, *forward_arguments(x, ones, ones), dtype=np.float64)[1:]


def backward_arguments(dout, x, weight, residual, start=0.0):
    parameter = Out(weight.shape, start, scale=1.0)
    return dout, x, weight, *saved(x), residual, Out(x.shape, scale=1.0), parameter, parameter


def check(rng, rows, columns):
    x, dout, residual = rng.standard_normal((3, rows, columns))
    weight, bias, start = rng.standard_normal((3, columns))
    assert_equals_twin(
        layernorm_forward, layernorm_forward_reference, *forward_arguments(2 * x + 1, weight, bias)
    )
    for other in (residual, NONE):
        assert_equals_twin(
            layernorm_backward,
            layernorm_backward_reference,
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


@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (1, 2)])
def test_gradient(rng, rows, columns):
    def forward(x, weight, bias, residual):
        arguments = forward_arguments(x, weight, bias)
        return run(layernorm_forward_reference, *arguments, dtype=np.float64)[0]

    def backward(dout, x, weight, bias, residual):
        arguments = backward_arguments(dout, x, weight, NONE)
        gradients = run(layernorm_backward_reference, *arguments, dtype=np.float64)
        return *gradients, np.zeros_like(residual)

    x = 2 * rng.standard_normal((rows, columns)) + 1
    weight, bias = rng.standard_normal((2, columns))
    assert_gradients(forward, backward, x, weight, bias, np.zeros((1, 1)))


def test_residual_is_added(rng):
    x, dout, residual = rng.standard_normal((3, 5, 19))
    weight = rng.standard_normal(19)
    plain = run(layernorm_backward, *backward_arguments(dout, x, weight, NONE), dtype=np.float64)
    full = run(layernorm_backward, *backward_arguments(dout, x, weight, residual), dtype=np.float64)
    np.testing.assert_allclose(full[0], plain[0] + residual, rtol=1e-14)


def test_one_column_and_constant_rows_give_the_bias(rng):
    for columns in (1, 20):
        weight, bias = rng.standard_normal((2, columns)).astype(np.float32)
        x = np.full((3, columns), [[0.0], [5.0], [-1e4]])
        out, mean, rstd = run(layernorm_forward, *forward_arguments(x, weight, bias))
        np.testing.assert_array_equal(out, np.broadcast_to(bias, x.shape))
        np.testing.assert_array_equal(mean, [0, 5, -1e4])
        np.testing.assert_allclose(rstd, 1 / np.sqrt(EPSILON), rtol=1e-6)


@pytest.mark.parametrize("columns", [67, 768, 65_536])
@pytest.mark.parametrize(("mean", "spread"), [(0, 1e4), (1e3, 1), (1e4, 0.1), (-3e6, 1)])
def test_large_values_and_small_spread(rng, columns, mean, spread):
    """What the rounding of the mean leaves out is seen beside a small spread, and is made good.

    The twin does not: so the kernel is held to float64, and more strictly.
    """
    x = (mean + spread * rng.standard_normal((4, columns))).astype(np.float32).astype(np.float64)
    ones = np.ones(columns)
    arguments = forward_arguments(x, ones, ones)
    out, *_ = assert_equals_twin(layernorm_forward, layernorm_forward_reference, *arguments)
    truth, *_ = run(layernorm_forward_reference, *arguments, dtype=np.float64)
    np.testing.assert_allclose(out, truth, rtol=1e-6, atol=1e-6)
    assert_equals_twin(
        layernorm_backward,
        layernorm_backward_reference,
        *backward_arguments(1 + rng.standard_normal(x.shape), x, ones, NONE),
    )


def test_rows_of_one_large_value_are_no_noise():
    """Where the mean is rounded, all that is left of a row may be that rounding."""
    for columns in (3, 67, 1000):
        x = np.full((3, columns), [[1e8], [0.1], [-12345.678]])
        out, *_ = run(layernorm_forward, *forward_arguments(x, np.ones(columns), np.ones(columns)))
        np.testing.assert_array_equal(out, 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("column", [0, 15, 16, 36])
def test_nan_stays_visible(rng, dtype, column):
    x = rng.standard_normal((3, 37))
    ones = np.ones(37)
    x[1, column] = np.nan
    out, mean, rstd = run(layernorm_forward, *forward_arguments(x, ones, ones), dtype=dtype)
    for values in (out, mean, rstd):
        assert np.isnan(values[1]).all()
        assert np.isfinite(values[[0, 2]]).all()


def test_second_backward_doubles_parameter_gradients(rng):
    x, dout = rng.standard_normal((2, 300, 37)).astype(np.float32)
    weight = rng.standard_normal(37).astype(np.float32)
    mean, rstd = (value.astype(np.float32) for value in saved(x))
    dx, (dweight, dbias) = np.full_like(x, np.nan), np.zeros((2, 37), np.float32)
    once = None
    for _ in range(2):
        layernorm_backward(
            dout, x, weight, mean, rstd, np.empty((0, 0), np.float32), dx, dweight, dbias
        )
        once = once or (dx.copy(), dweight.copy(), dbias.copy())
    np.testing.assert_array_equal(dx, once[0])
    np.testing.assert_array_equal(dweight, 2 * once[1])
    np.testing.assert_array_equal(dbias, 2 * once[2])


def test_same_bits_for_any_threads(rng):
    x, dout, residual = rng.standard_normal((3, 300, 67))
    weight, bias = rng.standard_normal((2, 67))
    assert row_tasks(*x.shape) > 3
    assert_same_bits(layernorm_forward, *forward_arguments(x, weight, bias))
    assert_same_bits(layernorm_backward, *backward_arguments(dout, x, weight, residual))


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads x86 assembly")
@pytest.mark.parametrize("dtype", DTYPES)
def test_has_fused_multiply_adds_of_full_width(dtype):
    row = np.empty(1, dtype)
    text = assembly(_layernorm_forward_row, 0, row, row, row, EPSILON, row, row, row)
    assert has_full_width_fma(text)
