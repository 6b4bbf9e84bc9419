"""What the norms of rows share: a learned weight, and rows of one width."""

from typing import Any, ClassVar

import numpy as np

from fastformer import checks
from fastformer.layers.base import Layer
from fastformer.parameters import Parameter
from fastformer.tensors import ROWS, Axis


class RowNorm(Layer):
    """A norm of each row of its input, times a weight."""

    left: ClassVar[tuple[str, ...]] = ("x",)

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

    def shapes(self, **options: Any) -> dict[str, tuple[Axis, Axis | None]]:
        """Return the shape of what forward is given."""
        return {"x": (ROWS, Axis(self.embed_dim))}
