"""Softmax over the last axis as a layer of its own."""

from fastformer.kernels.softmax import softmax, softmax_gradient
from fastformer.layers.base import Layer
from fastformer.program import Program
from fastformer.tensors import Tensor


class Softmax(Layer):
    """exp(x) / sum(exp(x)) of each row; see kernels/softmax.py."""

    left = ("out",)

    def __init__(self, *, backend: str = "numba", dtype: str = "float32") -> None:
        """Choose the backend and the dtype."""
        super().__init__(backend, dtype)

    def forward_ops(self, p: Program, x: Tensor) -> Tensor:
        """Append the op of forward: (N, V) probabilities for x of (N, V)."""
        (out,) = p.add(softmax, x=x)
        p.save(out=out)
        return out

    def backward_ops(self, p: Program, dout: Tensor) -> Tensor:
        """Append the op of backward."""
        (dx,) = p.add(softmax_gradient, dout=dout, out=p.saved.out)
        return dx
