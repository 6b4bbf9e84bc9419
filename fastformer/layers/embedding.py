"""Token embedding: a row of a learned table for each id."""

from typing import Any

from fastformer import checks
from fastformer.batch import PackedBatch
from fastformer.errors import InvalidTypeError, InvalidValueError
from fastformer.kernels.embedding import embedding, embedding_gradient
from fastformer.layers.base import Layer, Seed, initial_stream
from fastformer.layers.positional_encoding import PositionalEncoding
from fastformer.parameters import Parameter
from fastformer.program import Program
from fastformer.tensors import Tensor


class Embedding(Layer):
    """table[token], and the position's row in the same pass where positions are given."""

    reads_batch = True

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        *,
        std: float = 0.02,
        seed: Seed = 0,
        backend: str = "numba",
        dtype: str = "float32",
    ) -> None:
        """Make the table, normal with standard deviation `std`.

        Args:
            vocab_size: V, the number of ids, >= 1.    embed_dim: C, >= 1.
            seed: of the table, or a stream that it is drawn from.
            backend: "numba" or "reference".    dtype: "float32" or "float64".
        """
        super().__init__(backend, dtype)
        self.vocab_size = checks.integer("vocab_size", vocab_size, 1)
        self.embed_dim = checks.integer("embed_dim", embed_dim, 1)
        checks.table_size("Embedding", vocab_size=vocab_size, embed_dim=embed_dim)
        checks.number("std", std, at_least=0)
        values = initial_stream(seed).normal(0, std, (vocab_size, embed_dim))
        self.weight = Parameter(values.astype(self.dtype), decays=True)

    def sizes(self) -> dict[str, object]:
        """Return what a person is told of the layer beside its name."""
        return {"vocab_size": self.vocab_size, "embed_dim": self.embed_dim}

    def check_call(self, batch: PackedBatch, **given: Any) -> None:
        """Raise for an id that is not in the table, and a sequence longer than the positions'."""
        self.check(batch, given.get("positions"))

    def check(self, batch: PackedBatch, positions: PositionalEncoding | None = None) -> None:
        """Raise what forward raises of a batch."""
        if not isinstance(batch, PackedBatch):
            raise InvalidTypeError(
                f"a model is given a PackedBatch, got {type(batch).__name__}; make one with "
                "fastformer.pack(list of lists of ids), or pack(padded ids, lengths)"
            )
        if batch.largest_id >= self.vocab_size:
            index = int((batch.tokens >= self.vocab_size).argmax())
            raise InvalidValueError(
                f"token ids must be below vocab_size={self.vocab_size}, got "
                f"{batch.tokens[index]} at token {index} of the batch"
            )
        if positions is not None:
            checks.instance("Embedding", "positions", positions, PositionalEncoding)
            positions.check(batch)
            if positions.embed_dim != self.embed_dim or positions.dtype != self.dtype:
                raise InvalidValueError(
                    f"positions must have embed_dim={self.embed_dim} and dtype {self.dtype}, got "
                    f"{positions.embed_dim} and {positions.dtype}"
                )

    def forward_ops(self, p: Program, positions: PositionalEncoding | None = None) -> Tensor:
        """Append the ops of forward: a row for each token of the batch, (N, C).

        Args:
            positions: whose rows are added, or None.
        """
        table = None
        if positions is not None:
            table = p.outside("positions", positions.table)
        p.save(positions=positions)
        (out,) = p.add(
            embedding, tokens=p.given["tokens"], positions=p.given["positions"],
            table=p.value(self.weight), position_table=table,
        )  # fmt: skip
        return out

    def backward_ops(self, p: Program, dout: Tensor) -> None:
        """Append the ops of backward."""
        positions = p.saved.positions
        if positions is not None and positions.learned:
            gradient = p.gradient(positions.weight, "positions")
            p.add(
                embedding_gradient,
                ids=p.given["positions"],
                dout=dout,
                overwrites=0,
                dtable=gradient,
            )
        gradient = p.gradient(self.weight)
        p.add(embedding_gradient, ids=p.given["tokens"], dout=dout, overwrites=0, dtable=gradient)
