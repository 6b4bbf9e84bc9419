"""The gate of SwiGLU: `pytest benchmarks/bench_swiglu.py`."""

import pytest
from harness import BACKENDS, cases_of, time_case


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", cases_of("swiglu"), ids=str)
def bench_swiglu(benchmark, case, backend):
    time_case(benchmark, case, backend)
