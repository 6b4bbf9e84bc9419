"""Hold a compiled kernel to its NumPy twin, and to itself with other numbers of threads."""

import ctypes
import functools
import mmap
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numba.core.caching import NullCache
from program import HANG, ROOT

from fastformer.kernels import _compile
from fastformer.kernels._llvm import element_lanes
from fastformer.kernels._target import VECTOR_BITS

DTYPES = (np.float64, np.float32)

# The twin in extended precision is the truth; where the platform has none, allow for rounding.
TRUTH = np.longdouble
ROUNDINGS = 4 if np.finfo(TRUTH).eps < np.finfo(np.float64).eps else 64
if VECTOR_BITS < 256:
    ROUNDINGS *= 2  # fewer lanes sum in longer chains, and NumPy's twin sums by pairs

# Set in a run of tests inside a test, for the checked build of the kernels. All is compiled anew
# there, so twins are compared in one dtype only; and every array lies right before a page that must
# not be touched, so that a step beyond an array ends the process.
VARIANT = "FASTFORMER_TEST_VARIANT"
# Bounds are checked by the code before it is optimised: what is left out is time.
CHECKED = {"FASTFORMER_BUILD": "checked", "NUMBA_OPT": "1"}
IS_VARIANT = bool(os.environ.get(VARIANT))
COMPARED_DTYPES = (np.float32,) if IS_VARIANT else DTYPES
_PROT_NONE = 0

# Numbers of columns around the lanes of a register, for either dtype, and odd ones beyond.
LANES32, LANES64 = element_lanes(4), element_lanes(8)
EDGE_COLUMNS = sorted(
    {1, 2, 3, 2 * LANES32 + 1, 67}
    | {max(1, lanes + step) for lanes in (LANES32, LANES64) for step in (-1, 0, 1)}
)


@dataclass(frozen=True)
class Out:
    """An argument that a kernel writes: overwritten (given full of NaN) or accumulated.

    Errors are relative to its largest true value, and to no less than `scale`: what sums of
    terms that cancel each other are made of.
    """

    shape: tuple[int, ...]
    start: Any = np.nan
    scale: float = 0.0


@functools.cache
def called(function: Any) -> Any:
    """Return a serial kernel such that Python, too, can call it."""
    if _compile.BUILD == "python":
        return function

    @_compile.kernel
    def call(*arguments):
        return function(*arguments)

    call._cache = NullCache()  # what it calls has another name in each process
    return call


