"""Embedding: `pytest benchmarks/bench_embedding.py`."""

import pytest
from harness import BACKENDS, cases_of, time_case


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", cases_of("embedding"), ids=str)
def bench_embedding(benchmark, case, backend):
    time_case(benchmark, case, backend)
