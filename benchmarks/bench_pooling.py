"""Rows of sequences: `pytest benchmarks/bench_pooling.py`."""

import pytest
from harness import BACKENDS, cases_of, time_case


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", cases_of("pooling"), ids=str)
def bench_pooling(benchmark, case, backend):
    time_case(benchmark, case, backend)
