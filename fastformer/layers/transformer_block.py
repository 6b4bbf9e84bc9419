"""One block: attention, then feed-forward, each with a residual sum and a norm."""

from collections.abc import Callable
from typing import Any

from fastformer import checks
from fastformer.batch import PackedBatch
from fastformer.errors import InvalidTypeError
from fastformer.kernels.sequence_rows import gather, scatter
from fastformer.layers.attention import MultiHeadAttention
from fastformer.layers.base import Layer, Seed, initial_stream
from fastformer.layers.dropout import DropoutCounter
from fastformer.layers.feed_forward import FeedForward
from fastformer.layers.norm import new_norm
from fastformer.layers.relative_positions import RelativePositions, relative_positions
from fastformer.models.config import ModelConfig
from fastformer.program import Program
from fastformer.tensors import ROWS, Axis, Tensor


class TransformerBlock(Layer):
    """Post-norm: norm2(b + ffn(b)), b = norm1(x + attention(x)).

    Pre-norm: b + ffn(norm2(b)), b = x + attention(norm1(x)).
    Sources: Vaswani et al. 2017, arXiv:1706.03762; Xiong et al. 2020, arXiv:2002.04745.
    """

    reads_batch = True

    def __init__(
        self,
        config: ModelConfig,
        *,
        causal: bool = False,
        counter: DropoutCounter | None = None,
        positions: RelativePositions | None = None,
        feed_forward: Callable[..., Layer] | None = None,
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
            feed_forward: makes a layer in place of `FeedForward`, which is given the config, and
                counter, seed, backend, dtype and precision by name; its `forward_ops(p, x,
                residual=None)` and `backward_ops(p, dout, residual=None)` add the residual.
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
            head_size=config.head_size,
            qkv_bias=config.qkv_bias,
            output_bias=config.attention_output_bias,
            dropout=config.dropout,
            counter=counter,
            positions=relative_positions(config, dtype) if positions is None else positions,
            seed=stream,
            backend=backend,
            dtype=dtype,
            precision=precision,
        )
        self.norm1 = new_norm(config, backend=backend, dtype=dtype)
        self.feed_forward = (feed_forward or _feed_forward)(
            config, counter=counter, seed=stream, backend=backend, dtype=dtype, precision=precision
        )
        checks.instance("TransformerBlock", "feed_forward", self.feed_forward, Layer)
        self.norm2 = new_norm(config, backend=backend, dtype=dtype)
        self.share()

    def sizes(self) -> dict[str, object]:
        """Return what a person is told of the layer beside its name."""
        return {"norm": "pre" if self.pre_norm else "post"}

    def shapes(self, **options: Any) -> dict[str, tuple[Axis, Axis | None]]:
        """Return the shape of what forward is given."""
        return {"x": (ROWS, Axis(self.attention.embed_dim))}

    def check_call(self, batch: PackedBatch, **given: Any) -> None:
        """Raise for what attention cannot compute."""
        self.attention.check_call(batch, **given)

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


def _feed_forward(config: ModelConfig, **options: Any) -> FeedForward:
    """Return the feed-forward layer that a model's settings name."""
    return FeedForward(
        config.embed_dim,
        config.ffn_dim,
        activation=config.activation,
        bias=config.ffn_bias,
        dropout=config.dropout,
        **options,
    )
