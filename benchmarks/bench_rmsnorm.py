"""Root mean square normalisation: `pytest benchmarks/bench_rmsnorm.py`."""

import pytest
from harness import BACKENDS, cases_of, time_case


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", cases_of("rmsnorm"), ids=str)
def bench_rmsnorm(benchmark, case, backend):
    time_case(benchmark, case, backend)
