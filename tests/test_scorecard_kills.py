"""The rows on kills, signals and failing disks, each with few cases; planted faults are noticed."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.scorecard import kills, signals, supervisor


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    """Give the processes that runs are forked from, to all tests here."""
    with supervisor.workers() as workers:
        yield workers


def test_a_run_that_is_killed_ends_with_the_same_bits(pool: ProcessPoolExecutor) -> None:
    found = kills.measure("fast", (6, 1, 0, 0), pool)
    assert found.cases == 7
    assert found.reached, found


def test_a_signal_saves_the_step(pool: ProcessPoolExecutor) -> None:
    found = signals.measure("fast", (6, 1, 0), pool)
    assert found.cases == 7
    assert found.reached, found
