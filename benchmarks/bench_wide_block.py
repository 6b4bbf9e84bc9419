"""Wide transformer blocks: `pytest benchmarks/bench_wide_block.py`."""

import pytest
from harness import BACKENDS, cases_of, time_case


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", cases_of("wide_block"), ids=str)
def bench_wide_block(benchmark, case, backend):
    time_case(benchmark, case, backend)
