"""The tests' own helpers can fail: planted wrong kernels, gradients, threads, accesses."""

import os
import signal
import socket
import subprocess
import sys

import numba
import numpy as np
import pytest
from gradients import assert_gradients
from numba import prange
from program import HANG, ROOT
from twins import (
    IS_VARIANT,
    Out,
    assert_equals_twin,
    assert_same_bits,
    has_full_width_fma,
    library_calls,
    run,
)

from fastformer.kernels._compile import kernel


@kernel(parallel=True)
def _sum_across_prange(x):
    total = x.dtype.type(0)
    for i in prange(x.size):
        total += x[i]
    return total


def _number_of_threads(x):
    return numba.get_num_threads()


def test_bits_that_depend_on_the_threads_are_found(rng):
    x = rng.standard_normal(100_003)
    for planted in (_sum_across_prange, _number_of_threads):
        with pytest.raises(AssertionError, match="threads give other bits than 1"):
            assert_same_bits(planted, x)
    assert numba.get_num_threads() <= 2


def double(x, out):
    out[...] = 2 * x


def slightly_wrong(x, out):
    out[...] = 2 * x
    out[-1] *= 1 + 16 * np.finfo(x.dtype).eps


def last_is_forgotten(x, out):
    out[:-1] = 2 * x[:-1]


def nan_is_lost(x, out):
    out[...] = np.nan_to_num(2 * x)


def input_is_changed(x, out):
    out[...] = 2 * x
    x[0] += 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (slightly_wrong, "error"),
        (last_is_forgotten, "error"),
        (nan_is_lost, "error inf"),
        (input_is_changed, "an input was changed"),
    ],
)
def test_a_wrong_kernel_is_found(wrong, message):
    x = np.array([0.5, 1.0, np.nan if wrong is nan_is_lost else 1.5, 2.0])
    assert_equals_twin(double, double, x, Out(x.shape))
    with pytest.raises(AssertionError, match=message):
        assert_equals_twin(wrong, double, x, Out(x.shape))


def test_a_wrong_gradient_is_found(rng):
    x, y = rng.standard_normal((2, 3))
    assert_gradients(lambda x, y: x * y, lambda dout, x, y: (dout * y, dout * x), x, y)
    with pytest.raises(AssertionError, match="input 1"):
        assert_gradients(
            lambda x, y: x * y, lambda dout, x, y: (dout * y, dout * 1.00001 * x), x, y
        )


def test_inputs_and_outputs_are_fresh_in_every_run(rng):
    x = rng.standard_normal(5)
    first, second = run(double, x, Out((5,))), run(double, x, Out((5,)))
    assert first[0] is not second[0]
    np.testing.assert_array_equal(first, second)


@pytest.mark.skipif(IS_VARIANT or sys.platform == "win32", reason="one such run is enough")
@pytest.mark.parametrize("access", ["x[n]", "x[n] = 0"])
def test_a_step_beyond_a_guarded_array_ends_the_process(access):
    """Through a raw pointer, as compiled code goes, which knows no bounds."""
    program = (
        "import ctypes, numpy as np\n"
        "from twins import guarded\n"
        "n = 5\n"
        "array = guarded(np.ones(n, np.float32))\n"
        "x = ctypes.cast(array.ctypes.data, ctypes.POINTER(ctypes.c_float))\n"
        "x[n - 1] = 2\n"
        "print('inside', flush=True)\n"
        f"{access}\n"
    )
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", program],
        **{"env": os.environ | {"PYTHONPATH": paths}, "capture_output": True, "text": True},
        timeout=HANG,
    )
    assert done.stdout == "inside\n", done.stderr
    assert done.returncode in (-signal.SIGSEGV, -signal.SIGBUS)


def test_assembly_is_read_right():
    assert not has_full_width_fma("vmulps %zmm1, %zmm2, %zmm3\n vaddps %ymm1, %ymm2, %ymm3")
    assert library_calls("movabsq $expf, %rax\n callq *%rax") == {"expf"}
    assert not library_calls("vexpandps %zmm1, %zmm2")


# ---- conftest ----


@pytest.mark.smoke
def test_kernels_run_on_at_most_two_threads():
    assert numba.config.NUMBA_NUM_THREADS == 4
    assert numba.get_num_threads() <= 2
    assert os.environ["OPENBLAS_NUM_THREADS"] == "1"


@pytest.mark.parametrize("connect", ["connect", "connect_ex"])
def test_no_test_reaches_the_network(connect):
    with socket.socket() as found, pytest.raises(pytest.fail.Exception, match="tried to connect"):
        getattr(found, connect)(("127.0.0.1", 9))
