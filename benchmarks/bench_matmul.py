"""Matrix products: `pytest benchmarks/bench_matmul.py`."""

import pytest
from harness import BACKENDS, cases_of, time_case


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", cases_of("matmul"), ids=str)
def bench_matmul(benchmark, case, backend):
    time_case(benchmark, case, backend)
