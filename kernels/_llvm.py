"""LLVM code for whole vector registers: the building blocks of `_simd` and `_tile`.

Functions whose names end in `_ir` emit code at the builder's place and return its value.
"""

import math
from collections.abc import Callable

from llvmlite import ir
from numba.core import cgutils

from ._target import NATIVE_BITS, VECTOR_BITS, is_x86

# AVX-512 and NEON have 32 vector registers, AVX and SSE have 16.
VECTOR_REGISTERS = 32 if VECTOR_BITS == 512 or not is_x86() else 16

# A tile of a product: two columns of registers for its sums, two registers for a row of the panel,
# the rest for safety.
WIDE, NARROW = 2, 1
TILE_ROWS = (VECTOR_REGISTERS - 4) // WIDE
# Where there are few registers, tiles are so low that two of them share a cache line of columns.
HIGH_TILES = TILE_ROWS > 8

HAS_MASKS = VECTOR_BITS == 512
HAS_SCALEF = VECTOR_BITS == NATIVE_BITS == 512

# Numba adds the kernels' fast-math flags to every instruction that has none of its own. This one
# flag, which means nothing to these instructions, keeps the others away.
EXACT = ("afn",)

INDEX = ir.IntType(64)
INT32 = ir.IntType(32)
EXP_CONSTANTS = {
    # bits of mantissa, bits of integer, exponent bias, lowest and highest argument, ln 2 in two
    # parts, degree of the Taylor series on |r| <= ln(2) / 2
    "float": (23, 32, 127, -104.0, 89.0, 0.693359375, -2.12194440054690583e-4, 7),
    "double": (
        52,
        64,
        1023,
        -746.0,
        710.0,
        0.693147180369123816490,
        1.90821492927058770002e-10,
        13,
    ),
}
# Exponents of 2 below which `exp_or_zero` gives 0: beside 1, such a number counts for nothing, in a
# sum of as many as there can be.
NEGLIGIBLE = {"float": -64, "double": -128}


def element_lanes(itemsize: int) -> int:
    """Return how many elements of `itemsize` bytes a register holds."""
    return max(1, VECTOR_BITS // (8 * itemsize))


def element_size(element: ir.Type) -> int:
    """Return the bytes of an element of a register."""
    return 4 if element == ir.FloatType() else 8


def splat_ir(builder: ir.IRBuilder, scalar: ir.Value, count: int) -> ir.Value:
    """Return a vector with the scalar in each of `count` lanes."""
    kind = ir.VectorType(scalar.type, count)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(INT32, 0))
    zeros = ir.Constant(ir.VectorType(INT32, count), [0] * count)
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), zeros)


def constant_ir(kind: ir.VectorType, value: float) -> ir.Value:
    """Return a constant vector."""
    return ir.Constant(kind, [value] * kind.count)


def call_ir(builder: ir.IRBuilder, name: str, result: ir.Type, *args: ir.Value) -> ir.Value:
    """Call an LLVM intrinsic, for instance `llvm.fma`, on vectors of the first argument's type."""
    kind = result if isinstance(result, ir.VectorType) else args[0].type
    element = "f32" if kind.element == ir.FloatType() else "f64"
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(result, [arg.type for arg in args]),
        f"{name}.v{kind.count}{element}",
    )
    return builder.call(function, args)


def first_lanes_ir(builder: ir.IRBuilder, count: ir.Value, lanes: int, skip: int = 0) -> ir.Value:
    """Return the mask of the lanes whose number plus `skip` is below `count`."""
    kind = ir.VectorType(INDEX, lanes)
    numbers = ir.Constant(kind, [lane + skip for lane in range(lanes)])
    return builder.icmp_signed("<", numbers, splat_ir(builder, count, lanes))


def load_ir(builder: ir.IRBuilder, pointer: ir.Value, kind: ir.VectorType) -> ir.Value:
    """Load a whole register from an address that is aligned to an element only."""
    value = builder.load(builder.bitcast(pointer, kind.as_pointer()))
    value.align = element_size(kind.element)
    return value


