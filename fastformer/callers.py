"""Kernels that are called from several threads of Python, or in a process that was forked.

Numba's work queue ends the program when two threads call kernels at once: there, one waits for the
other. GNU OpenMP ends a process that was forked after its threads had started: there, kernels
raise an error that says what to do. Where neither is in use, nothing stands before a call.
"""

import functools
import importlib
import os
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NoReturn

from fastformer.errors import ForkedProcessError

_TABLES: list[SimpleNamespace] = []
_LOCK = threading.Lock()


def prepare(table: SimpleNamespace) -> None:
    """Make a table of compiled ops safe to call, in this process and in those forked from it.

    Args:
        table: name to op, and `name`; changed in place.
    """
    if not several_callers_allowed():
        _replace_ops(table, one_at_a_time)
    _TABLES.append(table)


def several_callers_allowed() -> bool:
    """Tell whether the layer that Numba will run threads with takes calls of several threads."""
    import numba

    layer = str(numba.config.THREADING_LAYER).lower()
    if layer == "default":
        return _importable("numba.np.ufunc.omppool") or _importable("numba.np.ufunc.tbbpool")
    return layer in ("omp", "tbb", "safe", "threadsafe")


def one_at_a_time(op: Callable[..., Any]) -> Callable[..., Any]:
    """Return an op that waits while another thread is within any such op."""

    @functools.wraps(op)
    def call(*arguments: Any) -> Any:
        with _LOCK:
            return op(*arguments)

    return call


def _importable(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def _replace_ops(table: SimpleNamespace, change: Callable[[Any], Any]) -> None:
    for name, op in vars(table).items():
        if name != "name":
            setattr(table, name, change(op))


def _refuse(*_: Any) -> NoReturn:
    raise ForkedProcessError(
        "kernels cannot run in a process that was forked after they were loaded in its parent: GNU "
        "OpenMP does not allow it; start processes with multiprocessing.get_context('spawn') or "
        "'forkserver', or set the environment variable NUMBA_THREADING_LAYER=workqueue before "
        "Python starts"
    )


def _after_fork_in_child() -> None:
    global _LOCK
    _LOCK = threading.Lock()  # a thread that held the old one is not in this process
    if _TABLES and _gnu_openmp_runs():
        for table in _TABLES:
            _replace_ops(table, lambda _: _refuse)


def _gnu_openmp_runs() -> bool:
    """Tell whether Numba has started threads of GNU OpenMP."""
    import numba

    try:
        layer = numba.threading_layer()
    except ValueError:  # no threads were started
        return False
    if layer != "omp":
        return False
    pool = importlib.import_module("numba.np.ufunc.omppool")
    return bool(pool.openmp_vendor == "GNU")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
