"""Layer normalisation: `pytest benchmarks/bench_layernorm.py`."""

import pytest
from harness import BACKENDS, cases_of, time_case


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", cases_of("layernorm"), ids=str)
def bench_layernorm(benchmark, case, backend):
    time_case(benchmark, case, backend)
