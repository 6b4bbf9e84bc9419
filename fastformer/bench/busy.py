"""Row P14: training steps while each core has another busy program, and while none has."""

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from fastformer import threads
from fastformer.bench.environment import is_installed
from fastformer.bench.goals import GOALS, target_row
from fastformer.bench.options import Options, Row
from fastformer.bench.processes import Result, alternate, ratios, run_worker, spread

# Numbers of threads that stay, which ours is held to.
FIXED = ("numba-1", "numba-all")
# Longer than for other rows: a thread waits for its core for milliseconds, now and then.
FACTOR = 4
_ENDLESS = "while True: pass"


@contextmanager
def busy_cores() -> Iterator[int]:
    """Keep one endless program running on each core; gives their number."""
    count = threads.available_threads()
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
    with ExitStack() as stack:
        for index in range(count):
            program = subprocess.Popen([sys.executable, "-S", "-c", _ENDLESS])
            stack.callback(program.wait)
            stack.callback(program.kill)
            if cores:
                os.sched_setaffinity(program.pid, {cores[index % len(cores)]})
        yield count


def time_while_busy(
    data: Mapping[str, str], options: Options, expected: Mapping[str, Sequence[float]],
    seconds: Mapping[str, float], busy: bool,
) -> dict[str, list[Result]]:  # fmt: skip
    """Alternate whole processes that time steps, all of them under the same load.

    Args:
        data: the file of each workload.    options: threads, turns and the report.
        expected: the first losses of each workload.    seconds: to measure each.
        busy: whether each core has another program.
    """

    def job(system: str, turn: int) -> Result:
        found: Result = {}
        for name, path in data.items():
            steps = {"kind": "steps", "data": {name: path}, "seconds": seconds[name]}
            job = {**steps, "expected": {name: expected[name]}}
            with busy_cores() if busy else ExitStack():
                found |= run_worker(system, job, options.threads)
        return found

    systems = ["numba", *FIXED, *(["torch"] if is_installed("torch") else [])]
    what = "steps beside busy programs" if busy else "steps on a number of threads that is found"
    return alternate(systems, options.repeats, job, options.report, what)


def busy_rows(
    directory: Path, options: Options, expected: Mapping[str, Sequence[float]],
    factors: Mapping[str, float],
) -> list[Row]:  # fmt: skip
    """Describe P14: the mean step beside the better one of those on one and on all threads.

    Args:
        directory: of the workloads' files.    options: threads, turns, seconds and the report.
        expected: the first losses of each workload.
        factors: how many times the chosen seconds each is measured.
    """
    data = {name: str(directory / f"{name}.npz") for name in expected}
    seconds = {name: FACTOR * factors[name] * options.seconds for name in expected}
    rows = []
    for row, busy in (("P14", True), ("P14 quiet", False)):
        found = time_while_busy(data, options, expected, seconds, busy)
        rows.append(_worst_row(row, found, list(expected)))
    return rows


def _worst_row(row: str, found: Mapping[str, list[Result]], names: Sequence[str]) -> Row:
    """Describe the workload that does worst beside the better fixed number of threads."""
    means = {
        name: {
            system: [result[name]["mean"] for result in results]
            for system, results in found.items()
        }
        for name in names
    }
    compared = {name: _beside_fixed(times) for name, times in means.items()}
    worst = max(names, key=lambda name: compared[name].median)
    times = dict(means[worst])
    ours = times.pop("numba")
    peers: dict[str, Any] = {
        system: {"value": spread(values).as_dict(), "ratio": ratios(values, ours).as_dict()}
        for system, values in times.items()
    }
    every = [
        {
            "workload": name,
            "value": compared[name].as_dict(),
            "seconds": {system: spread(values).as_dict() for system, values in times.items()},
        }
        for name, times in means.items()
    ]
    return target_row(
        GOALS[row], compared[worst], spread(ours), peers, product=worst, workloads=every
    )


def _beside_fixed(times: Mapping[str, Sequence[float]]) -> Any:
    """Return the spread of our time over that of the better fixed number of threads."""
    best = min(FIXED, key=lambda system: statistics.median(times[system]))
    return ratios(times["numba"], times[best])
