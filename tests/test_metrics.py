"""The metrics tracker, the metrics log and the confidence interval."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastformer.errors import RunError
from fastformer.training.metrics import MetricsLog, MetricsTracker, wilson_interval


def tracker(*validation_accuracies: float, train_accuracy: float = 0.5) -> MetricsTracker:
    result = MetricsTracker()
    for accuracy in validation_accuracies:
        result.update(1.0, train_accuracy, 1.1, accuracy)
    return result


# The tracker


@pytest.mark.smoke
def test_best_epoch_is_the_earliest_of_the_greatest_accuracy() -> None:
    metrics = MetricsTracker()
    seen = []
    for accuracy in (0.2, 0.6, 0.6, 0.5, 0.7, 0.7):
        metrics.update(1.0, 0.5, 1.1, accuracy)
        seen.append((metrics.epoch, metrics.best_epoch, metrics.is_best_epoch()))
    expected = [(1, 1, True), (2, 2, True), (3, 2, False), (4, 2, False), (5, 5, True)]
    assert seen == [*expected, (6, 5, False)]
    assert metrics.best_validation_accuracy == 0.7


def test_the_first_epoch_is_the_best_even_with_nothing_right() -> None:
    metrics = tracker(0.0)
    assert metrics.is_best_epoch()
    assert metrics.best_epoch == 1
    assert not tracker(0.0, 0.0).is_best_epoch()


def test_loss_plays_no_part() -> None:
    metrics = MetricsTracker()
    metrics.update(1.0, 0.5, 1.0, 0.5)
    metrics.update(0.1, 0.9, 0.1, 0.5)
    assert metrics.best_epoch == 1


def test_before_the_first_epoch() -> None:
    metrics = MetricsTracker()
    assert (metrics.epoch, metrics.best_epoch, metrics.best_validation_accuracy) == (0, 0, 0.0)
    assert not metrics.is_best_epoch()
    assert metrics.overfitting_warning() is None
    assert metrics.summary() == "no epoch finished yet"


def test_history_is_a_copy() -> None:
    metrics = tracker(0.25)
    assert metrics.history == {
        "train_loss": [1.0],
        "train_accuracy": [0.5],
        "validation_loss": [1.1],
        "validation_accuracy": [0.25],
    }
    metrics.history["train_loss"].append(9.0)
    assert metrics.history["train_loss"] == [1.0]


def test_overfitting_is_told_from_the_seventh_epoch() -> None:
    assert tracker(*[0.5] * 6, train_accuracy=0.9).overfitting_warning() is None
    warning = tracker(0.6, *[0.5] * 6, train_accuracy=0.9).overfitting_warning()
    assert warning is not None
    assert "40.0 %" in warning
    assert "best epoch so far is 1" in warning


def test_overfitting_needs_more_than_fifteen_points() -> None:
    assert tracker(*[0.85] * 7, train_accuracy=1.0).overfitting_warning() is None
    assert tracker(*[0.80] * 7, train_accuracy=0.95).overfitting_warning() is None
    assert tracker(*[0.849] * 7, train_accuracy=1.0).overfitting_warning() is not None


def test_overfitting_looks_at_the_latest_epoch_only() -> None:
    metrics = tracker(*[0.5] * 7, train_accuracy=0.9)
    metrics.update(1.0, 0.9, 1.0, 0.89)
    assert metrics.overfitting_warning() is None


def test_summary_has_the_latest_and_the_best() -> None:
    metrics = MetricsTracker()
    metrics.update(0.5, 0.75, 0.625, 0.8125)
    metrics.update(0.25, 0.875, 0.75, 0.5)
    assert metrics.summary() == (
        "epoch 2: train loss 0.2500, accuracy 87.50 %; validation loss 0.7500, accuracy 50.00 %\n"
        "best: validation accuracy 81.25 % in epoch 1"
    )
    assert tracker(*[0.5] * 7, train_accuracy=0.9).summary().splitlines()[-1].startswith("warning:")


@given(st.lists(st.tuples(*[st.floats(0, 1)] * 4), max_size=12))
def test_state_goes_through_json_unchanged(epochs: list[tuple[float, ...]]) -> None:
    metrics = MetricsTracker()
    for epoch in epochs:
        metrics.update(*epoch)
    resumed = tracker(0.9)
    resumed.load_state_dict(json.loads(json.dumps(metrics.state_dict())))
    assert resumed.history == metrics.history
    assert resumed.best_epoch == metrics.best_epoch
    for follower in (metrics, resumed):
        follower.update(1.0, 0.5, 1.0, 0.5)
    assert resumed.summary() == metrics.summary()
    assert resumed.is_best_epoch() == metrics.is_best_epoch()


def test_an_accuracy_of_nothing_asked_is_null_and_below_any_other() -> None:
    tracker = MetricsTracker()
    best = []
    for accuracy in (math.nan, math.nan, 0.0, math.nan, 0.5, 0.4):
        tracker.update(1.0, math.nan, 1.0, accuracy)
        best.append(tracker.best_epoch)
    assert best == [1, 1, 3, 3, 5, 5]
    for _ in range(3):
        tracker.update(1.0, 1.0, 1.0, math.nan)
    assert tracker.overfitting_warning() is None
    state = json.loads(json.dumps(tracker.state_dict(), allow_nan=False))
    assert state["history"]["validation_accuracy"][:3] == [None, None, 0.0]
    loaded = MetricsTracker()
    loaded.load_state_dict(state)
    assert loaded.best_epoch == 5
    np.testing.assert_equal(loaded.history, tracker.history)


def test_numpy_numbers_become_plain_ones() -> None:
    metrics = MetricsTracker()
    metrics.update(*np.array([0.5, 0.25, 0.5, 1.0], np.float32))
    assert json.loads(json.dumps(metrics.state_dict())) == metrics.state_dict()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((math.nan, 0.5, 1.0, 0.5), "train_loss must be a finite number"),
        ((1.0, 0.5, math.inf, 0.5), "validation_loss must be a finite number"),
        ((1.0, 1.01, 1.0, 0.5), "train_accuracy must be a finite number >= 0 and <= 1, got 1.01"),
        ((1.0, 0.5, 1.0, -0.1), "validation_accuracy must be .* got -0.1"),
        ((1.0, 0.5, 1.0, "0.5"), "validation_accuracy must be .* got '0.5'"),
    ],
)
def test_wrong_values_are_refused_and_nothing_is_added(values: Any, message: str) -> None:
    metrics = tracker(0.5)
    before = metrics.state_dict()
    with pytest.raises((ValueError, TypeError), match=message):
        metrics.update(*values)
    assert metrics.state_dict() == before


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"history": {}},
        {"history": {"train_loss": []}},
        {"history": tracker(0.5).history | {"train_loss": []}},
        {"history": tracker(0.5).history | {"train_loss": 1}},
        {"history": tracker(0.5).history | {"train_loss": [math.nan]}},
        {"history": tracker(0.5).history, "more": 1},
    ],
)
def test_a_state_that_is_none_changes_nothing(state: dict[str, Any]) -> None:
    metrics = tracker(0.25, 0.5)
    before = metrics.state_dict()
    with pytest.raises((ValueError, TypeError)):
        metrics.load_state_dict(state)
    assert metrics.state_dict() == before


# The log


@pytest.fixture
def log(tmp_path: Path) -> MetricsLog:
    return MetricsLog(tmp_path / "metrics.jsonl")


def fill(log: MetricsLog, steps: int) -> list[dict[str, Any]]:
    records = [{"step": step, "loss": 1 / (step + 3), "best": step == 1} for step in range(steps)]
    for record in records:
        log.append(record)
    return records


@pytest.mark.smoke
def test_records_come_back_as_they_were(log: MetricsLog) -> None:
    assert log.read() == []
    assert not log.file.exists()
    records = fill(log, 4)
    assert log.read() == records
    assert log.file.read_bytes().count(b"\n") == 4


def test_numpy_scalars_and_odd_text_fit_in_a_line(log: MetricsLog) -> None:
    log.append({"step": np.int64(3), "loss": np.float32(0.5), "note": "a\nb\r\u2028é"})
    assert log.read() == [{"step": 3, "loss": 0.5, "note": "a\nb\r\u2028é"}]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"loss": 1.0}, "step of a metrics record must be an integer >= 0, got None"),
        ({"step": -1}, "step of a metrics record must be an integer >= 0, got -1"),
        ({"step": 1, "loss": math.nan}, "a metrics record must consist of JSON values"),
        ({"step": 1, "loss": np.zeros(2)}, "JSON values: got ndarray"),
    ],
)
def test_a_wrong_record_is_not_written(
    log: MetricsLog, record: dict[str, Any], message: str
) -> None:
    records = fill(log, 2)
    with pytest.raises((ValueError, TypeError), match=message):
        log.append(record)
    assert log.read() == records


def test_every_torn_last_line_is_left_out_with_a_warning(log: MetricsLog) -> None:
    records = fill(log, 3)
    content = log.file.read_bytes()
    last_line = content.rindex(b"{")
    for length in range(last_line + 1, len(content)):
        log.file.write_bytes(content[:length])
        with pytest.warns(UserWarning, match=r"metrics\.jsonl: line 3, the last, is torn"):
            assert log.read() == records[:2]
    log.file.write_bytes(content[:last_line])
    assert log.read() == records[:2]


@pytest.mark.parametrize("junk", [b"\0\0\0\n", b"[1]\n", b'{"loss": 1}\n', b"\xff\n", b"\n"])
def test_a_last_line_of_junk_is_left_out_and_an_earlier_one_is_an_error(
    log: MetricsLog, junk: bytes
) -> None:
    records = fill(log, 2)
    good = log.file.read_bytes()
    log.file.write_bytes(good + junk)
    with pytest.warns(UserWarning, match="line 3, the last, is torn"):
        assert log.read() == records
    log.file.write_bytes(junk + good)
    for reading in (log.read, lambda: log.drop_after(0)):
        with pytest.raises(RunError, match=r"metrics\.jsonl: line 1 is damaged"):
            reading()
    assert log.file.read_bytes() == junk + good


def test_appending_after_a_torn_line_keeps_all_whole_lines(log: MetricsLog) -> None:
    records = fill(log, 3)
    log.file.write_bytes(log.file.read_bytes()[:-5])
    log.append({"step": 7})
    assert log.read() == [*records[:2], {"step": 7}]
    log.file.write_bytes(b'{"step"')
    log.append({"step": 8})
    assert log.read() == [{"step": 8}]


def test_drop_after_keeps_the_bytes_of_earlier_lines(log: MetricsLog) -> None:
    fill(log, 5)
    first_lines = b"".join(log.file.read_bytes().splitlines(keepends=True)[:3])
    log.drop_after(2)
    assert log.file.read_bytes() == first_lines
    before = log.file.stat()
    log.drop_after(2)
    assert log.file.stat().st_ino == before.st_ino  # nothing to drop: not written again
    log.file.write_bytes(first_lines + b'{"st')
    with pytest.warns(UserWarning, match="line 4, the last, is torn"):
        log.drop_after(9)
    assert log.file.read_bytes() == first_lines


def test_drop_after_without_a_file_makes_none(log: MetricsLog) -> None:
    log.drop_after(3)
    assert not log.file.exists()


# The interval


def test_wilson_interval_of_published_examples() -> None:
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3: 81/263, 15/148, 0/20, 1/29.
    for correct, total, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(998, 1000) == pytest.approx((0.9927, 0.9995), abs=6e-5)


@given(st.integers(1, 10**9).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_share_and_is_symmetric(case: tuple[int, int]) -> None:
    correct, total = case
    low, high = wilson_interval(correct, total)
    assert 0.0 <= low <= correct / total <= high <= 1.0
    assert low < high
    mirrored = wilson_interval(total - correct, total)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-12)


@pytest.mark.parametrize(("correct", "total"), [(0, 0), (2, 1), (-1, 3), (1.0, 3), (1, True)])
def test_wilson_interval_refuses_what_is_no_count(correct: Any, total: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="must be an integer"):
        wilson_interval(correct, total)
