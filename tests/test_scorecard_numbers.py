"""The scorecard's rows on numbers, each with few cases: they hold, and notice planted faults."""

import models
import pytest

from tests.scorecard import elementwise, integers, jacobians
from tests.scorecard.rows import Finding


@pytest.fixture(autouse=True)
def _one_thread():
    models.use_one_thread()


@pytest.mark.parametrize(
    "measure",
    [
        lambda: elementwise.measure("fast", 512),
        lambda: jacobians.measure("fast", 1),
        lambda: integers.measure("fast", 150),
    ],
    ids=["A2", "A3", "A4"],
)
def test_row_holds_and_notices_planted_faults(measure):
    found = measure()
    assert found.reached, found


def test_a_finding_without_cases_or_planted_faults_is_not_reached():
    assert Finding(3, 3, 1, 1).reached
    for counts in ((0, 0, 1, 1), (3, 3, 0, 0), (2, 3, 1, 1), (3, 3, 0, 1)):
        assert not Finding(*counts).reached
