"""Whole classifiers: `pytest benchmarks/bench_transformer_gradients.py`."""

import pytest
from harness import BACKENDS, cases_of, time_case


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", cases_of("transformer_gradients"), ids=str)
def bench_transformer_gradients(benchmark, case, backend):
    time_case(benchmark, case, backend)
