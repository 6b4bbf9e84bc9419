"""The encoder classifier: bidirectional blocks, and a class for each sequence or token."""

from collections.abc import Callable

from fastformer.kernels.sequence_rows import mean_of_rows, mean_of_rows_gradient
from fastformer.layers.base import Layer
from fastformer.layers.linear import Linear
from fastformer.layers.transformer_block import TransformerBlock
from fastformer.models.base import Model
from fastformer.models.config import TransformerConfig
from fastformer.program import Program
from fastformer.tensors import ROWS, SEQUENCE_ROWS, Axis, Tensor


class Transformer(Model):
    """llmlearn's model at its default settings, with exact gradients.

    Where one row for each sequence is read out, the last block computes that row alone.
    """

    config: TransformerConfig

    def __init__(
        self,
        config: TransformerConfig,
        *,
        block: Callable[..., Layer] = TransformerBlock,
        seed: int = 0,
        backend: str = "numba",
        dtype: str = "float32",
        precision: str = "float32",
    ) -> None:
        """Make the model with initial weights drawn from a seed.

        Args:
            config: its settings.
            block: makes a block; `TransformerBlock`, or a layer in its place that is given the
                config, and causal, counter, positions, seed, backend, dtype and precision by name.
            seed: >= 0; the same weights for either backend and dtype.
            backend: "numba" or "reference".    dtype: "float32" or "float64".
            precision: "float32", or "bfloat16": linear layers then multiply numbers rounded to
                bfloat16 and add in float32, and all else is in float32, also what is kept.
        """
        super().__init__(
            config,
            TransformerConfig,
            causal=False,
            tied=False,
            block=block,
            seed=seed,
            backend=backend,
            dtype=dtype,
            precision=precision,
        )
        self.output = Linear(
            config.embed_dim,
            config.num_logits,
            bias=config.output_bias,
            seed=self.stream,
            backend=backend,
            dtype=dtype,
            precision=precision,
        )
        self.parameters()

    @property
    def logits_rows(self) -> Axis:
        """A row for each sequence; with the pooling "none", for each token."""
        return ROWS if self.config.pooling == "none" else SEQUENCE_ROWS

    def forward_ops(self, p: Program, logits: Tensor) -> None:
        """Append the ops of forward, which write the logits, (B, V) or (N, V)."""
        pooling = self.config.pooling
        rows = pooling if pooling in ("first", "last") else None
        x = self._blocks_ops(p, self._embed_ops(p), rows)
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
