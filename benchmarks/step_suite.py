"""Whole training steps, beside other systems: equal first losses, then times."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.arithmetic import useful_flops
from fastformer.bench.options import Options, Outcome, Row, measured_machine
from fastformer.bench.processes import Result, alternate, ratios, run_worker, spread
from fastformer.bench.workloads import WORKLOADS, Workload

# What one process measures together, and for how many times the chosen seconds.
GROUPS: tuple[tuple[tuple[str, ...], float], ...] = ((("P1", "P2"), 1), (("P4",), 2), (("P5",), 5))


def prepare(name: str, directory: Path, threads: int, **job: Any) -> list[float]:
    """Write a workload's data to directory/name.npz; return the losses that all must find."""
    path = str(directory / f"{name}.npz")
    task = {"task": "benchmarks.step_jobs:prepare", "workload": name, "path": path, **job}
    losses: list[float] = run_worker("reference", task, threads)["losses"]
    return losses


def time_group(
    names: Sequence[str],
    systems: Sequence[str],
    expected: Mapping[str, Sequence[float]],
    directory: Path,
    options: Options,
    seconds: float,
) -> dict[str, list[Result]]:
    """Alternate whole processes, each timing the steps of some workloads."""
    data = {name: str(directory / f"{name}.npz") for name in names}

    def job(system: str, turn: int) -> Result:
        # llmlearn computes all positions of P1, and other gradients: its losses are its own.
        chosen = {"P1": data["P1"]} if system == "llmlearn" else data
        checked = {} if system == "llmlearn" else expected
        return run_worker(
            system,
            {
                "task": "benchmarks.step_jobs:time_steps",
                "system": system,
                "data": chosen,
                "seconds": seconds,
                "expected": checked,
            },
            options.threads,
        )

    what = f"steps of {' and '.join(names)}"
    return alternate(systems, options.repeats, job, options.report, what)


def step_row(workload: Workload, system: str, found: Mapping[str, list[Result]],
             machine: Mapping[str, Any]) -> Row:  # fmt: skip
    """Describe one system's step of one workload."""
    times = [result[workload.name]["median"] for result in found[system]]
    seconds = spread(times)
    flops = useful_flops(system, workload)
    peak = machine["fma"]["float32"]["one" if system == "numba-1" else "all"]
    row: Row = {
        "suite": "steps",
        "workload": workload.name,
        "title": workload.title,
        "sizes": asdict(workload),
        "system": system,
        "seconds": seconds.as_dict(),
        "tokens_per_second": workload.tokens / seconds.median,
        "flops": flops,
        "gflops": flops / seconds.median / 1e9,
        "share_of_peak": flops / seconds.median / peak,
        "peak_bytes": max(result[workload.name]["peak_bytes"] for result in found[system]),
    }
    if "numba" in found and system != "numba":
        ours = [result[workload.name]["median"] for result in found["numba"]]
        row["ratio"] = ratios(times, ours).as_dict()
    return row


def run(options: Options) -> Outcome:
    """Measure the steps of P1, P2, P4 and P5.

    Raises:
        FastformerError: a system computes something else.
    """
    machine = measured_machine(options)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        for names, factor in GROUPS:
            options.report(f"preparing {' and '.join(names)}")
            expected = {name: prepare(name, directory, options.threads) for name in names}
            # The twins take seconds for a step of P5, and nobody waits for them.
            systems = [s for s in options.systems if s != "reference" or names != ("P5",)]
            seconds = options.seconds * factor
            found = time_group(names, systems, expected, directory, options, seconds)
            rows += [
                step_row(WORKLOADS[name], system, found, machine)
                for name in names
                for system in systems
            ]
    return Outcome(rows, machine)
