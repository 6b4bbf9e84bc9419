"""What a transformer block's kernels are given for batches of one size, gathered once."""

from typing import TYPE_CHECKING, Any

import numpy as np

from fastformer import checks
from fastformer.batch import Ids, PackedBatch
from fastformer.layers.calls import Calls
from fastformer.parameters import Array

if TYPE_CHECKING:
    from fastformer.layers.transformer_block import TransformerBlock

# What layers keep of a forward.
KEPT = (
    "x", "x_rows", "projected", "q", "k", "v", "attended", "largest", "total", "mean", "rstd",
    "saved",
)  # fmt: skip

# Weights' gradients are computed by halves of the tokens, which then are in the cache of the core
# that wrote them, from so many tokens on and up to so many weights, which must be added.
FEWEST_TOKENS_OF_HALVES = 256
MOST_WEIGHTS_OF_HALVES = 1 << 18


def second_half_size(tokens: int, weights: int) -> int:
    """Return the size of `second` of `transformer_block_weights`, 0 where halves are no gain.

    Args:
        tokens: of a batch.    weights: that get gradients, with biases.
    """
    few_weights = weights <= MOST_WEIGHTS_OF_HALVES
    return weights if tokens >= FEWEST_TOKENS_OF_HALVES and few_weights else 0


