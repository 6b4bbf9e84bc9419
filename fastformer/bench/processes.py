"""The side that starts processes: one for each system and turn, whole processes alternating."""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fastformer.bench.environment import system_environment
from fastformer.errors import FastformerError

Report = Callable[[str], None]
Result = dict[str, Any]
_LAST_LINES = 12


class BenchmarkError(FastformerError):
    """A process of a benchmark failed."""


def run_worker(
    system: str,
    job: Mapping[str, Any],
    threads: int,
    *,
    environment: Mapping[str, str] | None = None,
    timeout: float = 1800,
) -> Result:
    """Run one job in a process of its own and return its result.

    Args:
        system: whose environment the process has.
        job: task, which is module:function, and its arguments.
        threads: of the system.    environment: what to set beside.    timeout: in seconds.

    Raises:
        FastformerError: a kernel is not equal to its twin, or the process failed.
    """
    task = job["task"].partition(":")[2]
    command = [sys.executable, "-m", "fastformer.bench.worker"]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(job),
            env=system_environment(system, threads) | dict(environment or {}),
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError(
            f"{system} did not finish {task} within {timeout:.0f} s; "
            "measure less at once, for instance with --only"
        ) from error
    try:
        result: Result = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        result = {}
    if "error" in result:
        raise FastformerError(result["error"])
    if done.returncode != 0 or not result:
        tail = "\n".join(done.stderr.strip().splitlines()[-_LAST_LINES:])
        raise BenchmarkError(f"{system} failed in {task} (exit code {done.returncode}):\n{tail}")
    return result


def alternate(
    systems: Sequence[str],
    repeats: int,
    run: Callable[[str, int], Result],
    report: Report,
    what: str,
) -> dict[str, list[Result]]:
    """Run whole processes in turn: all systems, then all again.

    Args:
        systems: their names.    repeats: turns.    run: (system, turn) -> result.
        report: is told what begins.    what: is measured, in a few words.

    Returns:
        For each system its results, turn by turn.
    """
    results: dict[str, list[Result]] = {system: [] for system in systems}
    for turn in range(repeats):
        # Every other turn runs backwards, so that none always follows the same neighbour.
        for system in systems if turn % 2 == 0 else list(reversed(systems)):
            report(f"{what}: turn {turn + 1} of {repeats}, {system}")
            results[system].append(run(system, turn))
    return results


@dataclass(frozen=True)
class Spread:
    """A median with what it was taken from: a number for each turn.

    Attributes:
        median, minimum, maximum: over the turns.
    """

    median: float
    minimum: float
    maximum: float

    def as_dict(self) -> dict[str, float]:
        """Return the values by name."""
        return asdict(self)


def spread(values: Sequence[float]) -> Spread:
    """Return median, minimum and maximum."""
    return Spread(statistics.median(values), min(values), max(values))


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> Spread:
    """Return the spread of theirs / ours, turn by turn: above 1, ours is faster."""
    return spread([a / b for a, b in zip(theirs, ours, strict=True)])
