"""The processes in which kernels are called for the rows on memory: each may die of its call.

    python -m tests.scorecard.memory_child guard FIRST LAST PROGRESS     guard pages on both sides
    python -m tests.scorecard.memory_child guard-planted                 the same, on planted faults
    python -m tests.scorecard.memory_child checked FIRST LAST DTYPES     bounds checks and canaries
    python -m tests.scorecard.memory_child shuffled CASES SHUFFLES       orders of prange's turns

What was found is one JSON object, the last line of standard output.
"""

import ctypes
import json
import mmap
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from twins import Out

from fastformer.backend import get_backend
from tests.scorecard import planted_kernels
from tests.scorecard.kernel_calls import DRAWS, takes

NAMES = tuple(DRAWS)
ARGUMENTS, BODY = 56, 1 << 20
CANARY = 64
DTYPES = {"float32": np.float32, "float64": np.float64}

Place = Callable[[int, np.ndarray], np.ndarray]


class Arena:
    """Memory for each argument between two pages that must not be touched."""

    def __init__(self) -> None:
        """Map the memory and protect the pages."""
        page, protect = mmap.PAGESIZE, ctypes.CDLL(None, use_errno=True).mprotect
        self.bodies: list[np.ndarray] = []
        self.right = False
        for _ in range(ARGUMENTS):
            whole = np.frombuffer(mmap.mmap(-1, BODY + 2 * page), np.uint8)
            for start in (0, page + BODY):
                address = ctypes.c_void_p(whole.ctypes.data + start)
                if protect(address, ctypes.c_size_t(page), 0) != 0:
                    raise OSError(ctypes.get_errno(), "mprotect failed")
            self.bodies.append(whole[page : page + BODY])

    def place(self, slot: int, values: np.ndarray) -> np.ndarray:
        """Return a copy that begins right after a page, or ends right before one."""
        body = self.bodies[slot]
        start = BODY - values.nbytes if self.right else 0
        copy = body[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
        copy[...] = values
        return copy


def arguments_of(given: tuple[Any, ...], dtype: Any, place: Place) -> list[Any]:
    """Return the arguments of a call, its arrays placed."""
    arguments = []
    for slot, value in enumerate(given):
        if isinstance(value, Out):
            value = np.array(np.broadcast_to(value.start, value.shape), dtype)
        elif isinstance(value, np.ndarray) and value.dtype == np.float64:
            value = value.astype(dtype)
        arguments.append(place(slot, value) if isinstance(value, np.ndarray) else value)
    return arguments


def case(number: int) -> tuple[str, Any, bool, tuple[Any, ...]]:
    """Return kernel, dtype, alignment and arguments of a case; pairs differ in the alignment."""
    name = NAMES[number // 4 % len(NAMES)]
    rng = np.random.default_rng((7, number // 2))
    dtype = (np.float32, np.float64)[number // 2 % 2]
    return name, dtype if takes(name, dtype) else np.float32, bool(number % 2), DRAWS[name](rng)


def guard(first: int, last: int, progress: str) -> dict[str, Any]:
    """Call kernels between guard pages; the file has the number of the case that runs."""
    arena, ops = Arena(), get_backend("numba")
    descriptor = os.open(progress, os.O_WRONLY | os.O_CREAT)
    for number in range(first, last):
        os.pwrite(descriptor, b"%20d" % number, 0)
        name, dtype, arena.right, given = case(number)
        getattr(ops, name)(*arguments_of(given, dtype, arena.place))
    return {"held": last - first}


# Arguments that a kernel takes the size of from another one: a row, or an element, is missing.
SHORT = {
    "adam_step": (1, 2, 3), "average_step": (1,),
    "attention_forward": (2, 9), "attention_backward": (0, 4, 13, 14, 15),
    "cross_entropy_forward": (1, 3, 4, 5), "cross_entropy_backward": (1, 2, 3, 6),
    "embedding_forward": (0,),
    "embedding_backward": (0,), "layernorm_forward": (2, 4, 5, 6),
    "layernorm_backward": (0, 3, 4, 6), "matmul": (6,), "matmul_nt": (5,),
    "matmul_backward": (6,), "rmsnorm_forward": (1, 3, 4), "rmsnorm_backward": (0, 2, 3, 5),
    "matmul_bfloat16": (6,), "matmul_nt_bfloat16": (5,), "matmul_backward_bfloat16": (6,),
    "gather_rows": (1,), "scatter_rows": (1,), "mean_forward": (0,), "mean_backward": (2,),
    "rotary_forward": (2, 3), "rotary_backward": (2, 3),
    "sgd_step": (1, 2), "softmax_forward": (1,), "softmax_backward": (0, 2),
}  # fmt: skip


def dies(call: Callable[[], Any]) -> bool:
    """Tell whether a call ends a process of its own by a fault of memory."""
    child = os.fork()
    if child == 0:
        call()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) in (7, 11)


def shortened(arguments: list[Any], which: int, arena: Arena) -> list[Any]:
    """Return the arguments with one array that has one row less, or one element."""
    value = arguments[which]
    if value.ndim == 3:
        value = value[:, :-1]
    short = np.array(value[:-1] if value.ndim < 3 else value)
    return [arena.place(i, short) if i == which else a for i, a in enumerate(arguments)]


def guard_planted() -> dict[str, Any]:
    """Plant accesses that are off by one, and count those that a guard page does not notice."""
    arena, missed, planted = Arena(), [], 0
    for name, (right_call, wrong_calls) in planted_kernels.OFF_BY_ONE.items():
        function = getattr(planted_kernels, name)
        for dtype in DTYPES.values():
            shape = (3, 19) if name == "copy_rows" else (19,)
            x = np.ones(shape, dtype)
            function(x, x.copy(), *right_call)
            for numbers in wrong_calls:
                planted += 1
                noticed = []
                for arena.right in (False, True):
                    pair = arena.place(0, x), arena.place(1, x)
                    if dies(lambda: function(*pair, *right_call)):  # noqa: B023
                        missed.append(f"{name}{right_call} dies, and is right")
                    noticed.append(dies(lambda: function(*pair, *numbers)))  # noqa: B023
                if not any(noticed):
                    missed.append(f"{name}{numbers} {dtype.__name__}")
    ops, arena.right = get_backend("numba"), True
    for name, places in SHORT.items():
        kernel = getattr(ops, name)
        for which in places:
            planted += 1
            given = fitting(name, which)
            arguments = shortened(arguments_of(given, np.float32, arena.place), which, arena)
            if not dies(lambda: kernel(*arguments)):  # noqa: B023
                missed.append(f"{name} with a short argument {which}")
    return {"plants": planted, "planted": planted - len(missed), "failures": missed}


def fitting(name: str, which: int) -> tuple[Any, ...]:
    """Return the first arguments whose argument `which` can be shortened to some effect."""
    for number in range(1000):
        given = DRAWS[name](np.random.default_rng((9, number)))
        shape = np.shape(given[which]) if isinstance(given[which], np.ndarray) else None
        shape = shape or given[which].shape
        # More than one row, so that what is missing is at the end of the memory.
        if min(shape) > 1 and shape[0] > 2:
            return given
    raise ValueError(f"no case of {name}")


def margins(slot: int, values: np.ndarray) -> np.ndarray:
    """Return a copy in the middle of memory that is marked on both sides."""
    whole = np.full(values.nbytes + 2 * CANARY, 0xA5, np.uint8)
    copy = whole[CANARY : CANARY + values.nbytes].view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy


def broken_margin(array: np.ndarray) -> bool:
    """Tell whether something was written beside an array from `margins`."""
    whole = array
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    sides = whole[:CANARY], whole[CANARY + array.nbytes :]
    return any((side != 0xA5).any() for side in sides)


def fault_of(
    kernel: Callable[..., Any], twin: Callable[..., Any], given: tuple[Any, ...], dtype: Any
) -> str:
    """Call a kernel once; return what is wrong with what it did, or nothing."""
    arguments = arguments_of(given, dtype, margins)
    before = [a.copy() if isinstance(a, np.ndarray) else a for a in arguments]
    expected = arguments_of(given, np.float64, margins)
    try:
        results = kernel(*arguments), twin(*expected)
    except IndexError as error:
        return f"IndexError: {error}"
    for index, (value, then, right) in enumerate(zip(arguments, before, expected, strict=True)):
        if not isinstance(value, np.ndarray):
            continue
        if broken_margin(value):
            return f"memory beside argument {index} was written"
        if not isinstance(given[index], Out):
            if value.tobytes() != then.tobytes():
                return f"argument {index}, an input, was changed"
        elif not close(value, right, dtype):
            return f"argument {index} is wrong, or was not written everywhere"
    if results[0] is None or close(*(np.asarray(result * 1.0) for result in results), dtype):
        return ""
    return "a wrong result"


def close(found: np.ndarray, expected: np.ndarray, dtype: Any) -> bool:
    """Tell whether float32 or float64 results are those of float64, roughly; NaN is not."""
    size = float(np.abs(expected).max(initial=1.0))
    tolerance = 3e-4 if dtype is np.float32 else 1e-9
    return bool((np.abs(found - expected) <= tolerance * size).all())


def checked(first: int, last: int, dtypes: str) -> dict[str, Any]:
    """Call kernels with bounds checks, outputs full of NaN and marked memory around arrays."""
    ops, twins = get_backend("numba"), get_backend("reference")
    failures, cases = [], 0
    for number in range(first, last):
        name, rng = NAMES[number % len(NAMES)], np.random.default_rng((8, number))
        given = DRAWS[name](rng)
        for dtype in dtypes.split(","):
            if not takes(name, DTYPES[dtype]):
                continue
            cases += 1
            fault = fault_of(getattr(ops, name), getattr(twins, name), given, DTYPES[dtype])
            failures += [f"{name} {dtype}, case {number}: {fault}"] if fault else []
    plants = planted_in_checked()
    return {"held": cases - len(failures), "cases": cases, "failures": failures} | plants


def planted_in_checked() -> dict[str, Any]:
    """Plant accesses that are off by one, and kernels that break each of the other promises."""
    x, out = np.ones((3, 19)), Out((3, 19))

    def copy(x: Any, out: Any) -> None:
        out[...] = x

    def forgets(x: Any, out: Any) -> None:
        out[:-1] = x[:-1]

    def changes(x: Any, out: Any) -> None:
        copy(x, out)
        x[0] = 2

    found = [
        bool(fault_of(wrong, copy, (x, out), np.float32)) for wrong in (forgets, changes, _break)
    ]
    found.append(not fault_of(copy, copy, (x, out), np.float32))
    for name, (_, wrong_calls) in planted_kernels.OFF_BY_ONE.items():
        for numbers in wrong_calls:
            shape = (3, 19) if name == "copy_rows" else (19,)
            x, out = np.ones((2, *shape), np.float32)
            try:
                getattr(planted_kernels, name)(x, out, *numbers)
                found.append(False)
            except IndexError:
                found.append(True)
    return {"plants": len(found), "planted": sum(found)}


def _break(x: Any, out: Any) -> None:
    """Copy, and write one byte beside the output."""
    out[...] = x
    whole = out
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    whole[CANARY + out.nbytes] = 0


if __name__ == "__main__":
    if sys.argv[1] == "shuffled":
        from tests.scorecard.races import shuffled as chosen
    else:
        chosen = {"guard": guard, "guard-planted": guard_planted, "checked": checked}[sys.argv[1]]
    with np.errstate(all="ignore"):
        found = chosen(*(int(a) if a.isdecimal() else a for a in sys.argv[2:]))
    sys.stdout.write(json.dumps(found) + "\n")
