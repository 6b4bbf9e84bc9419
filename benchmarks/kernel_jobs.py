"""Jobs on single kernels, in the process of any system."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastformer.bench import kernel_jobs
from fastformer.bench.spec import Case, realize


def _call(system: str, case: Case, kernel: str | None) -> kernel_jobs.Call:
    """Return a call that does a case's work once."""
    if system in ("torch", "compile"):
        from benchmarks.peers import torch_ops

        arguments = realize(case.given(), np.float32)
        compiled = system == "compile"
        return torch_ops.build(case.op, case.spec.variant, case.shape, arguments, compiled)
    if system == "jax":
        from benchmarks.peers import jax_ops

        arguments = realize(case.given(), np.float32)
        return jax_ops.build(case.op, case.spec.variant, case.shape, arguments)
    return kernel_jobs.own_call(system, case, kernel)


def time_kernels(
    system: str, cases: Sequence[Mapping[str, Any]], seconds: float, kernel: str | None = None
) -> dict[str, Any]:
    """Time each case, as `fastformer.bench.kernel_jobs.time_kernels` does, for peers as well."""
    return kernel_jobs.time_kernels(system, cases, seconds, kernel, _call)
