"""The two paths that every model runs on: compiled kernels, and their NumPy twins.

A backend is a table from the name of an op to a function. Both have the same names and the same
signatures, so a layer that is given one never asks which it is. Neither does it ask for the
precision of matrix products: in the table of another one, `matmul` is another op.
"""

import functools
import importlib
from types import SimpleNamespace

from fastformer import checks, thread_safety
from fastformer.kernels._environment import check_compiler

BACKENDS = ("numba", "reference")
# Of the operands of matrix products; all else is in the dtype of the model.
PRECISIONS = ("float32", "bfloat16")

# The ops of each kernel file; the twin of `op` is `op_reference`.
OPS = {
    "activation": ("activation_forward", "activation_backward"),
    "adam": ("adam_step",),
    "attention": ("attention_forward", "attention_backward", "attention_weights"),
    "cross_entropy": ("cross_entropy_forward", "cross_entropy_backward"),
    "dropout": ("dropout_forward", "dropout_backward"),
    "embedding": ("embedding_forward", "embedding_backward"),
    "gated": ("gated_forward", "gated_backward"),
    "gradient": ("gradient_norm", "scale_gradient", "zero_gradient", "add_gradient", "may_step"),
    "layernorm": ("layernorm_forward", "layernorm_backward"),
    "matmul": ("matmul", "matmul_nt", "matmul_tn", "matmul_backward"),
    "matmul_bfloat16": (
        "matmul_bfloat16", "matmul_nt_bfloat16", "matmul_tn_bfloat16", "matmul_backward_bfloat16",
    ),
    "moving_average": ("average_step",),
    "sequence_rows": ("gather_rows", "scatter_rows", "mean_forward", "mean_backward"),
    "rmsnorm": ("rmsnorm_forward", "rmsnorm_backward"),
    "rotary": ("rotary_forward", "rotary_backward"),
    "sgd": ("sgd_step",),
    "softmax": ("softmax_forward", "softmax_backward"),
}  # fmt: skip


def get_backend(name: str, precision: str = "float32") -> SimpleNamespace:
    """Return the ops of a backend as attributes.

    Args:
        name: "numba" or "reference".
        precision: of products' operands: "float32", or "bfloat16", to which they are then rounded.

    Raises:
        ValueError: for another name or precision, and where the environment keeps kernels from
            being compiled.
    """
    checks.choice("backend", name, BACKENDS)
    return _backend(name, checks.choice("precision", precision, PRECISIONS))


def check_precision(precision: str, dtype: str) -> None:
    """Refuse another precision than those there are, and one that the dtype does not go with.

    Raises:
        ValueError, TypeError: it is not allowed; the message says what is.
    """
    if checks.choice("precision", precision, PRECISIONS) != "float32" and dtype != "float32":
        checks.fail(
            f"precision {precision!r} rounds float32 numbers before they are multiplied: dtype "
            f"must then be 'float32', got {dtype!r}; leave out one of the two"
        )


@functools.cache
def _backend(name: str, precision: str) -> SimpleNamespace:
    if name == "numba":
        check_compiler()
    suffix = "_reference" if name == "reference" else ""
    ops = {}
    for stem, names in OPS.items():
        module = importlib.import_module(f"fastformer.kernels.{stem}")
        ops.update({op: getattr(module, op + suffix) for op in names})
    if precision != "float32":
        suffix = f"_{precision}"
        ops.update({op.removesuffix(suffix): ops[op] for op in OPS[f"matmul{suffix}"]})
    driver = importlib.import_module("fastformer.kernels.program")
    driver_of = {"numba": driver.run_program, "reference": driver.run_program_reference}
    ops["run_program"] = driver_of[name]
    table = SimpleNamespace(name=name, **ops)
    if name == "numba":
        thread_safety.prepare(table)
    return table
