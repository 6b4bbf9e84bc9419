"""What holds for every test: few threads, signals that act, no network, the same random numbers.

It stays light: it imports neither NumPy nor Numba nor matplotlib.
"""

import gc
import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Read when NumPy and Numba are imported, so set before. OpenBLAS's threads and Numba's pool in
# one process stall each other; a pool of four lets tests try one to four threads on any machine.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["NUMBA_NUM_THREADS"] = "4"
# Threads that wait sleep: where they look again and again, that takes half of the tests' CPU time.
os.environ["OMP_WAIT_POLICY"] = "passive"
os.environ["MPLBACKEND"] = "Agg"

# Numba makes objects by the million, and looking for garbage so often takes a seventh of its time.
gc.set_threshold(50_000, 20, 20)

# No test judges time: the first call of a kernel compiles it, and the machine has other work.
settings.register_profile(
    "fastformer", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("fastformer")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a package that is not installed."""
    for mark in item.iter_markers("needs"):
        if importlib.util.find_spec(mark.args[0]) is None:
            pytest.skip(f"{mark.args[0]} is not installed")


@pytest.fixture(autouse=True)
def _few_threads() -> Iterator[None]:
    """Run kernels on at most two threads; a test may choose otherwise for itself."""
    numba = sys.modules.get("numba")
    if numba is None:
        yield
        return
    before = numba.get_num_threads()
    numba.set_num_threads(min(2, os.cpu_count() or 1))
    yield
    numba.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def _signals_act() -> Iterator[None]:
    """Let SIGINT and SIGTERM act, here and in every process that a test starts.

    The tests may have been started to ignore them, as a script's background job is.
    """
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    previous = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """Fail every test that opens a connection to another machine, or to this one's ports."""
    import socket

    def refuse_to(connect: Any) -> Any:
        def refuse(self: socket.socket, address: Any) -> Any:
            if self.family == getattr(socket, "AF_UNIX", None):
                return connect(self, address)
            # Not an Exception, so that no `except` of the code under test hides it.
            pytest.fail(f"a test tried to connect to {address}")

        return refuse

    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, refuse_to(getattr(socket.socket, name)))
        yield


@pytest.fixture
def rng() -> Any:
    """Return a NumPy generator that gives every test the same numbers in every run."""
    import numpy as np

    return np.random.default_rng(20240229)
