"""The register-blocked product that every matrix product here is made of, as LLVM code.

    out[i, j] = sum over k of a[i, k] * b[k, j]  (+ bias[j])  (+ addend[i, j])

for up to TILE_ROWS rows i and the columns j of one packed panel of b, which is one or two registers
wide. All partial sums stay in registers: each step of k loads one row of the panel, and each
element of `a` once, straight from memory. An element of `out` is a single chain of fused
multiply-adds in the order of k, or, in a panel of one register, the sum of chains of CHAIN_STEPS,
whose error is smaller. That is so whatever the tile's height is, so tiles do not change bits.

Source: Goto & van de Geijn 2008, "Anatomy of high-performance matrix multiplication".

It is one long file, for it emits one function, and its parts share the registers.
"""

import itertools
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import Signature, signature
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from . import _simd_reference
from ._compile import BUILD
from ._llvm import (
    EXACT,
    HIGH_TILES,
    INDEX,
    INT32,
    NARROW,
    TILE_ROWS,
    WIDE,
    call_ir,
    constant_ir,
    element_lanes,
    element_size,
    first_lanes_ir,
    load_ir,
    masked_load_ir,
    prefetch_ir,
    splat_ir,
    store_first_ir,
    store_ir,
)
from ._precompiled import Precompiled, precompiled
from ._simd import check_extent_ir

FLAG = ir.IntType(1)
BYTES = ir.IntType(8).as_pointer()
# Heights that there is code for; the rows that are left over are cut into these.
TILE_HEIGHTS = (TILE_ROWS, *(height for height in (8, 4, 2, 1) if height < TILE_ROWS))
# What a whole tile writes far away is asked for when it begins, into the second-level cache, for
# rows 2 KiB apart share few places of the first; and so many steps of k before its end into the
# first, for stores that wait hold up the next tile. A multiple of the steps for a line of a.
LATE_STEPS = 48
# Steps of k of a chain in a panel of one register, which leaves registers for the sums of chains.
CHAIN_STEPS = 16
# Rows whose addresses share a base.
BASE_ROWS = 7

# Emits a * b + c: (builder, vector type, a, b, c) -> value.
MultiplyAdd = Callable[..., ir.Value]
# The sums of a tile: for each row, its registers.
Sums = list[list[ir.Value]]


def _fma_ir(builder: ir.IRBuilder, kind: ir.VectorType, *operands: ir.Value) -> ir.Value:
    return call_ir(builder, "llvm.fma", kind, *operands)


class _Operand:
    """An array argument of the tile: its data pointer, its Numba struct for checks, its start."""

    def __init__(self, context: Any, builder: ir.IRBuilder, kind: Any, array: Any, start: Any):
        self.struct = make_array(kind)(context, builder, array)
        self.start = start
        self.pointer = builder.gep(self.struct.data, [start])

    def check(self, context: Any, builder: ir.IRBuilder, rows: Any, step: Any, count: Any) -> None:
        """In the checked build, refuse a walk of `rows` steps and then `count` elements."""
        last = builder.add(self.start, builder.mul(builder.sub(rows, INDEX(1)), step))
        stop = builder.add(last, count)
        check_extent_ir(context, builder, self.struct, self.start, stop)


