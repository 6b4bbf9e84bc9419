"""The start of the command, for its help: `pytest benchmarks/bench_start.py`."""

import subprocess
import sys
from typing import Any


def bench_help(benchmark: Any) -> None:
    """Time the whole process."""

    def start() -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "fastformer", "--help"]
        return subprocess.run(command, capture_output=True, text=True, check=True)

    assert "doctor" in start().stdout
    benchmark(start)
