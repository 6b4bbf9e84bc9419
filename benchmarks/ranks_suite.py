"""Processes that train together on this machine: what a step costs, and the exchange in it."""

import json
import os
import subprocess
import sys

from fastformer import launcher
from fastformer.bench.environment import system_environment
from fastformer.bench.equivalence import NotEqualError
from fastformer.bench.options import Options, Outcome, Row, measured_machine
from fastformer.bench.processes import BenchmarkError, Result, alternate, spread

# Of GPT-2, whose weights, gradients and moments are 2 GB in each process, fewer processes.
RANKS = {"P5": (1, 2, 4, 8), "P7": (1, 2, 4)}
STEPS = 5


def _time(workload: str, ranks: int, threads: int, in_memory: bool) -> Result:
    """Time the steps of so many processes."""
    job = {
        "workload": workload,
        "count": threads,
        "shards": max(4, ranks),
        "steps": STEPS,
        "in_memory": in_memory,
    }
    start = [launcher.mpiexec(), "--oversubscribe", "-n", str(ranks)] if ranks > 1 else []
    words = [*start, sys.executable, "-m", "benchmarks.ranks_jobs", json.dumps(job)]
    done = subprocess.run(
        words, env=system_environment("numba", threads), capture_output=True, text=True
    )
    if done.returncode:
        raise BenchmarkError(f"{ranks} processes failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def _rows(workload: str, options: Options) -> list[Row]:
    """Describe one workload with each number of processes, by memory and by messages."""
    every = {f"1 x {options.threads}": (1, options.threads, True)}
    for ranks in RANKS[workload]:
        every[f"{ranks} x 1"] = ranks, 1, True
        if ranks > 1:
            every[f"{ranks} x 1, messages"] = ranks, 1, False
    found = alternate(
        list(every), options.repeats, lambda name, turn: _time(workload, *every[name]),
        options.report, f"{workload} of processes x threads",
    )  # fmt: skip
    first = next(iter(found.values()))
    losses = {round(one["loss"], 4) for results in found.values() for one in results}
    if len(losses) > 1:
        raise NotEqualError(f"{workload}: numbers of processes have other losses: {losses}")
    return [
        {
            "suite": "ranks",
            "workload": workload,
            "ranks": every[name][0],
            "threads": every[name][1],
            "in_memory": every[name][2],
            "oversubscribed": every[name][0] * every[name][1] > (os.cpu_count() or 1),
            "bytes": results[0]["bytes"],
            "speed": spread(
                [one["step"] / own["step"] for one, own in zip(first, results, strict=True)]
            ).as_dict(),
            **{
                key: spread([one[key] for one in results]).as_dict()
                for key in ("step", "exchange", "optimizer")
            },
        }
        for name, results in found.items()
    ]


def run(options: Options) -> Outcome:
    """Measure steps of P5 and of GPT-2.

    Raises:
        FastformerError: there is no mpiexec, or a process failed.
    """
    launcher.mpiexec()
    machine = measured_machine(options)
    return Outcome([row for workload in RANKS for row in _rows(workload, options)], machine)
