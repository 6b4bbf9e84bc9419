"""One block: attention, then feed-forward, each with a residual sum and a norm."""

from fastformer.batch import Ids, PackedBatch
from fastformer.buffers import Apart
from fastformer.errors import InvalidTypeError
from fastformer.kernels.pooling import gather, scatter
from fastformer.layers.attention import MultiHeadAttention, own_rows
from fastformer.layers.base import Layer, Seed, initial_stream
from fastformer.layers.dropout import DropoutCounter
from fastformer.layers.feed_forward import FeedForward
from fastformer.layers.norm import new_norm
from fastformer.layers.relative_positions import RelativePositions, relative_positions
from fastformer.models.config import ModelConfig
from fastformer.parameters import Array
from fastformer.program import Program
from fastformer.tensors import Tensor


class TransformerBlock(Layer):
    """Post-norm: norm2(b + ffn(b)), b = norm1(x + attention(x)).

    Pre-norm: b + ffn(norm2(b)), b = x + attention(norm1(x)).
    Sources: Vaswani et al. 2017, arXiv:1706.03762; Xiong et al. 2020, arXiv:2002.04745.
    """

    left = ("_rows",)

    def __init__(
        self,
        config: ModelConfig,
        *,
        causal: bool = False,
        counter: DropoutCounter | None = None,
        positions: RelativePositions | None = None,
        seed: Seed = 0,
        backend: str = "numba",
        dtype: str = "float32",
        precision: str = "float32",
    ) -> None:
        """Make the block.

        Args:
            config: the model's settings.    causal: see MultiHeadAttention.
            counter: of the dropouts.    positions: those of the model; made here where the config
                has relative ones and none are given.
            seed: of the weights, or a stream that they are drawn from.
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
            num_kv_heads=config.num_kv_heads,
            qk_norm=config.qk_norm,
            norm_epsilon=config.layernorm_epsilon,
            causal=causal,
            bias=config.attention_bias,
            dropout=config.dropout,
            counter=counter,
            positions=relative_positions(config, dtype) if positions is None else positions,
            seed=stream,
            backend=backend,
            dtype=dtype,
            precision=precision,
        )
        self.norm1 = new_norm(config, backend=backend, dtype=dtype)
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
        self.norm2 = new_norm(config, backend=backend, dtype=dtype)
        self.share()

    def sizes(self) -> dict[str, object]:
        """Return what a person is told of the layer beside its name."""
        return {"norm": "pre" if self.pre_norm else "post"}

    def forward(self, x: Array, batch: PackedBatch, rows: Ids | None = None) -> Array:
        """Return (N, C) for x of (N, C); with rows, (B, C): the result of those rows alone.

        Only keys and values then need all rows; the rest is computed for the chosen ones, and
        the result is the same.
        """
        by_itself = self.guard.claim()
        if by_itself:
            self.attention.check(x, batch, rows, "TransformerBlock")
        rows = own_rows(batch, rows)
        self.attention.check(x, batch, rows, "TransformerBlock")
        if by_itself and self.overlaps(x):
            return self.forward(x.copy(), batch, rows)
        self.__dict__["_rows"] = rows
        stream = x if rows is None else self._chosen_rows(x, rows)
        if self.pre_norm:
            normed = self.norm1.forward(x)
            b = self.attention.forward(normed, batch, rows=rows, residual=stream)
            return self.feed_forward.forward(self.norm2.forward(b), residual=b)
        b = self.norm1.forward(self.attention.forward(x, batch, rows=rows, residual=stream))
        return self.norm2.forward(self.feed_forward.forward(b, residual=b))

    def backward(self, dout: Array) -> Array:
        """Undo forward line by line; return the gradient of x, (N, C), in a shared buffer."""
        apart: Apart = (dout,) if self.guard.check_left() else ()
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
        dx = self.scratch.get("block.dx", *dnormed.shape, apart=apart)
        if self._rows is None:
            return self.norm1.backward(dnormed, residual=db, dx=dx)
        self.norm1.backward(dnormed, dx=dx)
        self.ops.scatter_rows(db, self._rows, dx)
        return dx

    def _chosen_rows(self, x: Array, rows: Ids) -> Array:
        chosen = self.buffers.get("chosen", rows.size, x.shape[1])
        self.ops.gather_rows(x, rows, chosen)
        return chosen

    def forward_ops(self, p: Program, x: Tensor, rows: str | None = None) -> Tensor:
        """Append the ops of forward: of all rows, or of the "first" or "last" of each sequence."""
        stream = x
        if rows is not None:
            (stream,) = p.add(gather, x=x, rows=p.given[f"{rows}_rows"])
        p.save(rows=rows)
        if self.pre_norm:
            normed = p.forward(self.norm1, x)
            b = p.forward(self.attention, normed, residual=stream, rows=rows)
            return p.forward(self.feed_forward, p.forward(self.norm2, b), residual=b)
        b = p.forward(self.norm1, p.forward(self.attention, x, residual=stream, rows=rows))
        return p.forward(self.norm2, p.forward(self.feed_forward, b, residual=b))

    def backward_ops(self, p: Program, dout: Tensor) -> Tensor:
        """Append the ops of backward: forward line by line, in reverse."""
        if not self.pre_norm:
            dsum = p.backward(self.norm2, dout)
            db = p.backward(self.feed_forward, dsum, residual=dsum)
            dsum = p.backward(self.norm1, db)
            return p.backward(self.attention, dsum, residual=dsum)
        db = p.backward(self.norm2, p.backward(self.feed_forward, dout), residual=dout)
        rows, dnormed = p.saved.rows, p.backward(self.attention, db)
        if rows is None:
            return p.backward(self.norm1, dnormed, residual=db)
        dx = p.backward(self.norm1, dnormed)
        p.add(scatter, dout=db, rows=p.given[f"{rows}_rows"], dx=dx)
        return dx
