"""Stochastic gradient descent: `pytest benchmarks/bench_sgd.py`."""

import pytest
from harness import BACKENDS, cases_of, time_case


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", cases_of("sgd"), ids=str)
def bench_sgd(benchmark, case, backend):
    time_case(benchmark, case, backend)
