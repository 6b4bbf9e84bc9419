"""The start of the command, for its help: `pytest benchmarks/bench_start.py`."""

import subprocess
import sys


def bench_help(benchmark):
    def start():
        command = [sys.executable, "-m", "fastformer", "--help"]
        return subprocess.run(command, capture_output=True, text=True, check=True)

    assert "doctor" in start().stdout
    benchmark(start)
