"""Arguments of the transformer block's kernels, by their names, on random numbers."""

import inspect
from typing import Any

import numpy as np
from twins import Out, run

from fastformer.kernels.activation import GELU
from fastformer.kernels.transformer_block import (
    transformer_block_backward_reference,
    transformer_block_forward_reference,
)

EPSILON = 1e-5
# Numbers are about 1, and each of the steps that follow each other rounds them.
STEPS = 8.0
NONE, EMPTY = np.empty((0, 0)), np.empty(0)
Named = dict[str, Any]


def ordered(reference: Any, values: Named) -> list[Any]:
    """Return the values in the order of a twin's arguments."""
    return [values[name] for name in inspect.signature(reference).parameters]


def forward_values(
    rng: np.random.Generator,
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
) -> Named:
    """Return every argument of `transformer_block_forward` by name; a block is C = H D wide."""
    C, N, B = heads * width, int(np.sum(lengths)), len(lengths)
    M = B if some_rows else N
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)

    def real(*shape: int) -> Any:
        return rng.standard_normal(shape) / np.sqrt(max(1, shape[-1]))

    def biased(size: int) -> Any:
        return real(size) if bias else EMPTY

    def written(*shape: int) -> Out:
        return Out(shape, scale=STEPS)

    x = rng.standard_normal((N, C))
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
        "query_bias": biased(C) if some_rows else EMPTY,
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
        "q": written(M, C) if some_rows else NONE,
        "projected": written(groups * N, C),
        "attended": written(M, C),
        "logsumexp": written(M, heads),
        "attention_out": written(M, C),
        "normed2": written(M, C),
        "mean2": written(
            M,
        ),
        "rstd2": written(
            M,
        ),
        "slope": written(M, ffn) if activation == GELU else NONE,
        "hidden": written(M, ffn),
        "out": written(M, C),
    }


def computed(values: Named) -> Named:
    """Return the values of forward's arguments after its twin ran in float64."""
    given = ordered(transformer_block_forward_reference, values)
    results = iter(run(transformer_block_forward_reference, *given, dtype=np.float64))
    return {
        name: next(results) if isinstance(value, Out) else value for name, value in values.items()
    }


def backward_values(rng: np.random.Generator, forward: Named) -> Named:
    """Return every argument of `transformer_block_backward` for forward's arguments by name."""
    values = computed(forward)
    M, C = values["attention_out"].shape
    post_norm = not values["pre_norm"]
    gradients = {
        name: Out((C,), rng.standard_normal(C), STEPS)
        for name in ("dnorm1_weight", "dnorm1_bias", "dnorm2_weight", "dnorm2_bias")
    }
    gelu = values["activation"] == GELU

    def gradient(shape: tuple[int, ...]) -> Out:
        return Out(shape, scale=STEPS)

    return {
        **values,
        "dout": rng.standard_normal((M, C)),
        "saved": values["slope"] if gelu else values["hidden"],
        "dsum2": gradient((M, C)) if post_norm else NONE,
        "dhidden": gradient(values["hidden"].shape),
        "dinner": gradient((M, C)),
        "dsum1": gradient((M, C)),
        "dattended": gradient((M, C)),
        "dq": gradient((M, C)) if values["rows"].size else NONE,
        "dprojected": gradient(values["projected"].shape),
        "dchosen": gradient((M, C)) if values["rows"].size else NONE,
        "dx": gradient(values["x"].shape),
        **gradients,
    }


def forward_arguments(values: Named) -> list[Any]:
    """Return the arguments of `transformer_block_forward`."""
    return ordered(transformer_block_forward_reference, values)


def backward_arguments(rng: np.random.Generator, values: Named) -> list[Any]:
    """Return the arguments of `transformer_block_backward` after such a forward."""
    return ordered(transformer_block_backward_reference, backward_values(rng, values))
