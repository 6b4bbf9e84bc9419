"""The scorecard's rows on misuse, each with few cases: they hold, and notice planted faults."""

import models
import pytest

from tests.scorecard import cells, damage, extremes, memory


@pytest.mark.parametrize(
    "measure",
    [
        pytest.param(lambda: memory.guard_pages(400), id="D1"),
        pytest.param(lambda: memory.bounds_checks("fast", 60), id="D2", marks=pytest.mark.variants),
        pytest.param(lambda: memory.races("fast", 1), id="D3"),
        pytest.param(lambda: damage.measure("fast", 1, ("adamw",)), id="D5"),
    ],
)
def test_row_holds_and_notices_planted_faults(measure):
    models.use_one_thread()
    found = measure()
    assert found.reached, found


def test_extreme_values_are_right():
    assert extremes.measure("fast", 1).reached


def test_misuse_is_a_clear_error():
    models.use_one_thread()
    found = cells.measure("fast")
    assert found.cases > 4000
    assert found.reached, found
