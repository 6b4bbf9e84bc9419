"""Where a token stands: a fixed table of sines, or a learned one."""

from typing import Any

import numpy as np

from fastformer import checks
from fastformer.batch import PackedBatch
from fastformer.errors import InvalidTypeError, InvalidValueError
from fastformer.kernels.dropout import dropout
from fastformer.kernels.embedding import embedding, embedding_gradient
from fastformer.layers.base import Layer, Seed, initial_stream
from fastformer.parameters import Array, Parameter
from fastformer.program import Program
from fastformer.tensors import ROWS, Axis, Tensor


def sinusoidal_table(max_seq_len: int, embed_dim: int) -> Array:
    """Return (max_seq_len, embed_dim) float64.

    Column 2i is sin(p / 10000^(2i / C)), column 2i + 1 its cosine. Source: Vaswani et al. 2017,
    arXiv:1706.03762, section 3.5.
    """
    column = np.arange(embed_dim)
    angle = np.arange(max_seq_len)[:, None] / 10000.0 ** (column // 2 * 2 / embed_dim)
    return np.where(column % 2 == 0, np.sin(angle), np.cos(angle))


def check_length(batch: PackedBatch, max_seq_len: int) -> None:
    """Raise where a sequence is longer than a model reads."""
    if batch.longest > max_seq_len:
        raise InvalidValueError(
            f"a sequence of {batch.longest} tokens is {batch.longest - max_seq_len} "
            f"longer than max_seq_len={max_seq_len}; shorten it, or make the model "
            "with a larger max_seq_len"
        )


class PositionalEncoding(Layer):
    """x + table[position]."""

    reads_batch = True

    def __init__(
        self,
        embed_dim: int,
        max_seq_len: int,
        *,
        learned: bool = False,
        std: float = 0.02,
        seed: Seed = 0,
        backend: str = "numba",
        dtype: str = "float32",
    ) -> None:
        """Make the table.

        Args:
            embed_dim: C, >= 1.    max_seq_len: rows of the table, >= 1.
            learned: a trained table, normal with standard deviation `std`; else sines.
            seed: of a learned table, or a stream that it is drawn from.
            backend: "numba" or "reference".    dtype: "float32" or "float64".
        """
        super().__init__(backend, dtype)
        self.embed_dim = checks.integer("embed_dim", embed_dim, 1)
        self.max_seq_len = checks.integer("max_seq_len", max_seq_len, 1)
        self.learned = checks.boolean("learned", learned)
        checks.table_size("PositionalEncoding", max_seq_len=max_seq_len, embed_dim=embed_dim)
        shape = (max_seq_len, embed_dim)
        checks.number("std", std, at_least=0)
        if learned:
            values = initial_stream(seed).normal(0, std, shape)
            self.weight = Parameter(values.astype(self.dtype), decays=True)
        else:
            self._table = sinusoidal_table(*shape).astype(self.dtype)

    def sizes(self) -> dict[str, object]:
        """Return what a person is told of the layer beside its name."""
        kind = {"learned": self.learned}
        return {"max_seq_len": self.max_seq_len, "embed_dim": self.embed_dim, **kind}

    @property
    def table(self) -> Array:
        """The (max_seq_len, C) table."""
        return self.weight.value if self.learned else self._table

    def check(self, batch: PackedBatch) -> None:
        """Raise where it is no packed batch, or a sequence is longer than the table."""
        if not isinstance(batch, PackedBatch):
            raise InvalidTypeError(
                f"PositionalEncoding: batch must be a PackedBatch, got {type(batch).__name__}"
            )
        check_length(batch, self.max_seq_len)

    def shapes(self, **options: Any) -> dict[str, tuple[Axis, Axis | None]]:
        """Return the shape of what forward is given."""
        return {"x": (ROWS, Axis(self.embed_dim))}

    def check_call(self, batch: PackedBatch, **given: Any) -> None:
        """Raise where a sequence is longer than the table."""
        self.check(batch)

    def forward_ops(self, p: Program, x: Tensor) -> Tensor:
        """Append the ops of forward: x plus each token's row of the table, (N, C)."""
        table = p.outside("positions", self.table)
        (out,) = p.add(
            embedding, tokens=p.given["positions"], positions=p.given["positions"], table=table
        )
        (out,) = p.add(dropout, x=out, residual=x, rate=0.0, seed=0, call=0, place=0)
        return out

    def backward_ops(self, p: Program, dout: Tensor) -> Tensor:
        """Append the ops of backward; the gradient of x is dout."""
        if self.learned:
            p.add(
                embedding_gradient, ids=p.given["positions"], dout=dout, overwrites=0,
                dtable=p.gradient(self.weight, "positions"),
            )  # fmt: skip
        return dout
