"""Cases of a whole classifier's loss and gradients."""

from typing import Any

import numpy as np

from fastformer.bench.block_cases import EPSILON
from fastformer.bench.cases import Arguments, Output, Spec
from fastformer.kernels.activation import RELU
from fastformer.kernels.transformer_gradients import PARAMETERS, PER_BLOCK, room_places

Random = np.random.Generator
BLOCKS, VOCABULARY, SHARDS = 2, 20, 2


def classifier_gradients(
    random: Random,
    lengths: Any,
    heads: int,
    width: int,
    ffn: int,
    vocabulary: int,
    blocks: int,
    *,
    activation: int = RELU,
    bias: bool = False,
    learned: bool = False,
    smoothing: float = 0.0,
    shards: int = SHARDS,
) -> Arguments:
    """Return the arguments of `transformer_gradients`, for a classifier that is H D wide.

    Args:
        lengths: of the sequences.    heads: H.    width: D.    ffn: F.    vocabulary: V.
        blocks: L.    activation, smoothing, shards: as there.
        bias: whether the attention's layers have one.    learned: whether positions are trained.
    """
    B, N, C, V = len(lengths), int(np.sum(lengths)), heads * width, vocabulary
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    positions = np.concatenate([np.arange(length) for length in lengths]).astype(np.int64)
    T = int(np.max(lengths)) + 1
    values: list[Any] = []

    def put(*shape: int, around: float = 0.0) -> int:
        """Add a parameter, at the next multiple of 8 elements; return where it begins."""
        start: int = sum(value.size for value in values)
        real = around + random.standard_normal(shape).ravel() / np.sqrt(shape[-1])
        values.append(np.concatenate([real, np.zeros(-real.size % 8)]))
        return start

    shapes = {
        "qkv_weight": (3, C, C), "qkv_bias": (3 * C,), "output_weight": (C, C),
        "expand_weight": (C, ffn), "expand_bias": (ffn,), "contract_weight": (ffn, C),
    }  # fmt: skip
    missing = () if bias else ("qkv_bias", "output_bias")
    places = []
    rooms, others, size = room_places(blocks, N, B, C, heads, ffn, V)
    for room in rooms:
        for name in PARAMETERS:
            shape, around = shapes.get(name, (C,)), float(name.startswith("norm"))
            places.append(0 if name in missing else put(*shape, around=around))
        places += room
    last = [put(V, C), put(T, C) if learned else -1, put(C, V), put(V), *others]
    places += last + [0] * (PER_BLOCK - len(last))
    flat = np.concatenate(values)
    table = random.standard_normal((T, C))
    if learned:
        table = flat[last[1] : last[1] + T * C].reshape(T, C)
    targets = random.integers(0, V, B)
    targets[1::3] = -1
    return {
        "tokens": random.integers(0, V, N),
        "positions": positions,
        "offsets": offsets,
        "rows": offsets[1:] - 1,
        "row_offsets": np.arange(B + 1),
        "targets": targets,
        "H": heads,
        "F": ffn,
        "attention_scale": width**-0.5,
        "epsilon": EPSILON,
        "activation": activation,
        "has_bias": bias,
        "smoothing": smoothing,
        "scale": 1 / B,
        "places": np.array(places),
        "values": flat,
        "position_table": table,
        "gradients": Output((flat.size,), random.standard_normal(flat.size)),
        "copies": Output((shards - 1, flat.size), 0.0),
        "room": Output((size,), 0.0),
        "logits": Output((B, V)),
    }


def _make(random: Random, B: int, T: int, C: int, H: int, F: int) -> Arguments:
    """Return a classifier of the digit task's depth."""
    return classifier_gradients(random, [T] * B, H, C // H, F, VOCABULARY, BLOCKS)


def _flops(B: int, T: int, C: int, H: int, F: int) -> int:
    """Return the operations of the products: the last block computes a row of each sequence."""
    whole = 2 * B * T * C * (4 * C + 2 * F) + 2 * 2 * B * T * T * C
    last = 2 * B * (2 * T * C * C + C * (2 * C + 2 * F)) + 2 * 2 * B * T * C
    forward: int = (BLOCKS - 1) * whole + last + 2 * B * C * VOCABULARY
    return 3 * forward


CLASSIFIERS = (
    Spec(
        "transformer_gradients", "BTCHF", lambda s: [(s.B, s.T, s.C, s.H, s.F)], _make, _flops,
        # All parameters are read, and a gradient written for each shard.
        lambda B, T, C, H, F: (1 + SHARDS) * BLOCKS * C * (4 * C + 2 * F),
    ),
)  # fmt: skip