def store_ir(builder: ir.IRBuilder, value: ir.Value, pointer: ir.Value) -> None:
    """Store a whole register at an address that is aligned to an element only."""
    instruction = builder.store(value, builder.bitcast(pointer, value.type.as_pointer()))
    instruction.align = element_size(value.type.element)


def stream_ir(builder: ir.IRBuilder, value: ir.Value, pointer: ir.Value) -> None:
    """Store a whole register past the caches, at an address that is aligned to it."""
    instruction = builder.store(value, builder.bitcast(pointer, value.type.as_pointer()))
    instruction.align = value.type.count * element_size(value.type.element)
    instruction.set_metadata("nontemporal", builder.module.add_metadata([INT32(1)]))


def masked_load_ir(
    builder: ir.IRBuilder, pointer: ir.Value, kind: ir.VectorType, mask: ir.Value
) -> ir.Value:
    """Load the lanes of the mask, and 0 in the others, whose memory is not touched."""
    name = f"llvm.masked.load.v{kind.count}{'f32' if kind.element == ir.FloatType() else 'f64'}.p0"
    address = builder.bitcast(pointer, kind.as_pointer())
    align = ir.Constant(INT32, element_size(kind.element))
    zero = constant_ir(kind, 0.0)
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(kind, [address.type, INT32, mask.type, kind]), name
    )
    return builder.call(function, [address, align, mask, zero])


def masked_store_ir(
    builder: ir.IRBuilder, value: ir.Value, pointer: ir.Value, mask: ir.Value
) -> None:
    """Store the lanes of the mask only."""
    kind = value.type
    name = f"llvm.masked.store.v{kind.count}{'f32' if kind.element == ir.FloatType() else 'f64'}.p0"
    address = builder.bitcast(pointer, kind.as_pointer())
    align = ir.Constant(INT32, element_size(kind.element))
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(ir.VoidType(), [kind, address.type, INT32, mask.type]),
        name,
    )
    builder.call(function, [value, address, align, mask])


def _lanes_ir(builder: ir.IRBuilder, value: ir.Value, first: int, count: int) -> ir.Value:
    """Return `count` lanes from one on; the first lane follows the last."""
    order = [(first + lane) % value.type.count for lane in range(count)]
    index = ir.Constant(ir.VectorType(INT32, count), order)
    return builder.shuffle_vector(value, value, index)


def store_first_ir(
    builder: ir.IRBuilder, value: ir.Value, pointer: ir.Value, count: ir.Value
) -> None:
    """Store the first lanes; none where the count is below 1, all where there are no more.

    AVX-512 has registers for masks. Elsewhere a masked store may take twenty cycles; there all
    lanes are stored, or half of them, and half of that, for each bit of the count.
    """
    lanes = value.type.count
    if HAS_MASKS:
        masked_store_ir(builder, value, pointer, first_lanes_ir(builder, count, lanes))
        return
    for limit, sign in ((0, ">"), (lanes, "<")):
        within = builder.icmp_signed(sign, count, INDEX(limit))
        count = builder.select(within, count, INDEX(limit))
    part = lanes
    while part:
        before = builder.block
        chosen = builder.icmp_signed("!=", builder.and_(count, INDEX(part)), INDEX(0))
        with builder.if_then(chosen):
            store_ir(builder, _lanes_ir(builder, value, 0, part), pointer)
            others = _lanes_ir(builder, value, part, lanes)
            after, inside = builder.gep(pointer, [INDEX(part)]), builder.block
        merged, place = builder.phi(value.type), builder.phi(pointer.type)
        for phi, old, new in ((merged, value, others), (place, pointer, after)):
            phi.add_incoming(old, before)
            phi.add_incoming(new, inside)
        value, pointer, part = merged, place, part // 2


