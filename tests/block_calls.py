"""Arguments of the transformer block's kernels for tests: those of its benchmarks, marked."""

from collections.abc import Callable
from typing import Any

import numpy as np
from twins import Out, run

from fastformer.bench.block_cases import (
    block_backward,
    block_forward,
    block_weights,
    wide_block_backward,
)
from fastformer.bench.cases import Output
from fastformer.kernels.activation import GELU, MISH, RELU

KINDS = [
    {"pre_norm": pre_norm, "activation": activation, "some_rows": rows, "bias": bias, "causal": c}
    for pre_norm in (False, True)
    for activation, rows, bias, c in (
        (RELU, True, False, False),
        (GELU, False, True, True),
        (RELU, False, True, False),
        (MISH, True, True, True),
    )
]
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


def wide_backward_arguments(rng: np.random.Generator, values: dict[str, Any]) -> list[Any]:
    """Return the arguments of `wide_block_backward` after such a forward."""
    return marked(wide_block_backward(rng, values))


def by_input(
    rng: np.random.Generator,
    kind: dict[str, Any],
    forward_twin: Callable[..., None],
    backward_twin: Callable[..., None],
    draw_backward: Callable[..., dict[str, Any]],
) -> tuple[Callable[..., Any], Callable[..., Any], Any]:
    """Return a block's result as a function of x, its gradient by x, and an x; from twins.

    Args:
        draw_backward: gives the arguments of the second twin.
    """
    values = block_forward(rng, (2, 3), 2, 2, 5, **kind)
    result = "out" if kind["pre_norm"] else "normed2"
    outs = [name for name, value in values.items() if isinstance(value, Output)]

    def with_x(x: Any) -> dict[str, Any]:
        changed = {name: x if value is values["x"] else value for name, value in values.items()}
        return changed | {"x": x}

    def forward(x: Any) -> Any:
        found = run(forward_twin, *forward_arguments(with_x(x)), dtype=np.float64)
        return found[outs.index(result)]

    def backward(dout: Any, x: Any) -> Any:
        given = draw_backward(rng, with_x(x)) | {"dout": dout}
        names = [name for name, value in given.items() if isinstance(value, Output)]
        found = run(backward_twin, *marked(given), dtype=np.float64)
        return (found[names.index("dx")],)

    return forward, backward, values["x"]


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
