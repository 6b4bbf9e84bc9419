"""Rotary positions: twin, gradient, what a turn keeps, NaN, threads."""

import numpy as np
import pytest
from gradients import assert_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import DTYPES, LANES32, LANES64, Out, assert_equals_twin, assert_same_bits, called, run

from fastformer.kernels._rows import row_tasks
from fastformer.kernels.rotary import (
    rotary_backward,
    rotary_backward_reference,
    rotary_forward,
    rotary_forward_reference,
)
from fastformer.layers.relative_positions import rotary_tables

row_tasks = called(row_tasks)

HALVES = sorted(
    {1, 2, 3, 2 * LANES32 + 1} | {n + s for n in (LANES32, LANES64) for s in (-1, 0, 1)} - {0}
)
LONGEST = 23


def make(rng, queries, keys, heads, half):
    """Return the arguments of a call, where q and k are overwritten."""
    positions = rng.integers(0, LONGEST, queries), rng.integers(0, LONGEST, keys)
    q, k = (rng.standard_normal((rows, heads * 2 * half)) for rows in (queries, keys))
    return Out(q.shape, q), Out(k.shape, k), *positions, *rotary_tables(LONGEST, 2 * half)


def check(*arguments):
    assert_equals_twin(rotary_forward, rotary_forward_reference, *arguments)
    assert_equals_twin(rotary_backward, rotary_backward_reference, *arguments)


@pytest.mark.parametrize("rows", [(0, 0), (1, 1), (2, 7), (5, 0)], ids=str)
@pytest.mark.parametrize("half", HALVES)
def test_equals_twin(rng, rows, half):
    check(*make(rng, *rows, heads=3, half=half))


@settings(max_examples=20)
@given(
    rows=st.tuples(st.integers(0, 30), st.integers(0, 30)),
    heads=st.integers(1, 4),
    half=st.integers(1, 40),
    seed=st.integers(0, 2**32),
)
def test_equals_twin_for_any_shape(rows, heads, half, seed):
    check(*make(np.random.default_rng(seed), *rows, heads, half))


def test_gradient(rng):
    q, k, *shared = make(rng, 2, 3, heads=2, half=2)

    def call(twin, q, k):
        return run(twin, Out(q.shape, q), Out(k.shape, k), *shared, dtype=np.float64)

    for which in range(2):
        given = [q.start, k.start]

        def forward(x, which=which, given=given):
            return call(rotary_forward_reference, *given[:which], x, *given[which + 1 :])[which]

        def backward(dout, x, which=which, given=given):
            douts = [np.zeros_like(y) for y in given]
            douts[which] = dout
            return [call(rotary_backward_reference, *douts)[which]]

        assert_gradients(forward, backward, given[which])


def test_the_formula_pair_by_pair(rng):
    """A pair of columns is a complex number, and a turn is a product with one of length 1."""
    q, k, *shared = make(rng, 4, 5, heads=2, half=3)
    turned = run(rotary_forward, q, k, *shared, dtype=np.float64)
    frequencies = [1, 10000 ** (-1 / 3), 10000 ** (-2 / 3)]
    for before, after, positions in zip((q.start, k.start), turned, shared[:2], strict=True):
        for head in range(2):
            first, second = (slice(6 * head + s, 6 * head + s + 3) for s in (0, 3))
            numbers = before[:, first] + 1j * before[:, second]
            numbers = numbers * np.exp(1j * np.outer(positions, frequencies))
            np.testing.assert_allclose(after[:, first], numbers.real, 1e-12, 1e-12)
            np.testing.assert_allclose(after[:, second], numbers.imag, 1e-12, 1e-12)


def test_products_depend_on_the_distance_alone_and_backward_undoes_forward(rng):
    half, tables = 4, rotary_tables(LONGEST, 8)
    q, k = rng.standard_normal((2, 1, 2 * half))

    def product(query, key):
        turned = run(
            *(rotary_forward, Out(q.shape, q), Out(k.shape, k)),
            *(np.array([query]), np.array([key]), *tables),
            dtype=np.float64,
        )
        return float(np.vdot(*turned))

    assert product(9, 4) == pytest.approx(product(22, 17), rel=1e-12)
    assert abs(product(9, 4) - product(9, 5)) > 1e-3
    assert abs(product(9, 4) - product(4, 9)) > 1e-3
    there = make(rng, 6, 7, heads=2, half=half)
    turned = run(rotary_forward, *there, dtype=np.float64)
    marks = [Out(x.shape, x) for x in turned]
    for back, mark in zip(
        run(rotary_backward, *marks, *there[2:], dtype=np.float64), there, strict=False
    ):
        np.testing.assert_allclose(back, mark.start, 1e-13, 1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_stays_in_its_pair(rng, dtype):
    q, k, *shared = make(rng, 3, 3, heads=2, half=5)
    q.start[1, 7] = np.nan
    for op in (rotary_forward, rotary_backward):
        found = run(op, q, k, *shared, dtype=dtype)
        np.testing.assert_array_equal(np.argwhere(np.isnan(found[0])), [[1, 2], [1, 7]])
        assert not np.isnan(found[1]).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_alone_has_the_same_bits(rng, dtype):
    q, k, *shared = make(rng, 9, 9, heads=2, half=LANES32 + 3)
    whole = run(rotary_forward, q, k, *shared, dtype=dtype)
    one = [Out((1, q.shape[1]), x.start[4:5]) for x in (q, k)]
    alone = run(rotary_forward, *one, *(x[4:5] for x in shared[:2]), *shared[2:], dtype=dtype)
    for found, expected in zip(alone, whole, strict=True):
        np.testing.assert_array_equal(found, expected[4:5])


def test_same_bits_for_any_threads(rng):
    arguments = make(rng, 250, 300, heads=3, half=11)
    assert row_tasks(550, 66) > 3
    assert_same_bits(rotary_forward, *arguments)
    assert_same_bits(rotary_backward, *arguments)
