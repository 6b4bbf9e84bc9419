"""The product of rows by a single column, which as a tile would use one lane of each register.

Where a row's terms are contiguous, they are the lanes, and their sum is that of the lanes; where
they are apart, as in a transpose, the rows of a tile are.
"""

from ._compile import kernel
from ._llvm import TILE_ROWS
from ._simd import (
    fma,
    lanes,
    load,
    load_first,
    select,
    splat,
    stack_array,
    store,
    sum_lanes,
)

# Registers that hold a number for each row of a tile, however narrow they are.
ROWS_OF_A_TILE = 16


@kernel
def pack_for_gemv(b, start, step, depth, column):
    """Copy `depth` elements that are `step` apart to the beginning of `column`."""
    for k in range(depth):
        column[k] = b[start + k * step]


@kernel
def _sum_of_row(a, start, depth, column):
    """Return the product of a row, whose terms are contiguous, and the column."""
    size = lanes(a)
    even, odd = splat(a, 0.0), splat(a, 0.0)
    for k in range(0, depth, 2 * size):
        even = fma(load_first(a, depth - k, start + k), load_first(column, depth - k, k), even)
        left, next_k = depth - k - size, k + size
        if left > 0:
            terms = load_first(a, left, start + next_k)
            odd = fma(terms, load_first(column, left, next_k), odd)
    return sum_lanes(even + odd)


@kernel
def _sums_of_rows(a, start, count, k_step, depth, column, sums):
    """Write the products of rows that are side by side, whose terms are apart, and the column.

    In four chains, for a chain waits for itself.
    """
    for i in range(0, count, lanes(a)):
        first, second, third, fourth = (
            splat(a, 0.0), splat(a, 0.0), splat(a, 0.0), splat(a, 0.0)
        )  # fmt: skip
        whole_depth = depth // 4 * 4
        for k in range(0, whole_depth, 4):
            place = start + i + k * k_step
            first = fma(load_first(a, count - i, place), splat(a, column[k]), first)
            place += k_step
            second = fma(load_first(a, count - i, place), splat(a, column[k + 1]), second)
            place += k_step
            third = fma(load_first(a, count - i, place), splat(a, column[k + 2]), third)
            place += k_step
            fourth = fma(load_first(a, count - i, place), splat(a, column[k + 3]), fourth)
        for k in range(whole_depth, depth):
            terms = load_first(a, count - i, start + i + k * k_step)
            first = fma(terms, splat(a, column[k]), first)
        store(sums, (first + second) + (third + fourth), i)


@kernel
def gemv(
    rows, depth, a, a_start, a_row_step, a_k_step, a_tile_step, column, has_bias, bias, bias_start,
    has_addend, addend, rectifies, out, out_start, out_step,
):  # fmt: skip
    """Multiply rows by a column that `pack_for_gemv` gave; the other arguments are `multiply`'s."""
    sums, addends = stack_array(out, ROWS_OF_A_TILE), stack_array(out, ROWS_OF_A_TILE)
    zero = splat(out, 0.0)
    for first in range(0, rows, TILE_ROWS):
        count = min(TILE_ROWS, rows - first)
        start = a_start + first // TILE_ROWS * a_tile_step
        if a_row_step == 1:
            _sums_of_rows(a, start, count, a_k_step, depth, column, sums)
        else:
            for i in range(count):
                sums[i] = _sum_of_row(a, start + i * a_row_step, depth, column)
        place = out_start + first * out_step
        for i in range(count if has_addend else 0):
            addends[i] = addend[place + i * out_step]
        for i in range(0, count, lanes(out)):
            total = load(sums, i)
            if has_bias:
                total = total + splat(out, bias[bias_start])
            if has_addend:
                total = total + load(addends, i)
            if rectifies:
                total = select(total < zero, zero, total)
            store(sums, total, i)
        for i in range(count):
            out[place + i * out_step] = sums[i]