def guarded(values: np.ndarray) -> np.ndarray:
    """Return a copy whose last byte is followed by a page that cannot be read or written."""
    pages = -(-max(values.nbytes, 1) // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    whole = np.frombuffer(memory, np.uint8)
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    end = pages * mmap.PAGESIZE
    address = ctypes.c_void_p(whole.ctypes.data + end)
    if protect(address, ctypes.c_size_t(mmap.PAGESIZE), _PROT_NONE) != 0:
        raise OSError(ctypes.get_errno(), "mprotect failed")
    copy = whole[end - values.nbytes : end].view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy


def _arguments(given: Sequence[Any], dtype: type) -> tuple[list[Any], list[np.ndarray]]:
    """Return fresh arguments of a dtype, and those of them that are outputs."""
    arguments: list[Any] = []
    outputs: list[np.ndarray] = []
    for value in given:
        if isinstance(value, Out):
            array = np.array(np.broadcast_to(value.start, value.shape), dtype)
        elif isinstance(value, np.ndarray):
            array = value.astype(dtype) if value.dtype == np.float64 else value.copy()
        else:
            arguments.append(value)
            continue
        array = guarded(array) if IS_VARIANT else array
        arguments.append(array)
        if isinstance(value, Out):
            outputs.append(array)
    return arguments, outputs


def run(function: Callable[..., Any], *given: Any, dtype: type = np.float32) -> list[np.ndarray]:
    """Call a kernel or a twin on fresh arguments of a dtype and return what it writes and returns.

    Arrays of float64 are given in `dtype`; `Out` marks outputs. Inputs must stay as they were.
    """
    arguments, outputs = _arguments(given, dtype)
    before = [a.copy() if isinstance(a, np.ndarray) else a for a in arguments]
    result = function(*arguments)
    for value, then, mark in zip(arguments, before, given, strict=True):
        if isinstance(mark, np.ndarray):
            np.testing.assert_array_equal(value, then, "an input was changed")
    # Yes is 1 and no is 0.
    return outputs if result is None else [*outputs, np.asarray(result * 1.0)]


def run_rows(
    function: Callable[..., Any], *given: Any, dtype: type = np.float32
) -> list[np.ndarray]:
    """Do as `run` does, with each vector as a matrix of one row: what layers give is compiled."""

    def row(value: Any) -> Any:
        if isinstance(value, Out) and len(value.shape) == 1:
            return Out((1, *value.shape), value.start, value.scale)
        return value[None] if isinstance(value, np.ndarray) and value.ndim == 1 else value

    shapes = [value.shape for value in given if isinstance(value, Out)]
    outputs = run(function, *map(row, given), dtype=dtype)
    return [output.reshape(shape) for output, shape in zip(outputs, shapes, strict=True)]


def _error(found: np.ndarray, truth: np.ndarray, scale: float) -> float:
    """Return the largest error of the finite values, relative to the largest or to `scale`.

    What is NaN or infinite in truth must be so in `found`; if not, the error is infinite.
    """
    if found.shape != truth.shape:
        return float("inf")
    finite = np.isfinite(truth)
    if not np.array_equal(found[~finite], truth[~finite].astype(found.dtype), equal_nan=True):
        return float("inf")
    found, truth = found[finite], truth[finite]
    if truth.size == 0:
        return 0.0
    scale = max(scale, np.max(np.abs(truth)))
    return float(np.max(np.abs(found - truth)) / (scale if scale > 0 else 1.0))


def assert_equals_twin(
    kernel: Callable[..., Any],
    reference: Callable[..., Any],
    *given: Any,
    dtypes: Sequence[type] = COMPARED_DTYPES,
) -> list[np.ndarray]:
    """Run kernel and twin on the same arguments and compare all that they write and return.

    Arrays of float64 are given in each of the dtypes in turn; `Out` marks outputs. The kernel's
    error against the twin in extended precision may be twice that of the twin in the kernel's
    dtype, and a few roundings. Inputs must stay as they were.

    Returns:
        The float32 outputs of the kernel.
    """
    truths = run(reference, *given, dtype=TRUTH)
    scales = [value.scale for value in given if isinstance(value, Out)]
    scales += [0.0] * (len(truths) - len(scales))  # of what is returned
    outputs: list[np.ndarray] = []
    for dtype in dtypes:
        twin_outputs = run(reference, *given, dtype=dtype)
        outputs = run(kernel, *given, dtype=dtype)
        for index, (found, twin, truth, scale) in enumerate(
            zip(outputs, twin_outputs, truths, scales, strict=True)
        ):
            limit = 2 * _error(twin, truth, scale) + ROUNDINGS * np.finfo(dtype).eps
            error = _error(found, truth, scale)
            # Not `error > limit`: the error is NaN where a value should be finite and is NaN.
            assert error <= limit, (
                f"{kernel.__name__}, output {index}, {dtype.__name__}: error {error:.2e}, "
                f"limit {limit:.2e}"
            )
    return outputs


def assert_same_bits(
    kernel: Callable[..., Any], *given: Any, dtypes: Sequence[type] = COMPARED_DTYPES
) -> None:
    """Run a kernel on one, two, three and four threads; all that it writes must be the same."""
    before = numba.get_num_threads()
    try:
        for dtype in dtypes:
            numba.set_num_threads(1)
            expected = [output.tobytes() for output in run(kernel, *given, dtype=dtype)]
            for threads in (2, 3, 4):
                numba.set_num_threads(threads)
                found = [output.tobytes() for output in run(kernel, *given, dtype=dtype)]
                assert found == expected, (
                    f"{kernel.__name__}, {dtype.__name__}: {threads} threads give other bits than 1"
                )
    finally:
        numba.set_num_threads(before)


def assembly(kernel: Any, *arguments: Any) -> str:
    """Return the machine code of a serial kernel for these arguments, as text.

    Numba keeps no text of what it loads from its cache, so the kernel is compiled anew.
    """
    fresh = type(kernel)(kernel.py_func, targetoptions=kernel.targetoptions)
    fresh.compile(tuple(numba.typeof(argument) for argument in arguments))
    (text,) = fresh.inspect_asm().values()
    return text


def has_full_width_fma(text: str) -> bool:
    """Tell whether fused multiply-adds in this x86 assembly work on whole registers."""
    register = {512: "zmm", 256: "ymm", 128: "xmm", 0: "xmm"}[VECTOR_BITS]
    return re.search(rf"\bvfmadd\d+[ps][sd]\b.*%{register}", text) is not None


def library_calls(text: str) -> set[str]:
    """Return the names of the exponential functions that the assembly mentions."""
    return set(re.findall(r"\b_?(expf?|exp2f?|expm1f?|tanhf?)\b", text))


def start_run(*tests: str, **environment: str) -> subprocess.Popen[str]:
    """Start tests in a process of their own, whose environment chooses other kernels.

    These are kept where all kernels are, in a directory of their build and width.

    Args:
        tests: names of files in `tests`, or of tests in them.
        environment: what to set beside the current environment.
    """
    options = ["-q", "-W", "error", "-p", "no:cacheprovider"]
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", *options, *(f"tests/{name}" for name in tests)],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def assert_passes(run: subprocess.Popen[str]) -> None:
    """Wait for a run; all of its tests must pass."""
    output, _ = run.communicate(timeout=HANG)
    assert run.returncode == 0, output