def prefetch_ir(builder: ir.IRBuilder, pointer: ir.Value, level: int = 1) -> None:
    """Ask for a line, into the cache of a level; an address outside any array does no harm."""
    address = builder.bitcast(pointer, ir.IntType(8).as_pointer())
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(ir.VoidType(), [address.type, INT32, INT32, INT32]),
        "llvm.prefetch.p0",
    )
    builder.call(function, [address, INT32(0), INT32(4 - level), INT32(1)])


def polynomial_ir(builder: ir.IRBuilder, x: ir.Value, coefficients: tuple[float, ...]) -> ir.Value:
    """Emit a polynomial by Horner's rule; its coefficients begin with the constant one."""
    value = constant_ir(x.type, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = call_ir(builder, "llvm.fma", x.type, value, x, constant_ir(x.type, coefficient))
    return value


def maximum_ir(builder: ir.IRBuilder, kind: ir.VectorType, v: list[ir.Value]) -> ir.Value:
    return builder.select(builder.fcmp_ordered(">", *v, flags=EXACT), *v)


def _scalef_ir(
    builder: ir.IRBuilder, kind: ir.VectorType, x: ir.Value, n: ir.Value, vanishes: ir.Value
) -> ir.Value:
    """Emit x times 2 to the power n, rounded once, or 0, by AVX-512's instruction for it."""
    mask = ir.IntType(kind.count)
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(kind, [kind, kind, kind, mask, INT32]),
        f"llvm.x86.avx512.mask.scalef.{'ps' if kind.element == ir.FloatType() else 'pd'}.512",
    )
    present = builder.bitcast(builder.not_(vanishes), mask)
    return builder.call(function, [x, n, constant_ir(kind, 0.0), present, INT32(4)])


def exp_or_zero_ir(builder: ir.IRBuilder, kind: ir.VectorType, v: list[ir.Value]) -> ir.Value:
    """Emit exp(x), and 0 where that is negligible beside 1."""
    return exp_ir(builder, kind, v, NEGLIGIBLE[str(kind.element)] * math.log(2))


def exp_ir(
    builder: ir.IRBuilder,
    kind: ir.VectorType,
    v: list[ir.Value],
    zero_below: float | None = None,
) -> ir.Value:
    """Emit exp(x) = 2^n exp(r), r = x - n ln 2, by the Taylor series of exp(r).

    Of two vectors it is exp(x + low), where low is what the rounding of x left out. Where x is less
    than `zero_below`, it is 0, as it is without that where it is less than half of any number.
    Source: Cody & Waite 1980, chapter 6. On |r| <= 0.35 the series is cut where its next term is
    below a tenth of a unit in the last place.
    """
    x, *low_parts = v
    mantissa, bits, bias, low, high, ln2_high, ln2_low, degree = EXP_CONSTANTS[str(kind.element)]
    integer = ir.VectorType(ir.IntType(bits), kind.count)

    def constant(value: float) -> ir.Value:
        return constant_ir(kind, value)

    def whole(value: int) -> ir.Value:
        return ir.Constant(integer, [value] * kind.count)

    has_scalef = HAS_SCALEF and kind.count * bits == VECTOR_BITS
    vanishes = builder.fcmp_ordered("<", x, constant(zero_below or low), flags=EXACT)
    # An underflow would cost a hundred cycles.
    x = builder.select(vanishes, constant(0.0), x)
    x = builder.select(builder.fcmp_ordered(">", x, constant(high), flags=EXACT), constant(high), x)
    # Adding 1.5 * 2^mantissa rounds to an integer, which then stands in the lowest bits.
    shifter = constant(1.5 * 2.0**mantissa)
    shifted = call_ir(builder, "llvm.fma", kind, x, constant(1 / math.log(2)), shifter)
    n = builder.fsub(shifted, shifter, flags=EXACT)
    r = call_ir(builder, "llvm.fma", kind, n, constant(-ln2_high), x)
    r = call_ir(builder, "llvm.fma", kind, n, constant(-ln2_low), r)
    for part in low_parts:
        r = builder.fadd(r, part, flags=EXACT)
    series = polynomial_ir(builder, r, tuple(1 / math.factorial(k) for k in range(degree + 1)))
    if has_scalef:
        return _scalef_ir(builder, kind, series, n, vanishes)
    exponent = builder.sub(builder.bitcast(shifted, integer), builder.bitcast(shifter, integer))
    # In two factors, so that results below the smallest normal number are rounded once.
    half = builder.ashr(exponent, whole(1))
    for part in (half, builder.sub(exponent, half)):
        power = builder.shl(builder.add(part, whole(bias)), whole(mantissa))
        series = builder.fmul(series, builder.bitcast(power, kind), flags=EXACT)
    return builder.select(vanishes, constant(0.0), series)


