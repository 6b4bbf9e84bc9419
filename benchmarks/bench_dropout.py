"""Dropout: `pytest benchmarks/bench_dropout.py`."""

import pytest
from harness import BACKENDS, cases_of, time_case


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", cases_of("dropout"), ids=str)
def bench_dropout(benchmark, case, backend):
    time_case(benchmark, case, backend)
