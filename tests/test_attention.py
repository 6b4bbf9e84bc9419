"""Attention over packed sequences: twin, gradient, masks, independence of sequences, threads."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from gradients import assert_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import DTYPES, LANES32, LANES64, Out, assert_equals_twin, assert_same_bits, run

from fastformer.kernels.attention import (
    attention_backward,
    attention_backward_reference,
    attention_forward,
    attention_forward_reference,
    attention_weights,
    attention_weights_reference,
)
from fastformer.layers.relative_positions import alibi_slopes

HEAD_SIZES = sorted({1, 3, 8, LANES64 + 1, LANES32 - 1, LANES32, LANES32 + 1, 2 * LANES32 + 3})


@dataclass
class Case:
    """Packed sequences with so many queries and keys each, and random rows for them."""

    queries: list[int]
    keys: list[int]
    heads: int
    head_size: int
    causal: bool
    seed: int = 0
    bent: bool = False
    key_heads: int = 0  # those of keys and values; 0: as many

    def __post_init__(self):
        rng = np.random.default_rng(self.seed)
        width = self.heads * self.head_size
        self.query_offsets, self.key_offsets = (
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
            for lengths in (self.queries, self.keys)
        )
        self.q, self.dout = rng.standard_normal((2, sum(self.queries), width))
        key_width = (self.key_heads or self.heads) * self.head_size
        self.k, self.v = rng.standard_normal((2, sum(self.keys), key_width))
        # Where a query stands is not always where it is among the queries.
        last = zip(self.queries, self.keys, strict=True)
        places = [np.arange(max(0, keys - queries), max(0, keys - queries) + queries)
                  for queries, keys in last]  # fmt: skip
        self.positions = np.concatenate([np.zeros(0, np.int64), *places])
        self.slopes = alibi_slopes(self.heads) if self.bent else np.zeros(0)

    @property
    def shared(self):
        scale = 1 / math.sqrt(self.head_size)
        places = self.positions, self.slopes
        return self.query_offsets, self.key_offsets, *places, self.causal, scale

    def forward(self):
        saved = Out((len(self.q), self.heads))
        return self.q, self.k, self.v, *self.shared, Out(self.q.shape), saved, saved

    def saved(self):
        return run(attention_forward_reference, *self.forward(), dtype=np.float64)

    def backward(self):
        # With one key, or one that outweighs all, gradients of scores cancel to nothing.
        dq, dk, dv = (Out(x.shape, scale=1.0) for x in (self.q, self.k, self.v))
        return self.dout, self.q, self.k, self.v, *self.saved(), *self.shared, dq, dk, dv

    def weights(self):
        shape = (len(self.queries), self.heads, max(self.queries), max(self.keys))
        return self.q, self.k, *self.shared, Out(shape)


def check(case):
    assert_equals_twin(attention_forward, attention_forward_reference, *case.forward())
    assert_equals_twin(attention_backward, attention_backward_reference, *case.backward())
    if case.queries:
        assert_equals_twin(attention_weights, attention_weights_reference, *case.weights())


LENGTHS = {
    "one token": ([1], [1]),
    "one sequence": ([LANES32 + 1], [LANES32 + 1]),
    "ragged": ([3, 1, 17, 8], [3, 1, 17, 8]),
    "one query each": ([1, 1, 1], [5, 1, 18]),
    "fewer queries than keys": ([2, 1, 3], [4, 9, 3]),
    "around a register": (
        [LANES64, LANES32 - 1, LANES32],
        [LANES64, LANES32 - 1, LANES32],
    ),
    "no sequence": ([], []),
}
BENT = pytest.mark.parametrize("bent", [False, True], ids=["level", "alibi"])
CAUSAL = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])


@CAUSAL
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 2), (3, 1)])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_heads_that_share_keys_equal_twin(lengths, heads, key_heads, causal):
    queries, keys = lengths
    bent = key_heads == 1
    check(Case(queries, keys, heads, 5, causal, bent=bent, key_heads=key_heads))


def test_shared_keys_are_those_of_each_head_alone():
    """What heads share is as if each had a copy; its gradient is the sum of theirs."""
    case = Case([3, 9, 1], [3, 9, 1], 6, 4, True, key_heads=2)
    copied = Case([3, 9, 1], [3, 9, 1], 6, 4, True)

    def spread(x):
        return np.repeat(x.reshape(len(x), 2, 4), 3, axis=1).reshape(len(x), 24)

    copied.q, copied.dout = case.q, case.dout
    copied.k, copied.v = spread(case.k), spread(case.v)
    out, expected = (run(attention_forward, *c.forward())[0] for c in (case, copied))
    np.testing.assert_array_equal(out, expected)
    dq, dk, dv = run(attention_backward, *case.backward())
    dq_copied, *copies = run(attention_backward, *copied.backward())
    np.testing.assert_array_equal(dq, dq_copied)
    for found, copy in zip((dk, dv), copies, strict=True):
        summed = copy.reshape(len(copy), 2, 3, 4).sum(axis=2).reshape(len(copy), 8)
        np.testing.assert_allclose(found, summed, 1e-5, 1e-6)


@pytest.mark.smoke
@CAUSAL
@BENT
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_lengths_equal_twin(lengths, causal, bent):
    check(Case(*lengths, heads=2, head_size=8, causal=causal, bent=bent))


def test_more_queries_than_keys_equal_twin():
    check(Case([5, 19], [2, 1], heads=2, head_size=8, causal=False))


@CAUSAL
@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_head_sizes_equal_twin(head_size, causal):
    check(Case([5, 1, 19], [5, 1, 19], heads=3, head_size=head_size, causal=causal))


@settings(max_examples=30)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), min_size=1, max_size=6),
    heads=st.integers(1, 4),
    head_size=st.integers(1, 40),
    causal=st.booleans(),
    bent=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_any_case_equals_twin(lengths, heads, head_size, causal, bent, seed):
    queries = [queries for queries, _ in lengths]
    keys = [queries + more for queries, more in lengths]
    check(Case(queries, keys, heads, head_size, causal, seed, bent))


@CAUSAL
@BENT
@pytest.mark.parametrize("lengths", [([3, 1, 2], [3, 1, 2]), ([1, 2], [3, 4])], ids=str)
def test_gradient(lengths, causal, bent):
    case = Case(*lengths, heads=2, head_size=3, causal=causal, bent=bent)

    def forward(q, k, v):
        case.q, case.k, case.v = q, k, v
        return case.saved()[0]

    def backward(dout, q, k, v):
        case.dout, case.q, case.k, case.v = dout, q, k, v
        return run(attention_backward_reference, *case.backward(), dtype=np.float64)

    assert_gradients(forward, backward, case.q, case.k, case.v)


def test_last_query_sees_every_key_and_the_others_one_less_each():
    case = Case([3], [5], heads=1, head_size=4, causal=True)
    (weights,) = run(attention_weights, *case.weights())
    seen = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], bool)
    np.testing.assert_array_equal(weights[0, 0] > 0, seen)


@CAUSAL
def test_weights_sum_to_one_and_are_zero_beyond_a_sequence(causal):
    case = Case([3, 1, 17], [3, 4, 20], heads=2, head_size=5, causal=causal)
    (weights,) = run(attention_weights, *case.weights())
    for b, (queries, keys) in enumerate(zip(case.queries, case.keys, strict=True)):
        np.testing.assert_allclose(weights[b, :, :queries].sum(axis=-1), 1, rtol=1e-6)
        assert not weights[b, :, queries:].any()
        assert not weights[b, :, :, keys:].any()


@CAUSAL
def test_constant_values_come_out_as_they_are(causal):
    """The weights of the forward pass sum to one: an average of ones is one."""
    case = Case([7, 20], [7, 20], heads=2, head_size=5, causal=causal)
    case.v = np.ones_like(case.v)
    out, *_ = run(attention_forward, *case.forward())
    np.testing.assert_allclose(out, 1, rtol=1e-6)


def slices(case, b):
    """Return what sequence b alone is."""
    sizes = case.heads, case.head_size, case.causal
    alone = Case([case.queries[b]], [case.keys[b]], *sizes, bent=case.bent)
    rows = slice(*case.query_offsets[b : b + 2])
    keys = slice(*case.key_offsets[b : b + 2])
    alone.q, alone.dout = case.q[rows], case.dout[rows]
    alone.k, alone.v = case.k[keys], case.v[keys]
    return alone, rows, keys


@CAUSAL
@BENT
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sequence_does_not_depend_on_the_others(causal, bent, dtype):
    case = Case([3, 1, 17, 8], [3, 6, 17, 30], heads=2, head_size=9, causal=causal, bent=bent)
    out, *saved = run(attention_forward, *case.forward(), dtype=dtype)
    gradients = run(attention_backward, *case.backward(), dtype=dtype)
    for b in range(4):
        alone, rows, keys = slices(case, b)
        out_alone, *saved_alone = run(attention_forward, *alone.forward(), dtype=dtype)
        np.testing.assert_array_equal(out[rows], out_alone)
        for whole, part in zip(saved, saved_alone, strict=True):
            np.testing.assert_array_equal(whole[rows], part)
        found = run(attention_backward, *alone.backward(), dtype=dtype)
        for whole, part, where in zip(gradients, found, (rows, keys, keys), strict=True):
            np.testing.assert_array_equal(whole[where], part)


@pytest.mark.parametrize("dtype", DTYPES)
def test_causal_output_does_not_depend_on_later_tokens(rng, dtype):
    case = Case([20], [20], heads=2, head_size=9, causal=True)
    out, *_ = run(attention_forward, *case.forward(), dtype=dtype)
    for later in (rng.standard_normal((7, 18)), np.full((7, 18), 1e6)):
        for x in (case.q, case.k, case.v):
            x[13:] = later
        changed, *_ = run(attention_forward, *case.forward(), dtype=dtype)
        np.testing.assert_array_equal(changed[:13], out[:13])


@BENT
@pytest.mark.parametrize("which", ["first", "last"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_query_alone_gives_the_same_bits(dtype, which, bent):
    """The last block computes one query for each sequence: exactly what all would give."""
    case = Case([4, 1, 178], [4, 1, 178], heads=2, head_size=9, causal=False, bent=bent)
    out, *_ = run(attention_forward, *case.forward(), dtype=dtype)
    rows = case.query_offsets[:-1] if which == "first" else case.query_offsets[1:] - 1
    case.q, case.query_offsets, case.positions = case.q[rows], np.arange(4), case.positions[rows]
    alone, *_ = run(attention_forward, *case.forward(), dtype=dtype)
    np.testing.assert_array_equal(alone, out[rows])


def test_the_formula_of_alibi_score_by_score():
    """With queries and keys of 0, only distances count: those of arXiv:2108.12409, figure 3."""
    for causal in (False, True):
        case = Case([5], [5], heads=4, head_size=8, causal=causal, bent=True)
        case.q[...] = 0
        (weights,) = run(attention_weights, *case.weights(), dtype=np.float64)
        for head, slope in enumerate([1 / 4, 1 / 16, 1 / 64, 1 / 256]):
            for query in range(5):
                seen = np.arange(query + 1 if causal else 5)
                expected = np.exp(-slope * np.abs(query - seen))
                np.testing.assert_allclose(
                    weights[0, head, query, seen], expected / expected.sum(), 1e-12
                )


def test_another_slope_or_position_is_noticed():
    case = Case([3, 17], [3, 17], heads=2, head_size=8, causal=True, bent=True)
    truth = case.saved()[0]
    for change in ("slopes", "positions"):
        other = Case([3, 17], [3, 17], heads=2, head_size=8, causal=True, bent=True)
        values = getattr(other, change)
        # A causal query that stood further on would have all distances larger: the same weights.
        values[-1] -= 5 if change == "positions" else 1e-3
        found = run(attention_forward, *other.forward(), dtype=np.float64)[0]
        assert np.abs(found - truth).max() > 1e-5, change


@CAUSAL
def test_extreme_scores(causal):
    case = Case([5, 19], [5, 19], heads=2, head_size=8, causal=causal)
    case.q *= 3e3
    case.k *= 3
    out, largest, _ = run(attention_forward, *case.forward())
    assert np.abs(largest).max() > 1e4
    assert np.isfinite(out).all()
    assert np.abs(out).max() <= np.abs(case.v).max()
    assert_equals_twin(attention_forward, attention_forward_reference, *case.forward())
    for gradient in run(attention_backward, *case.backward()):
        assert np.isfinite(gradient).all()


@CAUSAL
@pytest.mark.parametrize("queries", [1, LANES32 + 3])
def test_weights_that_count_for_nothing_are_zero(causal, queries):
    """Numbers near the smallest cost a processor hundreds of cycles each.

    Queries and keys are whole numbers, whose products are exact: a score of 300 that is rounded
    changes a weight by 300 roundings, up or down as the order of its terms will have it.
    """
    case = Case([queries], [LANES32 + 3], heads=2, head_size=8, causal=causal)
    case.q, case.k, case.dout = np.rint(6 * case.q), np.rint(6 * case.k), 1e-5 * case.dout
    check(case)
    saved = run(attention_forward, *case.forward(), dtype=np.float32)
    inputs = (case.dout, case.q, case.k, case.v, *saved, *case.shared)
    outputs = [Out(x.shape) for x in (case.q, case.k, case.v)]
    for gradient in run(attention_backward, *inputs, *outputs, dtype=np.float32):
        sizes = np.abs(gradient[gradient != 0])
        assert sizes.min() > 1e-27


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_nan_stays_in_its_sequence_and_head(dtype, name):
    case = Case([3, 4], [3, 4], heads=2, head_size=5, causal=False)
    getattr(case, name)[4, 7] = np.nan
    out, *_ = run(attention_forward, *case.forward(), dtype=dtype)
    expected = np.zeros(out.shape, bool)
    if name == "v":
        expected[3:, 7] = True
    else:
        expected[4 if name == "q" else slice(3, None), 5:] = True
    np.testing.assert_array_equal(np.isnan(out), expected)


@BENT
def test_same_bits_for_any_threads(bent):
    lengths = [5, 1, 40, 17, 9, 3]
    case = Case(lengths, lengths, heads=3, head_size=9, causal=True, bent=bent)
    assert len(lengths) * case.heads > 4  # a task is a pair of sequence and head
    assert_same_bits(attention_forward, *case.forward())
    assert_same_bits(attention_backward, *case.backward())
    assert_same_bits(attention_weights, *case.weights())
