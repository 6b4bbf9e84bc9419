"""Root mean square normalisation with a learned weight."""

import numpy as np

from fastformer import checks
from fastformer.layers.base import Layer
from fastformer.parameters import Array, Parameter


class RMSNorm(Layer):
    """x / sqrt(mean(x^2) + epsilon) * weight; see kernels/rmsnorm.py."""

    def __init__(
        self,
        embed_dim: int,
        *,
        epsilon: float = 1e-5,
        backend: str = "numba",
        dtype: str = "float32",
    ) -> None:
        """Make the layer with a weight of ones.

        Args:
            embed_dim: C, the width of a row, >= 1.    epsilon: > 0.
            backend: "numba" or "reference".    dtype: "float32" or "float64".
        """
        super().__init__(backend, dtype)
        self.embed_dim = checks.integer("embed_dim", embed_dim, 1)
        checks.table_size("RMSNorm", embed_dim=embed_dim)
        self.epsilon = checks.number("epsilon", epsilon, above=0)
        self.weight = Parameter(np.ones(embed_dim, self.dtype))

    def forward(self, x: Array) -> Array:
        """Return (N, C) for x of (N, C), in a buffer."""
        checks.matrix("RMSNorm", "x", x, None, self.embed_dim, self.dtype)
        rows = x.shape[0]
        self.x = x
        self.rrms = self.buffers.get("rrms", rows)
        out = self.buffers.get("out", rows, self.embed_dim)
        self.ops.rmsnorm_forward(x, self.weight.value, self.epsilon, out, self.rrms)
        return out

    def backward(
        self, dout: Array, *, residual: Array | None = None, dx: Array | None = None
    ) -> Array:
        """Add the gradient of the weight, and return that of x.

        Args:
            dout: (N, C).    residual: (N, C), added to the gradient of x, or None.
            dx: (N, C), where to write; a shared buffer unless given.

        Returns:
            dx.
        """
        rows = self.x.shape[0]
        checks.matrix("RMSNorm.backward", "dout", dout, rows, self.embed_dim, self.dtype)
        if dx is None:
            dx = self.scratch.get("rmsnorm.dx", rows, self.embed_dim)
        for name, array in (("dx", dx), ("residual", residual)):
            if array is not None:
                checks.matrix("RMSNorm.backward", name, array, rows, self.embed_dim, self.dtype)
        self.ops.rmsnorm_backward(
            dout,
            self.x,
            self.weight.value,
            self.rrms,
            self.nothing if residual is None else residual,
            dx,
            self.weight.gradient,
        )
        return dx
