"""bfloat16, the upper half of a float32, as the operands of matrix products have it.

    round_bfloat16(v)    each lane rounded to bfloat16 (nearest, ties to even), as float32
    pack(a, b)           lane i holds a[i] in its lower and b[i] in its upper half, both rounded
    pack_run(a, b)       the same for elements 2 i and 2 i + 1 of a followed by b

A packed lane holds STEP elements that follow each other in k: two where the CPU has AVX-512's dot
product of bfloat16 pairs (`DOT`). Without it products are made of rounded float32, so that STEP is
1, and `pack` and `pack_run` give a, rounded. Packed lanes are kept in arrays of float32, which
stand for 32 bits here and are moved, never computed with.

NaN stays NaN, and what is beyond the largest bfloat16 rounds to infinity. Where there is DOT, it
takes numbers below the smallest normal one (1.2e-38) for 0.
Source: Intel 2018, "BFLOAT16 - Hardware Numerics Definition".
"""

from typing import Any

import numpy as np
from llvmlite import ir
from llvmlite.ir import types as ir_types
from numba.core import cgutils

from ._compile import BUILD
from ._llvm import EXACT, INT32
from ._simd import define
from ._target import VECTOR_BITS, has_feature

DOT = VECTOR_BITS == 512 and has_feature("avx512bf16")
STEP = 2 if DOT else 1

_HALF, _LOWER, _UPPER, _QUIET = 16, 0xFFFF, 0xFFFF0000, 0x00400000


class _BFloatType(ir_types._BaseFloatType):
    """LLVM's bfloat, which llvmlite has no type for."""

    null = "0.0"
    intrinsic_name = "bf16"

    def __str__(self) -> str:
        return "bfloat"


_BFloatType._create_instance()
BFLOAT = _BFloatType()


def round_bfloat16(v: Any) -> Any:
    """Return float32 numbers rounded to bfloat16."""
    bits = np.ascontiguousarray(v).view(np.uint32)
    odd = (bits >> np.uint32(_HALF)) & np.uint32(1)
    rounded = bits + (np.uint32(_LOWER >> 1) + odd)
    quiet = np.where(np.isnan(v), bits | np.uint32(_QUIET), rounded)
    return (quiet & np.uint32(_UPPER)).view(np.float32).reshape(v.shape)


def pack(a: Any, b: Any) -> Any:
    """Return a and b as packed lanes."""
    if not DOT:
        return round_bfloat16(a)
    low, high = (round_bfloat16(v).view(np.uint32) for v in (a, b))
    return (low >> np.uint32(_HALF) | high).view(np.float32)


def pack_run(a: Any, b: Any) -> Any:
    """Return the elements of a followed by those of b, of which each STEP share a lane."""
    if not DOT:
        return round_bfloat16(a)
    elements = np.concatenate([a, b])
    return pack(elements[0::2].copy(), elements[1::2].copy())


def unpack(v: Any) -> Any:
    """Return packed lanes as float32 numbers with one more axis of STEP."""
    if not DOT:
        return v[..., None]
    bits = np.ascontiguousarray(v).view(np.uint32)
    halves = np.stack([bits << np.uint32(_HALF), bits & np.uint32(_UPPER)], axis=-1)
    return halves.view(np.float32)


def _round_ir(builder: ir.IRBuilder, kind: ir.VectorType, v: list[ir.Value]) -> ir.Value:
    integer = ir.VectorType(INT32, kind.count)

    def whole(value: int) -> ir.Value:
        return ir.Constant(integer, [value] * kind.count)

    bits = builder.bitcast(v[0], integer)
    odd = builder.and_(builder.lshr(bits, whole(_HALF)), whole(1))
    rounded = builder.add(bits, builder.add(whole(_LOWER >> 1), odd))
    is_nan = builder.fcmp_unordered("uno", v[0], v[0], flags=EXACT)
    rounded = builder.select(is_nan, builder.or_(bits, whole(_QUIET)), rounded)
    return builder.bitcast(builder.and_(rounded, whole(_UPPER)), kind)


def _halves_ir(builder: ir.IRBuilder, kind: ir.VectorType, v: list[ir.Value]) -> ir.Value:
    """Emit a, rounded, in the lower half of a register, and b in the upper one."""
    pairs = ir.VectorType(BFLOAT, 2 * kind.count)
    signature = ir.FunctionType(pairs, [kind, kind])
    name = "llvm.x86.avx512bf16.cvtne2ps2bf16.512"
    function = cgutils.get_or_insert_function(builder.module, signature, name)
    return builder.bitcast(builder.call(function, [v[1], v[0]]), kind)


def _pairs_ir(builder: ir.IRBuilder, kind: ir.VectorType, v: list[ir.Value]) -> ir.Value:
    shorts = ir.VectorType(ir.IntType(16), 2 * kind.count)
    order = [half * kind.count + lane for lane in range(kind.count) for half in (0, 1)]
    index = ir.Constant(ir.VectorType(INT32, 2 * kind.count), order)
    halves = builder.bitcast(_halves_ir(builder, kind, v), shorts)
    return builder.bitcast(builder.shuffle_vector(halves, halves, index), kind)


def dot_ir(
    builder: ir.IRBuilder, kind: ir.VectorType, a: ir.Value, b: ir.Value, total: ir.Value
) -> ir.Value:
    """Emit total + the products of both halves of packed lanes, rounded to float32 each."""
    pairs = ir.VectorType(BFLOAT, 2 * kind.count)
    signature = ir.FunctionType(kind, [kind, pairs, pairs])
    name = "llvm.x86.avx512bf16.dpbf16ps.512"
    function = cgutils.get_or_insert_function(builder.module, signature, name)
    return builder.call(function, [total, builder.bitcast(a, pairs), builder.bitcast(b, pairs)])


if BUILD != "python":
    define(round_bfloat16, 1, _round_ir)
    define(pack, 2, _pairs_ir if DOT else _round_ir)
    define(pack_run, 2, _halves_ir if DOT else _round_ir)
