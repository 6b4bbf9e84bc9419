"""Arguments of the transformer block's kernels for tests: those of its benchmarks, marked."""

from collections.abc import Callable
from typing import Any

import numpy as np
from twins import Out

from fastformer.bench.block_cases import block_backward, block_forward, block_weights
from fastformer.bench.cases import Output

# Numbers are about 1, and each of the steps that follow each other rounds them.
STEPS = 8.0


def marked(values: dict[str, Any]) -> list[Any]:
    """Return the arguments in order, what a kernel writes as `Out`."""
    return [
        Out(value.shape, value.start, STEPS) if isinstance(value, Output) else value
        for value in values.values()
    ]


def forward_arguments(values: dict[str, Any]) -> list[Any]:
    """Return the arguments of `transformer_block_forward`, from `block_forward`."""
    return marked(values)


def backward_arguments(rng: np.random.Generator, values: dict[str, Any]) -> list[Any]:
    """Return the arguments of `transformer_block_backward` after such a forward."""
    return marked(block_backward(rng, values))


def weights_arguments(
    rng: np.random.Generator,
    rows: int,
    columns: int,
    ffn: int,
    *,
    some_rows: bool,
    bias: bool,
    halves: bool,
) -> list[Any]:
    """Return the arguments of `transformer_block_weights`; of so many rows, a third is read out."""
    chosen = (rows + 2) // 3 if some_rows else rows
    kind = {"some_rows": some_rows, "bias": bias, "halves": halves}
    return marked(block_weights(rng, rows, chosen, columns, ffn, **kind))


def draw_block(
    rng: np.random.Generator, size: Callable[[], int], activations: tuple[int, ...]
) -> dict[str, Any]:
    """Return what `block_forward` makes for random settings; size() gives a width."""
    return block_forward(
        rng,
        rng.integers(1, 12, int(rng.integers(1, 5))),
        int(rng.integers(1, 4)),
        size(),
        size(),
        pre_norm=bool(rng.integers(2)),
        activation=int(rng.choice(activations)),
        some_rows=bool(rng.integers(2)),
        bias=bool(rng.integers(2)),
        causal=bool(rng.integers(2)),
    )
