"""Activations as layers of their own; feed-forward layers have them inside a product.

"gelu" is GELU in its tanh form, PyTorch's nn.GELU(approximate="tanh"), and "gelu_exact" is x Phi(x)
itself, PyTorch's nn.GELU().
"""

from fastformer.kernels.activation import EXACT_GELU as EXACT_GELU_CODE
from fastformer.kernels.activation import GELU as GELU_CODE
from fastformer.kernels.activation import MISH as MISH_CODE
from fastformer.kernels.activation import RELU as RELU_CODE
from fastformer.kernels.activation import activated, activated_gradient
from fastformer.layers.base import Layer
from fastformer.program import Program
from fastformer.tensors import Tensor

ACTIVATION_CODES = {
    "relu": RELU_CODE,
    "gelu": GELU_CODE,
    "gelu_exact": EXACT_GELU_CODE,
    "mish": MISH_CODE,
}


class _Activation(Layer):
    """An element-wise function; formulas and sources are in kernels/activation.py."""

    left = ("x",)
    elementwise = True
    code: int

    def __init__(self, *, backend: str = "numba", dtype: str = "float32") -> None:
        """Choose the backend and the dtype."""
        super().__init__(backend, dtype)

    def forward_ops(self, p: Program, x: Tensor) -> Tensor:
        """Append the op of forward."""
        p.save(x=x)
        (out,) = p.add(activated, x=x, activation=self.code)
        return out

    def backward_ops(self, p: Program, dout: Tensor) -> Tensor:
        """Append the op of backward."""
        (dx,) = p.add(activated_gradient, dout=dout, x=p.saved.x, activation=self.code)
        return dx


class ReLU(_Activation):
    """max(x, 0)."""

    code = RELU_CODE


class GELU(_Activation):
    """x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3): nn.GELU(approximate="tanh")."""

    code = GELU_CODE


class ExactGELU(_Activation):
    """x Phi(x), of the normal distribution: PyTorch's nn.GELU()."""

    code = EXACT_GELU_CODE


class Mish(_Activation):
    """x tanh(log(1 + e^x))."""

    code = MISH_CODE
