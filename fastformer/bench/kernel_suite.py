"""Every kernel on its table of shapes, beside its twin and the other systems."""

from collections.abc import Sequence
from typing import Any

from fastformer.bench.cases import table
from fastformer.bench.machine import attainable_seconds
from fastformer.bench.options import Options, Outcome, Row, measured_machine
from fastformer.bench.processes import alternate, ratios, run_worker, spread
from fastformer.bench.spec import Case

OWN_TASK = "fastformer.bench.kernel_jobs:time_kernels"


def run(options: Options, task: str = OWN_TASK) -> Outcome:
    """Measure the chosen ops.

    Args:
        options: which, and how.    task: what times them, as module:function.

    Raises:
        FastformerError: a kernel is not equal to its twin; nothing is timed then.
    """
    cases = table((options.against,) if options.against else options.ops, options.shapes)
    systems = [*options.systems, *(["yours"] if options.kernel else [])]
    named = [
        {"op": case.op, "variant": case.spec.variant, "shape": list(case.shape)} for case in cases
    ]
    _check(systems, named, options)
    machine = measured_machine(options)

    def job(system: str, turn: int) -> dict[str, Any]:
        return run_worker(
            system,
            {
                "task": task,
                "system": system,
                "cases": named,
                "seconds": options.seconds,
                "kernel": options.kernel,
            },
            options.threads,
        )

    found = alternate(systems, options.repeats, job, options.report, _count(cases))
    rows = [
        _row(case, index, system, found, machine)
        for index, case in enumerate(cases)
        for system in systems
    ]
    return Outcome(rows, machine)


def _count(cases: Sequence[object]) -> str:
    return f"{len(cases)} kernel case{'s' if len(cases) > 1 else ''}"


def _check(systems: list[str], named: list[dict[str, Any]], options: Options) -> None:
    """Hold our kernels, and the user's, to their twins before anything is timed."""
    for system, kernel in (("numba", None), ("yours", options.kernel)):
        if system in systems or (system == "numba" and "numba-1" in systems):
            options.report(f"{system}: checking {_count(named)} against the NumPy twins")
            task = "fastformer.bench.kernel_jobs:check_kernels"
            run_worker(system, {"task": task, "cases": named, "kernel": kernel}, options.threads)


def _row(
    case: Case,
    index: int,
    system: str,
    found: dict[str, list[dict[str, Any]]],
    machine: dict[str, Any],
) -> Row:
    """Describe one system's time of one case."""
    times = [result["times"][index] for result in found[system]]
    flops, traffic = times[0]["flops"], times[0]["traffic"]
    seconds = spread([time["median"] for time in times])
    threads = "one" if system == "numba-1" else "all"
    limit = attainable_seconds(machine, flops, traffic, times[0]["footprint"], threads)
    arithmetic = flops / machine["fma"]["float32"][threads]
    row: Row = {
        "suite": "kernels",
        "case": str(case),
        "op": case.op,
        "variant": case.spec.variant,
        "shape": list(case.shape),
        "system": system,
        "seconds": seconds.as_dict(),
        "flops": flops,
        "traffic": traffic,
        "gflops": flops / seconds.median / 1e9,
        "gbytes": traffic / seconds.median / 1e9,
        "bound": "arithmetic" if arithmetic >= limit else "memory",
        "share_of_peak": limit / seconds.median,
    }
    if "numba" in found and system != "numba":
        ours = [result["times"][index]["median"] for result in found["numba"]]
        row["ratio"] = ratios([time["median"] for time in times], ours).as_dict()
    return row
