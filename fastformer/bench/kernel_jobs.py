"""Jobs on single kernels: check, then time, in the process of one system."""

import functools
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fastformer.bench import machine
from fastformer.bench.cases import Case, find, kernel_and_twin, realize
from fastformer.bench.equivalence import check
from fastformer.bench.timing import time_calls
from fastformer.errors import InvalidValueError

# a @ b, a @ b.T and a.T @ b.
FORMS = {"NN": "matmul", "NT": "matmul_nt", "TN": "matmul_tn"}


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


def _call(system: str, case: Case, kernel: str | None) -> Callable[[], Any]:
    """Return a call that does a case's work once."""
    arguments = realize(case.given(), np.float32)
    if system in ("torch", "compile"):
        from fastformer.bench.peers import torch_ops

        compiled = system == "compile"
        return torch_ops.build(case.op, case.spec.variant, case.shape, arguments, compiled)
    if system == "jax":
        from fastformer.bench.peers import jax_ops

        return jax_ops.build(case.op, case.spec.variant, case.shape, arguments)
    compiled_kernel, twin = kernel_and_twin(case.op)
    function = twin if system == "reference" else compiled_kernel
    if system == "yours":
        function = load_kernel(str(kernel))
    return functools.partial(function, *arguments.values())


def check_kernels(
    system: str, cases: Sequence[Mapping[str, Any]], kernel: str | None = None
) -> dict[str, Any]:
    """Hold our kernels, or the user's, to their twins.

    Args:
        system: "numba" or "yours".    cases: op, variant and shape of each.
        kernel: the user's, for "yours".

    Raises:
        NotEqualError: a kernel is not equal to its twin.
    """
    own = load_kernel(kernel) if system == "yours" and kernel else None
    for given in cases:
        case = find(**given)
        check(case, own or kernel_and_twin(case.op)[0], kernel if own and kernel else case.op)
    return {"checked": len(cases)}


def time_kernels(
    system: str, cases: Sequence[Mapping[str, Any]], seconds: float, kernel: str | None = None
) -> dict[str, Any]:
    """Time each case, which `check_kernels` has found to be equal.

    Args:
        system: what runs.    cases: op, variant and shape of each.    seconds: for each.
        kernel: the user's, for "yours".

    Returns:
        times: of each case, with its arithmetic, memory traffic and footprint.
    """
    times = []
    for given in cases:
        case = find(**given)
        timing = time_calls(_call(system, case, kernel), seconds=seconds)
        costs = {"flops": case.flops, "traffic": case.traffic, "footprint": case.footprint}
        times.append({**timing.as_dict(), **costs})
    return {"times": times}


def _product(system: str, form: str, M: int, K: int, N: int) -> Callable[[], Any]:
    """Return a call of one plain matrix product: NN, NT (by a transpose) or TN (of a transpose)."""
    if system == "numba":
        op = FORMS[form]
        arguments = realize(find(op, "", (M, K, N)).given(), np.float32)
        if form == "TN":
            arguments["column_sums"] = np.zeros(0, np.float32)
        return functools.partial(kernel_and_twin(op)[0], *arguments.values())
    shapes = {"NN": ((M, K), (K, N)), "NT": ((M, K), (N, K)), "TN": ((M, K), (M, N))}[form]
    random = np.random.default_rng([M, K, N])
    a, b = (random.standard_normal(shape).astype(np.float32) for shape in shapes)
    out = np.empty((K, N) if form == "TN" else (M, N), np.float32)
    if system == "torch":
        import torch

        x, y, z = (torch.from_numpy(array) for array in (a, b, out))
        left, right = (x.T if form == "TN" else x), (y.T if form == "NT" else y)
        return lambda: torch.mm(left, right, out=z)
    return functools.partial(
        np.matmul, a.T if form == "TN" else a, b.T if form == "NT" else b, out=out
    )


def check_products(system: str, shapes: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Hold the three forms of the matrix product to their twins on each shape (M, K, N)."""
    for shape in shapes:
        for op in FORMS.values():
            check(find(op, "", shape), kernel_and_twin(op)[0], op)
    return {"checked": len(shapes)}


def time_products(system: str, shapes: Sequence[Sequence[int]], seconds: float) -> dict[str, Any]:
    """Time the three forms of the matrix product on each shape (M, K, N).

    Returns:
        times: for each shape and form, in that order.
    """
    return {
        "times": [
            {
                "form": form,
                "shape": list(shape),
                **time_calls(_product(system, form, *shape), seconds=seconds).as_dict(),
            }
            for shape in shapes
            for form in FORMS
        ]
    }


def measure_machine(system: str, seconds: float) -> dict[str, Any]:
    """Measure the machine's limits in this process, so long for each number."""
    return machine.measure(seconds)
