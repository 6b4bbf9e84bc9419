"""Layer normalisation with a learned weight and bias."""

import numpy as np

from fastformer.kernels.layernorm import (
    add_layernorm_gradient,
    layernorm,
    layernorm_gradient,
)
from fastformer.layers.row_norm import RowNorm
from fastformer.parameters import Array, Parameter
from fastformer.program import Program
from fastformer.tensors import MOST_PARTS, Tensor


class LayerNorm(RowNorm):
    """(x - mean) / sqrt(variance + epsilon) * weight + bias; see kernels/layernorm.py."""

    left = ("x", "mean", "rstd")
    mean: Array
    rstd: Array

    def __init__(
        self,
        embed_dim: int,
        *,
        epsilon: float = 1e-5,
        backend: str = "numba",
        dtype: str = "float32",
    ) -> None:
        """Make the layer with a weight of ones and a bias of zeros.

        Args:
            embed_dim: C, the width of a row, >= 1.    epsilon: > 0.
            backend: "numba" or "reference".    dtype: "float32" or "float64".
        """
        super().__init__(embed_dim, epsilon=epsilon, backend=backend, dtype=dtype)
        self.bias = Parameter(np.zeros(embed_dim, self.dtype))

    def forward(self, x: Array) -> Array:
        """Return (N, C) for x of (N, C), in a buffer."""
        x = self.begin(x)
        out = self.prepare(x)
        weight, bias = self.weight.value, self.bias.value
        self.ops.layernorm_forward(x, weight, bias, self.epsilon, out, self.mean,
            self.rstd,
        )  # fmt: skip
        return out

    def prepare(self, x: Array) -> Array:
        """Keep x for backward, and return the buffer for the result, (N, C)."""
        out = super().prepare(x)
        self.__dict__["mean"] = self.buffers.get("mean", x.shape[0])
        self.__dict__["rstd"] = self.buffers.get("rstd", x.shape[0])
        return out

    def backward(
        self,
        dout: Array,
        *,
        residual: Array | None = None,
        dx: Array | None = None,
    ) -> Array:
        """Add the gradients of weight and bias, and return that of x.

        Args:
            dout: (N, C).    residual: (N, C), added to the gradient of x, or None.
            dx: (N, C), where to write; a shared buffer unless given.

        Returns:
            dx.
        """
        added, dx = self.prepare_backward(dout, residual, dx)
        self.ops.layernorm_backward(
            dout,
            self.x,
            self.weight.value,
            self.mean,
            self.rstd,
            added,
            dx,
            self.weight.gradient,
            self.bias.gradient,
        )
        return dx

    def forward_ops(self, p: Program, x: Tensor) -> Tensor:
        """Append the ops of forward."""
        out, mean, rstd = p.add(
            layernorm, x=x, weight=p.value(self.weight), bias=p.value(self.bias, "bias"),
            epsilon=self.epsilon,
        )  # fmt: skip
        p.save(x=x, mean=mean, rstd=rstd)
        return out

    def backward_ops(self, p: Program, dout: Tensor, residual: Tensor | None = None) -> Tensor:
        """Append the ops of backward."""
        s, sums = p.saved, p.new("sums", MOST_PARTS, 2, self.embed_dim)
        (dx,) = p.add(
            layernorm_gradient, dout=dout, x=s.x, weight=p.value(self.weight), mean=s.mean,
            rstd=s.rstd, residual=residual, sums=sums,
        )  # fmt: skip
        p.add(
            add_layernorm_gradient, sums=sums, rows=dout.axes[0], shards=0, overwrites=0,
            dweight=p.gradient(self.weight), dbias=p.gradient(self.bias, "bias"),
        )  # fmt: skip
        return dx
