"""Kernels that are called from several threads of Python, or in a process that was forked.

Numba's work queue ends the program when two threads call kernels at once: there, one waits for the
other. GNU OpenMP ends a process that was forked after its threads had started: there, kernels
raise an error that says what to do. Where neither is in use, nothing stands before a call.
A model's layers keep what backward needs, in buffers that they share: a `ThreadGuard` sees to it
that threads take turns with them, or raises an error.
"""

import functools
import importlib
import os
import threading
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NoReturn

from fastformer.errors import ForkedProcessError, OtherThreadError

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


class ThreadGuard:
    """Whose turn it is with the layers of a model, or with a layer that stands alone.

    Whole passes of a model are made within the guard, `with guard:`, one after the other, and what
    they return is the caller's own. A layer that is called by itself returns a buffer: so it is
    for one thread alone, as long as that thread lives.

    Attributes:
        lock: held in whole passes, and while parameters change.
        holder: the thread that is within a whole pass, or 0.
        owner: the thread that called a layer by itself, or 0.
        left_by: the thread whose forward left what backward needs, or 0.
        shown: the workspace of the run whose results the layers show, or None.
    """

    def __init__(self) -> None:
        """Begin with no thread."""
        self.lock = threading.RLock()
        self.holder = self.owner = self.left_by = self._depth = 0
        self.shown: Any = None
        _GUARDS.add(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> "ThreadGuard":
        """Return a guard of the copy's own."""
        return ThreadGuard()

    def __enter__(self) -> None:
        """Begin a whole pass, after those of other threads.

        Raises:
            OtherThreadError: another thread has a buffer of one of the layers.
        """
        self.lock.acquire()
        thread = threading.get_ident()
        if self.owner not in (0, thread) and _alive(self.owner):
            self.lock.release()
            raise OtherThreadError(_OWNED)
        self.owner = 0
        self.holder = thread
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._depth -= 1
        if not self._depth:
            self.holder = 0
        self.lock.release()

    def begin(self) -> None:
        """Within a whole pass: what layers leave from here on is this thread's."""
        self.left_by = threading.get_ident()

    def claim(self) -> None:
        """Begin the forward of a layer that is called by itself.

        Raises:
            OtherThreadError: another thread has a buffer of it.
        """
        thread = threading.get_ident()
        if self.owner != thread:
            with self.lock:
                threading.current_thread()  # so that threads that Python did not start are listed
                if self.owner and _alive(self.owner):
                    raise OtherThreadError(_OWNED)
                self.owner = self.left_by = thread

    def check_left(self) -> None:
        """Begin what needs what forward left.

        Raises:
            OtherThreadError: another thread's forward came in between.
        """
        thread = threading.get_ident()
        if self.left_by and self.left_by != thread:
            raise OtherThreadError(
                "the last forward was another thread's, and what it left is not this one's: let "
                "one thread train a model, or give each a copy.deepcopy of it"
            )

    def reset_in_child(self) -> None:
        """Forget threads that are not in this process, which was forked."""
        if self.holder != threading.get_ident():
            self.lock = threading.RLock()
            self.holder = self.owner = self._depth = 0


_GUARDS: "weakref.WeakSet[ThreadGuard]" = weakref.WeakSet()
_OWNED = (
    "another thread called this layer, or one of the same model, by itself and may still read its "
    "buffer: give each thread a copy.deepcopy of it; threads may share a whole model"
)


def _alive(thread: int) -> bool:
    return any(other.ident == thread for other in threading.enumerate())


def _after_fork_in_child() -> None:
    global _LOCK
    _LOCK = threading.Lock()  # a thread that held the old one is not in this process
    for guard in list(_GUARDS):
        guard.reset_in_child()
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
