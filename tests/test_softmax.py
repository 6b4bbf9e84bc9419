"""Softmax: twin, gradient, extreme logits, threads."""

import math

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
    library_calls,
    run,
)

from fastformer.kernels._compile import kernel
from fastformer.kernels._rows import MOST_TASKS, TASK_ELEMENTS, row_tasks
from fastformer.kernels.softmax import (
    _softmax_forward_row,
    softmax_backward,
    softmax_backward_reference,
    softmax_forward,
    softmax_forward_reference,
)

row_tasks = called(row_tasks)


def check_forward(x):
    return assert_equals_twin(softmax_forward, softmax_forward_reference, x, Out(x.shape))


def check_backward(dout, out):
    shape = Out(out.shape)
    return assert_equals_twin(softmax_backward, softmax_backward_reference, dout, out, shape)


def probabilities(x):
    return run(softmax_forward_reference, x, Out(x.shape), dtype=np.float64)[0]


@pytest.mark.smoke
@pytest.mark.parametrize("columns", EDGE_COLUMNS)
@pytest.mark.parametrize("rows", [0, 1, 17])
def test_equals_twin(rng, rows, columns):
    x = 3 * rng.standard_normal((rows, columns))
    (out,) = check_forward(x)
    np.testing.assert_allclose(out.sum(axis=1), 1, rtol=1e-6)
    check_backward(rng.standard_normal(x.shape), probabilities(x))


def test_long_rows_equal_twin(rng):
    """A chain of equal terms is rounded in one direction: it would be off by 300 roundings."""
    x = np.zeros((2, 151_936))
    x[0, 0] = 5
    x[1] = rng.standard_normal(x.shape[1])
    check_forward(x)
    # Of equal shares, so that the products are equal, too.
    check_backward(np.full(x.shape, 1.3), np.full(x.shape, 1 / x.shape[1]))


@settings(max_examples=40)
@given(rows=st.integers(0, 50), columns=st.integers(1, 200), seed=st.integers(0, 2**32))
def test_equals_twin_for_any_shape(rows, columns, seed):
    x, dout = np.random.default_rng(seed).standard_normal((2, rows, columns))
    check_forward(x)
    check_backward(dout, probabilities(x))


def test_gradient():
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (3, 5)):
        assert_gradients(
            lambda x: run(softmax_forward_reference, x, Out(x.shape), dtype=np.float64)[0],
            lambda dout, x: run(
                softmax_backward_reference, dout, probabilities(x), Out(x.shape), dtype=np.float64
            ),
            rng.standard_normal(shape),
        )


def test_extreme_logits():
    inf = np.inf
    x = np.array([[1e4, -1e4, 0, 9e3, -inf], [-inf] * 4 + [3], [-1e4] * 5, [7] * 5])
    (out,) = check_forward(x)
    np.testing.assert_array_equal(out[:2], [[1, 0, 0, 0, 0], [0, 0, 0, 0, 1]])
    np.testing.assert_allclose(out[2:], 0.2, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [-1e38, 1e38, -3.4e38])
def test_constant_row_of_huge_logits(dtype, value):
    (out,) = run(softmax_forward, np.full((2, 5), value), Out((2, 5)), dtype=dtype)
    np.testing.assert_allclose(out, 0.2, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("column", [0, 15, 16, 36])
def test_nan_stays_visible(rng, dtype, column):
    x = rng.standard_normal((3, 37))
    x[1, column] = np.nan
    (out,) = run(softmax_forward, x, Out(x.shape), dtype=dtype)
    assert np.isnan(out[1]).all()
    assert np.isfinite(out[[0, 2]]).all()


def test_row_without_a_finite_logit_is_nan():
    (out,) = run(softmax_forward, np.full((1, 20), -np.inf), Out((1, 20)))
    assert np.isnan(out).all()


def test_in_place(rng):
    x = rng.standard_normal((5, 37)).astype(np.float32)
    dout, out = rng.standard_normal(x.shape).astype(np.float32), x.copy()
    softmax_forward(out, out)
    np.testing.assert_array_equal(out, run(softmax_forward, x, Out(x.shape))[0])
    dx = dout.copy()
    softmax_backward(dx, out, dx)
    np.testing.assert_array_equal(dx, run(softmax_backward, dout, out, Out(x.shape))[0])


@given(rows=st.integers(0, 10**6), columns=st.integers(1, 10**5))
def test_row_tasks_are_few_and_worth_their_start(rows, columns):
    tasks = row_tasks(rows, columns)
    assert 1 <= tasks <= max(1, min(rows, MOST_TASKS))
    assert tasks == 1 or rows * columns // tasks >= TASK_ELEMENTS


def test_same_bits_for_any_threads(rng):
    x, dout = rng.standard_normal((2, 300, 67))
    assert row_tasks(*x.shape) > 3
    assert_same_bits(softmax_forward, x, Out(x.shape))
    assert_same_bits(softmax_backward, dout, probabilities(x), Out(x.shape))


@kernel
def _library_exp(x):
    for i in range(x.size):
        x[i] = math.exp(x[i])


@pytest.mark.parametrize("dtype", DTYPES)
def test_calls_no_exp_of_the_c_library(dtype):
    x = np.empty((1, 1), dtype)
    assert not library_calls(assembly(_softmax_forward_row, 0, x, x))
    assert library_calls(assembly(_library_exp, np.empty(1, dtype)))
