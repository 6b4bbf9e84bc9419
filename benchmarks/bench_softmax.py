"""Softmax: `pytest benchmarks/bench_softmax.py`."""

import pytest
from harness import BACKENDS, cases_of, time_case


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", cases_of("softmax"), ids=str)
def bench_softmax(benchmark, case, backend):
    time_case(benchmark, case, backend)
