"""What a measurement depends on: the machine, the versions, the commit, and each system's threads.

It imports neither NumPy nor Numba: the process that starts the others stays small.
"""

import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

from fastformer import checks, threads

# Each in a process of its own. "reference" is the NumPy twins with all of BLAS's threads.
SYSTEMS = {
    "reference": "NumPy twins",
    "numba-1": "fastformer, one thread",
    "numba": "fastformer",
}
LABELS = SYSTEMS | {"yours": "your kernel"}


def system_environment(system: str, count: int) -> dict[str, str]:
    """Return the environment of a system's process, with its number of threads.

    Compiled kernels never run beside BLAS's threads, which make every parallel region wait.
    """
    own = 1 if system == "numba-1" else count
    blas = 1 if system.startswith("numba") or system == "yours" else own
    return os.environ | {
        "NUMBA_NUM_THREADS": str(own),
        "OMP_NUM_THREADS": str(own),
        "MKL_NUM_THREADS": str(own),
        "OPENBLAS_NUM_THREADS": str(blas),
    }


def thread_count(wanted: int | None) -> int:
    """Return how many threads to measure with.

    Raises:
        ValueError: more than this machine or container has, or none.
    """
    available = threads.available_threads()
    return available if wanted is None else checks.integer("threads", wanted, 1, available)


def cpu_name() -> str:
    """Return the CPU's name as its maker spells it, or its architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit of the tree that runs, with a + where files were changed since."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "--short", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}{'+' if changed else ''}"


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", *words], cwd=root, capture_output=True, text=True, timeout=20, check=True
    )
    return done.stdout.strip()


def describe(count: int, *peers: str) -> dict[str, Any]:
    """Return machine, versions, commit and date: what every row is kept with.

    Args:
        count: of threads.    peers: packages whose versions count, too, where they are installed.
    """
    packages = ("fastformer", "numpy", "numba", *peers)
    versions = {package: _version(package) for package in packages}
    return {
        "cpu": cpu_name(),
        "threads": count,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {package: found for package, found in versions.items() if found},
        "busy": threads.busy_share(),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }
