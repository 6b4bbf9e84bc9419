"""How many answers are right: whole answers, by operation, by digit, and what was taken for what.

Answers are text. So all of it serves a classifier, which names one token, as well as a decoder,
which writes several digits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fastformer import checks
from fastformer.batch import Ids
from fastformer.training.metrics import wilson_interval

NO_DIGIT: Final[str] = "none"
CONFUSION_LABELS: Final[tuple[str, ...]] = (*"0123456789", NO_DIGIT)
Flags = npt.NDArray[np.bool_]

_NONE: Final[int] = CONFUSION_LABELS.index(NO_DIGIT)
PLACE_NAMES: Final[tuple[str, ...]] = ("units", "tens", "hundreds", "thousands")


@dataclass(frozen=True)
class Share:
    """How many of some answers are right."""

    correct: int
    total: int

    @property
    def accuracy(self) -> float:
        """The share of right ones, from 0 to 1."""
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy, after Wilson."""
        return wilson_interval(self.correct, self.total)

    def as_json(self) -> dict[str, Any]:
        """Return accuracy, correct, total and interval_95."""
        return {
            "accuracy": self.accuracy,
            "correct": self.correct,
            "total": self.total,
            "interval_95": list(self.interval),
        }


@dataclass(frozen=True)
class AnswerScores:
    """What is known of a set of answers.

    Attributes:
        exact: answers that are right as a whole, every digit of them.
        per_operation: the same for each operation, in the order of first appearance.
        per_inner_operation: the same for each operation within another one: an answer counts for
            each that is in its expression. Empty where nothing is nested.
        per_digit: digits that are right, from the units up: of the answers that have a digit at
            that place. A digit that was not written is wrong.
        confusion: (11, 11) int64, how often a digit (row) was answered as a digit (column), place
            by place from the units up. Row and column 10 stand for no digit at a place: a
            predicted answer that is too long, too short, or no number.
    """

    exact: Share
    per_operation: dict[str, Share]
    per_inner_operation: dict[str, Share]
    per_digit: list[Share]
    confusion: Ids

    def as_json(self) -> dict[str, Any]:
        """Return the parts as JSON values."""
        return {
            "exact": self.exact.as_json(),
            "per_operation": {name: s.as_json() for name, s in self.per_operation.items()},
            "per_inner_operation": {
                name: s.as_json() for name, s in self.per_inner_operation.items()
            },
            "per_digit": [
                {"place": place_name(place), **share.as_json()}
                for place, share in enumerate(self.per_digit)
            ],
            "confusion": {"labels": list(CONFUSION_LABELS), "counts": self.confusion.tolist()},
        }


@dataclass(frozen=True)
class Mistake:
    """A digit that was taken for another one, and how often."""

    correct: str
    predicted: str
    count: int


def evaluate_answers(
    predicted: Sequence[str],
    correct: Sequence[str],
    operations: Sequence[str] | None = None,
    inner: Sequence[Sequence[str]] = (),
) -> AnswerScores:
    """Compare answers with the right ones.

    Args:
        predicted: what a model answered: decimal digits, the most significant first; anything
            else is a wrong answer without digits.
        correct: the right answers, as many, each of decimal digits.
        operations: the operation of each, as many; None where that is of no interest.
        inner: the operations within the operation of each, as many; nothing where none are nested.

    Raises:
        ValueError: no answers, another number of them, or a right answer that is no number.
    """
    if not correct:
        checks.fail("there must be at least one answer to evaluate, got none")
    given = {"predicted": predicted, "operations": operations, "inner": inner or None}
    for name, values in given.items():
        if values is not None and len(values) != len(correct):
            checks.fail(f"{name} must be as many as correct answers, {len(correct)}: {len(values)}")
    for place, answer in enumerate(correct):
        if not _is_number(answer):
            checks.fail(f"correct answer {place} must consist of decimal digits, got {answer!r}")
    right = np.array([p == c for p, c in zip(predicted, correct, strict=True)])
    places = max(len(answer) for answer in (*correct, *filter(_is_number, predicted)))
    wanted, found = _digit_codes(correct, places), _digit_codes(predicted, places)
    confusion = np.zeros((len(CONFUSION_LABELS), len(CONFUSION_LABELS)), np.int64)
    written = (wanted != _NONE) | (found != _NONE)
    np.add.at(confusion, (wanted[written], found[written]), 1)
    return AnswerScores(
        exact=_share(right),
        per_operation=_shares_by(operations, right) if operations is not None else {},
        per_inner_operation=_shares_within(inner, right),
        per_digit=[
            _share((wanted == found)[there, place])
            for place in range(places)
            if (there := wanted[:, place] != _NONE).any()
        ],
        confusion=confusion,
    )


def mistakes(confusion: Ids) -> list[Mistake]:
    """Return what was taken for what, the most frequent first.

    Args:
        confusion: (11, 11), of `AnswerScores`.
    """
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    places = sorted(zip(*np.nonzero(wrong), strict=True), key=lambda place: -wrong[place])
    return [
        Mistake(CONFUSION_LABELS[row], CONFUSION_LABELS[column], int(wrong[row, column]))
        for row, column in places
    ]


def place_name(place: int) -> str:
    """Return the name of a digit's place, counted from the units, which are 0."""
    return PLACE_NAMES[place] if place < len(PLACE_NAMES) else f"10^{place}"


def _is_number(answer: str) -> bool:
    return answer.isascii() and answer.isdecimal()


def _digit_codes(answers: Sequence[str], places: int) -> Ids:
    """Return (answers, places) digits, the units first, and `_NONE` where there is none."""
    codes = np.full((len(answers), places), _NONE, np.int64)
    for row, answer in zip(codes, answers, strict=True):
        if _is_number(answer):
            row[: len(answer)] = [int(digit) for digit in reversed(answer)]
    return codes


def _share(right: Flags) -> Share:
    return Share(int(np.count_nonzero(right)), right.size)


def _shares_by(names: Sequence[str], right: Flags) -> dict[str, Share]:
    array = np.array(names)
    return {name: _share(right[array == name]) for name in dict.fromkeys(names)}


def _shares_within(names: Sequence[Sequence[str]], right: Flags) -> dict[str, Share]:
    known = dict.fromkeys(name for row in names for name in row)
    return {name: _share(right[[name in row for row in names]]) for name in known}