def log_ir(builder: ir.IRBuilder, kind: ir.VectorType, v: list[ir.Value]) -> ir.Value:
    """Emit log(x) = e ln 2 + 2 artanh((m - 1) / (m + 1)), x = 2^e m, m in [sqrt(1/2), sqrt(2)).

    Source: Abramowitz & Stegun 1964, 4.1.27. With z <= 0.172 the series is cut where its next
    term is below a tenth of a unit in the last place.
    """
    (x,) = v
    mantissa, bits, bias, _, _, ln2_high, ln2_low, _ = EXP_CONSTANTS[str(kind.element)]
    terms = 5 if bits == 32 else 11
    integer = ir.VectorType(ir.IntType(bits), kind.count)

    def constant(value: float) -> ir.Value:
        return constant_ir(kind, value)

    def whole(value: int) -> ir.Value:
        return ir.Constant(integer, [value] * kind.count)

    # Counting from sqrt(1/2) makes the exponent's bits say what e is.
    half_root = builder.bitcast(constant(0.5**0.5), integer)
    above = builder.sub(builder.bitcast(x, integer), half_root)
    exponent = builder.ashr(above, whole(mantissa))
    fraction = builder.add(builder.and_(above, whole((1 << mantissa) - 1)), half_root)
    m = builder.bitcast(fraction, kind)
    one = constant(1.0)
    difference = builder.fsub(m, one, flags=EXACT)
    z = builder.fdiv(difference, builder.fadd(m, one, flags=EXACT), flags=EXACT)
    square = builder.fmul(z, z, flags=EXACT)
    series = constant(2 / (2 * terms - 1))
    for k in reversed(range(1, terms - 1)):
        series = call_ir(builder, "llvm.fma", kind, series, square, constant(2 / (2 * k + 1)))
    series = builder.fmul(series, square, flags=EXACT)
    e = builder.sitofp(exponent, kind)
    # log(m) = 2 z + z series, of which 2 z = difference - z difference is nearly exact.
    correction = builder.fsub(series, difference, flags=EXACT)
    small = call_ir(
        builder, "llvm.fma", kind, e, constant(ln2_low), builder.fmul(z, correction, flags=EXACT)
    )
    result = call_ir(
        builder,
        "llvm.fma",
        kind,
        e,
        constant(ln2_high),
        builder.fadd(difference, small, flags=EXACT),
    )
    infinity = constant(math.inf)
    is_finite = builder.fcmp_ordered("<", x, infinity, flags=EXACT)
    return builder.select(is_finite, result, x)


def tree_ir(combine: Callable[..., ir.Value]) -> Callable[..., ir.Value]:
    """Return the code of a reduction that combines halves, and their halves, to the end."""

    def emit(builder: ir.IRBuilder, kind: ir.VectorType, v: list[ir.Value]) -> ir.Value:
        value, half = v[0], kind.count // 2
        while half:
            value = combine(builder, kind, [value, _lanes_ir(builder, value, half, kind.count)])
            half //= 2
        return builder.extract_element(value, INT32(0))

    return emit
