"""Batches: every example once an epoch, in an order that needs nothing but seed and epoch."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastformer.batch import PackedBatch, pack
from fastformer.data.batches import batch_order, iterate_batches
from fastformer.errors import InvalidTypeError, InvalidValueError

SEQUENCES = [[index] * (1 + index % 3) for index in range(10)]
INPUTS = pack(SEQUENCES)
TARGETS = np.arange(10) + 100


def sequences(batch: PackedBatch) -> list[list[int]]:
    """Unpack a batch."""
    return [part.tolist() for part in np.split(batch.tokens, batch.offsets[1:-1])]


@given(st.integers(1, 300), st.integers(0, 2**63), st.integers(0, 10_000))
def test_order_has_every_index_once(num_examples: int, seed: int, epoch: int) -> None:
    order = batch_order(num_examples, seed, epoch)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(num_examples))
    np.testing.assert_array_equal(order, batch_order(num_examples, seed, epoch))


def test_order_depends_on_seed_and_epoch() -> None:
    orders = {
        tuple(batch_order(100, seed, epoch).tolist()) for seed in range(5) for epoch in range(5)
    }
    assert len(orders) == 25


@pytest.mark.smoke
def test_batches_in_order_with_a_smaller_last_one() -> None:
    order = np.array([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    batches = list(iterate_batches(INPUTS, TARGETS, 4, order))
    assert [batch.num_sequences for batch, _ in batches] == [4, 4, 2]
    assert [sequences(batch) for batch, _ in batches] == [
        [SEQUENCES[index] for index in part] for part in ([3, 1, 4, 0], [5, 9, 2, 6], [8, 7])
    ]
    assert [targets.tolist() for _, targets in batches] == [
        [103, 101, 104, 100],
        [105, 109, 102, 106],
        [108, 107],
    ]


@given(
    st.lists(st.lists(st.integers(0, 19), min_size=1, max_size=5), min_size=1, max_size=20),
    st.integers(1, 25),
    st.integers(0, 100),
    st.data(),
)
def test_every_example_comes_once_and_a_later_start_gives_the_rest(
    inputs: list[list[int]], batch_size: int, seed: int, data: st.DataObject
) -> None:
    targets = np.arange(len(inputs))
    order = batch_order(len(inputs), seed, 0)
    packed = pack(inputs)
    batches = list(iterate_batches(packed, targets, batch_size, order))
    assert len(batches) == -(-len(inputs) // batch_size)
    assert all(batch.num_sequences == batch_size for batch, _ in batches[:-1])
    seen = [(int(t), s) for batch, ts in batches for t, s in zip(ts, sequences(batch), strict=True)]
    assert seen == [(index, inputs[index]) for index in order.tolist()]

    start = data.draw(st.integers(0, len(batches)))
    rest = list(iterate_batches(packed, targets, batch_size, order, start=start))
    assert len(rest) == len(batches) - start
    for (batch, some), (wanted, others) in zip(rest, batches[start:], strict=True):
        np.testing.assert_array_equal(batch.tokens, wanted.tokens)
        np.testing.assert_array_equal(batch.offsets, wanted.offsets)
        np.testing.assert_array_equal(some, others)


@pytest.mark.smoke
def test_select_takes_sequences_in_any_order_and_more_than_once() -> None:
    chosen = INPUTS.select(np.array([8, 0, 8, 4]))
    assert sequences(chosen) == [SEQUENCES[index] for index in (8, 0, 8, 4)]
    assert chosen.positions.tolist() == [0, 1, 2, 0, 0, 1, 2, 0, 1]
    assert (chosen.num_sequences, chosen.num_tokens) == (4, 9)
    assert (chosen.longest, chosen.largest_id) == (3, 8)


@given(
    st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=6), min_size=1, max_size=12),
    st.data(),
)
def test_select_equals_packing_the_chosen(inputs: list[list[int]], data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.integers(0, len(inputs) - 1), min_size=1, max_size=20))
    chosen = pack(inputs).select(np.array(indices))
    wanted = pack([inputs[index] for index in indices])
    np.testing.assert_array_equal(chosen.tokens, wanted.tokens)
    np.testing.assert_array_equal(chosen.offsets, wanted.offsets)
    np.testing.assert_array_equal(chosen.positions, wanted.positions)


def test_an_order_may_be_a_part_or_empty() -> None:
    ((batch, targets),) = iterate_batches(INPUTS, TARGETS, 8, np.array([7, 7, 2]))
    assert sequences(batch) == [SEQUENCES[7], SEQUENCES[7], SEQUENCES[2]]
    assert targets.tolist() == [107, 107, 102]
    assert list(iterate_batches(INPUTS, TARGETS, 8, np.array([], dtype=np.int64))) == []


def test_the_arguments_are_left_as_they_were() -> None:
    order = np.arange(10)[::-1].copy()
    for _, targets in iterate_batches(INPUTS, TARGETS, 3, order):
        targets[:] = -1
    assert sequences(INPUTS) == SEQUENCES
    assert TARGETS.tolist() == list(range(100, 110))
    assert order.tolist() == list(range(10))[::-1]


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        (
            {"inputs": SEQUENCES},
            InvalidTypeError,
            "^inputs must be a PackedBatch, got list; make one with",
        ),
        ({"batch_size": 0}, InvalidValueError, "^batch_size must be an integer >= 1, got 0$"),
        ({"batch_size": 2.0}, InvalidTypeError, "^batch_size must be an integer >= 1, got 2.0$"),
        ({"start": -1}, InvalidValueError, "^start must be an integer from 0 to 3, got -1$"),
        ({"start": 4}, InvalidValueError, "^start must be an integer from 0 to 3, got 4$"),
        (
            {"targets": TARGETS[:9]},
            InvalidValueError,
            r"^targets must have shape \(10,\), one per input, got \(9,\)$",
        ),
        (
            {"order": np.array([0, 10])},
            InvalidValueError,
            "^order must have indices from 0 to 9, got 0 to 10$",
        ),
        (
            {"order": np.array([-1, 3])},
            InvalidValueError,
            "^order must have indices from 0 to 9, got -1 to 3$",
        ),
        ({"order": np.arange(3.0)}, InvalidTypeError, "^order must be a 1-D array .* 1-D float64$"),
        (
            {"order": np.zeros((2, 2), np.int64)},
            InvalidTypeError,
            "^order must be a 1-D array of integers, got 2-D int64$",
        ),
        ({"order": np.array([True])}, InvalidTypeError, "^order must be a 1-D array .* 1-D bool$"),
    ],
)
def test_bad_arguments_are_refused_before_the_first_batch(
    changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments: dict[str, Any] = {
        "inputs": INPUTS,
        "targets": TARGETS,
        "batch_size": 4,
        "order": np.arange(10),
    }
    with pytest.raises(error, match=message):
        iterate_batches(**(arguments | changed))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1, 1), "^num_examples must be an integer >= 1, got 0$"),
        ((1, -1, 1), "^seed must be an integer >= 0, got -1$"),
        ((1, 1, -1), "^epoch must be an integer >= 0, got -1$"),
    ],
)
def test_bad_order_arguments_are_refused(arguments: tuple[int, int, int], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        batch_order(*arguments)


def test_order_of_a_seed_never_changes() -> None:
    # A resumed run draws its order again: a change here would end it with other bits.
    assert batch_order(8, 42, 0).tolist() == [4, 2, 3, 7, 0, 5, 6, 1]
    assert batch_order(8, 42, 1).tolist() == [6, 4, 3, 1, 5, 2, 7, 0]


@pytest.mark.parametrize("module", ["fastformer.data", "fastformer.data.batches"])
def test_data_imports_neither_numba_nor_matplotlib(module: str) -> None:
    script = f"import sys, {module}; print({{'numba', 'matplotlib'}} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (shown.stdout.strip(), shown.stderr) == ("set()", "")


def test_targets_of_tokens_go_with_their_sequences():
    sequences = [[1, 2, 3], [4], [5, 6]]
    inputs, targets = pack(sequences), 10 * np.array([1, 2, 3, 4, 5, 6])
    order = np.array([2, 0, 1])
    found = list(iterate_batches(inputs, targets, 2, order))
    assert [batch.tokens.tolist() for batch, _ in found] == [[5, 6, 1, 2, 3], [4]]
    assert [its.tolist() for _, its in found] == [[50, 60, 10, 20, 30], [40]]
