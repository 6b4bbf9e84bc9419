"""The register-blocked product of packed bfloat16 operands, with sums in float32.

It is the tile of `_tile.py` with another multiply-add: a step of k takes STEP elements of each
operand, which share a 32-bit lane (`_bfloat16.py`). Without a dot product of pairs the lanes are
rounded float32, and the tile is that of float32 itself.
"""

import functools
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.typing.templates import Signature, signature
from numba.extending import intrinsic

from . import _simd_reference
from ._bfloat16 import DOT, STEP, dot_ir, unpack
from ._compile import BUILD
from ._llvm import INDEX, NARROW, TILE_ROWS, WIDE
from ._precompiled import Precompiled, precompiled
from ._simd_reference import lanes
from ._tile import call_multiply, define_multiply, symbol


def _tile_module() -> str:
    """Return the LLVM code of the tiles: two widths."""
    module = ir.Module("fastformer_bfloat16_tiles")
    for vectors in (WIDE, NARROW):
        define_multiply(module, ir.FloatType(), vectors, "multiply_pairs", dot_ir)
    return str(module)


@functools.cache
def load_tiles() -> Precompiled | None:
    """Compile or load the tiles, once; a process that multiplies no bfloat16 does without them.

    Returns:
        None where products are made by the tile of float32.
    """
    if not DOT or BUILD == "python":
        return None
    symbols = [symbol(ir.FloatType(), vectors, "multiply_pairs") for vectors in (WIDE, NARROW)]
    return precompiled("bfloat16_tiles", symbols, _tile_module)


def _multiply_packed(
    rows, columns, steps, a, a_start, a_row_step, a_k_step, panel, panel_start, panel_step,
    has_bias, bias, bias_start, has_addend, addend, rectifies, is_far, out, out_start, out_step,
):  # fmt: skip
    """Say in NumPy what `multiply_packed` does, on operands that are unpacked."""
    width = lanes(out) * (NARROW if columns <= lanes(out) else WIDE)
    left = np.empty((rows, steps), np.float32)
    for row in range(rows):
        for k in range(steps):
            place = (a_start + row * a_row_step + k * a_k_step,)
            left[row, k : k + 1] = _simd_reference._part(a, place, 1)
    right = _simd_reference._part(panel, (panel_start,), steps * width).reshape(steps, width)
    depth = steps * STEP
    left = unpack(left).reshape(rows * depth)
    right = unpack(right).transpose(0, 2, 1).reshape(depth * width)
    _simd_reference.multiply(
        rows, columns, depth, left, 0, depth, 1, TILE_ROWS * depth, right, 0, width, has_bias, bias,
        bias_start, has_addend, addend, rectifies, is_far, out, out_start, out_step,
    )  # fmt: skip


@intrinsic
def multiply_packed(
    typing_context: Any,
    rows: Any,
    columns: Any,
    steps: Any,
    a: Any,
    a_start: Any,
    a_row_step: Any,
    a_k_step: Any,
    panel: Any,
    panel_start: Any,
    panel_step: Any,
    has_bias: Any,
    bias: Any,
    bias_start: Any,
    has_addend: Any,
    addend: Any,
    rectifies: Any,
    is_far: Any,
    out: Any,
    out_start: Any,
    out_step: Any,
) -> tuple[Signature, Any]:
    """Multiply packed rows by a packed panel: `multiply` of `_tile.py`, with packed lanes for k."""
    i, flag = types.intp, types.boolean
    operands = (a, i, i, i, panel, i, i, flag, bias, i, flag, addend, flag, flag, out, i, i)
    sig = signature(types.void, i, i, i, *operands)

    def generate(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
        load_tiles()  # its symbols are looked for as soon as this code is compiled
        name = "multiply_pairs" if DOT else "multiply"
        # The rows of all tiles are alike far apart.
        tile_step = builder.mul(args[5], INDEX(TILE_ROWS))
        kinds = (*sig.args[:7], i, *sig.args[7:])
        return call_multiply(context, builder, kinds, [*args[:7], tile_step, *args[7:]], name)

    return sig, generate


if BUILD == "python":
    multiply_packed = _multiply_packed  # noqa: F811
