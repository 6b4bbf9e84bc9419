"""Whole training steps, equal first, then timed: `pytest benchmarks/bench_train_step.py`."""

from typing import Any

import pytest

from benchmarks.arithmetic import useful_flops
from benchmarks.step_jobs import CHECKED_LOSSES, require_equal_losses
from benchmarks.steppers import build
from fastformer.backend import BACKENDS
from fastformer.bench.stepper import build_ours, prepared_data
from fastformer.bench.workloads import WORKLOADS


# The twins take seconds for a step of P5; `python -m benchmarks --suite steps` has it.
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["P1", "P2", "P4"])
def bench_train_step(benchmark: Any, name: str, backend: str) -> None:
    """Hold the first losses to those of the twins in float64, then time the step."""
    workload = WORKLOADS[name]
    data = prepared_data(workload, seed=1)
    truth = build_ours(workload, data, "reference", "float64").cycle(data)
    stepper = build(backend, workload, data)
    step = stepper.cycle(data)
    losses = [stepper.loss(step()) for _ in range(CHECKED_LOSSES)]
    require_equal_losses(backend, name, losses, [truth() for _ in range(CHECKED_LOSSES)])
    benchmark.group = f"{name} {workload.title}"
    benchmark.extra_info.update(flops=useful_flops(backend, workload))
    benchmark(step)
