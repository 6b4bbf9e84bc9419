"""Embedding: twin, gradient, exact scatter, threads."""

import numpy as np
import pytest
from gradients import assert_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import (
    DTYPES,
    EDGE_COLUMNS,
    LANES64,
    Out,
    assert_equals_twin,
    assert_same_bits,
    called,
    run,
)

from fastformer.kernels._rows import row_tasks
from fastformer.kernels.embedding import (
    embedding_backward,
    embedding_backward_reference,
    embedding_forward,
    embedding_forward_reference,
)

row_tasks = called(row_tasks)

VOCABULARY, TIMES = 11, 5


def check(rng, rows, columns):
    tokens, positions = rng.integers(0, VOCABULARY, rows), rng.integers(0, TIMES, rows)
    table = rng.standard_normal((VOCABULARY, columns))
    dout = rng.standard_normal((rows, columns))
    for times in (TIMES, 0):
        position_table = rng.standard_normal((times, columns))
        assert_equals_twin(
            embedding_forward,
            embedding_forward_reference,
            *(tokens, positions, table, position_table, Out((rows, columns))),
        )
    start = Out(table.shape, table)
    assert_equals_twin(embedding_backward, embedding_backward_reference, tokens, dout, start)


@pytest.mark.smoke
@pytest.mark.parametrize("columns", EDGE_COLUMNS)
@pytest.mark.parametrize("rows", [0, 1, 17])
def test_equals_twin(rng, rows, columns):
    check(rng, rows, columns)


@settings(max_examples=30)
@given(rows=st.integers(0, 100), columns=st.integers(1, 150), seed=st.integers(0, 2**32))
def test_equals_twin_for_any_shape(rows, columns, seed):
    check(np.random.default_rng(seed), rows, columns)


def test_gradient(rng):
    tokens, positions = np.array([3, 0, 3, 2]), np.array([0, 1, 2, 0])

    def forward(table, position_table):
        arguments = (tokens, positions, table, position_table, Out((4, 3)))
        return run(embedding_forward_reference, *arguments, dtype=np.float64)[0]

    def backward(dout, table, position_table):
        return [
            run(embedding_backward_reference, ids, dout, Out(given.shape, 0.0), dtype=np.float64)[0]
            for ids, given in ((tokens, table), (positions, position_table))
        ]

    table, position_table = rng.standard_normal((4, 3)), rng.standard_normal((3, 3))
    assert_gradients(forward, backward, table, position_table)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scatter_is_exact_and_accumulates(rng, dtype):
    ids, dout = rng.integers(0, 7, 500), rng.integers(-9, 10, (500, 37))
    expected = np.zeros((7, 37), np.int64)
    np.add.at(expected, ids, dout)
    dtable = np.zeros((7, 37), dtype)
    for calls in (1, 2):
        embedding_backward(ids, dout.astype(dtype), dtable)
        np.testing.assert_array_equal(dtable, calls * expected)


def test_rows_without_a_token_are_not_touched(rng):
    dout = rng.standard_normal((6, 19))
    (dtable,) = run(embedding_backward, np.full(6, 2), dout, Out((4, 19), -0.0))
    assert np.signbit(dtable[[0, 1, 3]]).all()
    assert not (dtable[[0, 1, 3]]).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_stays_visible(rng, dtype):
    dout = rng.standard_normal((3, 19))
    dout[1, 18] = np.nan
    (dtable,) = run(embedding_backward, np.array([0, 2, 2]), dout, Out((3, 19), 0.0), dtype=dtype)
    np.testing.assert_array_equal(np.argwhere(np.isnan(dtable)), [[2, 18]])


def test_same_bits_for_any_threads(rng):
    rows, columns = 300, 67
    tokens, positions = rng.integers(0, VOCABULARY, rows), rng.integers(0, TIMES, rows)
    table = rng.standard_normal((VOCABULARY, columns))
    position_table = rng.standard_normal((TIMES, columns))
    out = Out((rows, columns))
    assert row_tasks(rows, columns) > 3
    assert_same_bits(embedding_forward, tokens, positions, table, position_table, out)
    assert columns > 3 * LANES64
    dout = rng.standard_normal((rows, columns))
    assert_same_bits(embedding_backward, tokens, dout, Out(table.shape, table))
