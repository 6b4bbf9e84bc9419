"""The encoder classifier: bidirectional blocks, and a class for each sequence."""

from fastformer.batch import Ids, PackedBatch
from fastformer.kernels.pooling import mean_of_rows, mean_of_rows_gradient
from fastformer.layers.block_stack import backward_through, forward_through
from fastformer.layers.calls import Calls, call
from fastformer.layers.linear import Linear
from fastformer.models.base import Model
from fastformer.models.config import TransformerConfig
from fastformer.parameters import Array
from fastformer.program import ROWS, Program, Tensor


class Transformer(Model):
    """llmlearn's model at its default settings, with exact gradients.

    Where one row for each sequence is read out, the last block computes that row alone.
    """

    left = ("batch",)
    config: TransformerConfig
    batch: PackedBatch

    def __init__(
        self,
        config: TransformerConfig,
        *,
        seed: int = 0,
        backend: str = "numba",
        dtype: str = "float32",
        precision: str = "float32",
    ) -> None:
        """Make the model with initial weights drawn from a seed.

        Args:
            config: its settings.    seed: >= 0; the same weights for either backend and dtype.
            backend: "numba" or "reference".    dtype: "float32" or "float64".
            precision: "float32", or "bfloat16": linear layers then multiply numbers rounded to
                bfloat16 and add in float32, and all else is in float32, also what is kept.
        """
        super().__init__(
            config,
            TransformerConfig,
            causal=False,
            tied=False,
            seed=seed,
            backend=backend,
            dtype=dtype,
            precision=precision,
        )
        self.output = Linear(
            config.embed_dim,
            config.vocab_size,
            seed=self.stream,
            backend=backend,
            dtype=dtype,
            precision=precision,
        )
        self.parameters()

    def _plan_forward(self, batch: PackedBatch, calls: Calls) -> Array:
        self.__dict__["batch"] = batch
        x = self._embed(batch, calls)
        x = forward_through(self.blocks, x, batch, self._rows(batch), calls)
        if self.final_norm is not None:
            x = self.final_norm.forward(x, calls=calls)
        if self.config.pooling == "mean":
            tokens, x = x, self.buffers.get("mean", batch.num_sequences, x.shape[1])
            call(calls, self.ops.mean_forward, tokens, batch._offsets, x)
        return self._logits(x, calls)

    def plan_backward(self, dlogits: Array, calls: Calls) -> None:
        """Do what `backward` does, as soon as the calls are made."""
        self.prepare(block_op=self.blocks[0].op, training=True)
        dx = self.output.backward(dlogits, calls=calls)
        if self.config.pooling == "mean":
            dmean, dx = dx, self.scratch.get("mean.dx", self.batch.num_tokens, dx.shape[1])
            call(calls, self.ops.mean_backward, dmean, self.batch._offsets, dx)
        if self.final_norm is not None:
            dx = self.final_norm.backward(dx, calls=calls)
        self._embed_backward(backward_through(self.blocks, dx, calls), calls)

    def _rows(self, batch: PackedBatch) -> Ids | None:
        """Return the rows that are read out, or None where all are."""
        if self.config.pooling == "mean":
            return None
        return batch._first_rows if self.config.pooling == "first" else batch._last_rows

    def forward_ops(self, p: Program, logits: Tensor) -> None:
        """Append the ops of forward, which write the logits, (B, V)."""
        x = self._embed_ops(p)
        pooling = self.config.pooling
        for block in self.blocks[:-1]:
            x = p.forward(block, x)
        x = p.forward(self.blocks[-1], x, rows=None if pooling == "mean" else pooling)
        if self.final_norm is not None:
            x = p.forward(self.final_norm, x)
        if pooling == "mean":
            tokens, x = x, p.new("mean", logits.axes[0], self.config.embed_dim)
            p.add(mean_of_rows, x=tokens, offsets=p.given["offsets"], out=x)
        p.forward(self.output, x, out=logits)

    def backward_ops(self, p: Program, dlogits: Tensor) -> None:
        """Append the ops of backward."""
        dx = p.backward(self.output, dlogits)
        p.new_section()
        if self.config.pooling == "mean":
            dmean, dx = dx, p.new("mean.dx", ROWS, self.config.embed_dim)
            p.add(mean_of_rows_gradient, dout=dmean, offsets=p.given["offsets"], dx=dx)
        if self.final_norm is not None:
            dx = p.backward(self.final_norm, dx)
        self._embed_back(p, self._blocks_back(p, dx))