def _opaque_ir(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """Return a value of which the compiler does not see what it is made of."""
    return builder.asm(ir.FunctionType(value.type, [value.type]), "", "=r,0", [value], False)


def _sums_ir(
    builder: ir.IRBuilder,
    kind: ir.VectorType,
    rows: int,
    vectors: int,
    depth: ir.Value,
    a: tuple[ir.Value, ir.Value, ir.Value],
    panel: tuple[ir.Value, ir.Value],
    multiply_add: MultiplyAdd,
    start: Sums | None = None,
) -> Sums:
    """Emit the loop over k for a fixed number of rows, and return the sums, begun from `start`."""
    a_pointer, a_row_step, a_k_step = a
    size = INDEX(element_size(kind.element))
    row_bytes, k_bytes = builder.mul(a_row_step, size), builder.mul(a_k_step, size)
    # A row is a base and one, two or four times a distance, which an instruction adds for nothing.
    # What the compiler sees through, it makes of additions, which take the place of fmas.
    distances = {odd: _opaque_ir(builder, builder.mul(row_bytes, INDEX(odd))) for odd in (1, 3, 5)}
    a_bytes = builder.bitcast(a_pointer, BYTES)
    first_bases = [
        builder.gep(a_bytes, [builder.mul(row_bytes, INDEX(first))])
        for first in range(0, rows, BASE_ROWS)
    ]
    # With high tiles, each step of k asks for one cache line of `a` that is needed next: where rows
    # are contiguous, of the rows below; where columns are, of the row 16 steps on (its end is what
    # is new). Low ones take so few rows that the processor's own prefetching keeps up.
    across = builder.icmp_signed("==", a_row_step, INDEX(1))
    ahead_step = builder.select(across, a_k_step, a_row_step)
    ahead_rows = builder.select(across, INDEX(16), INDEX(rows))
    ahead_offset = builder.mul(ahead_rows, ahead_step)
    last_row = builder.select(across, INDEX(rows - 1), INDEX(0))
    ahead = builder.gep(a_pointer, [builder.add(ahead_offset, last_row)])
    entry = builder.block
    body = builder.append_basic_block(f"multiply_{rows}_{vectors}")
    done = builder.append_basic_block(f"multiplied_{rows}_{vectors}")
    start = start or [[constant_ir(kind, 0.0)] * vectors for _ in range(rows)]
    builder.cbranch(builder.icmp_signed(">", depth, INDEX(0)), body, done)

    builder.position_at_end(body)
    k = builder.phi(INDEX)
    base_phis = [builder.phi(BYTES) for _ in first_bases]
    sums = [[builder.phi(kind) for _ in range(vectors)] for _ in range(rows)]
    panel_row = builder.gep(panel[0], [builder.mul(k, panel[1])])
    columns = [
        load_ir(builder, builder.gep(panel_row, [INDEX(v * kind.count)]), kind)
        for v in range(vectors)
    ]
    bases = [_opaque_ir(builder, base) for base in base_phis]
    updated = []
    for row in range(rows):
        address, number = bases[row // BASE_ROWS], row % BASE_ROWS
        if number:
            power = number & -number
            distance = builder.mul(distances[number // power], INDEX(power))
            address = builder.gep(address, [distance])
        value = builder.load(builder.bitcast(address, kind.element.as_pointer()))
        element = splat_ir(builder, value, kind.count)
        updated.append(
            [multiply_add(builder, kind, element, columns[v], sums[row][v]) for v in range(vectors)]
        )
    if rows == TILE_ROWS and HIGH_TILES:
        near = builder.mul(builder.and_(k, INDEX(15)), ahead_step)
        far = builder.mul(builder.lshr(k, INDEX(4)), builder.mul(a_k_step, INDEX(16)))
        prefetch_ir(builder, builder.gep(ahead, [builder.add(near, far)]))
    k_next = builder.add(k, INDEX(1))
    k.add_incoming(INDEX(0), entry)
    k.add_incoming(k_next, body)
    for phi, first_base, base in zip(base_phis, first_bases, bases, strict=True):
        phi.add_incoming(first_base, entry)
        phi.add_incoming(builder.gep(base, [k_bytes]), body)
    for row in range(rows):
        for v in range(vectors):
            sums[row][v].add_incoming(start[row][v], entry)
            sums[row][v].add_incoming(updated[row][v], body)
    builder.cbranch(builder.icmp_signed("<", k_next, depth), body, done)

    builder.position_at_end(done)
    finished: Sums = []
    for row in range(rows):
        finished.append([])
        for v in range(vectors):
            value = builder.phi(kind)
            value.add_incoming(start[row][v], entry)
            value.add_incoming(updated[row][v], body)
            finished[row].append(value)
    return finished


def _store_ir(
    builder: ir.IRBuilder,
    sums: Sums,
    columns: ir.Value,
    bias: ir.Value,
    addend: ir.Value,
    rectifies: ir.Value,
    out: ir.Value,
    step: ir.Value,
) -> None:
    """Emit the addition of bias and addend where they are not null, ReLU, and the stores."""
    kind = sums[0][0].type
    masks = [
        first_lanes_ir(builder, columns, kind.count, skip=v * kind.count)
        for v in range(len(sums[0]))
    ]

    def change(condition: ir.Value, changed: Callable[[ir.Value, int, int], ir.Value]) -> None:
        """Replace each sum by `changed(it, row, vector)` where a condition is true."""
        nonlocal sums
        before = builder.block
        with builder.if_then(condition):
            inner = [
                [changed(value, row, v) for v, value in enumerate(line)]
                for row, line in enumerate(sums)
            ]
            inside = builder.block
        merged: Sums = []
        for line, inner_line in zip(sums, inner, strict=True):
            merged.append([])
            for value, inner_value in zip(line, inner_line, strict=True):
                phi = builder.phi(kind)
                phi.add_incoming(value, before)
                phi.add_incoming(inner_value, inside)
                merged[-1].append(phi)
        sums = merged

    def add(pointer: ir.Value, step: ir.Value) -> None:
        def added(value: ir.Value, row: int, v: int) -> ir.Value:
            place = builder.add(builder.mul(step, INDEX(row)), INDEX(v * kind.count))
            other = masked_load_ir(builder, builder.gep(pointer, [place]), kind, masks[v])
            return builder.fadd(value, other, flags=EXACT)

        change(builder.not_(cgutils.is_null(builder, pointer)), added)

    zero = constant_ir(kind, 0.0)

    def rectified(value: ir.Value, row: int, v: int) -> ir.Value:
        """Return ReLU; NaN stays NaN."""
        negative = builder.fcmp_ordered("<", value, zero, flags=EXACT)
        return builder.select(negative, zero, value)

    add(bias, INDEX(0))
    add(addend, step)
    change(rectifies, rectified)
    whole = builder.icmp_signed(">=", columns, INDEX(len(masks) * kind.count))
    for masked in (False, True):
        with builder.if_then(builder.not_(whole) if masked else whole):
            for row, line in enumerate(sums):
                start = builder.gep(out, [builder.mul(step, INDEX(row))])
                for v, value in enumerate(line):
                    address = builder.gep(start, [INDEX(v * kind.count)])
                    if masked:
                        left = builder.sub(columns, INDEX(v * kind.count))
                        store_first_ir(builder, value, address, left)
                    else:
                        store_ir(builder, value, address)


def symbol(element: ir.Type, vectors: int, name: str) -> str:
    """Return the symbol of a function that `define_multiply` defines."""
    return f"fastformer_{name}_{'wide' if vectors == WIDE else 'narrow'}_{element}"


def _signature_ir(element: ir.Type) -> ir.FunctionType:
    """Return the type: the arguments are those of `multiply`, with their starts in the pointers."""
    array = [element.as_pointer(), INDEX]
    kinds = [INDEX, INDEX, INDEX, *array, INDEX, INDEX, *array, array[0], array[0]]
    kinds += [FLAG, FLAG, *array]
    return ir.FunctionType(ir.VoidType(), kinds)


def define_multiply(
    module: ir.Module, element: ir.Type, vectors: int, name: str, multiply_add: MultiplyAdd
) -> None:
    """Define the function that multiplies any number of rows by a panel, tile by tile."""
    function = ir.Function(module, _signature_ir(element), symbol(element, vectors, name))
    rows, columns, depth, a, a_row_step, a_k_step, a_tile_step = function.args[:7]
    *panel, bias, addend = function.args[7:-4]
    rectifies, is_far, out, step = function.args[-4:]
    kind = ir.VectorType(element, element_lanes(element_size(element)))
    builder = ir.IRBuilder(function.append_basic_block("entry"))

    def prefetch(out_rows: ir.Value, condition: ir.Value, level: int) -> None:
        """Emit prefetches of what a whole tile writes, where a condition is true."""
        with builder.if_then(condition):
            for r, v in itertools.product(range(TILE_ROWS), range(vectors)):
                place = builder.add(builder.mul(step, INDEX(r)), INDEX(v * kind.count))
                prefetch_ir(builder, builder.gep(out_rows, [place]), level)

    def sums_over(
        k: ir.Value, steps: ir.Value, a_rows: ir.Value, height: int, start: Sums | None = None
    ) -> Sums:
        """Emit the sums over some steps from k on, begun from `start`."""
        left = builder.gep(a_rows, [builder.mul(k, a_k_step)]), a_row_step, a_k_step
        right = builder.gep(panel[0], [builder.mul(k, panel[1])]), panel[1]
        return _sums_ir(builder, kind, height, vectors, steps, left, right, multiply_add, start)

    def sums_of_chains(a_rows: ir.Value, height: int) -> Sums:
        """Emit the sums over all steps, as sums of chains."""

        def chain_from(k: ir.Value) -> tuple[Sums, ir.Value]:
            """Emit a chain from step k on; return it and where it ends."""
            left = builder.sub(depth, k)
            whole = builder.icmp_signed(">", left, INDEX(CHAIN_STEPS))
            steps = builder.select(whole, INDEX(CHAIN_STEPS), left)
            return sums_over(k, steps, a_rows, height), builder.add(k, steps)

        sums, stop = chain_from(INDEX(0))
        before, head = builder.block, function.append_basic_block(f"chains_{height}")
        body, end = function.append_basic_block("chain"), function.append_basic_block("ends")
        builder.branch(head)
        builder.position_at_end(head)
        k, totals = builder.phi(INDEX), [[builder.phi(kind) for _ in line] for line in sums]
        builder.cbranch(builder.icmp_signed("<", k, depth), body, end)
        builder.position_at_end(body)
        chain, next_k = chain_from(k)
        k.add_incoming(stop, before)
        k.add_incoming(next_k, builder.block)
        for row, v in itertools.product(range(height), range(vectors)):
            total = builder.fadd(chain[row][v], totals[row][v], flags=EXACT)
            totals[row][v].add_incoming(sums[row][v], before)
            totals[row][v].add_incoming(total, builder.block)
        builder.branch(head)
        builder.position_at_end(end)
        return totals

    def tile(row: ir.Value, a_rows: ir.Value, height: int) -> ir.Value:
        """Emit the product of the rows from `row` on, and return the next one."""
        offset = builder.mul(row, step)
        out_rows = builder.gep(out, [offset])
        if height == TILE_ROWS:
            prefetch(out_rows, is_far, level=2)
        is_null = cgutils.is_null(builder, addend)
        added = builder.select(is_null, addend, builder.gep(addend, [offset]))
        if vectors == NARROW:
            sums = sums_of_chains(a_rows, height)
        elif height == TILE_ROWS and HIGH_TILES:
            asks = builder.and_(is_far, builder.icmp_signed(">=", depth, INDEX(2 * LATE_STEPS)))
            late = builder.select(asks, builder.sub(depth, INDEX(LATE_STEPS)), INDEX(0))
            sums = sums_over(INDEX(0), late, a_rows, height)
            prefetch(out_rows, asks, level=1)
            sums = sums_over(late, builder.sub(depth, late), a_rows, height, sums)
        else:
            sums = sums_over(INDEX(0), depth, a_rows, height)
        _store_ir(builder, sums, columns, bias, added, rectifies, out_rows, step)
        return builder.add(row, INDEX(height))

    # What the compiler computes ahead of a loop takes as long as a small product, so that only
    # the highest tiles have a loop. Two rows take as long as four: these and a whole tile are two
    # of the next height, but not where tiles are packed.
    entry, head = builder.block, function.append_basic_block("head")
    whole, rest = function.append_basic_block("whole"), function.append_basic_block("rest")
    builder.branch(head)
    builder.position_at_end(head)
    row, a_rows = builder.phi(INDEX, "row"), builder.phi(a.type, "a_rows")
    row.add_incoming(INDEX(0), entry)
    a_rows.add_incoming(a, entry)
    left = builder.sub(rows, row)
    fits = builder.icmp_signed(">=", left, INDEX(TILE_ROWS))
    halves = builder.icmp_signed("==", left, INDEX(2 * TILE_HEIGHTS[1]))
    apart = builder.icmp_signed("!=", a_tile_step, builder.mul(a_row_step, INDEX(TILE_ROWS)))
    builder.cbranch(builder.and_(fits, builder.or_(builder.not_(halves), apart)), whole, rest)
    builder.position_at_end(whole)
    row.add_incoming(tile(row, a_rows, TILE_ROWS), builder.block)
    a_rows.add_incoming(builder.gep(a_rows, [a_tile_step]), builder.block)
    builder.branch(head)

    builder.position_at_end(rest)
    first = row
    for height in (TILE_HEIGHTS[1], *TILE_HEIGHTS[1:]):
        before = builder.block
        with builder.if_then(builder.icmp_signed("<=", builder.add(row, INDEX(height)), rows)):
            offset = builder.mul(builder.sub(row, first), a_row_step)
            after = tile(row, builder.gep(a_rows, [offset]), height)
            inside = builder.block
        merged = builder.phi(INDEX, "row")
        merged.add_incoming(row, before)
        merged.add_incoming(after, inside)
        row = merged
    builder.ret_void()


_TILES = list(itertools.product((ir.FloatType(), ir.DoubleType()), (WIDE, NARROW)))


def _tile_module() -> str:
    """Return the LLVM code of the tiles: two dtypes, two widths."""
    module = ir.Module("fastformer_tiles")
    for element, vectors in _TILES:
        define_multiply(module, element, vectors, "multiply", _fma_ir)
    return str(module)


def _load_tiles() -> Precompiled:
    """Compile or load the tiles."""
    return precompiled("tiles", [symbol(*tile, "multiply") for tile in _TILES], _tile_module)


# Compiled once and called by its symbol: as a part of each kernel that uses it, it would be
# compiled again in each, and be most of what there is to compile.
TILES = None if BUILD == "python" else _load_tiles()


@intrinsic
def multiply(
    typing_context: Any,
    rows: Any,
    columns: Any,
    depth: Any,
    a: Any,
    a_start: Any,
    a_row_step: Any,
    a_k_step: Any,
    a_tile_step: Any,
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
    """Multiply rows by a panel; see the head of this file.

    Args:
        rows: any number.    columns: 1 to the panel's width; others are not written.
        depth: number of steps of k; 0 gives sums of 0.
        a: 1-D; element (i, k) is at a_start + i // TILE_ROWS * a_tile_step
            + i % TILE_ROWS * a_row_step + k * a_k_step.
        panel: 1-D; row k is at panel_start + k * panel_step, and is a whole row of registers, one
            where the columns fit into it, else two: packed, or a matrix as it is.
        bias: 1-D, used from bias_start on where has_bias.
        out: 1-D; element (i, j) is at out_start + i * out_step + j.
        addend: has out's layout, and may be out; used where has_addend.
        rectifies: whether ReLU comes last.
        is_far: whether out is expected beyond the second-level cache, and so is asked for.
    """
    i, flag = types.intp, types.boolean
    operands = (a, i, i, i, i, panel, i, i, flag, bias, i, flag, addend, flag, flag, out, i, i)
    sig = signature(types.void, i, i, i, *operands)

    def generate(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
        return call_multiply(context, builder, sig.args, args, "multiply")

    return sig, generate


def call_multiply(
    context: Any, builder: ir.IRBuilder, kinds: Any, args: Any, name: str
) -> ir.Value:
    """Emit the checks of the checked build, and the call, for arguments as those of `multiply`."""
    rows, columns, depth = args[:3]
    a_row_step, a_k_step, a_tile_step = args[5:8]
    panel_step, has_bias, has_addend = args[10], args[11], args[14]
    rectifies, is_far, out_step = args[16], args[17], args[20]
    a = _Operand(context, builder, kinds[3], args[3], args[4])
    panel = _Operand(context, builder, kinds[8], args[8], args[9])
    bias = _Operand(context, builder, kinds[12], args[12], args[13])
    addend = _Operand(context, builder, kinds[15], args[15], args[19])
    out = _Operand(context, builder, kinds[18], args[18], args[19])
    element = ir.FloatType() if kinds[18].dtype is types.float32 else ir.DoubleType()
    lanes = element_lanes(kinds[18].dtype.bitwidth // 8)
    narrow = builder.icmp_signed("<=", columns, INDEX(NARROW * lanes))
    if BUILD == "checked":
        width = builder.select(narrow, INDEX(NARROW * lanes), INDEX(WIDE * lanes))
        last, height = builder.sub(rows, INDEX(1)), INDEX(TILE_ROWS)
        stop = builder.add(a.start, builder.mul(builder.sdiv(last, height), a_tile_step))
        stop = builder.add(stop, builder.mul(builder.srem(last, height), a_row_step))
        stop = builder.add(stop, builder.mul(builder.sub(depth, INDEX(1)), a_k_step))
        check_extent_ir(context, builder, a.struct, a.start, builder.add(stop, INDEX(1)))
        panel.check(context, builder, depth, panel_step, width)
        out.check(context, builder, rows, out_step, columns)
        with builder.if_then(has_bias):
            bias.check(context, builder, INDEX(1), INDEX(0), columns)
        with builder.if_then(has_addend):
            addend.check(context, builder, rows, out_step, columns)
    null = ir.Constant(element.as_pointer(), None)
    functions = [
        cgutils.get_or_insert_function(
            builder.module, _signature_ir(element), symbol(element, vectors, name)
        )
        for vectors in (NARROW, WIDE)
    ]
    arguments = [
        rows,
        columns,
        depth,
        a.pointer,
        a_row_step,
        a_k_step,
        a_tile_step,
        panel.pointer,
        panel_step,
        builder.select(has_bias, bias.pointer, null),
        builder.select(has_addend, addend.pointer, null),
        rectifies,
        is_far,
        out.pointer,
        out_step,
    ]
    builder.call(builder.select(narrow, *functions), arguments)
    return context.get_dummy_value()


@intrinsic
def transpose_block(
    typing_context: Any,
    source: Any,
    source_start: Any,
    source_step: Any,
    count: Any,
    out: Any,
    out_start: Any,
    out_step: Any,
) -> tuple[Signature, Any]:
    """Transpose a square block of lanes x lanes elements: out[j, i] = source[i, j].

    Rows are `step` elements apart. Only `count` rows of the source are read, at least one; the
    last of them stands for those that are missing. Each pass of the loop swaps one bit of the
    row number with the same bit of the column number (Eklundh 1972).
    """
    i = types.intp
    sig = signature(types.void, source, i, i, i, out, i, i)
    lanes = element_lanes(out.dtype.bitwidth // 8)
    element = ir.FloatType() if out.dtype is types.float32 else ir.DoubleType()
    kind = ir.VectorType(element, lanes)

    def generate(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
        source = _Operand(context, builder, sig.args[0], args[0], args[1])
        source_step, count, out_step = args[2], args[3], args[6]
        out = _Operand(context, builder, sig.args[4], args[4], args[5])
        source.check(context, builder, count, source_step, INDEX(lanes))
        out.check(context, builder, INDEX(lanes), out_step, INDEX(lanes))
        last = builder.sub(count, INDEX(1))
        rows = []
        for r in range(lanes):
            present = builder.icmp_signed("<", INDEX(r), count)
            row = builder.select(present, INDEX(r), last)
            address = builder.gep(source.pointer, [builder.mul(source_step, row)])
            rows.append(load_ir(builder, address, kind))
        bit = lanes // 2
        while bit:
            swapped = list(rows)
            for r in range(lanes):
                if r & bit:
                    continue
                pair = (rows[r], rows[r + bit])
                low = [c if not c & bit else lanes + (c ^ bit) for c in range(lanes)]
                high = [(c | bit) if not c & bit else lanes + c for c in range(lanes)]
                for row, order in ((r, low), (r + bit, high)):
                    index = ir.Constant(ir.VectorType(INT32, lanes), order)
                    swapped[row] = builder.shuffle_vector(*pair, index)
            rows = swapped
            bit //= 2
        for r, value in enumerate(rows):
            store_ir(builder, value, builder.gep(out.pointer, [builder.mul(out_step, INDEX(r))]))
        return context.get_dummy_value()

    return sig, generate


if BUILD == "python":
    multiply, transpose_block = _simd_reference.multiply, _simd_reference.transpose_block  # noqa: F811
