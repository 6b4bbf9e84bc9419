"""Multi-head self-attention over packed sequences."""

from typing import Any

import numpy as np

from fastformer import checks
from fastformer.batch import PackedBatch
from fastformer.kernels.activation import NO_ACTIVATION
from fastformer.kernels.attention import attention, attention_gradient
from fastformer.kernels.rotary import rotary
from fastformer.kernels.sequence_rows import gather, scatter
from fastformer.layers.base import Layer, Seed, initial_stream
from fastformer.layers.dropout import Dropout, DropoutCounter
from fastformer.layers.feed_forward import drop_and_add
from fastformer.layers.linear import PRODUCTS, Linear, xavier_uniform
from fastformer.layers.relative_positions import RelativePositions, check_positions
from fastformer.layers.rmsnorm import RMSNorm
from fastformer.parameters import Array, Parameter
from fastformer.program import Program
from fastformer.tensors import LONGEST_AXIS, ROWS, SEQUENCE_ROWS, Axis, Tensor


class MultiHeadAttention(Layer):
    """dropout(concat(softmax(Q_h K_h^T / sqrt(D)) V_h) W_o) + residual; Q, K, V = x W_q, W_k, W_v.

    Formulas and sources are in kernels/attention.py, with those of ALiBi; with rotary positions, Q
    and K are turned as in kernels/rotary.py. With fewer heads of keys and values, each is shared by
    a group of the queries' heads (grouped-query attention, Ainslie et al. 2023, arXiv:2305.13245).
    """

    left = ("x", "q", "k", "v", "attended", "batch", "_query_offsets", "_query_positions")
    reads_batch = True
    x: Array
    q: Array
    k: Array
    attended: Array
    batch: PackedBatch

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        num_kv_heads: int = 0,
        head_size: int = 0,
        qk_norm: bool = False,
        norm_epsilon: float = 1e-5,
        causal: bool = False,
        qkv_bias: bool = False,
        output_bias: bool = False,
        dropout: float = 0.0,
        counter: DropoutCounter | None = None,
        positions: RelativePositions | None = None,
        seed: Seed = 0,
        backend: str = "numba",
        dtype: str = "float32",
        precision: str = "float32",
    ) -> None:
        """Make the layer with Xavier-uniform weights.

        Args:
            embed_dim: C, the width of x.    num_heads: H, which divides C.
            num_kv_heads: heads of keys and values, which divide H; 0 for as many as H.
            head_size: D, of each head; 0 for C / H.
            qk_norm: whether queries and keys are normalised, head by head, by an RMSNorm of each,
                before they are told positions; see Henry et al. 2020, arXiv:2010.04245.
            norm_epsilon: of these norms.
            causal: whether a token sees only itself and those before it.
            qkv_bias: whether the projections to queries, keys and values have biases.
            output_bias: whether the projection of the result has one.
            dropout: of the result, in [0, 1).    counter: of the dropout.
            positions: what it is told of them, for its heads and dtype; or None.
            seed: of the weights, or a stream that they are drawn from.
            backend: "numba" or "reference".    dtype: "float32" or "float64".
            precision: "float32", or "bfloat16", of the operands of the four projections; see
                `Layer`. Scores and their products with values stay in the dtype.
        """
        super().__init__(backend, dtype, precision)
        self.embed_dim = embed_dim = checks.integer("embed_dim", embed_dim, 1)
        self.num_heads = num_heads = checks.integer("num_heads", num_heads, 1)
        checks.table_size("MultiHeadAttention", embed_dim=embed_dim, qkv_width=3 * embed_dim)
        self.head_size = head_size = checks.head_size(embed_dim, num_heads, head_size)
        self.num_kv_heads = checks.kv_heads(num_heads, num_kv_heads)
        self.query_width, self.kv_width = head_size * num_heads, head_size * self.num_kv_heads
        self.grouped = self.num_kv_heads < num_heads
        if positions is not None:
            check_positions(positions, head_size, num_heads, self.dtype)
        self.positions = positions
        self.slopes = np.zeros(0, self.dtype) if positions is None else positions.slopes
        self.causal = checks.boolean("causal", causal)
        checks.boolean("qkv_bias", qkv_bias)
        self.scale = head_size**-0.5
        stream = initial_stream(seed)
        names = ["query", "key", "value"]
        widths = [self.query_width, self.kv_width, self.kv_width]
        weights = [xavier_uniform(stream, embed_dim, width) for width in widths]

        def parameters(part: slice) -> tuple[Parameter, Parameter]:
            """Return one weight and one bias of some of the projections."""
            width = widths[part][0] if qkv_bias else 0
            return (
                Parameter(
                    np.stack(weights[part]).astype(self.dtype),
                    parts=tuple(f"{name}.weight" for name in names[part]),
                    decays=True,
                ),
                Parameter(
                    np.zeros((len(widths[part]), width), self.dtype),
                    parts=tuple(f"{name}.bias" for name in names[part]) if qkv_bias else (),
                ),
            )

        # One array, so that one product makes Q, K and V; but where they have unlike widths.
        if self.grouped:
            self.query_weight, self.query_bias = parameters(slice(0, 1))
            self.kv_weight, self.kv_bias = parameters(slice(1, 3))
        else:
            self.qkv_weight, self.qkv_bias = parameters(slice(0, 3))
        self.query_norm = self.key_norm = None
        if checks.boolean("qk_norm", qk_norm):
            self.query_norm, self.key_norm = (
                RMSNorm(head_size, epsilon=norm_epsilon, backend=backend, dtype=dtype)
                for _ in range(2)
            )
        self.output = Linear(
            self.query_width,
            embed_dim,
            bias=output_bias,
            seed=stream,
            backend=backend,
            dtype=dtype,
            precision=precision,
        )
        self.dropout = Dropout(dropout, counter, backend=backend, dtype=dtype)
        self.share()

    def sizes(self) -> dict[str, object]:
        """Return what a person is told of the layer beside its name."""
        sizes: dict[str, object] = {"embed_dim": self.embed_dim, "num_heads": self.num_heads}
        if self.grouped:
            sizes["num_kv_heads"] = self.num_kv_heads
        if self.query_width != self.embed_dim:
            sizes["head_size"] = self.head_size
        if self.causal:
            sizes["causal"] = True
        return sizes if self.positions is None else {**sizes, "positions": self.positions.kind}

    def shapes(self, **options: Any) -> dict[str, tuple[Axis, Axis | None]]:
        """Return the shapes of what forward is given."""
        width = Axis(self.embed_dim)
        rows = ROWS if options.get("rows") is None else SEQUENCE_ROWS
        return {"x": (ROWS, width), "residual": (rows, width)}

    def check_call(self, batch: PackedBatch, **given: Any) -> None:
        """Raise for rows that cannot be chosen, and sequences longer than the positions'."""
        if given.get("rows") is not None:
            checks.choice("rows", given["rows"], ("first", "last", "chosen"))
            if self.causal and given["rows"] != "last":
                checks.fail(
                    f"rows must be 'last' or None where attention is causal, got {given['rows']!r}"
                )
        if self.positions is not None:
            self.positions.check(batch)

    def weights(self) -> Array:
        """Return the weights of the last forward, (B, H, longest, longest), 0 beyond a sequence.

        With rows given, the third axis has the one row. They are computed again on request.
        """
        self.guard.check_left()
        no_positions = np.zeros(0, np.int64)
        positions = self._query_positions if self.slopes.size else no_positions
        queries = int(np.diff(self._query_offsets).max())
        shape = (self.batch.num_sequences, self.num_heads, queries, self.batch.longest)
        weights = np.empty(shape, self.dtype)
        self.ops.attention_weights(
            self.q,
            self.k,
            self._query_offsets,
            self.batch._offsets,
            positions,
            self.slopes,
            self.causal,
            self.scale,
            weights,
        )
        return weights

    def _projection(self, part: slice) -> tuple[Parameter, Parameter, slice]:
        """Return the weight and bias that some of W_q, W_k, W_v are in, and their part of these."""
        if not self.grouped:
            return self.qkv_weight, self.qkv_bias, part
        if part.start == 0:
            return self.query_weight, self.query_bias, slice(0, 1)
        return self.kv_weight, self.kv_bias, slice(0, 2)

    def forward_ops(
        self,
        p: Program,
        x: Tensor,
        residual: Tensor | None = None,
        rows: str | None = None,
    ) -> Tensor:
        """Append the ops of forward.

        Args:
            rows: "first" or "last", for one row of each sequence alone; None for all. By itself, a
                layer that is not causal may be given the numbers of these rows, (B,) int64.
        """
        attended = self._attend(p, x, rows)
        return drop_and_add(p, self.output, self.dropout, attended, residual)

    def _attend(self, p: Program, x: Tensor, rows: str | None) -> Tensor:
        """Append the ops up to the output's projection."""
        given, x_rows = p.given, x
        query_offsets, query_positions = given["offsets"], given["positions"]
        if rows is None and not self.grouped:
            projected = self._project_ops(p, x, slice(0, 3))
            q, k, v = projected.split(3)
        else:
            if rows is not None:
                query_offsets = given["one_row_offsets"]
                query_positions = given[f"{rows}_positions"]
                (x_rows,) = p.add(gather, x=x, rows=given[f"{rows}_rows"])
            q = self._project_ops(p, x_rows, slice(0, 1))
            k, v = self._project_ops(p, x, slice(1, 3)).split(2)
        if self.query_norm is not None and self.key_norm is not None:
            q_rows, k_rows = q.axes, k.axes
            q = p.forward(self.query_norm, q.by_heads(self.num_heads)).reshaped(*q_rows)
            k = p.forward(self.key_norm, k.by_heads(self.num_kv_heads)).reshaped(*k_rows)
        self._rotate(p, q, k, query_positions, 1.0)
        keys, values, starts, ends = k, v, given["starts"], given["ends"]
        if p.cache is not None:
            keys, values, starts, ends = p.cache.keep(p, k, v)
        slopes = p.outside("slopes", self.slopes)
        places: dict[str, Any] = {
            "q": q, "k": keys, "v": values, "query_offsets": query_offsets, "slopes": slopes,
            "positions": None if slopes is None else query_positions, "longest": LONGEST_AXIS,
            "heads": self.num_heads, "causal": int(self.causal), "scale": self.scale,
            "row_max": p.new("row_max", q.axes[0], self.num_heads),
            "row_sum": p.new("row_sum", q.axes[0], self.num_heads),
        }  # fmt: skip
        (out,) = p.add(attention, **places, key_starts=starts, key_ends=ends)
        p.save(
            x=x, x_rows=x_rows, places=places, q=q, k=k, v=v, attended=out, rows=rows,
            _query_offsets=query_offsets, _query_positions=query_positions,
        )  # fmt: skip
        return out

    def backward_ops(self, p: Program, dout: Tensor, residual: Tensor | None = None) -> Tensor:
        """Append the ops of backward."""
        if p.recompute == "attention":
            p.saved_of(self.output).x = self._attend(p, p.saved.x, p.saved.rows)
        s = p.saved
        dout = p.backward(self.output, p.backward(self.dropout, dout))
        rows = s.x.axes[0]
        if s.rows is None and not self.grouped:
            dprojected = p.new("dqkv", Axis(3 * rows.factor, rows.size), self.query_width)
            dq, dk, dv = dprojected.split(3)
        else:
            dq = p.new("dq", s.x_rows.axes[0], self.query_width)
            dprojected = p.new("dkv", Axis(2 * rows.factor, rows.size), self.kv_width)
            dk, dv = dprojected.split(2)
        p.add(
            attention_gradient, dout=dout, out=s.attended, **s.places,
            key_offsets=p.given["offsets"], dq=dq, dk=dk, dv=dv,
        )  # fmt: skip
        self._rotate(p, dq, dk, s._query_positions, -1.0)
        if self.query_norm is not None and self.key_norm is not None:
            for norm, gradient, heads in (
                (self.query_norm, dq, self.num_heads), (self.key_norm, dk, self.num_kv_heads),
            ):  # fmt: skip
                rows = gradient.by_heads(heads)
                p.backward(norm, rows, dx=rows)
        if s.rows is None and not self.grouped:
            return self._project_back(p, s.x, dprojected, slice(0, 3), residual)
        if s.rows is None:
            through = self._project_back(p, s.x, dprojected, slice(1, 3), residual)
            return self._project_back(p, s.x, dq, slice(0, 1), through)
        dx = self._project_back(p, s.x, dprojected, slice(1, 3), None)
        dx_rows = self._project_back(p, s.x_rows, dq, slice(0, 1), residual)
        p.add(scatter, dout=dx_rows, rows=p.given[f"{s.rows}_rows"], dx=dx)
        return dx

    def _rotate(
        self, p: Program, q: Tensor, k: Tensor, query_positions: Tensor, direction: float
    ) -> None:
        if self.positions is None or not self.positions.cosines.size:
            return
        tables = {
            "cosines": p.outside("cosines", self.positions.cosines),
            "sines": p.outside("sines", self.positions.sines),
        }
        p.add(rotary, positions=query_positions, **tables, direction=direction, x=q)
        p.add(rotary, positions=p.given["positions"], **tables, direction=direction, x=k)

    def _project_ops(self, p: Program, x: Tensor, part: slice) -> Tensor:
        weight, bias, part = self._projection(part)
        (found,) = p.add(
            PRODUCTS[self.precision].forward, x=x,
            weight=p.outside("qkv.weight", weight.value[part]),
            bias=p.outside("qkv.bias", bias.value[part].reshape(-1)),
            activation=NO_ACTIVATION,
        )  # fmt: skip
        return found

    def _project_back(
        self, p: Program, x: Tensor, dout: Tensor, part: slice, residual: Tensor | None
    ) -> Tensor:
        weight, bias, part = self._projection(part)
        (dx,) = p.add(
            PRODUCTS[self.precision].input_gradient, dout=dout, residual=residual,
            activation=NO_ACTIVATION,
            weight=p.outside("qkv.weight", weight.value[part]),
        )  # fmt: skip
        p.add(
            PRODUCTS[self.precision].weight_gradient, x=x, dout=dout, overwrites=0,
            dweight=p.outside("qkv.weight gradient", weight.gradient[part]),
            dbias=p.outside("qkv.bias gradient", bias.gradient[part].reshape(-1)),
        )  # fmt: skip
        return dx
