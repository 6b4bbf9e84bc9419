"""Packed batches: what is packed, what is refused, and that nobody can change it afterwards."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastformer as ff
from fastformer.errors import InvalidTypeError, InvalidValueError

INT64 = np.iinfo(np.int64)
RAGGED = st.lists(
    st.lists(st.integers(0, INT64.max), min_size=1, max_size=9), min_size=1, max_size=9
)


@pytest.mark.smoke
def test_sequences_lie_end_to_end():
    batch = ff.pack([[5, 6, 7], [8], [9, 3]])
    assert batch.tokens.tolist() == [5, 6, 7, 8, 9, 3]
    assert batch.offsets.tolist() == [0, 3, 4, 6]
    assert batch.positions.tolist() == [0, 1, 2, 0, 0, 1]
    assert (batch.num_sequences, batch.num_tokens) == (3, 6)
    assert (batch.longest, batch.largest_id) == (3, 9)
    assert {a.dtype for a in (batch.tokens, batch.offsets, batch.positions)} == {np.dtype("int64")}
    assert len(batch) == 3
    assert repr(batch) == "PackedBatch(3 sequences, 6 tokens, longest 3: [5, 6, 7], [8], [9, 3])"


def test_a_large_batch_is_shown_in_part():
    assert repr(ff.pack([[7]])) == "PackedBatch(1 sequence, 1 token, longest 1: [7])"
    shown = ", ".join(["[0, 1, 2, 3, 4, 5, 6, 7, ...]"] * 8)
    batch = ff.pack([list(range(9))] * 9)
    assert repr(batch) == f"PackedBatch(9 sequences, 81 tokens, longest 9: {shown}, ...)"


def equal(left, right):
    return all(
        np.array_equal(getattr(left, name), getattr(right, name))
        for name in ("tokens", "offsets", "positions")
    )


@given(
    sequences=RAGGED,
    extra=st.integers(0, 5),
    garbage=st.integers(INT64.min, INT64.max),
    order=st.sampled_from("CF"),
)
def test_padding_is_never_seen(sequences, extra, garbage, order):
    lengths = [len(sequence) for sequence in sequences]
    padded = np.full((len(sequences), max(lengths) + extra), garbage, order=order)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = sequence
    assert equal(ff.pack(padded, lengths), ff.pack(sequences))
    assert equal(ff.pack(padded.tolist(), np.array(lengths, np.uint8)), ff.pack(sequences))


@given(sequences=RAGGED)
def test_any_ragged_lists_are_packed(sequences):
    batch = ff.pack(sequences)
    parts = np.split(batch.tokens, batch.offsets[1:-1])
    assert [part.tolist() for part in parts] == sequences
    assert batch.positions.tolist() == [i for ids in sequences for i in range(len(ids))]
    assert equal(ff.PackedBatch(batch.tokens, batch.offsets), batch)


@pytest.mark.parametrize(
    "sequences",
    [
        ((1, 2), (3,)),
        [np.array([1, 2], np.uint8), np.array([3], ">i8")],
        [[np.int32(1), 2], (np.uint64(3),)],
        [np.arange(9)[1:5:1][:2], np.arange(9)[3:2:-1]],
    ],
)
def test_any_integers_will_do(sequences):
    assert equal(ff.pack(sequences), ff.pack([[1, 2], [3]]))


def test_an_array_without_lengths_has_full_rows():
    padded = np.arange(6).reshape(2, 3)
    assert equal(ff.pack(padded), ff.pack([[0, 1, 2], [3, 4, 5]]))
    assert equal(ff.pack(padded.T), ff.pack([[0, 3], [1, 4], [2, 5]]))


def test_a_batch_is_a_copy():
    ids, lengths = np.ones((2, 3), np.int64), np.array([3, 2])
    tokens, offsets = np.ones(3, np.int64), np.array([0, 3])
    batches = ff.pack(ids, lengths), ff.pack(list(ids)), ff.PackedBatch(tokens, offsets)
    before = [batch.tokens.copy() for batch in batches]
    for array in (ids, lengths, tokens, offsets):
        array[...] = -9
    for batch, expected in zip(batches, before, strict=True):
        np.testing.assert_array_equal(batch.tokens, expected)


@pytest.mark.parametrize("name", ["tokens", "offsets", "positions"])
def test_arrays_are_read_only(name):
    batch = ff.pack([[5, 6], [7]])
    with pytest.raises(ValueError, match="read-only"):
        getattr(batch, name)[0] = 99
    with pytest.raises(AttributeError):
        setattr(batch, name, np.zeros(3, np.int64))


@given(sequences=RAGGED, data=st.data())
def test_select_keeps_the_order_that_is_given(sequences, data):
    chosen = data.draw(st.lists(st.integers(0, len(sequences) - 1), min_size=1, max_size=12))
    batch = ff.pack(sequences).select(np.array(chosen))
    assert equal(batch, ff.pack([sequences[index] for index in chosen]))


# What is given, what is raised, and what the message must say.
REFUSED = [
    ([[1, -2]], None, InvalidValueError, r"sequence 0 must be >= 0, got -2 at index 1"),
    ([[1], [2, 3, -1]], None, InvalidValueError, r"sequence 1 must be >= 0, got -1 at index 2"),
    ([[1.0, 2.0]], None, InvalidTypeError, r"sequence 0 must be .*integers, got .*float64"),
    ([[1, 2], [0.5]], None, InvalidTypeError, r"sequence 1 must be .*integers"),
    ([[True, False]], None, InvalidTypeError, r"sequence 0 must be .*integers, got .*bool"),
    ([[None]], None, InvalidTypeError, r"sequence 0 must be .*integers, got .*object"),
    (
        [[2**63]],
        None,
        InvalidValueError,
        rf"sequence 0 must fit into int64, got {2**63}",
    ),
    ([[2**70]], None, InvalidTypeError, r"sequence 0 must be .*integers"),
    ([["a", "b"]], None, InvalidTypeError, r"sequence 0 must be .*integers"),
    (["ab"], None, InvalidTypeError, r"list of lists of token ids.* 'ab'"),
    ("Max ( 5 3 9 )", None, InvalidTypeError, r"list of lists of token ids, got str"),
    ([1, 2, 3], None, InvalidTypeError, r"list of lists of token ids; sequence 0 is 1"),
    ([[[1, 2]]], None, InvalidTypeError, r"list of lists of token ids; sequence 0 is \[\[1, 2\]\]"),
    ([[1], [2, [3]]], None, InvalidTypeError, r"list of lists of token ids; sequence 1"),
    (None, None, InvalidTypeError, r"list of lists of token ids, got NoneType"),
    (7, None, InvalidTypeError, r"list of lists of token ids, got int"),
    ({0: [1]}, None, InvalidTypeError, r"list of lists of token ids, got dict"),
    (iter([[1]]), None, InvalidTypeError, r"list of lists of token ids, got list_iterator"),
    ([], None, InvalidValueError, r"at least one sequence, got none"),
    ([[]], None, InvalidValueError, r"sequence 0 is empty; .*at least one token"),
    ([[1], [], [2]], None, InvalidValueError, r"sequence 1 is empty"),
    (np.zeros(3, int), None, InvalidValueError, r"\(B, T\), got shape \(3,\)"),
    (np.zeros((2, 2, 2), int), None, InvalidValueError, r"\(B, T\), got shape \(2, 2, 2\)"),
    (np.zeros((2, 0), int), None, InvalidValueError, r"sequence 0 is empty"),
    (np.zeros((2, 2)), None, InvalidTypeError, r"sequence 0 must be .*integers, got .*float64"),
    ([[1, 2], [3, 4]], [2, 0], InvalidValueError, r"lengths .*from 1 to T = 2, got 0 for row 1"),
    ([[1, 2], [3, 4]], [3, 2], InvalidValueError, r"lengths .*from 1 to T = 2, got 3 for row 0"),
    ([[1, 2], [3, 4]], [1, -1], InvalidValueError, r"lengths must be >= 0, got -1 at index 1"),
    ([[1, 2], [3, 4]], [1], InvalidValueError, r"lengths must be \(2,\).*got \(1,\)"),
    ([[1, 2], [3, 4]], [1.0, 2.0], InvalidTypeError, r"lengths must be .*integers, got .*float64"),
    ([[1, 2], [3, 4]], 2, InvalidTypeError, r"lengths must be one-dimensional integers"),
    ([[1, 2], [3, -4]], [1, 2], InvalidValueError, r"tokens must be >= 0, got -4 at index 2"),
    (np.zeros((2, 2)), [1, 2], InvalidTypeError, r"padded \(B, T\) array of integers, .*float64"),
    (np.zeros(4, int), [1, 2], InvalidTypeError, r"padded \(B, T\) array .*shape \(4,\)"),
    ([[1, 2], [3]], [2, 1], InvalidTypeError, r"padded \(B, T\) array of integers"),
    (np.zeros((0, 3), int), np.zeros(0, int), InvalidValueError, r"at least one"),
]


@pytest.mark.parametrize(("sequences", "lengths", "error", "message"), REFUSED)
def test_pack_refuses(sequences, lengths, error, message):
    with pytest.raises(error, match=message):
        ff.pack(sequences, lengths)


@pytest.mark.parametrize(
    ("tokens", "offsets", "error", "message"),
    [
        ([1, 2], [0], InvalidValueError, r"offsets must begin with 0 .*got \[0\]"),
        ([1, 2], [], InvalidValueError, r"offsets must begin with 0"),
        ([1, 2], [1, 2], InvalidValueError, r"offsets must begin with 0 .*got \[1, 2\]"),
        ([1, 2], [0, 0, 2], InvalidValueError, r"sequence 0 has length 0"),
        ([1, 2], [0, 2, 1, 2], InvalidValueError, r"sequence 1 has length -1"),
        ([1, 2], [0, 3], InvalidValueError, r"last offset must be .* 2, got 3"),
        ([1, 2, 3], [0, 2], InvalidValueError, r"last offset must be .* 3, got 2"),
        ([1, 2], [0.0, 2.0], InvalidTypeError, r"offsets must be .*integers, got .*float64"),
        ([1, -2], [0, 2], InvalidValueError, r"tokens must be >= 0, got -2 at index 1"),
        ([1.5, 2], [0, 2], InvalidTypeError, r"tokens must be .*integers, got .*float64"),
        ([[1, 2]], [0, 2], InvalidTypeError, r"tokens must be one-dimensional .*\(1, 2\)"),
    ],
)
def test_a_packed_batch_refuses(tokens, offsets, error, message):
    with pytest.raises(error, match=message):
        ff.PackedBatch(tokens, offsets)


@given(sequences=RAGGED, extra=st.integers(0, 3))
def test_padded_targets_are_packed_as_their_tokens(sequences, extra):
    lengths = [len(sequence) for sequence in sequences]
    padded = np.full((len(lengths), max(lengths) + extra), 7)
    padded[np.arange(padded.shape[1]) < np.array(lengths)[:, None]] = np.concatenate(sequences)
    packed = ff.pack_targets(padded, lengths)
    np.testing.assert_array_equal(packed, ff.pack(padded, lengths).tokens)
    assert packed.dtype == np.int64


def test_padded_targets_may_be_ignored_and_are_copied():
    padded = np.array([[-1, 3, 9], [-100, 0, 0]], np.int32)
    packed = ff.pack_targets(padded, np.array([2, 1]))
    padded[...] = 5
    np.testing.assert_array_equal(packed, [-1, 3, -100])


@pytest.mark.parametrize(
    ("targets", "lengths", "error", "message"),
    [
        ([1, 2], [1, 1], InvalidTypeError, r"targets must be a padded \(B, T\) .* shape \(2,\)"),
        ([[1, 2], [3]], [2, 1], InvalidTypeError, r"rows of different lengths; give those of each"),
        ([[0.5, 1]], [2], InvalidTypeError, r"targets must be .*integers, got .*float64"),
        ([[1, 2]], [3], InvalidValueError, r"lengths must be from 1 to T = 2, got 3 for row 0"),
        ([[1, 2]], [1, 1], InvalidValueError, r"lengths must be \(1,\), one for each row"),
        ([[1, 2]], None, InvalidTypeError, r"lengths must be one-dimensional integers"),
    ],
)
def test_pack_targets_refuses(targets, lengths, error, message):
    with pytest.raises(error, match=message):
        ff.pack_targets(targets, lengths)
