"""ReLU, GELU and Mish as layers of their own; feed-forward layers have them inside a product."""

import numpy as np

from fastformer import checks
from fastformer.kernels.activation import GELU as GELU_CODE
from fastformer.kernels.activation import MISH as MISH_CODE
from fastformer.kernels.activation import RELU as RELU_CODE
from fastformer.layers.base import Layer
from fastformer.parameters import Array

ACTIVATION_CODES = {"relu": RELU_CODE, "gelu": GELU_CODE, "mish": MISH_CODE}


class _Activation(Layer):
    """An element-wise function; formulas and sources are in kernels/activation.py."""

    left = ("x",)
    code: int
    x: Array

    def __init__(self, *, backend: str = "numba", dtype: str = "float32") -> None:
        """Choose the backend and the dtype."""
        super().__init__(backend, dtype)

    def forward(self, x: Array) -> Array:
        """Return the function of each element of x, of any shape, in a buffer."""
        owner = type(self).__name__
        checks.same_shape(owner, "x", x, np.shape(x), self.dtype)
        if self.guard.claim():
            x = self.apart(x)
        self.__dict__["x"] = x
        out = self.buffers.get("out", *x.shape)
        self.ops.activation_forward(x, self.code, out)
        return out

    def backward(self, dout: Array) -> Array:
        """Return dout times the derivative at x, in a shared buffer."""
        self.guard.check_left()
        owner = f"{type(self).__name__}.backward"
        checks.same_shape(owner, "dout", dout, self.x.shape, self.dtype)
        dx = self.scratch.get("activation.dx", *self.x.shape, apart=(dout,))
        self.ops.activation_backward(dout, self.x, self.code, dx)
        return dx


class ReLU(_Activation):
    """max(x, 0)."""

    code = RELU_CODE


class GELU(_Activation):
    """x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3): the tanh form."""

    code = GELU_CODE


class Mish(_Activation):
    """x tanh(log(1 + e^x))."""

    code = MISH_CODE
