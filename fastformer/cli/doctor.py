"""`fastformer doctor`: what was found of CPU, threads, kernel cache and versions."""

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from fastformer import threads
from fastformer.cli import console, installed_version

_FEATURES = (
    *("sse4.2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512vl", "avx512bf16", "amx-bf16"),
    *("neon", "bf16", "sve", "sve2"),
)
"""The vector instructions that kernels can gain from: x86, then ARM."""

_BUSY = 0.1
"""The share of the CPUs' time that other programs use, from which on it is said."""


def doctor(*, json: Annotated[bool, Parameter(negative=(), show_default=False)] = False) -> None:
    """Show what fastformer found on this machine. Put it into every bug report.

    Args:
        json: print one JSON object and nothing else.
    """
    threads.configure()
    report = {
        "cpu": _cpu(),
        "threads": _threads(),
        "kernel_cache": _kernel_cache(),
        "versions": _versions(),
    }
    if json:
        console.json_line(report)
    else:
        _show(report)


def _cpu() -> dict[str, Any]:
    """Describe the CPU: its name, what LLVM calls it, and its vector instructions."""
    from llvmlite import binding

    from fastformer.kernels._target import VECTOR_BITS

    found = binding.get_host_cpu_features()
    return {
        "name": _cpu_name(),
        "llvm_name": binding.get_host_cpu_name(),
        "features": [name for name in _FEATURES if found.get(name)],
        "vector_bits": int(VECTOR_BITS),
    }


def _cpu_name() -> str:
    """Return the CPU's name as its maker spells it, or its architecture."""
    try:
        if sys.platform == "darwin":
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(
                command, capture_output=True, text=True, check=True
            ).stdout.strip()
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except (OSError, subprocess.CalledProcessError):
        pass
    return platform.processor() or platform.machine()


def _threads() -> dict[str, Any]:
    """Describe the number of threads, what limits it, and the layer that runs them."""
    import numba

    from fastformer.kernels import _compile  # noqa: F401  (it sets the order of the layers)
    from fastformer.kernels._environment import check_compiler

    check_compiler()
    limits = threads.thread_limits()
    numba.set_num_threads(numba.get_num_threads())  # starts the pool, which chooses the layer
    layer = numba.threading_layer()
    return {
        "in_use": numba.get_num_threads(),
        "busy_share": threads.busy_share(),
        "affinity": limits.affinity,
        "container_quota": limits.quota,
        "layer": layer,
        "layer_advice": None if layer == "omp" else _layer_advice(),
    }


def _busy_advice(share: float) -> str:
    """Say that other programs use the cores, and what follows."""
    return (
        f"other programs use {share:.0%} of these CPUs now: training uses fewer threads while "
        "those are faster"
    )


def _layer_advice() -> str:
    """Say how to get the OpenMP layer, whose parallel regions start soonest."""
    if os.environ.get("NUMBA_THREADING_LAYER", "") not in ("", "default", "omp"):
        return "omp starts parallel regions faster; unset NUMBA_THREADING_LAYER"
    library = {
        "linux": "GNU OpenMP (libgomp.so.1), on Debian and Ubuntu: apt-get install libgomp1",
        "darwin": "LLVM's OpenMP (libomp.dylib), for instance: brew install libomp",
        "win32": "Microsoft's Visual C++ runtime (vcomp140.dll)",
    }
    return f"omp starts parallel regions faster; it needs {library.get(sys.platform, 'OpenMP')}"


def _kernel_cache() -> dict[str, Any]:
    """Describe the directory of compiled kernels."""
    from fastformer.kernels._compile import CACHE_DIRECTORY

    if CACHE_DIRECTORY is None:
        return {"directory": None, "files": 0, "bytes": 0}
    files = [path for path in Path(CACHE_DIRECTORY).rglob("*") if path.is_file()]
    return {
        "directory": str(CACHE_DIRECTORY),
        "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
    }


def _no_cache() -> str:
    """Say why compiled kernels are not kept."""
    chosen = os.environ.get("FASTFORMER_CACHE_DIR")
    if chosen:
        return f"none: FASTFORMER_CACHE_DIR={chosen} cannot be a private directory of ours"
    return "none: no private directory can be written"


def _versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    packages = ("fastformer", "numpy", "numba", "llvmlite", "safetensors")
    return {"python": platform.python_version()} | {
        package: installed_version(package) for package in packages
    }


def _show(report: dict[str, Any]) -> None:
    """Write the report for a person."""
    cpu, pool, cache = report["cpu"], report["threads"], report["kernel_cache"]
    quota = pool["container_quota"]
    console.facts(
        [
            ("cpu", f"{cpu['name']} ({cpu['llvm_name']})"),
            ("features", " ".join(cpu["features"]) or "none that matter"),
            ("vector width", f"{cpu['vector_bits']} bits"),
            ("threads", f"{pool['in_use']} in use; the CPU mask allows {pool['affinity']}"),
            *([("", _busy_advice(pool["busy_share"]))] if pool["busy_share"] > _BUSY else []),
            ("cpu quota", "none" if quota is None else f"{quota:g} CPUs in this container"),
            ("threading layer", pool["layer"]),
            *([("", pool["layer_advice"])] if pool["layer_advice"] else []),
            ("kernel cache", cache["directory"] or _no_cache()),
            ("", f"{cache['files']} files, {cache['bytes'] / 1e6:.1f} MB"),
            *report["versions"].items(),
        ]
    )
