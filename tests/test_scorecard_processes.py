"""The scorecard's rows on processes and on the suite, each with few cases."""

from pathlib import Path

from tests.scorecard import processes, suite


def test_a_cache_that_is_not_checked_is_noticed(tmp_path: Path) -> None:
    probe = processes.Probe(tmp_path / "probe")
    cases = dict(processes.file_cases(probe))
    assert len(cases) >= 8
    assert cases["files flipped"]() == ""
    held, count = processes.bits(probe.files()[0], tmp_path, 1009)
    assert held == count > 100
    unchecked = processes.Probe(tmp_path / "unchecked", checksum="True")
    assert dict(processes.file_cases(unchecked))["files flipped"]() != ""


def test_calls_that_nothing_guards_are_noticed(tmp_path: Path) -> None:
    assert processes.called(tmp_path, "omp", "fork") == ""
    assert processes.called(tmp_path, "omp", "fork", processes.NO_REFUSAL, 30) != ""


def test_runs_of_tests_are_counted() -> None:
    found = suite.measure("fast", ["lengths"], 2)
    assert (found.held, found.cases, found.planted) == (2, 2, 1)
