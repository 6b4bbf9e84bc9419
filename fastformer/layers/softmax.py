"""Softmax over the last axis as a layer of its own."""

from fastformer import checks
from fastformer.layers.base import Layer
from fastformer.parameters import Array


class Softmax(Layer):
    """exp(x) / sum(exp(x)) of each row; see kernels/softmax.py."""

    left = ("out",)
    out: Array

    def __init__(self, *, backend: str = "numba", dtype: str = "float32") -> None:
        """Choose the backend and the dtype."""
        super().__init__(backend, dtype)

    def forward(self, x: Array) -> Array:
        """Return (N, V) probabilities for x of (N, V), in a buffer."""
        columns = x.shape[-1] if getattr(x, "ndim", 0) == 2 and x.shape[-1] else 1
        checks.matrix("Softmax", "x", x, None, columns, self.dtype)
        if self.guard.claim():
            x = self.apart(x)
        out = self.buffers.get("out", *x.shape)
        self.__dict__["out"] = out.view()
        self.ops.softmax_forward(x, out)
        return out

    def backward(self, dout: Array) -> Array:
        """Return (N, V), the gradient by x, in a shared buffer."""
        self.guard.check_left()
        rows, columns = self.out.shape
        checks.matrix("Softmax.backward", "dout", dout, rows, columns, self.dtype)
        dx = self.scratch.get("softmax.dx", *self.out.shape, apart=(dout,))
        self.ops.softmax_backward(dout, self.out, dx)
        return dx
