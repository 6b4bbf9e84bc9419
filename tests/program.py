"""The command line in a process of its own, for tests."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent

# Seconds after which a process hangs. No test judges how long something takes: a process may
# compile kernels first, on a machine that has other work.
HANG = 1800


def start_program(*arguments: str, threads: int = 1, **options: Any) -> subprocess.Popen[str]:
    """Start the command in a process of its own.

    Small models gain nothing from more threads, and lose much where CPUs have other work.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "fastformer", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "NUMBA_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
