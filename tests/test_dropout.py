"""Dropout: Philox's published answers, twin, share kept, one mask both ways, threads."""

import functools

import numpy as np
import pytest
from gradients import assert_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import DTYPES, EDGE_COLUMNS, Out, assert_equals_twin, assert_same_bits, called, run

from fastformer.kernels import dropout
from fastformer.kernels.dropout import (
    CHUNK,
    _philox,
    _philox_reference,
    dropout_backward_reference,
    dropout_forward_reference,
)

_philox = called(_philox)


def of_the_layer(kernel):
    """Return a kernel that is given integers of the type that the layer gives."""

    @functools.wraps(kernel, updated=())
    def call(*arguments):
        return kernel(*(np.uint64(a) if isinstance(a, int) else a for a in arguments))

    return call


dropout_forward = of_the_layer(dropout.dropout_forward)
dropout_backward = of_the_layer(dropout.dropout_backward)

NONE = np.empty((0, 0))
ALL = 2**64 - 1

# Philox4x32-10 from the known answers of Random123: (counter, call, seed) and the four words.
# The published order is the lowest word first.
KNOWN_ANSWERS = [
    ((0, 0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((ALL, ALL, ALL), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0x85A308D3243F6A88, 0x0370734413198A2E, 0x299F31D0A4093822),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.smoke
@pytest.mark.parametrize(("given", "words"), KNOWN_ANSWERS)
def test_published_answers(given, words):
    expected = [int(word, 16) for word in words.split()]
    counter, call, seed = (np.uint64(number) for number in given)
    assert [int(word) for word in _philox(counter, call, seed)] == expected
    found = _philox_reference(np.array([counter]), given[1], given[2])
    assert found[:, 0].tolist() == expected


def check(rng, shape, rate, seed=7, call=3):
    x, residual = rng.standard_normal((2, *shape))
    scalars = (rate, seed, call, Out(shape))
    for other in (residual, NONE):
        assert_equals_twin(dropout_forward, dropout_forward_reference, x, other, *scalars)
    assert_equals_twin(dropout_backward, dropout_backward_reference, x, *scalars)


@pytest.mark.parametrize("columns", EDGE_COLUMNS)
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_equals_twin(rng, rows, columns):
    check(rng, (rows, columns), 0.3)


@pytest.mark.parametrize("size", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.99])
def test_chunk_edges_equal_twin(rng, size, rate):
    check(rng, (1, size), rate)


@settings(max_examples=30)
@given(
    size=st.integers(0, 300),
    rate=st.floats(0, 0.999),
    seed=st.integers(0, 2**63 - 1),
    call=st.integers(0, 2**63 - 1),
)
def test_equals_twin_for_any_seed(size, rate, seed, call):
    check(np.random.default_rng(0), (1, size), rate, seed, call)


def kept_by(dtype, size, rate, seed, call):
    ones = np.ones((1, size))
    return run(dropout_forward, ones, NONE, rate, seed, call, Out(ones.shape), dtype=dtype)[0] != 0


def test_element_whose_word_equals_the_threshold_is_kept():
    """As it is for a word of 0 and a rate of 0; the next higher rate drops it."""
    word = int(_philox_reference(np.zeros(1, np.uint64), 5, 11)[2, 0])
    for above in (0, 1):
        rate = (word + above) / 2**32
        given = np.ones((1, 3)), NONE, rate, 11, 5, Out((1, 3))
        for function in (dropout_forward, dropout_forward_reference):
            (out,) = run(function, *given, dtype=np.float64)
            assert (out[0, 2] != 0) == (above == 0)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_share_kept(rate):
    """A million elements; five standard deviations are allowed."""
    size = 10**6
    kept = kept_by(np.float32, size, rate, 42, 1).mean()
    assert abs(kept - (1 - rate)) <= 5 * np.sqrt(rate * (1 - rate) / size)


def test_mean_is_kept(rng):
    x = np.ones((1000, 1000))
    (out,) = run(dropout_forward, x, NONE, 0.2, 42, 1, Out(x.shape))
    assert abs(out.mean(dtype=np.float64) - 1) < 5 * np.sqrt(0.25) / 1000
    assert set(np.unique(out)) == {0, np.float32(1.25)}


def test_rate_zero_changes_nothing(rng):
    x = rng.standard_normal((3, 37)).astype(np.float32)
    (out,) = run(dropout_forward, x, NONE, 0.0, 42, 1, Out(x.shape))
    np.testing.assert_array_equal(out, x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_mask_forward_and_backward(rng, dtype):
    shape = (3, CHUNK // 2 + 1)
    ones = np.ones(shape)
    (out,) = run(dropout_forward, ones, NONE, 0.3, 11, 5, Out(shape), dtype=dtype)
    (dx,) = run(dropout_backward, ones, 0.3, 11, 5, Out(shape), dtype=dtype)
    np.testing.assert_array_equal(out, dx)


def test_mask_depends_on_seed_call_and_place_and_not_on_dtype():
    base = kept_by(np.float32, 10_000, 0.5, 11, 5)
    np.testing.assert_array_equal(kept_by(np.float64, 10_000, 0.5, 11, 5), base)
    np.testing.assert_array_equal(kept_by(np.float32, 20_000, 0.5, 11, 5)[:, :10_000], base)
    for seed, call in ((12, 5), (11, 6), (11 + 2**32, 5), (11, 5 + 2**32), (5, 11)):
        agreement = (kept_by(np.float32, 10_000, 0.5, seed, call) == base).mean()
        assert 0.47 < agreement < 0.53
    halves = base.reshape(2, -1)
    assert 0.47 < (halves[0] == halves[1]).mean() < 0.53


def test_gradient(rng):
    x = rng.standard_normal((3, 7))
    assert_gradients(
        lambda x: run(
            dropout_forward_reference, x, NONE, 0.4, 1, 2, Out(x.shape), dtype=np.float64
        )[0],
        lambda dout, x: run(
            dropout_backward_reference, dout, 0.4, 1, 2, Out(x.shape), dtype=np.float64
        ),
        x,
    )


def test_in_place(rng):
    x, residual = rng.standard_normal((2, 3, 37)).astype(np.float32)
    (expected,) = run(dropout_forward, x, residual, 0.3, 1, 2, Out(x.shape))
    for out in (x, residual):
        given = x.copy(), residual.copy()
        written = given[0] if out is x else given[1]
        dropout_forward(*given, 0.3, 1, 2, written)
        np.testing.assert_array_equal(written, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_stays_visible_where_it_is_kept(dtype):
    x = np.full((1, 1000), np.nan)
    (out,) = run(dropout_forward, x, NONE, 0.5, 1, 2, Out(x.shape), dtype=dtype)
    np.testing.assert_array_equal(np.isnan(out), kept_by(dtype, 1000, 0.5, 1, 2))
    np.testing.assert_array_equal(out[~np.isnan(out)], 0)


def test_same_bits_for_any_threads(rng):
    x, residual = rng.standard_normal((2, 3, CHUNK + 5))
    assert x.size > 3 * CHUNK
    assert_same_bits(dropout_forward, x, residual, 0.3, 11, 5, Out(x.shape))
    assert_same_bits(dropout_backward, x, 0.3, 11, 5, Out(x.shape))
