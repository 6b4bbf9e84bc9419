"""The gradient's norm and its scaling: `pytest benchmarks/bench_gradient.py`."""

import pytest
from harness import BACKENDS, cases_of, time_case


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", cases_of("gradient"), ids=str)
def bench_gradient(benchmark, case, backend):
    time_case(benchmark, case, backend)
