"""Tasks whose answers have several tokens: drawn fresh as training goes, for the decoder.

An example is question, answer, [EOS]. A question ends with `)` or `=`; only what follows is
learned. All examples are made by NumPy, thousands at a time, with -1 where a row has no token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from fastformer import checks
from fastformer.batch import Ids, PackedBatch
from fastformer.data.vocabulary import DIGIT_TOKENS, EOS, encode
from fastformer.random import generator

ANSWER_TOKENS: Final[tuple[str, ...]] = (*DIGIT_TOKENS, "Add", "+", "=")
"""The token of each id: those of the classifier, and what only the decoder's tasks have."""

ADDEND_DIGITS: Final[int] = 10
"""Digits of the numbers that `addition` adds."""

MOST_UNSEEN: Final[int] = 100_000
"""Of 16 inputs that are drawn one is kept for a part, and all are in memory at once."""

_ADD, _PLUS, _EQUALS = range(len(DIGIT_TOKENS), len(ANSWER_TOKENS))
_ZERO, _FIRST, _OPEN, _CLOSE, _COMMA = encode(["0", "First", "(", ")", ","])
_NOTHING = -1

# One input in 16 is kept for the validation, and one for the test: by its hash, so that a stream
# need not know what was drawn elsewhere.
_PARTS = 16
_PART_OF = {"validation": 0, "test": 1}


@dataclass(frozen=True)
class Drawn:
    """Examples as tables of token ids, -1 where a row has none.

    Attributes:
        question: (B, Q).    answer: (B, A), each row ending with [EOS].
        hints: (B, Q), what training also asks for after a token of the question; -1 for nothing.
    """

    question: Ids
    answer: Ids
    hints: Ids

    def rows(self, chosen: npt.NDArray[np.intp]) -> "Drawn":
        """Return some of the examples."""
        return Drawn(self.question[chosen], self.answer[chosen], self.hints[chosen])

    def packed(self, *, hints: bool) -> tuple[PackedBatch, Ids]:
        """Return the tokens without the last [EOS], and what comes after each, or -1."""
        whole = np.concatenate([self.question, self.answer], axis=1)
        learned = np.full(whole.shape, _NOTHING)
        learned[:, self.question.shape[1] :] = self.answer
        there = whole >= 0
        tokens, following = whole[there], learned[there]
        targets = np.append(following[1:], _NOTHING)
        if hints:
            asked = np.concatenate([self.hints, np.full(self.answer.shape, _NOTHING)], axis=1)[
                there
            ]
            targets = np.where(asked >= 0, asked, targets)
        # No row needs what comes after [EOS], so the model never reads it.
        read = tokens != EOS
        offsets = np.zeros(len(whole) + 1, np.int64)
        np.cumsum(there.sum(axis=1) - 1, out=offsets[1:])
        return PackedBatch(tokens[read], offsets), targets[read]


def _digits(values: Ids, width: int, *, padded: bool) -> Ids:
    """Return (B, width) digit tokens, most significant first; leading zeros are -1 or `0`."""
    powers = 10 ** np.arange(width - 1, -1, -1)
    tokens = values[:, None] // powers % 10 + _ZERO
    return tokens if padded else np.where((values[:, None] < powers) & (powers > 1), -1, tokens)


def _column(token: int, rows: int) -> Ids:
    return np.full((rows, 1), token)


def _values(operations: Ids, numbers: Ids, counts: Ids) -> Ids:
    """Return the value of each row's operation on its first numbers."""
    there = np.arange(numbers.shape[1]) < counts[:, None]
    last = numbers[np.arange(len(numbers)), counts - 1]
    largest = np.where(there, numbers, -1).max(axis=1)
    smallest = np.where(there, numbers, np.iinfo(np.int64).max).min(axis=1)
    choices = [numbers[:, 0], numbers[:, 1], last, largest, smallest]
    value: Ids = np.choose(operations - _FIRST, choices)
    return value


def _with_end(answer: Ids) -> Ids:
    return np.concatenate([answer, _column(EOS, len(answer))], axis=1)


def _without_hints(question: Ids, answer: Ids) -> Drawn:
    return Drawn(question, answer, np.full(question.shape, _NOTHING))


def _draw_numbers(random: np.random.Generator, rows: int, width: int) -> Drawn:
    """Draw `Max ( 0 5 , 3 7 , 0 9 )` with three numbers of `width` digits.

    Zeros in front, which make places comparable, were worth 99.94 -> 100.00 % for two digits.
    """
    operations = random.integers(_FIRST, _FIRST + 5, rows)
    numbers = random.integers(0, 10**width, (rows, 3))
    parts = [operations[:, None]]
    for place in range(3):
        parts.append(_column(_COMMA if place else _OPEN, rows))
        parts.append(_digits(numbers[:, place], width, padded=True))
    value = _values(operations, numbers, np.full(rows, 3))
    question = np.concatenate([*parts, _column(_CLOSE, rows)], axis=1)
    return _without_hints(question, _with_end(_digits(value, width, padded=True)))


