"""Checks: what passes is returned, and what does not is named with what is allowed."""

import dataclasses
import math

import numpy as np
import pytest

from fastformer import checks
from fastformer.errors import FastformerError, InvalidTypeError, InvalidValueError


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings for the test of `from_settings`."""

    epochs: int = 3
    operations: tuple[str, ...] = ("Max",)


# A call that passes, and what it returns.
PASS = [
    (checks.boolean, ("b", True), {}, True),
    (checks.integer, ("n", 1, 1), {}, 1),
    (checks.integer, ("n", np.uint8(5), 0, 5), {}, 5),
    (checks.number, ("x", 1), {"above": 0}, 1.0),
    (checks.number, ("x", 0), {"at_least": 0, "below": 1}, 0.0),
    (checks.number, ("x", np.float32(0.5)), {"at_most": 0.5}, 0.5),
    (checks.number, ("x", -3), {}, -3.0),
    (checks.choice, ("c", "pre", ("post", "pre")), {}, "pre"),
    (checks.known_keys, ("S", {"a": 1}, ["a", "b"]), {}, None),
    (checks.from_settings, (Settings, {"operations": ["Min"]}), {}, Settings(3, ("Min",))),
]


@pytest.mark.parametrize(("check", "arguments", "options", "result"), PASS)
def test_passes(check, arguments, options, result):
    found = check(*arguments, **options)
    assert found == result and type(found) is type(result)


VALUE, TYPE = InvalidValueError, InvalidTypeError
REFUSED = [
    (checks.boolean, ("b", 1), {}, TYPE, r"b must be True or False, got 1"),
    (checks.boolean, ("b", None), {}, TYPE, r"b must be True or False, got None"),
    (checks.boolean, ("b", np.True_), {}, TYPE, r"b must be True or False"),
    (checks.integer, ("n", 0, 1), {}, VALUE, r"n must be an integer >= 1, got 0"),
    (checks.integer, ("n", 9, 0, 5), {}, VALUE, r"n must be an integer from 0 to 5, got 9"),
    (checks.integer, ("n", -1, 0, 5), {}, VALUE, r"n must be an integer from 0 to 5, got -1"),
    (checks.integer, ("n", True, 0), {}, TYPE, r"n must be an integer >= 0, got True"),
    (checks.integer, ("n", 2.0, 0), {}, TYPE, r"n must be an integer >= 0, got 2.0"),
    (checks.integer, ("n", "2", 0), {}, TYPE, r"n must be an integer >= 0, got '2'"),
    (checks.integer, ("n", None, 0), {}, TYPE, r"n must be an integer >= 0, got None"),
    (checks.number, ("x", 0), {"above": 0}, VALUE, r"x must be a finite number > 0, got 0"),
    (checks.number, ("x", -0.1), {"at_least": 0}, VALUE, r"finite number >= 0, got -0.1"),
    (checks.number, ("x", 1), {"at_least": 0, "below": 1}, VALUE, r">= 0 and < 1, got 1"),
    (checks.number, ("x", 1.5), {"at_most": 1}, VALUE, r"finite number <= 1, got 1.5"),
    (checks.number, ("x", math.nan), {"above": 0}, VALUE, r"finite number > 0, got nan"),
    (checks.number, ("x", math.inf), {"above": 0}, VALUE, r"finite number > 0, got inf"),
    (checks.number, ("x", -math.inf), {}, VALUE, r"x must be a finite number, got -inf"),
    (checks.number, ("x", True), {"above": 0}, TYPE, r"finite number > 0, got True"),
    (checks.number, ("x", "1"), {}, TYPE, r"x must be a finite number, got '1'"),
    (checks.number, ("x", 1j), {}, TYPE, r"x must be a finite number, got 1j"),
    (checks.choice, ("c", "prr", ("post", "pre")), {}, VALUE, r"'post', 'pre'.*'prr'.*'pre'\?"),
    (checks.choice, ("c", "zz", ("post", "pre")), {}, VALUE, r"one of 'post', 'pre', got 'zz'$"),
    (checks.choice, ("c", None, ("a", "b")), {}, TYPE, r"c must be one of 'a', 'b', got None"),
    (checks.known_keys, ("S", {"aa": 1}, ["aaa", "b"]), {}, VALUE, r"no setting 'aa'.*'aaa'\?"),
    (checks.known_keys, ("S", {"q": 1}, ["b", "a"]), {}, VALUE, r"no setting 'q'; known: a, b"),
    (checks.from_settings, (Settings, {"epoch": 3}), {}, VALUE, r"Settings .*'epoch'.*'epochs'\?"),
    (checks.id_array, ("i", [[1]]), {}, TYPE, r"i must be one-dimensional integers.*\(1, 1\)"),
    (checks.id_array, ("i", [1.0]), {}, TYPE, r"i must be one-dimensional integers.*float64"),
    (checks.id_array, ("i", [3, -1]), {}, VALUE, r"i must be >= 0, got -1 at index 1"),
]


@pytest.mark.parametrize(("check", "arguments", "options", "error", "message"), REFUSED)
def test_refuses(check, arguments, options, error, message):
    with pytest.raises(error, match=message) as caught:
        check(*arguments, **options)
    assert isinstance(caught.value, FastformerError)
    assert isinstance(caught.value, ValueError if error is VALUE else TypeError)


def test_ids_are_a_new_array():
    given = np.array([3, 1])
    ids = checks.id_array("i", given)
    given[0] = 9
    assert ids.tolist() == [3, 1] and ids.dtype == np.int64
    assert checks.id_array("i", []).shape == (0,)
    assert checks.id_array("i", np.array([2**62], np.uint64)).tolist() == [2**62]


def matrix_of(shape=(4, 3), dtype=np.float32, **flags):
    array = np.zeros(shape, dtype)
    array.flags.writeable = flags.get("writeable", True)
    return array


MATRICES = [
    (matrix_of((4, 2)), VALUE, r"L: x must be \(4, 3\) float32, got \(4, 2\) float32"),
    (matrix_of((5, 3)), VALUE, r"L: x must be \(4, 3\) float32, got \(5, 3\) float32"),
    (matrix_of((12,)), VALUE, r"L: x must be \(4, 3\) float32, got \(12,\) float32"),
    (matrix_of((1, 4, 3)), VALUE, r"L: x must be \(4, 3\) float32, got \(1, 4, 3\) float32"),
    (matrix_of(dtype=np.float64), TYPE, r"got \(4, 3\) float64; .*astype\(np.float32\)"),
    (matrix_of(dtype=np.float16), TYPE, r"L: x must be \(4, 3\) float32, got \(4, 3\) float16"),
    (matrix_of(dtype=">f4"), TYPE, r"L: x must be \(4, 3\) float32, got \(4, 3\) >f4"),
    (matrix_of(dtype=int), TYPE, r"L: x must be \(4, 3\) float32, got \(4, 3\) int64"),
    (matrix_of((3, 4)).T, VALUE, r"L: x must be a C-contiguous, writable \(4, 3\) float32"),
    (matrix_of((8, 3))[::2], VALUE, r"L: x must be a C-contiguous, writable .*np.array\(x"),
    (matrix_of((4, 6))[:, ::2], VALUE, r"L: x must be a C-contiguous, writable"),
    (matrix_of(writeable=False), VALUE, r"L: x must be a C-contiguous, writable"),
    (matrix_of().tolist(), TYPE, r"L: x must be an array \(4, 3\) float32, got \[\["),
    (None, TYPE, r"L: x must be an array \(4, 3\) float32, got None"),
]


@pytest.mark.parametrize(("x", "error", "message"), MATRICES)
def test_matrix_refuses(x, error, message):
    with pytest.raises(error, match=message):
        checks.matrix("L", "x", x, 4, 3, np.dtype("float32"))


def test_matrix_takes_any_rows_where_none_are_asked_for():
    for rows in (0, 1, 7):
        checks.matrix("L", "x", matrix_of((rows, 3)), None, 3, np.dtype("float32"))
    with pytest.raises(InvalidValueError, match=r"L: x must be \(N, 3\) float32, got \(2, 4\)"):
        checks.matrix("L", "x", matrix_of((2, 4)), None, 3, np.dtype("float32"))


@pytest.mark.parametrize(
    ("targets", "ignored", "ids", "count"),
    [
        (np.array([0, 4], np.int8), -1, [0, 4], 2),
        ([0, -1], -1, [0, -1], 1),
        (np.array([-7, -7]), -7, [-7, -7], 0),
        ((1, np.int32(2)), -1, [1, 2], 2),
    ],
)
def test_targets_are_a_new_array(targets, ignored, ids, count):
    found, counted = checks.target_ids("L", targets, 2, 5, ignored)
    assert (found.tolist(), found.dtype, counted) == (ids, np.int64, count)
    assert found is not targets


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        ([0, None], TYPE, r"L: targets must be an integer array or list \(2,\), got \[0, None\]"),
        ([[0], [1, 2]], TYPE, r"L: targets must be an integer array or list .*, got \[\[0\], \[1"),
        ("ab", TYPE, r"L: targets must be an integer array or list \(2,\), got <U2"),
        (None, TYPE, r"L: targets must be an integer array or list \(2,\), got None"),
        (3, VALUE, r"L: targets must be \(2,\), one for each row of logits, got \(\)"),
        ([0, 1.0], TYPE, r"L: targets must be an integer array or list \(2,\), got float64"),
        (np.array([True, False]), TYPE, r"L: targets must be an integer array .* got bool"),
        (np.array([0, 2**64 - 1], np.uint64), VALUE, r"L: targets must fit into int64, got 1844"),
        (np.array([[0], [1]]), VALUE, r"L: targets must be \(2,\).*got \(2, 1\)"),
        (np.array([0, 5]), VALUE, r"from 0 to 4, or -1 to be ignored, got 5 at index 1"),
        (np.array([-2, 0]), VALUE, r"from 0 to 4, or -1 to be ignored, got -2 at index 0"),
    ],
)
def test_targets_refuse(targets, error, message):
    with pytest.raises(error, match=message):
        checks.target_ids("L", targets, 2, 5, -1)


def test_huge_numbers_and_tables_are_refused():
    with pytest.raises(InvalidValueError, match=r"x must be a finite number, got an integer of 13"):
        checks.number("x", 10**400)
    checks.table_size("L", rows=2**20, columns=2**20)
    message = r"L: rows x columns must be at most 1099511627776 elements, got rows=.*, columns=3$"
    for rows in (2**62, 2**100):
        with pytest.raises(InvalidValueError, match=message):
            checks.table_size("L", rows=rows, columns=3)


def test_arrays_that_are_misaligned_or_without_an_axis_are_refused():
    x = np.zeros(4 * 3 * 4 + 1, np.uint8)[1:].view(np.float32).reshape(4, 3)
    for check in (
        lambda: checks.matrix("L", "x", x, 4, 3, np.dtype("float32")),
        lambda: checks.same_shape("L", "x", x, (4, 3), np.dtype("float32")),
    ):
        with pytest.raises(InvalidValueError, match="L: x must be a C-contiguous, writable"):
            check()
    with pytest.raises(InvalidValueError, match=r"L: x must have at least one axis, got shape"):
        checks.same_shape("L", "x", np.zeros((), np.float32), (), np.dtype("float32"))
