"""Rotary positions: `pytest benchmarks/bench_rotary.py`."""

import pytest
from harness import BACKENDS, cases_of, time_case


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", cases_of("rotary"), ids=str)
def bench_rotary(benchmark, case, backend):
    time_case(benchmark, case, backend)
