"""Layer normalisation with a learned weight and bias."""

import numpy as np

from fastformer import checks
from fastformer.kernels.layernorm import (
    add_layernorm_gradient,
    layernorm,
    layernorm_gradient,
)
from fastformer.layers.row_norm import RowNorm
from fastformer.parameters import Parameter
from fastformer.program import Program
from fastformer.tensors import MOST_PARTS, Tensor


class LayerNorm(RowNorm):
    """(x - mean) / sqrt(variance + epsilon) * weight + bias; see kernels/layernorm.py."""

    left = ("x", "mean", "rstd")

    def __init__(
        self,
        embed_dim: int,
        *,
        epsilon: float = 1e-5,
        bias: bool = True,
        backend: str = "numba",
        dtype: str = "float32",
    ) -> None:
        """Make the layer with a weight of ones and a bias of zeros.

        Args:
            embed_dim: C, the width of a row, >= 1.    epsilon: > 0.    bias: whether there is one.
            backend: "numba" or "reference".    dtype: "float32" or "float64".
        """
        super().__init__(embed_dim, epsilon=epsilon, backend=backend, dtype=dtype)
        size = embed_dim if checks.boolean("bias", bias) else 0
        self.bias = Parameter(np.zeros(size, self.dtype))

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
