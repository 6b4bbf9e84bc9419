"""Cases of a whole transformer block, and of the gradients of several linear layers at once."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastformer.bench.cases import Arguments, Output, Shape, Sizes, Spec, normal
from fastformer.bench.product_cases import NO_VECTOR, NOTHING, pairs
from fastformer.kernels.activation import GELU, RELU, SLOPED
from fastformer.kernels.transformer_block import (
    transformer_block_backward_reference,
    transformer_block_forward_reference,
)
from fastformer.kernels.wide_block import wide_block_backward_reference
from fastformer.layers.block_plan import second_half_size

Random = np.random.Generator
EPSILON = 1e-5


def block_forward(
    random: Random,
    lengths: Any,
    heads: int,
    width: int,
    ffn: int,
    *,
    pre_norm: bool,
    activation: int,
    some_rows: bool,
    bias: bool,
    causal: bool,
) -> Arguments:
    """Return the arguments of `transformer_block_forward`, for a block that is H D wide.

    Args:
        lengths: of the sequences.    heads: H.    width: D.    ffn: F.
        pre_norm, activation, causal: of the block.    some_rows: whether a row of each sequence is
            read out alone.    bias: whether all linear layers have one.
    """
    C, N, B = heads * width, int(np.sum(lengths)), len(lengths)
    M = B if some_rows else N
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)

    def real(*shape: int) -> Any:
        return random.standard_normal(shape) / np.sqrt(max(1, shape[-1]))

    def biased(size: int) -> Any:
        return real(size) if bias else NO_VECTOR

    def written(*shape: int) -> Output:
        return Output(shape)

    x = random.standard_normal((N, C))
    groups = 2 if some_rows else 3
    # A causal block's chosen rows are the last ones.
    rows = offsets[1:] - 1 if causal else offsets[:-1]
    return {
        "x": x,
        "rows": rows.copy() if some_rows else offsets[:0],
        "query_offsets": np.arange(B + 1) if some_rows else offsets,
        "key_offsets": offsets,
        "pre_norm": pre_norm,
        "causal": causal,
        "scale": width**-0.5,
        "epsilon": EPSILON,
        "activation": activation,
        "norm1_weight": 1 + real(C),
        "norm1_bias": real(C),
        "query_weight": real(int(some_rows), C, C),
        "query_bias": biased(C) if some_rows else NO_VECTOR,
        "projection_weight": real(groups, C, C),
        "projection_bias": biased(groups * C),
        "output_weight": real(1, C, C),
        "output_bias": biased(C),
        "norm2_weight": 1 + real(C),
        "norm2_bias": real(C),
        "expand_weight": real(1, C, ffn),
        "expand_bias": real(ffn),
        "contract_weight": real(1, ffn, C),
        "contract_bias": real(C),
        "normed1": written(N if pre_norm else M, C),
        "mean1": written(
            N if pre_norm else M,
        ),
        "rstd1": written(
            N if pre_norm else M,
        ),
        "stream": written(M, C) if some_rows else x,
        "chosen": written(M, C) if some_rows else x,
        "q": written(M, C) if some_rows else NOTHING,
        "projected": written(groups * N, C),
        "attended": written(M, C),
        "largest": written(M, heads),
        "total": written(M, heads),
        "attention_out": written(M, C),
        "normed2": written(M, C),
        "mean2": written(
            M,
        ),
        "rstd2": written(
            M,
        ),
        "slope": written(M, ffn) if activation in SLOPED else NOTHING,
        "hidden": written(M, ffn),
        "out": written(M, C),
    }


def _ordered(reference: Callable[..., None], values: Arguments) -> Arguments:
    """Return the values that a twin takes, in the order of its arguments."""
    return {name: values[name] for name in inspect.signature(reference).parameters}


def block_backward(random: Random, forward: Arguments) -> Arguments:
    """Return the arguments of `transformer_block_backward` after a forward with those arguments."""
    values = {
        name: np.empty(value.shape) if isinstance(value, Output) else value
        for name, value in forward.items()
    }
    transformer_block_forward_reference(**values)
    M, C = values["attention_out"].shape
    some_rows = values["rows"].size > 0
    rows = Output((M, C))
    values |= {
        "dout": normal(random, M, C),
        "saved": values["slope" if values["activation"] in SLOPED else "hidden"],
        "dsum2": NOTHING if values["pre_norm"] else rows,
        "dhidden": Output(values["hidden"].shape),
        **dict.fromkeys(("dinner", "dsum1", "dattended"), rows),
        "dq": rows if some_rows else NOTHING,
        "dprojected": Output(values["projected"].shape),
        "dchosen": rows if some_rows else NOTHING,
        "dx": Output(values["x"].shape),
    }
    for norm in ("norm1", "norm2"):
        for name in (f"d{norm}_weight", f"d{norm}_bias"):
            values[name] = Output((C,), normal(random, C))
    return _ordered(transformer_block_backward_reference, values)


def wide_block_backward(random: Random, forward: Arguments) -> Arguments:
    """Return the arguments of `wide_block_backward` after a forward with those arguments."""
    values = forward | block_backward(random, forward)
    pre_norm, some_rows = values["pre_norm"], values["rows"].size > 0
    values = {
        name: normal(random, *value.shape)
        if name in ("normed1", "normed2", "hidden", "chosen") and isinstance(value, Output)
        else value
        for name, value in values.items()
    }
    values["attention_in"] = values["normed1"] if pre_norm else values["x"]
    values["inner"] = values["normed2" if pre_norm else "normed1"]
    for layer in ("query", "projection", "output", "expand", "contract"):
        for name in (f"{layer}_bias", f"{layer}_weight"):
            shape = values[name].shape
            values[f"d{name}"] = Output(shape, normal(random, *shape))
    if not some_rows:
        values["dquery_bias"], values["dquery_weight"] = NO_VECTOR, values["query_weight"]
    return _ordered(wide_block_backward_reference, values)


def block_weights(
    random: Random, N: int, M: int, C: int, F: int, *, some_rows: bool, bias: bool, halves: bool
) -> Arguments:
    """Return the arguments of `transformer_block_weights`, for M rows that are read out of N.

    Args:
        C, F: widths.    some_rows: whether the query's layer is one of its own.
        bias: whether the attention's layers have one.
        halves: whether the second half of the rows is computed by itself.
    """
    groups = 2 if some_rows else 3

    def sums(*shape: int) -> Output:
        return Output(shape, normal(random, *shape))

    values = {
        "attention_in": normal(random, N, C),
        "dprojected": normal(random, groups * N, C),
        "dprojection_bias": sums(groups * C * bias),
        "dprojection_weight": sums(groups, C, C),
        "attended": normal(random, M, C),
        "dattention_out": normal(random, M, C),
        "doutput_bias": sums(C * bias),
        "doutput_weight": sums(1, C, C),
        "inner": normal(random, M, C),
        "dhidden": normal(random, M, F),
        "dexpand_bias": sums(F),
        "dexpand_weight": sums(1, C, F),
        "hidden": normal(random, M, F),
        "dfeed_forward": normal(random, M, C),
        "dcontract_bias": sums(C),
        "dcontract_weight": sums(1, F, C),
    }
    size = sum(math.prod(value.shape) for value in values.values() if isinstance(value, Output))
    return values | {"second": Output((size * halves,))}


def _shapes(s: Sizes) -> list[Shape]:
    return [(s.B, s.T, s.C, s.H, s.F)]


def _forward(random: Random, B: int, T: int, C: int, H: int, F: int) -> Arguments:
    """Return a block of the digit task where it is that size, and else one of a GPT."""
    gpt = B * T * C > 1 << 16
    return block_forward(
        random, [T] * B, H, C // H, F, pre_norm=gpt, activation=GELU if gpt else RELU,
        some_rows=False, bias=False, causal=gpt,
    )  # fmt: skip


def _backward(random: Random, *shape: int) -> Arguments:
    return block_backward(random, _forward(random, *shape))


def _wide_backward(random: Random, *shape: int) -> Arguments:
    return wide_block_backward(random, _forward(random, *shape))


def _weights(random: Random, B: int, T: int, C: int, H: int, F: int) -> Arguments:
    halves = second_half_size(B * T, C * (4 * C + 2 * F) + F + C) > 0
    return block_weights(random, B * T, B * T, C, F, some_rows=False, bias=False, halves=halves)


def _flops(attention_products: int, B: int, T: int, C: int, H: int, F: int) -> int:
    """Return the operations of the linear layers, and of so many products of the attention."""
    attention = 2 * attention_products * pairs(B, T, B * T * C > 1 << 16) * C
    return 2 * B * T * C * (4 * C + 2 * F) + attention


BLOCKS = (
    Spec(
        "transformer_block_forward", "BTCHF", _shapes, _forward, lambda *shape: _flops(2, *shape)
    ),
    Spec(
        "transformer_block_backward", "BTCHF", _shapes, _backward, lambda *shape: _flops(5, *shape)
    ),
    Spec("wide_block_forward", "BTCHF", _shapes, _forward, lambda *shape: _flops(2, *shape)),
    Spec(
        "wide_block_backward", "BTCHF", _shapes, _wide_backward,
        lambda *shape: _flops(5, *shape) + _flops(0, *shape),
    ),
    Spec(
        "transformer_block_weights", "BTCHF", _shapes, _weights, lambda *shape: _flops(0, *shape)
    ),
)  # fmt: skip
