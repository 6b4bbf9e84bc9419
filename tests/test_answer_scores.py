"""Scores of answers, against counts made by hand."""

import numpy as np
import pytest

from fastformer.analysis.evaluation import (
    CONFUSION_LABELS,
    NO_DIGIT,
    Mistake,
    Share,
    evaluate_answers,
    mistakes,
)


def test_whole_answers_and_operations_are_counted() -> None:
    scores = evaluate_answers(
        ["12", "7", "Max", "100", "10"],
        ["13", "7", "5", "10", "10"],
        ["Max", "Min", "Max", "Min", "Min"],
    )
    assert scores.exact == Share(2, 5)
    assert scores.per_operation == {"Max": Share(0, 2), "Min": Share(2, 3)}
    assert list(scores.per_operation) == ["Max", "Min"]


def test_an_answer_counts_for_each_operation_within_its_own() -> None:
    inner = [["Max", "Min"], ["Max", "Max"], ["Min"]]
    scores = evaluate_answers(["1", "2", "3"], ["1", "3", "3"], ["Add"] * 3, inner)
    assert scores.per_inner_operation == {"Max": Share(1, 2), "Min": Share(2, 2)}
    assert evaluate_answers(["1"], ["1"]).per_inner_operation == {}
    with pytest.raises(ValueError, match="inner must be as many as correct answers, 2: 1"):
        evaluate_answers(["1", "2"], ["1", "2"], inner=[["Max"]])


@pytest.mark.smoke
def test_digits_are_compared_place_by_place_from_the_units() -> None:
    scores = evaluate_answers(["12", "7", "Max", "100", "1"], ["13", "7", "5", "10", "21"])
    # Units: 2 for 3, 7, none for 5, 0, 1. Tens: 1, then 0 for 1, none for 2.
    assert scores.per_digit == [Share(3, 5), Share(1, 3)]
    none = CONFUSION_LABELS.index(NO_DIGIT)
    expected = np.zeros((11, 11), np.int64)
    for row, column in [(3, 2), (7, 7), (5, none), (0, 0), (1, 1), (1, 1), (1, 0), (2, none)]:
        expected[row, column] += 1
    expected[none, 1] += 1  # the hundreds of 100, where 10 was right
    np.testing.assert_array_equal(scores.confusion, expected)


def test_every_digit_of_the_right_answers_is_in_its_row(rng: np.random.Generator) -> None:
    correct = [str(number) for number in rng.integers(0, 1000, 300)]
    predicted = [str(number) for number in rng.integers(0, 10_000, 300)]
    scores = evaluate_answers(predicted, correct)
    text = "".join(correct)
    digits = [text.count(digit) for digit in CONFUSION_LABELS[:10]]
    assert scores.confusion.sum(axis=1)[:10].tolist() == digits
    right = sum(share.correct for share in scores.per_digit)
    assert np.trace(scores.confusion) == right
    perfect = evaluate_answers(correct, correct)
    assert perfect.exact == Share(300, 300)
    assert np.trace(perfect.confusion) == perfect.confusion.sum() == len(text)


def test_mistakes_come_most_frequent_first() -> None:
    scores = evaluate_answers(["1", "1", "2", "2", "9"], ["3", "3", "2", "5", "90"])
    assert mistakes(scores) == [
        Mistake("3", "1", 2),
        Mistake("0", "9", 1),
        Mistake("5", "2", 1),
        Mistake("9", NO_DIGIT, 1),
    ]
    assert mistakes(evaluate_answers(["1"], ["1"])) == []


def test_the_interval_is_that_of_wilson_and_all_of_it_is_json() -> None:
    answers = ["1"] * 998 + ["2"] * 2
    scores = evaluate_answers(answers, ["1"] * 1000, ["Max"] * 1000)
    found, exact = scores.for_json(), scores.exact.as_json()
    low, high = exact["interval_95"]
    assert (round(low, 4), round(high, 4)) == (0.9927, 0.9995)
    assert found["operations"]["Max"] == exact
    assert found["per_digit"][0]["place"] == "units"
    assert found["confusion"]["counts"][1][:3] == [0, 998, 2]


@pytest.mark.parametrize(
    ("predicted", "correct", "operations", "complaint"),
    [
        ([], [], None, "at least one answer"),
        (["1"], ["1", "2"], None, "predicted must be as many as correct answers, 2"),
        (["1"], ["1"], [], "operations must be as many"),
        (["1"], ["one"], None, "correct answer 0 must consist of decimal digits, got 'one'"),
    ],
)
def test_answers_that_do_not_belong_together_are_refused(
    predicted: list[str], correct: list[str], operations: list[str] | None, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        evaluate_answers(predicted, correct, operations)
