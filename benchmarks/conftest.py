"""Threads and plug-ins of the benchmarks; it must come before NumPy is imported."""

import importlib.util
import os

import pytest

# Both backends run in this one process, and BLAS's threads would make kernels wait. So the
# twins have one thread here; `fastformer bench` gives them all, in a process of their own.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"


def pytest_configure() -> None:
    """Say what is missing."""
    if importlib.util.find_spec("pytest_benchmark") is None:
        raise pytest.UsageError("the benchmarks need pytest-benchmark: pip install -e '.[bench]'")
