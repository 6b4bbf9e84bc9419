"""The scorecard's rows on misuse, each with few cases: they hold, and notice planted faults."""

import models
import pytest

from tests.scorecard import cells, damage, extremes, memory


@pytest.mark.parametrize(
    "measure",
    [
        lambda: memory.guard_pages(400),
        lambda: memory.bounds_checks("fast", 60),
        lambda: memory.races("fast", 1),
        lambda: damage.measure("fast", 1, ("adamw",)),
    ],
    ids=["D1", "D2", "D3", "D5"],
)
def test_row_holds_and_notices_planted_faults(measure):
    models.use_one_thread()
    found = measure()
    assert found.reached, found


def test_extreme_values_are_right_but_for_what_is_known():
    found = extremes.measure("fast", 1)
    # Squares in a norm of what is above 1e19, and the weights, for pictures, of scores above 1e10.
    known = ("layernorm 6x9, ", "layernorm 5x67, ", "attention")
    assert found.cases - found.held == len(found.failures) < 20, found
    assert all(line.startswith(known) for line in found.failures), found.failures
    assert all("weights[" in line for line in found.failures if line.startswith("attention"))
    assert found.planted == found.plants == 4


def test_misuse_is_a_clear_error_but_for_what_is_known():
    models.use_one_thread()
    found = cells.measure("fast")
    # What a training step, an evaluation and an optimizer's state do not check.
    known = (" train_step, ", " evaluate, ", " Adam.load_state_dict, ")
    assert found.cases > 4000
    assert len(found.failures) == found.cases - found.held
    assert [line for line in found.failures if not any(name in line for name in known)] == []
    assert found.planted == found.plants == 5
