"""One block: attention, then feed-forward, each with a residual sum and a norm."""

from fastformer import checks
from fastformer.batch import Ids, PackedBatch
from fastformer.errors import InvalidTypeError
from fastformer.layers.attention import MultiHeadAttention
from fastformer.layers.base import Layer, Seed, initial_stream
from fastformer.layers.dropout import DropoutCounter
from fastformer.layers.feed_forward import FeedForward
from fastformer.layers.layernorm import LayerNorm
from fastformer.models.config import ModelConfig
from fastformer.parameters import Array


class TransformerBlock(Layer):
    """Post-norm: norm2(b + ffn(b)), b = norm1(x + attention(x)).

    Pre-norm: b + ffn(norm2(b)), b = x + attention(norm1(x)).
    Sources: Vaswani et al. 2017, arXiv:1706.03762; Xiong et al. 2020, arXiv:2002.04745.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        causal: bool = False,
        counter: DropoutCounter | None = None,
        seed: Seed = 0,
        backend: str = "numba",
        dtype: str = "float32",
        precision: str = "float32",
    ) -> None:
        """Make the block.

        Args:
            config: the model's settings.    causal: see MultiHeadAttention.
            counter: of the dropouts.    seed: of the weights, or a stream that they are drawn from.
            backend: "numba" or "reference".    dtype: "float32" or "float64".
            precision: "float32", or "bfloat16", of the operands of products; see `Layer`.
        """
        super().__init__(backend, dtype, precision)
        if not isinstance(config, ModelConfig):
            raise InvalidTypeError(
                "TransformerBlock: config must be a TransformerConfig or DecoderConfig, "
                f"got {type(config).__name__}"
            )
        self.pre_norm = config.norm == "pre"
        stream = initial_stream(seed)
        self.attention = MultiHeadAttention(
            config.embed_dim,
            config.num_heads,
            causal=causal,
            bias=config.attention_bias,
            dropout=config.dropout,
            counter=counter,
            seed=stream,
            backend=backend,
            dtype=dtype,
            precision=precision,
        )
        epsilon = config.layernorm_epsilon
        self.norm1 = LayerNorm(config.embed_dim, epsilon=epsilon, backend=backend, dtype=dtype)
        self.feed_forward = FeedForward(
            config.embed_dim,
            config.ffn_dim,
            activation=config.activation,
            dropout=config.dropout,
            counter=counter,
            seed=stream,
            backend=backend,
            dtype=dtype,
            precision=precision,
        )
        self.norm2 = LayerNorm(config.embed_dim, epsilon=epsilon, backend=backend, dtype=dtype)

    def forward(self, x: Array, batch: PackedBatch, rows: Ids | None = None) -> Array:
        """Return (N, C) for x of (N, C); with rows, (B, C): the result of those rows alone.

        Only keys and values then need all rows; the rest is computed for the chosen ones, and
        the result is the same.
        """
        checks.matrix("TransformerBlock", "x", x, None, self.norm1.embed_dim, self.dtype)
        if rows is not None:
            self._check_rows(rows, batch, x.shape[0])
        self.rows = rows
        stream = x if rows is None else self._chosen_rows(x, rows)
        if self.pre_norm:
            normed = self.norm1.forward(x)
            b = self.attention.forward(normed, batch, rows=rows, residual=stream)
            return self.feed_forward.forward(self.norm2.forward(b), residual=b)
        b = self.norm1.forward(self.attention.forward(x, batch, rows=rows, residual=stream))
        return self.norm2.forward(self.feed_forward.forward(b, residual=b))

    def backward(self, dout: Array) -> Array:
        """Undo forward line by line; return the gradient of x, (N, C), in a shared buffer."""
        if not self.pre_norm:
            # out = norm2(b + feed_forward(b))
            dsum = self.norm2.backward(dout)
            db = self.feed_forward.backward(dsum, residual=dsum)
            # b = norm1(x + attention(x))
            dsum = self.norm1.backward(db)
            return self.attention.backward(dsum, residual=dsum)
        # out = b + feed_forward(norm2(b))
        db = self.norm2.backward(self.feed_forward.backward(dout), residual=dout)
        # b = x + attention(norm1(x))
        dnormed = self.attention.backward(db)
        dx = self.scratch.get("block.dx", *dnormed.shape)
        if self.rows is None:
            return self.norm1.backward(dnormed, residual=db, dx=dx)
        self.norm1.backward(dnormed, dx=dx)
        self.ops.scatter_rows(db, self.rows, dx)
        return dx

    def _check_rows(self, rows: Ids, batch: PackedBatch, tokens: int) -> None:
        if not isinstance(batch, PackedBatch) or batch.num_tokens != tokens:
            raise InvalidTypeError(
                f"TransformerBlock: batch must be the PackedBatch of x's {tokens} rows, got {batch}"
            )
        if rows is not batch._first_rows and rows is not batch._last_rows:
            checks.chosen_rows("TransformerBlock", rows, batch._offsets)

    def _chosen_rows(self, x: Array, rows: Ids) -> Array:
        chosen = self.buffers.get("chosen", rows.size, x.shape[1])
        self.ops.gather_rows(x, rows, chosen)
        return chosen
