"""Jobs on single kernels: check, then time, in the process of one system."""

import functools
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fastformer.bench.cases import find
from fastformer.bench.equivalence import check
from fastformer.bench.spec import Case, kernel_and_twin, realize
from fastformer.bench.timing import time_calls
from fastformer.errors import InvalidValueError

Call = Callable[[], Any]


def load_kernel(name: str) -> Callable[..., Any]:
    """Import a function that the user named as module:function, from the current directory too.

    Raises:
        ValueError: not such a name, or there is no such module or function.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise InvalidValueError(f"a kernel is named module:function, got {name!r}")
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InvalidValueError(f"the kernel {name!r} cannot be imported: {error}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise InvalidValueError(f"module {module_name!r} has no function {function_name!r}")
    return function  # type: ignore[no-any-return]


def own_call(system: str, case: Case, kernel: str | None) -> Call:
    """Return a call of our kernel, of its twin, or of the user's kernel, on a case."""
    arguments = realize(case.given(), np.float32)
    compiled_kernel, twin = kernel_and_twin(case.op)
    function = twin if system == "reference" else compiled_kernel
    if system == "yours":
        function = load_kernel(str(kernel))
    return functools.partial(function, *arguments.values())


def check_kernels(cases: Sequence[Mapping[str, Any]], kernel: str | None = None) -> dict[str, Any]:
    """Hold our kernels, or the user's, to their twins.

    Args:
        cases: op, variant and shape of each.    kernel: the user's, or None for ours.

    Raises:
        NotEqualError: a kernel is not equal to its twin.
    """
    own = load_kernel(kernel) if kernel else None
    for given in cases:
        case = find(**given)
        check(case, own or kernel_and_twin(case.op)[0], kernel or case.op)
    return {"checked": len(cases)}


def time_kernels(
    system: str,
    cases: Sequence[Mapping[str, Any]],
    seconds: float,
    kernel: str | None = None,
    call: Callable[[str, Case, str | None], Call] = own_call,
) -> dict[str, Any]:
    """Time each case, which `check_kernels` has found to be equal.

    Args:
        system: what runs.    cases: op, variant and shape of each.    seconds: for each.
        kernel: the user's, for "yours".    call: makes what is timed.

    Returns:
        times: of each case, with its arithmetic, memory traffic and footprint.
    """
    times = []
    for given in cases:
        case = find(**given)
        timing = time_calls(call(system, case, kernel), seconds=seconds)
        costs = {"flops": case.flops, "traffic": case.traffic, "footprint": case.footprint}
        times.append({**timing.as_dict(), **costs})
    return {"times": times}
