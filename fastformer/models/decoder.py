"""The causal decoder: a GPT, logits for every token."""

from fastformer.batch import PackedBatch
from fastformer.layers.block_stack import backward_through, forward_through
from fastformer.layers.calls import Calls, make
from fastformer.layers.linear import Linear, TiedLinear
from fastformer.models.base import Model
from fastformer.models.config import DecoderConfig
from fastformer.parameters import Array


class TransformerDecoder(Model):
    """Predicts each next token from those before it."""

    config: DecoderConfig

    def __init__(
        self,
        config: DecoderConfig,
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
            DecoderConfig,
            causal=True,
            tied=config.tied_embeddings if isinstance(config, DecoderConfig) else False,
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
                seed=self.stream,
                backend=backend,
                dtype=dtype,
                precision=precision,
            )
        self.parameters()

    def forward(self, batch: PackedBatch, *, calls: Calls | None = None) -> Array:
        """Return logits (N, V), one row for each token: what comes after it.

        Args:
            batch: the packed tokens.    calls: see layers/calls.py.
        """
        own: Calls = [] if calls is None else calls
        x = forward_through(self.blocks, self._embed(batch, own), batch, None, own)
        if self.final_norm is not None:
            x = self.final_norm.forward(x, calls=own)
        logits = self._logits(x, own)
        return make(own, logits) if calls is None else logits

    def backward(self, dlogits: Array, *, calls: Calls | None = None) -> None:
        """Add the gradients of all parameters, for the gradient (N, V) by the logits.

        Args:
            dlogits: the gradient.    calls: see layers/calls.py.
        """
        self.prepare(block_op=self.blocks[0].op, training=True)
        own: Calls = [] if calls is None else calls
        dx = self.output.backward(dlogits, calls=own)
        if self.final_norm is not None:
            dx = self.final_norm.backward(dx, calls=own)
        self._embed_backward(backward_through(self.blocks, dx, own), own)
        if calls is None:
            make(own, dx)
