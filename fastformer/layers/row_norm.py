"""What the norms of rows share: a learned weight, and where gradients go."""

import numpy as np

from fastformer import checks
from fastformer.layers.base import Layer
from fastformer.parameters import Array, Parameter


class RowNorm(Layer):
    """A norm of each row of its input, times a weight."""

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
        checks.table_size(type(self).__name__, embed_dim=embed_dim)
        self.epsilon = checks.number("epsilon", epsilon, above=0)
        self.weight = Parameter(np.ones(embed_dim, self.dtype))

    def prepare(self, x: Array) -> Array:
        """Keep x for backward, and return the buffer for the result, (N, C)."""
        checks.matrix(type(self).__name__, "x", x, None, self.embed_dim, self.dtype)
        self.x = x
        return self.buffers.get("out", x.shape[0], self.embed_dim)

    def prepare_backward(
        self, dout: Array, residual: Array | None, dx: Array | None
    ) -> tuple[Array, Array]:
        """Check the arguments of `backward`; return (residual or nothing, where dx goes)."""
        where, rows = f"{type(self).__name__}.backward", self.x.shape[0]
        checks.matrix(where, "dout", dout, rows, self.embed_dim, self.dtype)
        if dx is None:
            dx = self.scratch.get("norm.dx", rows, self.embed_dim)
        for name, array in (("dx", dx), ("residual", residual)):
            if array is not None:
                checks.matrix(where, name, array, rows, self.embed_dim, self.dtype)
        return self.nothing if residual is None else residual, dx