def _draw_lists(random: np.random.Generator, rows: int) -> Drawn:
    """Draw `Max ( 5 3 9 1 7 )` with five to ten digits."""
    operations = random.integers(_FIRST, _FIRST + 5, rows)
    numbers, counts = random.integers(0, 10, (rows, 10)), random.integers(5, 11, rows)
    listed = np.where(np.arange(10) < counts[:, None], numbers + _ZERO, _NOTHING)
    ends = _column(_OPEN, rows), _column(_CLOSE, rows)
    question = np.concatenate([operations[:, None], ends[0], listed, ends[1]], axis=1)
    value = _values(operations, numbers, counts)
    return _without_hints(question, _with_end(value[:, None] + _ZERO))


def _draw_part(random: np.random.Generator, rows: int) -> tuple[Ids, Ids]:
    """Draw `Max ( 3 7 )` or `Max ( 3 7 2 )`; return its (B, 6) tokens and its values."""
    operations = random.integers(_FIRST, _FIRST + 5, rows)
    numbers, counts = random.integers(0, 10, (rows, 3)), random.integers(2, 4, rows)
    ends = _column(_OPEN, rows), _column(_CLOSE, rows)
    tokens = np.concatenate([operations[:, None], ends[0], numbers + _ZERO, ends[1]], axis=1)
    tokens[counts == 2, 4] = _NOTHING
    return tokens, _values(operations, numbers, counts)


def _outer(operations: Ids, parts: list[Ids], values: list[Ids]) -> tuple[Ids, Ids]:
    """Return the question around its parts, and hints: each part's value after its `)`.

    "Every `)` is answered" was worth 98.61 -> 99.82 % for nested expressions.
    """
    rows = len(operations)
    ends = _column(_OPEN, rows), _column(_CLOSE, rows)
    question = np.concatenate([operations[:, None], ends[0], *parts, ends[1]], axis=1)
    hints = np.full(question.shape, _NOTHING)
    for place, value in enumerate(values):
        after = 2 + 6 * place + 5
        hints[:, after] = np.where(question[:, after] == _CLOSE, value + _ZERO, _NOTHING)
    return question, hints


def _draw_nested(random: np.random.Generator, rows: int) -> Drawn:
    """Draw `Max ( First ( 2 8 ) 5 )`: two or three arguments, of which some are digits."""
    operations, counts = random.integers(_FIRST, _FIRST + 5, rows), random.integers(2, 4, rows)
    plain = random.random((3, rows)) < 0.25
    plain[0] &= ~plain[1]  # so that at least one is nested
    parts, values = [], []
    for place in range(3):
        tokens, value = _draw_part(random, rows)
        digit = random.integers(0, 10, rows)
        tokens[plain[place]] = _NOTHING
        tokens[plain[place], 2] = digit[plain[place]] + _ZERO
        parts.append(tokens)
        values.append(np.where(plain[place], digit, value))
    parts[2][counts == 2] = _NOTHING
    question, hints = _outer(operations, parts, values)
    value = _values(operations, np.stack(values, axis=1), counts)
    return Drawn(question, _with_end(value[:, None] + _ZERO), hints)


def _draw_arithmetic(random: np.random.Generator, rows: int) -> Drawn:
    """Draw `Add ( Max ( 3 7 ) Min ( 2 9 ) )`, the answer's units first."""
    left, right = _draw_part(random, rows), _draw_part(random, rows)
    question, hints = _outer(np.full(rows, _ADD), [left[0], right[0]], [left[1], right[1]])
    answer = _digits(left[1] + right[1], 2, padded=False)[:, ::-1]
    return Drawn(question, _with_end(answer), hints)


def _draw_addition(random: np.random.Generator, rows: int) -> Drawn:
    """Draw `a + b =` with zeros in front, the answer's units first, as carries go."""
    return _sum(random.integers(0, 10**ADDEND_DIGITS, (2, rows)))


def _draw_mixed_addition(random: np.random.Generator, rows: int) -> Drawn:
    """Draw sums of which every second has numbers with fewer digits.

    For training: worth 10.5 -> 100.00 % after 3000 steps of an unlucky seed.
    """
    numbers = random.integers(0, 10**ADDEND_DIGITS, (2, rows))
    shorter = numbers % 10 ** random.integers(1, ADDEND_DIGITS + 1, rows)
    return _sum(np.where(random.random(rows) < 0.5, shorter, numbers))


def _sum(numbers: Ids) -> Drawn:
    rows = numbers.shape[1]
    left, right = (_digits(value, ADDEND_DIGITS, padded=True) for value in numbers)
    marks = _column(_PLUS, rows), _column(_EQUALS, rows)
    question = np.concatenate([left, marks[0], right, marks[1]], axis=1)
    answer = _digits(numbers.sum(axis=0), ADDEND_DIGITS + 1, padded=True)[:, ::-1]
    return _without_hints(question, _with_end(answer))


