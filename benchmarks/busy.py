"""Row P14: training steps while each core has another busy program, and while none has."""

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.systems import is_installed
from fastformer import threads
from fastformer.bench.options import Options
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
            job = {
                "task": "benchmarks.step_jobs:time_steps",
                "system": system,
                "data": {name: path},
                "seconds": seconds[name],
                "expected": {name: expected[name]},
            }
            with busy_cores() if busy else ExitStack():
                found |= run_worker(system, job, options.threads)
        return found

    systems = ["numba", *FIXED, *(["torch"] if is_installed("torch") else [])]
    what = "steps beside busy programs" if busy else "steps on a number of threads that is found"
    return alternate(systems, options.repeats, job, options.report, what)


def measure_busy(
    directory: Path, options: Options, expected: Mapping[str, Sequence[float]],
    factors: Mapping[str, float],
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Measure P14: the mean step beside the better one of those on one and on all threads.

    Args:
        directory: of the workloads' files.    options: threads, turns, seconds and the report.
        expected: the first losses of each workload.
        factors: how many times the chosen seconds each is measured.

    Returns:
        For each row what `target_row` needs, of the workload that does worst.
    """
    data = {name: str(directory / f"{name}.npz") for name in expected}
    seconds = {name: FACTOR * factors[name] * options.seconds for name in expected}
    return {
        row: _worst(time_while_busy(data, options, expected, seconds, busy), list(expected))
        for row, busy in (("P14", True), ("P14 quiet", False))
    }


def _worst(found: Mapping[str, list[Result]], names: Sequence[str]) -> dict[str, Any]:
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
    return {
        "value": compared[worst], "ours": spread(ours), "peers": peers, "product": worst,
        "workloads": every,
    }  # fmt: skip


def _beside_fixed(times: Mapping[str, Sequence[float]]) -> Any:
    """Return the spread of our time over that of the better fixed number of threads."""
    best = min(FIXED, key=lambda system: statistics.median(times[system]))
    return ratios(times["numba"], times[best])
