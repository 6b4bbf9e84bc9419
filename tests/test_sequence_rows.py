"""Pooling of packed sequences: twins, gradients, accumulation, threads."""

import numpy as np
import pytest
from gradients import assert_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import DTYPES, EDGE_COLUMNS, Out, assert_equals_twin, assert_same_bits, called, run

from fastformer.kernels._rows import row_tasks
from fastformer.kernels.sequence_rows import (
    gather_rows,
    gather_rows_reference,
    mean_backward,
    mean_backward_reference,
    mean_forward,
    mean_forward_reference,
    scatter_rows,
    scatter_rows_reference,
)

row_tasks = called(row_tasks)

LENGTHS = [[], [1], [3], [1, 7, 2], [5, 1, 1, 16, 4]]


def offsets_of(lengths):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def check(rng, lengths, columns):
    offsets, sequences = offsets_of(lengths), len(lengths)
    x = rng.standard_normal((offsets[-1], columns))
    dout = rng.standard_normal((sequences, columns))
    rows = rng.permutation(offsets[-1])[:sequences]
    assert_equals_twin(gather_rows, gather_rows_reference, x, rows, Out(dout.shape))
    assert_equals_twin(scatter_rows, scatter_rows_reference, dout, rows, Out(x.shape, x))
    assert_equals_twin(mean_forward, mean_forward_reference, x, offsets, Out(dout.shape))
    assert_equals_twin(mean_backward, mean_backward_reference, dout, offsets, Out(x.shape))


@pytest.mark.parametrize("columns", EDGE_COLUMNS)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_equals_twin(rng, lengths, columns):
    check(rng, lengths, columns)


@pytest.mark.parametrize("columns", [1, 5])
def test_means_of_long_sequences_equal_twin(columns):
    """A chain of equal terms is rounded in one direction; NumPy makes none of a single column."""
    x, offsets = np.full((100_000, columns), 0.7), np.array([0, 3, 100_000])
    out = Out((2, columns))
    (means,) = assert_equals_twin(mean_forward, mean_forward_reference, x, offsets, out)
    np.testing.assert_allclose(means, 0.7, rtol=2e-7)


@settings(max_examples=30)
@given(
    lengths=st.lists(st.integers(1, 20), max_size=30),
    columns=st.integers(1, 150),
    seed=st.integers(0, 2**32),
)
def test_equals_twin_for_any_shape(lengths, columns, seed):
    check(np.random.default_rng(seed), lengths, columns)


def test_gradient(rng):
    offsets, rows = offsets_of([1, 3, 2]), np.array([5, 0, 3])
    x = rng.standard_normal((6, 2))
    assert_gradients(
        lambda x: run(gather_rows_reference, x, rows, Out((3, 2)), dtype=np.float64)[0],
        lambda dout, x: run(
            scatter_rows_reference, dout, rows, Out(x.shape, 0.0), dtype=np.float64
        ),
        x,
    )
    assert_gradients(
        lambda x: run(mean_forward_reference, x, offsets, Out((3, 2)), dtype=np.float64)[0],
        lambda dout, x: run(mean_backward_reference, dout, offsets, Out(x.shape), dtype=np.float64),
        x,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_scatter_accumulates(rng, dtype):
    dout, rows = rng.standard_normal((3, 37)).astype(dtype), np.array([4, 0, 2])
    dx = np.zeros((5, 37), dtype)
    expected = np.zeros((5, 37), dtype)
    expected[rows] = dout
    for calls in (1, 2):
        scatter_rows(dout, rows, dx)
        np.testing.assert_array_equal(dx, calls * expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_stays_in_its_sequence(rng, dtype):
    x = rng.standard_normal((6, 19))
    x[4, 18] = np.nan
    (out,) = run(mean_forward, x, offsets_of([3, 2, 1]), Out((3, 19)), dtype=dtype)
    np.testing.assert_array_equal(np.argwhere(np.isnan(out)), [[1, 18]])


def test_same_bits_for_any_threads(rng):
    sequences, columns = 300, 67
    lengths = rng.integers(1, 6, sequences)
    offsets = offsets_of(lengths)
    x = rng.standard_normal((offsets[-1], columns))
    dout = rng.standard_normal((sequences, columns))
    rows = rng.permutation(len(x))[:sequences]
    assert row_tasks(sequences, columns) > 3
    assert_same_bits(gather_rows, x, rows, Out(dout.shape))
    assert_same_bits(scatter_rows, dout, rows, Out(x.shape, x))
    assert_same_bits(mean_forward, x, offsets, Out(dout.shape))
    assert_same_bits(mean_backward, dout, offsets, Out(x.shape))