_DRAWS: Final[dict[str, Callable[[np.random.Generator, int], Drawn]]] = {
    "double-digits": lambda random, rows: _draw_numbers(random, rows, 2),
    "three-digits": lambda random, rows: _draw_numbers(random, rows, 3),
    "long-lists": _draw_lists,
    "nested": _draw_nested,
    "arithmetic": _draw_arithmetic,
    "addition": _draw_addition,
}

# Not all training is on what is asked in the end.
_TRAINING_DRAWS: Final = _DRAWS | {"addition": _draw_mixed_addition}

ANSWER_TASKS: Final[tuple[str, ...]] = tuple(_DRAWS)
"""The names of the tasks."""


@dataclass(frozen=True, kw_only=True)
class AnswerTask:
    """Which questions are drawn, and how many.

    Raises:
        ValueError, TypeError: a value that is not allowed; the message names it.
    """

    name: str = field(metadata={"help": "the task"})
    examples: int = field(default=32_000, metadata={"help": "fresh examples in an epoch"})
    validation_examples: int = field(default=1_000, metadata={"help": "unseen, after each epoch"})
    test_examples: int = field(default=10_000, metadata={"help": "unseen, at the end"})

    def __post_init__(self) -> None:
        """Check every value."""
        checks.choice("name", self.name, ANSWER_TASKS)
        checks.integer("examples", self.examples, 1)
        for count in ("validation_examples", "test_examples"):
            checks.integer(count, getattr(self, count), 1, MOST_UNSEEN)

    @property
    def longest(self) -> int:
        """Tokens of the longest question and answer that a model reads."""
        drawn = _DRAWS[self.name](generator(0, "answer shapes"), 1)
        return int(drawn.question.shape[1] + drawn.answer.shape[1] - 1)


def draw_training(task: AnswerTask, seed: int, place: int, count: int) -> Drawn:
    """Draw a batch for training: no input of the validation or the test is in it.

    Args:
        task: what to draw.    seed: the run's, >= 0.    place: which batch of the run, >= 0: the
            batch depends on nothing else.    count: >= 1.
    """
    random = generator(seed, "answer stream", place)
    found = [_kept(task, random, count + count // 4 + 16, None)]
    while sum(len(part.question) for part in found) < count:
        found.append(_kept(task, random, count, None))
    return _joined(found).rows(np.arange(count))


def draw_unseen(task: AnswerTask, seed: int, part: str, count: int) -> Drawn:
    """Draw the inputs of the "validation" or the "test", each once.

    Raises:
        ValueError: more inputs than the task's part has, as far as drawing finds them.
    """
    checks.choice("part", part, tuple(_PART_OF))
    random, drawn = generator(seed, f"answer {part}"), None
    for _ in range(16):
        more = _kept(task, random, _PARTS * count + 64, _PART_OF[part])
        drawn = more if drawn is None else _joined([drawn, more])
        first = np.unique(_hashes(drawn.question), return_index=True)[1]
        drawn = drawn.rows(np.sort(first))
        if len(drawn.question) >= count:
            return drawn.rows(np.arange(count))
    found = 0 if drawn is None else len(drawn.question)
    checks.fail(f"{part}_examples must be at most about {found} for {task.name}, got {count}")


def kept_apart(questions: Sequence[Sequence[int]]) -> npt.NDArray[np.bool_]:
    """Tell which questions, given by their token ids, training never draws, whatever the seed."""
    table = np.full((len(questions), max(map(len, questions), default=0)), _NOTHING)
    for row, ids in zip(table, questions, strict=True):
        row[: len(ids)] = ids
    kept: npt.NDArray[np.bool_] = _hashes(table) % np.uint64(_PARTS) < len(_PART_OF)
    return kept


def _kept(task: AnswerTask, random: np.random.Generator, rows: int, part: int | None) -> Drawn:
    """Draw rows, and return those of a part; None is the training."""
    drawn = (_TRAINING_DRAWS if part is None else _DRAWS)[task.name](random, rows)
    parts = _hashes(drawn.question) % np.uint64(_PARTS)
    in_part = parts >= len(_PART_OF) if part is None else parts == part
    return drawn.rows(np.flatnonzero(in_part))


def _joined(drawn: list[Drawn]) -> Drawn:
    return Drawn(
        np.concatenate([one.question for one in drawn]),
        np.concatenate([one.answer for one in drawn]),
        np.concatenate([one.hints for one in drawn]),
    )


def _hashes(question: Ids) -> npt.NDArray[np.uint64]:
    """Return a number for each question, from its tokens in their order (FNV-1a, then mixed)."""
    found = np.full(len(question), 0xCBF29CE484222325, np.uint64)
    for column in question.T:
        mixed = (found ^ (column + 2).astype(np.uint64)) * np.uint64(0x100000001B3)
        found = np.where(column >= 0, mixed, found)
    found = (found ^ (found >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)
    result: npt.NDArray[np.uint64] = found ^ (found >> np.uint64(29))
    return result
