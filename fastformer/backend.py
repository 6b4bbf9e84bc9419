"""The two paths that every model runs on: compiled kernels, and their NumPy twins.

A backend is a table from the name of an op to a function. Both have the same names and the same
signatures, so a layer that is given one never asks which it is.
"""

import functools
import importlib
from types import SimpleNamespace

from fastformer import callers, checks

BACKENDS = ("numba", "reference")

# The ops of each kernel file; the twin of `op` is `op_reference`.
OPS = {
    "activation": ("activation_forward", "activation_backward"),
    "adam": ("adam_step",),
    "attention": ("attention_forward", "attention_backward", "attention_weights"),
    "cross_entropy": ("cross_entropy_forward", "cross_entropy_backward"),
    "dropout": ("dropout_forward", "dropout_backward"),
    "embedding": ("embedding_forward", "embedding_backward"),
    "gradient": ("gradient_norm", "scale_gradient", "zero_gradient", "may_step"),
    "layernorm": ("layernorm_forward", "layernorm_backward"),
    "matmul": ("matmul", "matmul_nt", "matmul_tn", "matmul_backward", "weight_gradients"),
    "pooling": ("gather_rows", "scatter_rows", "mean_forward", "mean_backward"),
    "rmsnorm": ("rmsnorm_forward", "rmsnorm_backward"),
    "rotary": ("rotary_forward", "rotary_backward"),
    "sgd": ("sgd_step",),
    "transformer_block": ("transformer_block_forward", "transformer_block_backward"),
    "softmax": ("softmax_forward", "softmax_backward"),
    "swiglu": ("swiglu_forward", "swiglu_backward"),
}


def get_backend(name: str) -> SimpleNamespace:
    """Return the ops of a backend as attributes.

    Args:
        name: "numba" or "reference".

    Raises:
        ValueError: for another name.
    """
    return _backend(checks.choice("backend", name, BACKENDS))


@functools.cache
def _backend(name: str) -> SimpleNamespace:
    suffix = "_reference" if name == "reference" else ""
    ops = {}
    for stem, names in OPS.items():
        module = importlib.import_module(f"fastformer.kernels.{stem}")
        ops.update({op: getattr(module, op + suffix) for op in names})
    table = SimpleNamespace(name=name, **ops)
    if name == "numba":
        callers.prepare(table)
    return table
