"""Each kernel and its twin, equal first, then timed: `pytest benchmarks/bench_kernels.py`.

An id begins with the file of kernels: `-k layernorm`, `-k "sequence_rows and 12x64"`.
"""

import functools
from typing import Any

import numpy as np
import pytest

from fastformer.backend import BACKENDS, OPS, get_backend
from fastformer.bench.cases import table
from fastformer.bench.equivalence import check
from fastformer.bench.spec import Case, kernel_and_twin, realize

CASES = [
    pytest.param(case, id=f"{stem}: {case}") for stem, ops in OPS.items() for case in table(ops)
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def bench_kernel(benchmark: Any, case: Case, backend: str) -> None:
    """Hold the kernel to its twin, then time the chosen backend on a case."""
    check(case, kernel_and_twin(case.op)[0], case.op)
    function = getattr(get_backend(backend), case.op)
    arguments = realize(case.given(), np.float32)
    call = functools.partial(function, *arguments.values())
    benchmark.group = str(case)
    benchmark.extra_info.update(flops=case.flops, traffic=case.traffic)
    benchmark(call)
