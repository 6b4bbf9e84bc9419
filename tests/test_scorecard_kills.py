"""The rows on kills, signals and failing disks, each with few cases; planted faults are noticed."""

import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.scorecard import full_disk, kills, signals, strace, supervisor, syscalls


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    """Give a process that runs are forked from, to all tests here."""
    with supervisor.workers(1) as workers:
        yield workers


def test_a_run_that_is_killed_ends_with_the_same_bits(pool: ProcessPoolExecutor) -> None:
    found = kills.measure("fast", (6, 1, 0, 0), pool)
    assert found.cases == 7
    assert found.reached, found


def test_a_signal_saves_the_step(pool: ProcessPoolExecutor) -> None:
    found = signals.measure("fast", (6, 1, 0), pool)
    assert found.cases == 7
    assert found.reached, found


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_failure_of_a_call_leaves_old_or_new(pool: ProcessPoolExecutor) -> None:
    found = syscalls.measure("fast", 60, pool)
    assert found.cases >= 8
    assert found.reached, found


def test_a_rename_without_forcing_to_disk_is_noticed() -> None:
    calls = [
        strace.Call("write", 1, 'write(3</run/.a.tmp>, "x", 1) = 1'),
        strace.Call("fsync", 1, "fsync(3</run/.a.tmp>) = 0"),
        strace.Call("close", 1, "close(3</run/.a.tmp>) = 0"),
        strace.Call("rename", 1, 'rename("/run/.a.tmp", "/run/a") = 0'),
        strace.Call("fsync", 2, "fsync(3</run>) = 0"),
    ]
    assert strace.not_forced(calls) == []
    for left_out in (1, 4):
        wrong = strace.not_forced(calls[:left_out] + calls[left_out + 1 :])
        assert len(wrong) == 1 and "not forced to disk" in wrong[0]


def test_a_full_disk_is_an_error_that_loses_nothing(pool: ProcessPoolExecutor) -> None:
    found = full_disk.measure("fast", 14, pool)
    assert found.cases >= 2
    assert found.reached, found
