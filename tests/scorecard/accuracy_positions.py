"""The families of ops that know positions, beside those of `accuracy_ops`: all that is measured."""

from types import SimpleNamespace

import numpy as np

from fastformer.layers.relative_positions import alibi_slopes, rotary_tables
from tests.scorecard import accuracy_ops as others
from tests.scorecard.accuracy_ops import Array, Draw, Family, Inputs, Random


def _rotary_shape(random: Random) -> tuple[int, ...]:
    sizes = [others._size(random, most) for most in (1000, 1000, 8, 64)]
    return tuple(sizes)


def _rotary_inputs(draw: Draw, random: Random, N: int, T: int, H: int, half: int) -> Inputs:
    cosines, sines = (table.astype(np.float32) for table in rotary_tables(T, 2 * half))
    arrays = {name: draw(N, 2 * half * H) for name in ("q", "k", "dq", "dk")}
    positions = random.integers(0, T, N)
    return arrays | {"positions": positions, "cosines": cosines, "sines": sines}


def _rotary(ops: SimpleNamespace, a: Inputs) -> dict[str, Array]:
    found = {name: a[name].copy() for name in ("q", "k", "dq", "dk")}
    shared = (a["positions"], a["positions"], a["cosines"], a["sines"])
    ops.rotary_forward(found["q"], found["k"], *shared)
    ops.rotary_backward(found["dq"], found["dk"], *shared)
    return found


def _alibi_inputs(draw: Draw, random: Random, B: int, T: int, H: int, D: int) -> Inputs:
    made = others._attention_inputs(draw, random, B, T, H, D)
    starts = made["query_offsets"]
    positions = np.arange(starts[-1]) - np.repeat(starts[:-1], np.diff(starts))
    return made | {"positions": positions, "slopes": alibi_slopes(H).astype(np.float32)}


FAMILIES = (
    *others.FAMILIES,
    Family("rotary", _rotary_shape, _rotary_inputs, _rotary),
    Family("attention, alibi", others._attention_shape, _alibi_inputs, others._attention(False)),
)
