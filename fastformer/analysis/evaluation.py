"""How many answers are right: whole answers, by group, by digit, and what was taken for what.

Answers are text. So all of it serves a classifier, which names one class, as well as a decoder,
which writes several tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

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


class Scores(Protocol):
    """What is known of a set of answers."""

    @property
    def exact(self) -> Share:
        """Answers that are right as a whole."""

    @property
    def labels(self) -> tuple[str, ...]:
        """What the rows and columns of `confusion` stand for."""

    @property
    def confusion(self) -> Ids:
        """(labels, labels) int64, how often each label (row) was taken for each (column)."""

    @property
    def unit(self) -> str:
        """What a label is: "digit" or "class"."""

    @property
    def shares(self) -> dict[str, dict[str, Share]]:
        """Right answers of each group, by what the groups are."""

    @property
    def per_digit(self) -> list[Share]:
        """Digits that are right, from the units up; empty where answers are no numbers."""

    def for_json(self) -> dict[str, Any]:
        """Return all but `exact`, as JSON values."""


@dataclass(frozen=True)
class ClassScore:
    """How well one class is told from the others.

    Attributes:
        recall: of its examples, those that were given this class.
        precision: of those that were given this class, its examples; None where none were.
    """

    recall: Share
    precision: Share | None

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall; 0 where none of its examples is found."""
        if self.precision is None or not self.recall.correct:
            return 0.0
        return 2 * self.recall.correct / (self.recall.total + self.precision.total)

    def as_json(self) -> dict[str, Any]:
        """Return precision, recall, f1, and how many examples there are."""
        return {
            "precision": None if self.precision is None else self.precision.accuracy,
            "recall": self.recall.accuracy,
            "f1": self.f1,
            "examples": self.recall.total,
            "correct": self.recall.correct,
            "interval_95": list(self.recall.interval),
        }


@dataclass(frozen=True)
class ClassScores:
    """What is known of a set of answers that are classes.

    Attributes:
        exact: answers that are right.    labels: the names of the classes.
        per_class: of each class that has examples, in the order of `labels`.
        confusion: (labels, labels) int64, how often each class (row) was taken for each (column).
    """

    exact: Share
    labels: tuple[str, ...]
    per_class: dict[str, ClassScore]
    confusion: Ids
    unit: str = "class"

    @property
    def shares(self) -> dict[str, dict[str, Share]]:
        """Right answers of each class."""
        return {"class": {name: score.recall for name, score in self.per_class.items()}}

    @property
    def per_digit(self) -> list[Share]:
        """There are no digits."""
        return []

    @property
    def macro_f1(self) -> float:
        """The mean of the classes' F1: each counts alike, however rare it is."""
        return float(np.mean([score.f1 for score in self.per_class.values()]))

    def for_json(self) -> dict[str, Any]:
        """Return all but `exact`, as JSON values."""
        return {
            "macro_f1": self.macro_f1,
            "per_class": {name: score.as_json() for name, score in self.per_class.items()},
            "confusion": {"labels": list(self.labels), "counts": self.confusion.tolist()},
        }


@dataclass(frozen=True)
class WholeScores:
    """What is known of a set of answers that are texts of any kind.

    Attributes:
        exact: answers that are right as a whole.
    """

    exact: Share
    labels: tuple[str, ...] = ()
    unit: str = "answer"
    confusion: Ids = field(default_factory=lambda: np.zeros((0, 0), np.int64))

    @property
    def shares(self) -> dict[str, dict[str, Share]]:
        """There are no groups."""
        return {}

    @property
    def per_digit(self) -> list[Share]:
        """There are no digits."""
        return []

    def for_json(self) -> dict[str, Any]:
        """Return nothing else."""
        return {}


def evaluate_classes(
    predicted: Sequence[str], correct: Sequence[str], labels: Sequence[str]
) -> ClassScores:
    """Compare classes with the right ones.

    Args:
        predicted: what a model answered.    correct: the right classes, as many, at least one.
        labels: the names of all classes.

    Raises:
        ValueError: no answers, another number of them, or a class that is none of `labels`.
    """
    if not correct or len(predicted) != len(correct):
        checks.fail(
            "there must be at least one right class, and an answer for each, got "
            f"{len(correct)} classes and {len(predicted)} answers"
        )
    places = {name: place for place, name in enumerate(labels)}
    for name in (*predicted, *correct):
        if name not in places:
            checks.fail(f"there is no class {name!r:.60}; there are {', '.join(labels)!s:.200}")
    confusion = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(confusion, ([places[c] for c in correct], [places[p] for p in predicted]), 1)
    asked, given, right = confusion.sum(axis=1), confusion.sum(axis=0), confusion.diagonal()
    per_class = {
        name: ClassScore(
            Share(int(right[place]), int(asked[place])),
            Share(int(right[place]), int(given[place])) if given[place] else None,
        )
        for name, place in places.items()
        if asked[place]
    }
    return ClassScores(Share(int(right.sum()), len(correct)), tuple(labels), per_class, confusion)


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

    unit: str = "digit"
    labels: tuple[str, ...] = CONFUSION_LABELS

    @property
    def shares(self) -> dict[str, dict[str, Share]]:
        """Right answers of each operation, and of each inner one where there are such."""
        found = {"operation": self.per_operation, "inner operation": self.per_inner_operation}
        return {what: shares for what, shares in found.items() if shares}

    def for_json(self) -> dict[str, Any]:
        """Return all but `exact`, as JSON values."""
        return {
            "per_operation": {name: s.accuracy for name, s in self.per_operation.items()},
            "operations": {name: s.as_json() for name, s in self.per_operation.items()},
            "inner_operations": {name: s.as_json() for name, s in self.per_inner_operation.items()},
            "per_digit": [
                {"place": place_name(place), **share.as_json()}
                for place, share in enumerate(self.per_digit)
            ],
            "confusion": {"labels": list(CONFUSION_LABELS), "counts": self.confusion.tolist()},
        }


@dataclass(frozen=True)
class Mistake:
    """A digit or a class that was taken for another one, and how often."""

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


def mistakes(scores: Scores) -> list[Mistake]:
    """Return what was taken for what, the most frequent first."""
    wrong, labels = scores.confusion.copy(), scores.labels
    np.fill_diagonal(wrong, 0)
    places = sorted(zip(*np.nonzero(wrong), strict=True), key=lambda place: -wrong[place])
    return [Mistake(labels[row], labels[column], int(wrong[row, column])) for row, column in places]


def used_labels(scores: Scores) -> list[int]:
    """Return the places of the labels that a confusion matrix shows.

    Of digits all, but for that of no digit, if it is empty; of classes those that were asked for or
    answered.
    """
    confusion = scores.confusion
    used = (confusion + confusion.T).sum(axis=0) > 0
    if scores.unit == "digit":
        used[: len(scores.labels) - 1] = True
    return [int(place) for place in np.flatnonzero(used)]


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
