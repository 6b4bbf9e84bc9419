"""Attention: `pytest benchmarks/bench_attention.py`."""

import pytest
from harness import BACKENDS, cases_of, time_case


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", cases_of("attention"), ids=str)
def bench_attention(benchmark, case, backend):
    time_case(benchmark, case, backend)
