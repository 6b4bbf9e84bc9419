"""Whole training steps: `pytest benchmarks/bench_train_step.py`."""

import pytest
from harness import BACKENDS, STEPS, time_step


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("workload", STEPS)
def bench_train_step(benchmark, workload, backend):
    time_step(benchmark, workload, backend)
