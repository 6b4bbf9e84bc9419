"""Layer normalisation with a learned weight and bias."""

import numpy as np

from fastformer import checks
from fastformer.layers.base import Layer
from fastformer.parameters import Array, Parameter


class LayerNorm(Layer):
    """(x - mean) / sqrt(variance + epsilon) * weight + bias; see kernels/layernorm.py."""

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
        super().__init__(backend, dtype)
        self.embed_dim = checks.integer("embed_dim", embed_dim, 1)
        checks.table_size("LayerNorm", embed_dim=embed_dim)
        self.epsilon = checks.number("epsilon", epsilon, above=0)
        self.weight = Parameter(np.ones(embed_dim, self.dtype))
        self.bias = Parameter(np.zeros(embed_dim, self.dtype))

    def forward(self, x: Array) -> Array:
        """Return (N, C) for x of (N, C), in a buffer."""
        out = self.prepare(x)
        self.ops.layernorm_forward(
            x, self.weight.value, self.bias.value, self.epsilon, out, self.mean, self.rstd
        )
        return out

    def prepare(self, x: Array) -> Array:
        """Keep x for backward, and return the buffer for the result, (N, C)."""
        checks.matrix("LayerNorm", "x", x, None, self.embed_dim, self.dtype)
        rows = x.shape[0]
        self.x = x
        self.mean = self.buffers.get("mean", rows)
        self.rstd = self.buffers.get("rstd", rows)
        return self.buffers.get("out", rows, self.embed_dim)

    def backward(
        self, dout: Array, *, residual: Array | None = None, dx: Array | None = None
    ) -> Array:
        """Add the gradients of weight and bias, and return that of x.

        Args:
            dout: (N, C).    residual: (N, C), added to the gradient of x, or None.
            dx: (N, C), where to write; a shared buffer unless given.

        Returns:
            dx.
        """
        checks.matrix(
            "LayerNorm.backward", "dout", dout, self.x.shape[0], self.embed_dim, self.dtype
        )
        rows = self.x.shape[0]
        if dx is None:
            dx = self.scratch.get("layernorm.dx", rows, self.embed_dim)
        for name, array in (("dx", dx), ("residual", residual)):
            if array is not None:
                checks.matrix("LayerNorm.backward", name, array, rows, self.embed_dim, self.dtype)
        self.ops.layernorm_backward(
            dout,
            self.x,
            self.weight.value,
            self.mean,
            self.rstd,
            self.nothing if residual is None else residual,
            dx,
            self.weight.gradient,
            self.bias.gradient,
        )
        return dx
