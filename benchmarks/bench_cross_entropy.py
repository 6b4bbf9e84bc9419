"""Softmax and cross-entropy: `pytest benchmarks/bench_cross_entropy.py`."""

import pytest
from harness import BACKENDS, cases_of, time_case


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", cases_of("cross_entropy"), ids=str)
def bench_cross_entropy(benchmark, case, backend):
    time_case(benchmark, case, backend)
