"""Products of operands that are rounded: `pytest benchmarks/bench_matmul_bfloat16.py`."""

import pytest
from harness import BACKENDS, cases_of, time_case


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", cases_of("matmul_bfloat16"), ids=str)
def bench_matmul_bfloat16(benchmark, case, backend):
    time_case(benchmark, case, backend)
