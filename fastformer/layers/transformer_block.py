"""One block: attention, then feed-forward, each with a residual sum and a norm."""

import numpy as np

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
    ) -> None:
        """Make the block.

        Args:
            config: the model's settings.    causal: see MultiHeadAttention.
            counter: of the dropouts.    seed: of the weights, or a stream that they are drawn from.
            backend: "numba" or "reference".    dtype: "float32" or "float64".
        """
        super().__init__(backend, dtype)
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
        if self._fused(batch):
            return self._forward_fused(x, batch, rows)
        stream = x if rows is None else self._chosen_rows(x, rows)
        if self.pre_norm:
            normed = self.norm1.forward(x)
            b = self.attention.forward(normed, batch, rows=rows, residual=stream)
            return self.feed_forward.forward(self.norm2.forward(b), residual=b)
        b = self.norm1.forward(self.attention.forward(x, batch, rows=rows, residual=stream))
        return self.norm2.forward(self.feed_forward.forward(b, residual=b))

    def backward(self, dout: Array) -> Array:
        """Undo forward line by line; return the gradient of x, (N, C), in a shared buffer."""
        if self._fused(self.attention.batch):
            return self._backward_fused(dout)
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

    def _fused(self, batch) -> bool:
        import os
        return self.ops.name == "numba" and os.environ.get("FUSED", "1") == "1"

    def _forward_fused(self, x, batch, rows):
        attention, norm1, norm2 = self.attention, self.norm1, self.norm2
        expand, contract = self.feed_forward.expand, self.feed_forward.contract
        N, C = x.shape
        attention.x, attention.batch, attention.rows = x, batch, rows
        weight, bias = attention.qkv_weight.value, attention.qkv_bias.value
        get = attention.buffers.get
        if rows is None:
            M = N
            attention.query_offsets = batch._offsets
            projected, q, k, v = attention.buffers.stacked("qkv", 3, N, C)
            query_weight, query_bias, no_rows = weight[:0], self.no_vector, batch._offsets[:0]
            stream = chosen = x
        else:
            M = rows.size
            attention.query_offsets = batch._one_row_offsets
            q = get("q_rows", M, C)
            projected, k, v = attention.buffers.stacked("kv", 2, N, C)
            query_weight, query_bias, no_rows = weight[:1], bias[:1].reshape(-1), rows
            weight, bias = weight[1:], bias[1:]
            stream = self.buffers.get("chosen", M, C)
            chosen = attention.x_rows = get("x_rows", M, C)
        attention.q, attention.k, attention.v = q, k, v
        attention.attended = get("attended", M, C)
        attention.logsumexp = get("logsumexp", M, attention.num_heads)
        attention.output.x = attention.attended
        attention_out = attention.output.buffers.get("out", M, C)
        rows1 = N if self.pre_norm else M
        norm1.x = x if self.pre_norm else attention_out
        norm1.mean, norm1.rstd = norm1.buffers.get("mean", rows1), norm1.buffers.get("rstd", rows1)
        normed1 = norm1.buffers.get("out", rows1, C)
        out = contract.buffers.get("out", M, C)
        norm2.mean, norm2.rstd = norm2.buffers.get("mean", M), norm2.buffers.get("rstd", M)
        normed2 = norm2.buffers.get("out", M, C)
        norm2.x = attention_out if self.pre_norm else out
        expand.x = normed2 if self.pre_norm else normed1
        hidden = expand.buffers.get("out", M, expand.out_features)
        slope = self.nothing
        if self.feed_forward.activation == 2:
            slope = expand.buffers.get("slope", M, expand.out_features)
        expand.saved = slope if self.feed_forward.activation == 2 else hidden
        contract.x = hidden
        self.ops.transformer_block_forward(
            x, no_rows, attention.query_offsets, batch._offsets, self.pre_norm, attention.causal,
            attention.scale, norm1.epsilon, self.feed_forward.activation,
            norm1.weight.value, norm1.bias.value, query_weight, query_bias, weight,
            bias.reshape(-1), attention.output.weight.value, attention.output.bias.value,
            norm2.weight.value, norm2.bias.value, expand.weight.value, expand.bias.value,
            contract.weight.value, contract.bias.value, normed1, norm1.mean, norm1.rstd, stream,
            chosen, q, projected, k, v, attention.attended, attention.logsumexp, attention_out,
            normed2, norm2.mean, norm2.rstd, slope, hidden, out,
        )
        self.projected = projected
        return out if self.pre_norm else normed2

    def _backward_fused(self, dout):
        attention, norm1, norm2 = self.attention, self.norm1, self.norm2
        expand, contract = self.feed_forward.expand, self.feed_forward.contract
        x, batch, rows = attention.x, attention.batch, attention.rows
        N, C = x.shape
        M = dout.shape[0]
        get = self.scratch.get
        weight, dweight, dbias = (
            attention.qkv_weight.value, attention.qkv_weight.gradient, attention.qkv_bias.gradient
        )
        if rows is None:
            dprojected, dq, dk, dv = self.scratch.stacked("attention.dqkv", 3, N, C)
            query_weight, no_rows, dchosen = weight[:0], batch._offsets[:0], self.nothing
        else:
            dq = get("attention.dq", M, C)
            dprojected, dk, dv = self.scratch.stacked("attention.dkv", 2, N, C)
            query_weight, no_rows = weight[:1], rows
            dchosen = get("attention.dx_rows", M, C)
            weight = weight[1:]
        dsum2 = self.nothing if self.pre_norm else get("block.dsum2", M, C)
        dhidden = get("block.dhidden", M, expand.out_features)
        dinner = get("block.dinner", M, C)
        dsum1 = get("block.dsum1", M, C)
        dattended = get("block.dattended", M, C)
        dx = get("block.dx", N, C)
        if np.may_share_memory(dx, dout):
            dx = get("block.dx_other", N, C)
        self.ops.transformer_block_backward(
            dout, x, no_rows, attention.query_offsets, batch._offsets, self.pre_norm,
            attention.causal, attention.scale, self.feed_forward.activation, norm1.weight.value,
            query_weight, weight, attention.output.weight.value, norm2.weight.value,
            expand.weight.value, contract.weight.value, norm1.mean, norm1.rstd, attention.q,
            attention.k, attention.v, attention.attended, attention.logsumexp,
            norm2.x if self.pre_norm else norm1.x, norm2.mean, norm2.rstd, expand.saved,
            self.nothing if self.pre_norm else norm2.x, dsum2, dhidden, dinner, dsum1, dattended,
            dq, dprojected, dk, dv, dchosen, dx, norm1.weight.gradient, norm1.bias.gradient,
            norm2.weight.gradient, norm2.bias.gradient,
        )
        dfinal = dout if self.pre_norm else dsum2
        normed1 = norm1.buffers.get("out", norm1.x.shape[0], C)
        attention_in = normed1 if self.pre_norm else x
        part = slice(0, 3) if rows is None else slice(1, 3)
        self.ops.weight_gradients(
            (expand.x, contract.x, attention_in, attention.attended,
             self.nothing if rows is None else attention.x_rows),
            (dhidden, dfinal, dprojected, dsum1, self.nothing if rows is None else dq),
            (expand.bias.gradient, contract.bias.gradient, dbias[part].reshape(-1),
             attention.output.bias.gradient, self.no_vector if rows is None else dbias[:1].reshape(-1)),
            (expand.weight.gradient, contract.weight.gradient, dweight[part],
             attention.output.weight.gradient, dweight[:0] if rows is None else dweight[:1]),
        )
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
