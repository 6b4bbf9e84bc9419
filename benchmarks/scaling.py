"""How the cost of a step grows: with length, width, batch and threads, in time and memory."""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.arithmetic import resized, step_flops
from fastformer.bench.options import Options, Outcome, Row, measured_machine
from fastformer.bench.processes import alternate, run_worker, spread
from fastformer.bench.workloads import Workload

# A decoder of two layers; each series changes one thing.
BASE = Workload("scaling", "decoder of two layers", "decoder", 4, 256, 128, 4, 2, 512, 65)
LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)
TOKENS = 4096
SERIES = {
    "length, 4,096 tokens a batch": "T",
    "length, 2 sequences a batch": "T",
    "width": "C",
    "batch": "B",
    "threads": "threads",
}


def points(threads: int) -> Iterator[tuple[str, Workload, int]]:
    """Yield (series, workload, threads)."""
    names = list(SERIES)
    for T in LENGTHS:
        yield names[0], resized(BASE, B=TOKENS // T, T=T), threads
    for T in LENGTHS:
        yield names[1], resized(BASE, B=2, T=T), threads
    for C in (32, 64, 128, 256, 512):
        yield names[2], resized(BASE, C=C, F=4 * C), threads
    for B in (1, 2, 4, 8, 16, 32):
        yield names[3], resized(BASE, B=B), threads
    count = 1
    while count < threads:
        yield names[4], BASE, count
        count *= 2
    yield names[4], BASE, threads


def _value(series: str, workload: Workload, threads: int) -> int:
    key = SERIES[series]
    return threads if key == "threads" else int(getattr(workload, key))


def run(options: Options) -> Outcome:
    """Measure every point, each in processes of its own.

    Raises:
        FastformerError: a process failed.
    """
    machine = measured_machine(options)
    rows = []
    every = list(points(options.threads))
    with tempfile.TemporaryDirectory() as temporary:
        path = str(Path(temporary) / "data.npz")
        for number, (series, workload, threads) in enumerate(every, start=1):
            fields = asdict(workload)
            task = {"task": "benchmarks.step_jobs:prepare", "workload": fields}
            run_worker("reference", {**task, "path": path, "checks": 0}, options.threads)
            what = f"point {number} of {len(every)}, {series} {_value(series, workload, threads)}"

            def step(
                system: str, turn: int, fields: Any = fields, threads: int = threads
            ) -> dict[str, Any]:
                timed = {
                    "task": "benchmarks.step_jobs:time_steps",
                    "system": system,
                    "workload": fields,
                    "data": {"step": path},
                    "seconds": options.seconds,
                    "expected": {},
                }
                result: dict[str, Any] = run_worker(system, timed, threads)["step"]
                return result

            found = alternate(["numba"], options.repeats, step, options.report, what)["numba"]
            rows.append(_row(series, workload, threads, found, machine))
    return Outcome(rows, machine)


def _row(
    series: str,
    workload: Workload,
    threads: int,
    found: list[dict[str, Any]],
    machine: Mapping[str, Any],
) -> Row:
    seconds = spread([result["median"] for result in found])
    flops = step_flops(workload, reads_one_row=False)
    return {
        "suite": "scaling",
        "series": series,
        "value": _value(series, workload, threads),
        "sizes": asdict(workload),
        "threads": threads,
        "tokens": workload.tokens,
        "seconds": seconds.as_dict(),
        "flops": flops,
        "gflops": flops / seconds.median / 1e9,
        "tokens_per_second": workload.tokens / seconds.median,
        "peak_bytes": max(result["peak_bytes"] for result in found),
        # Of the step itself: what the process held before it is not the model's.
        "step_bytes": max(result["peak_bytes"] - result["bytes_before"] for result in found),
    }
