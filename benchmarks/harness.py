"""What every benchmark file calls: equal first, then timed."""

import functools

import numpy as np

from fastformer.backend import BACKENDS, OPS, get_backend
from fastformer.bench.cases import kernel_and_twin, realize, table
from fastformer.bench.equivalence import check
from fastformer.bench.step_jobs import CHECKED_LOSSES, prepared_data, require_equal_losses
from fastformer.bench.stepper import build, build_ours
from fastformer.bench.workloads import WORKLOADS, useful_flops

__all__ = ["BACKENDS", "STEPS", "cases_of", "time_case", "time_step"]

# The twins take seconds for a step of P5; `fastformer bench --suite steps` has it.
STEPS = ("P1", "P2", "P4")


def cases_of(stem):
    """Return the table's cases of a file of kernels."""
    return table(OPS[stem])


def time_case(benchmark, case, backend):
    """Hold the kernel to its twin, then time the chosen backend on a case."""
    check(case, kernel_and_twin(case.op)[0], case.op)
    function = getattr(get_backend(backend), case.op)
    arguments = realize(case.given(), np.float32)
    call = functools.partial(function, *arguments.values())
    benchmark.group = str(case)
    benchmark.extra_info.update(flops=case.flops, traffic=case.traffic)
    benchmark(call)


def time_step(benchmark, name, backend):
    """Hold the first losses to those of the twins in float64, then time the step."""
    workload, system = WORKLOADS[name], "numba" if backend == "numba" else "reference"
    data = prepared_data(workload, seed=1)
    truth = build_ours(workload, data, "reference", "float64").cycle(data)
    stepper = build(system, workload, data)
    step = stepper.cycle(data)
    losses = [stepper.loss(step()) for _ in range(CHECKED_LOSSES)]
    require_equal_losses(system, name, losses, [truth() for _ in range(CHECKED_LOSSES)])
    benchmark.group = f"{name} {workload.title}"
    benchmark.extra_info.update(flops=useful_flops(system, workload))
    benchmark(step)