class BlockPlan:
    """The arrays of one block for one size of batch, and the calls of its kernels.

    Gathering forty arrays takes as long as a small block's work, and a training run has few sizes.
    """

    def __init__(
        self,
        block: "TransformerBlock",
        op: str,
        x: Array,
        batch: PackedBatch,
        rows: Ids | None,
    ) -> None:
        """Gather what forward needs.

        Args:
            op: "transformer_block" or "wide_block".
            block, x, batch, rows: as of `TransformerBlock.forward`.
        """
        self.block, self.op, self.x, self.shape = block, op, x, x.shape
        x = self.read = x.view()  # its caller may give x itself another shape
        self.sequences = batch.num_sequences
        self.some_rows = rows is not None
        self.weight = block.norm1.weight.value
        self.dout: Array | None = None
        attention, norm1, norm2 = block.attention, block.norm1, block.norm2
        expand, contract = block.feed_forward.expand, block.feed_forward.contract
        pre_norm = block.pre_norm
        attention_in = norm1.prepare(x) if pre_norm else x
        attention.prepare(attention_in, batch, rows)
        self.stream = x
        if self.some_rows:
            self.stream = block.buffers.get("chosen", self.sequences, x.shape[1])
        attention_out = attention.output.prepare(attention.attended)
        inner = (norm2 if pre_norm else norm1).prepare(attention_out)
        hidden = expand.prepare(inner, block.feed_forward.activation)
        out = contract.prepare(hidden)
        self.result = out if pre_norm else norm2.prepare(out)
        self.q = attention.q if self.some_rows else block.nothing
        # With chosen rows, the query's projection is one of its own.
        split = 1 if self.some_rows else 0
        weight, bias = attention.qkv_weight.value, attention.qkv_bias.value
        nothing = block.nothing
        self._forward = (
            pre_norm, attention.causal, attention.scale, norm1.epsilon,
            block.feed_forward.activation,
            norm1.weight.value, norm1.bias.value,
            weight[:split], bias[:split].reshape(-1), weight[split:], bias[split:].reshape(-1),
            attention.output.weight.value, attention.output.bias.value,
            norm2.weight.value, norm2.bias.value,
            expand.weight.value, expand.bias.value, contract.weight.value, contract.bias.value,
            attention_in if pre_norm else inner, norm1.mean, norm1.rstd,
            self.stream, attention.x_rows, self.q, attention.projected, attention.attended,
            attention.largest, attention.total, attention_out,
            inner if pre_norm else self.result, norm2.mean, norm2.rstd,
            nothing if expand.saved is hidden else expand.saved, hidden, out,
        )  # fmt: skip
        self.attention_out, self.out = attention_out, out
        layers = (attention, attention.output, norm1, norm2, expand, contract)
        self._kept = [
            (vars(layer), {name: vars(layer)[name] for name in KEPT if name in vars(layer)})
            for layer in layers
        ]

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """Return None: a copied block makes a plan of its own."""

    def fits(self, x: Array, batch: PackedBatch, rows: Ids | None) -> bool:
        """Tell whether the plan is for these arguments, and for the parameters as they are.

        What fits needs no other check: of rows, only a batch's own fit.
        """
        if x is not self.x or x.shape != self.shape or not isinstance(batch, PackedBatch):
            return False
        if self.some_rows:
            fits = rows is batch._first_rows or rows is batch._last_rows
        else:
            fits = rows is None
        return (
            fits
            and batch.num_tokens == self.shape[0]
            and batch.num_sequences == self.sequences
            and self.weight is self.block.norm1.weight.value
        )

    def forward(self, batch: PackedBatch, rows: Ids | None) -> tuple[Calls, Array]:
        """Return the calls that compute the block for a batch that fits, and its result."""
        # As a forward leaves them, which may have been one of another size since.
        for attributes, kept in self._kept:
            attributes.update(kept)
        attention = self.block.attention
        attention.attend_to(batch, rows)
        arguments = (
            self.read,
            batch._offsets[:0] if rows is None else rows,
            attention._query_offsets,
            batch._offsets,
            *self._forward,
        )
        return [(getattr(self.block.ops, f"{self.op}_forward"), arguments)], self.result

    def backward(self, dout: Array) -> tuple[Calls, Array]:
        """Return the calls that compute the gradients for the batch of the last forward, and dx."""
        if self.dout is None or dout is not self.dout or dout.shape != self.result.shape:
            rows, columns = self.result.shape
            checks.matrix(
                "TransformerBlock.backward", "dout", dout, rows, columns, self.block.dtype
            )
            self._prepare_backward(dout)
        block, attention = self.block, self.block.attention
        offsets = attention.batch._offsets
        arguments = (
            dout,
            self.read,
            offsets[:0] if attention._rows is None else attention._rows,
            attention._query_offsets,
            offsets,
            *self._backward,
        )
        if self.op == "wide_block":
            return [(block.ops.wide_block_backward, arguments)], self.dx
        calls: Calls = [
            (block.ops.transformer_block_backward, arguments),
            (block.ops.transformer_block_weights, self._weights),
        ]
        if self.some_rows:
            calls.append((block.ops.matmul_tn, self._query_weight))
        return calls, self.dx

    def _prepare_backward(self, dout: Array) -> None:
        """Gather what backward needs; gradients of weights are made of what lies in scratch."""
        block, some = self.block, self.some_rows
        attention, norm1, norm2 = block.attention, block.norm1, block.norm2
        expand, contract = block.feed_forward.expand, block.feed_forward.contract
        get, nothing = block.scratch.get, block.nothing
        rows, columns = self.result.shape
        tokens, split = self.shape[0], 1 if some else 0
        dprojected = get("block.dprojected", (3 - split) * tokens, columns)
        dq = get("block.dq", rows, columns) if some else nothing
        dchosen = get("block.dchosen", rows, columns) if some else nothing
        dsum2 = nothing if block.pre_norm else get("block.dsum2", rows, columns)
        dhidden = get("block.dhidden", rows, expand.out_features)
        dsum1 = get("block.dsum1", rows, columns)
        # The next block's gradient lies in one of the two, and is read until the end.
        self.dx = get("block.dx", tokens, columns)
        if np.may_share_memory(self.dx, dout):
            self.dx = get("block.dx_other", tokens, columns)
        self.dout = dout
        weight = attention.qkv_weight
        self._backward: tuple[Any, ...] = (
            block.pre_norm, attention.causal, attention.scale, block.feed_forward.activation,
            norm1.weight.value, weight.value[:split], weight.value[split:],
            attention.output.weight.value, norm2.weight.value, expand.weight.value,
            contract.weight.value, norm1.mean, norm1.rstd, self.q, attention.projected,
            attention.attended, attention.largest, attention.total, self.attention_out,
            norm2.mean, norm2.rstd,
            expand.saved, self.out, dsum2, dhidden, get("block.dinner", rows, columns), dsum1,
            get("block.dattended", rows, columns), dq, dprojected, dchosen, self.dx,
            norm1.weight.gradient, norm1.bias.gradient, norm2.weight.gradient,
            norm2.bias.gradient,
        )  # fmt: skip
        output, gradient, bias = attention.output, weight.gradient, attention.qkv_bias.gradient
        query = bias[:split].reshape(-1), gradient[:split]
        projection = bias[split:].reshape(-1), gradient[split:]
        put_out = output.bias.gradient, output.weight.gradient
        expansion = expand.bias.gradient, expand.weight.gradient
        contraction = contract.bias.gradient, contract.weight.gradient
        if self.op == "wide_block":
            self._backward += (
                attention.x_rows, attention.x, expand.x, contract.x, *query, *projection, *put_out,
                *expansion, *contraction,
            )  # fmt: skip
            return
        dout_of_contract = dout if block.pre_norm else dsum2
        weights = (
            attention.x, dprojected, *projection, attention.attended, dsum1, *put_out,
            expand.x, dhidden, *expansion, contract.x, dout_of_contract, *contraction,
        )  # fmt: skip
        size = sum(gradients.size for i, gradients in enumerate(weights) if i % 4 > 1)
        size = second_half_size(tokens, size)
        second = block.scratch.get("block.second_half", size) if size else block.no_vector
        self._weights = (*weights, second)
        if some:
            self._query_weight = attention.x_rows, dq, *query


class BlockPlans:
    """The plans of one block for the last sizes of batches: parts have two, validation others."""

    MOST = 4

    def __init__(self) -> None:
        """Begin without any."""
        self._plans: list[BlockPlan] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> "BlockPlans":
        """Return none: a copied block makes plans of its own."""
        return BlockPlans()

    def find(self, x: Array, batch: PackedBatch, rows: Ids | None) -> BlockPlan | None:
        """Return the plan that fits, if there is one."""
        for plan in self._plans:
            if plan.fits(x, batch, rows):
                return plan
        return None

    def add(self, plan: BlockPlan) -> None:
        """Keep a plan, and of the others those whose buffers no larger ones have replaced."""
        kept = [other for other in self._plans if np.may_share_memory(other.result, plan.result)]
        self._plans = [plan, *kept[: self.MOST - 1]]
