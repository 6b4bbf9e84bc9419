"""ReLU, GELU and Mish: `pytest benchmarks/bench_activation.py`."""

import pytest
from harness import BACKENDS, cases_of, time_case


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", cases_of("activation"), ids=str)
def bench_activation(benchmark, case, backend):
    time_case(benchmark, case, backend)
