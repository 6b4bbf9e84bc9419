"""The causal decoder: a GPT, logits for every token."""

from collections.abc import Callable

from fastformer.kernels.sequence_rows import gather
from fastformer.layers.base import Layer
from fastformer.layers.linear import Linear, TiedLinear
from fastformer.layers.transformer_block import TransformerBlock
from fastformer.models.base import Model
from fastformer.models.config import DecoderConfig
from fastformer.program import Program
from fastformer.tensors import ROWS, Axis, Tensor


class TransformerDecoder(Model):
    """Predicts each next token from those before it."""

    config: DecoderConfig

    def __init__(
        self,
        config: DecoderConfig,
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
            DecoderConfig,
            causal=True,
            tied=config.tied_embeddings if isinstance(config, DecoderConfig) else False,
            block=block,
            seed=seed,
            backend=backend,
            dtype=dtype,
            precision=precision,
        )
        if config.tied_embeddings:
            self.output = TiedLinear(self.embedding, precision=precision)
        else:
            self.output = Linear(
                config.embed_dim,
                config.vocab_size,
                bias=config.output_bias,
                seed=self.stream,
                backend=backend,
                dtype=dtype,
                precision=precision,
            )
        self.parameters()

    @property
    def logits_rows(self) -> Axis:
        """A row for each token."""
        return ROWS

    def forward_ops(self, p: Program, logits: Tensor, last_only: bool = False) -> None:
        """Append the ops of forward, which write the logits, (N, V).

        Args:
            last_only: whether to read out the last row of each sequence alone, (B, V): no backward
                can undo that.
        """
        x = self._blocks_ops(p, self._embed_ops(p))
        if last_only:
            (x,) = p.add(gather, x=x, rows=p.given["last_rows"])
        if self.final_norm is not None:
            x = p.forward(self.final_norm, x)
        p.forward(self.output, x, out=logits)

    def backward_ops(self, p: Program, dlogits: Tensor) -> None:
        """Append the ops of backward."""
        dx = p.backward(self.output, dlogits)
        p.new_section()
        if self.final_norm is not None:
            dx = p.backward(self.final_norm, dx)
        self._embed_back(p, self._blocks_back(p, dx))
