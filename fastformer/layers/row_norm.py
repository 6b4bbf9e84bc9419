"""What the norms of rows share: a learned weight, and where gradients go."""

from typing import ClassVar

import numpy as np

from fastformer import checks
from fastformer.layers.base import Layer
from fastformer.parameters import Array, Parameter


class RowNorm(Layer):
    """A norm of each row of its input, times a weight."""

    left: ClassVar[tuple[str, ...]] = ("x",)
    x: Array

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

    def sizes(self) -> dict[str, object]:
        """Return what a person is told of the layer beside its name."""
        return {"embed_dim": self.embed_dim, "epsilon": self.epsilon}

    def begin(self, x: Array) -> Array:
        """Begin forward; return x, apart from buffers where the layer is called by itself."""
        if self.guard.claim():
            checks.matrix(type(self).__name__, "x", x, None, self.embed_dim, self.dtype)
            x = self.apart(x)
        return x

    def prepare(self, x: Array) -> Array:
        """Keep x for backward, as `self.x`, and return the buffer for the result, (N, C)."""
        checks.matrix(type(self).__name__, "x", x, None, self.embed_dim, self.dtype)
        self.__dict__["x"] = x
        return self.buffers.get("out", x.shape[0], self.embed_dim)

    def prepare_backward(
        self, dout: Array, residual: Array | None, dx: Array | None
    ) -> tuple[Array, Array]:
        """Check the arguments of `backward`; return (residual or nothing, where dx goes)."""
        by_itself = self.guard.check_left()
        where, rows = f"{type(self).__name__}.backward", self.x.shape[0]
        checks.matrix(where, "dout", dout, rows, self.embed_dim, self.dtype)
        if residual is not None:
            checks.matrix(where, "residual", residual, rows, self.embed_dim, self.dtype)
        if dx is None:
            apart = (dout, residual) if by_itself else ()
            dx = self.scratch.get("norm.dx", rows, self.embed_dim, apart=apart)
        else:
            checks.matrix(where, "dx", dx, rows, self.embed_dim, self.dtype)
        if by_itself:
            read = {"dout": dout, "residual": residual, "x": self.x, "weight": self.weight.value}
            checks.apart(where, "dx", dx, **read, gradient=self.weight.gradient)
            checks.apart(where, "dout", dout, gradient=self.weight.gradient)
        return self.nothing if residual is None else residual, dx
