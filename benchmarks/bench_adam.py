"""Adam: `pytest benchmarks/bench_adam.py`."""

import pytest
from harness import BACKENDS, cases_of, time_case


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", cases_of("adam"), ids=str)
def bench_adam(benchmark, case, backend):
    time_case(benchmark, case, backend)
