"""Learning-rate schedules."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastformer.training.config import SCHEDULES
from fastformer.training.schedules import learning_rate_at

SETTINGS: dict[str, Any] = {
    "schedule": "cosine",
    "learning_rate": 0.1,
    "min_learning_rate": 0.01,
    "warmup_steps": 4,
    "total_steps": 12,
}


def rates(steps: int = 12, **changes: Any) -> list[float]:
    return [learning_rate_at(step, **(SETTINGS | changes)) for step in range(steps)]


@pytest.mark.smoke
def test_constant_is_constant_whatever_the_other_settings() -> None:
    assert rates(20, schedule="constant") == [0.1] * 20


def test_warmup_rises_by_equal_steps_and_stays() -> None:
    expected = [0.025, 0.05, 0.075, 0.1, 0.1, 0.1]
    assert rates(6, schedule="warmup") == pytest.approx(expected, rel=1e-15)
    assert rates(1, schedule="warmup", warmup_steps=40) == pytest.approx([0.1 / 40], rel=1e-15)
    assert rates(8, schedule="warmup", learning_rate=1.96, warmup_steps=7)[6:] == [1.96, 1.96]


def test_no_warmup_begins_at_the_peak() -> None:
    assert rates(1, schedule="warmup", warmup_steps=0) == [0.1]
    assert rates(1, schedule="cosine", warmup_steps=0) == [0.1]


def test_cosine_by_hand() -> None:
    values = rates(14)
    assert values[:4] == pytest.approx([0.025, 0.05, 0.075, 0.1], rel=1e-15)
    assert values[4] == 0.1
    assert values[6] == pytest.approx(0.01 + 0.09 * (1 + math.sqrt(0.5)) / 2, rel=1e-14)
    assert values[8] == pytest.approx(0.055, rel=1e-14)  # half way: the mean of both ends
    assert values[11] > 0.01
    assert values[12:] == [0.01, 0.01]


def test_cosine_without_minimum_never_wastes_a_step() -> None:
    values = rates(min_learning_rate=0.0)
    assert min(values) > 0.0
    assert learning_rate_at(12, **(SETTINGS | {"min_learning_rate": 0.0})) == 0.0


def test_warmup_longer_than_the_training_never_reaches_the_peak() -> None:
    for schedule in ("warmup", "cosine"):
        values = rates(12, schedule=schedule, warmup_steps=100)
        assert values == pytest.approx([0.001 * (step + 1) for step in range(12)], rel=1e-14)


@given(
    schedule=st.sampled_from(SCHEDULES),
    learning_rate=st.floats(1e-6, 10.0),
    share=st.floats(0.0, 1.0),
    warmup_steps=st.integers(0, 30),
    total_steps=st.integers(1, 60),
)
def test_every_rate_is_within_its_bounds_and_shape(
    schedule: str, learning_rate: float, share: float, warmup_steps: int, total_steps: int
) -> None:
    minimum = learning_rate * share
    values = rates(
        total_steps,
        schedule=schedule,
        learning_rate=learning_rate,
        min_learning_rate=minimum,
        warmup_steps=warmup_steps,
        total_steps=total_steps,
    )
    tolerance = 1e-12 * learning_rate
    assert all(0.0 < value <= learning_rate for value in values)
    peak = 0 if schedule == "constant" else min(warmup_steps, total_steps)
    assert values[:peak] == sorted(values[:peak])
    falling = values[peak:]
    for rate, following in zip(falling, falling[1:], strict=False):
        assert following <= rate + tolerance
    assert all(value >= minimum - tolerance for value in falling)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": -1}, "step must be an integer >= 0, got -1"),
        ({"step": 1.5}, "step must be an integer >= 0, got 1.5"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"learning_rate": 0.0}, "learning_rate must be a finite number > 0, got 0.0"),
        ({"learning_rate": math.nan}, "learning_rate must be a finite number > 0, got nan"),
        ({"min_learning_rate": 0.2}, "min_learning_rate must be a finite number .* <= 0.1"),
        ({"warmup_steps": -1}, "warmup_steps must be an integer >= 0, got -1"),
        ({"total_steps": 0}, "total_steps must be an integer >= 1, got 0"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        learning_rate_at(**({"step": 0} | SETTINGS | change))
