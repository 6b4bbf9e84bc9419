"""Jobs on plain matrix products, for P8: check, then time, in the process of one system."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastformer.bench.cases import find
from fastformer.bench.equivalence import check
from fastformer.bench.spec import kernel_and_twin, realize
from fastformer.bench.timing import time_calls

# a @ b, a @ b.T and a.T @ b.
FORMS = {"NN": "matmul", "NT": "matmul_nt", "TN": "matmul_tn"}


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


def check_products(shapes: Sequence[Sequence[int]]) -> dict[str, Any]:
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
