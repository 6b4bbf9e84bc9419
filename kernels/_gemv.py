"""Products of a matrix and a vector, which as tiles would use one lane, or read a line of a page.

Rows by a single column: where a row's terms are contiguous, they are the lanes, and their sum is
that of the lanes; where they are apart, as in a transpose, the rows of a tile are.

A single row by a matrix, as generation has it: memory is what limits it, so the matrix is read as
it lies, some of its rows at once, and the sums of many columns wait in the first-level cache. Each
is the chain that a tile has, with the same bits.
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

# Rows of a matrix that are read at once: each is a stream of its own.
ROWS_AT_ONCE = 4
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


@kernel
def row_by_matrix(x, x_start, matrix, start, step, depth, columns, sums):
    """Write the products of a row and `depth` rows of `columns` elements to sums.

    Args:
        x: 1-D; the row's elements are contiguous from x_start on.
        matrix: 1-D; row k begins at start + k * step.
        columns: whole registers of them.    sums: 1-D, overwritten.
    """
    for j in range(0, columns, lanes(sums)):
        store(sums, splat(sums, 0.0), j)
    whole = depth // ROWS_AT_ONCE * ROWS_AT_ONCE
    for k in range(0, whole, ROWS_AT_ONCE):
        first, second = splat(x, x[x_start + k]), splat(x, x[x_start + k + 1])
        third, fourth = splat(x, x[x_start + k + 2]), splat(x, x[x_start + k + 3])
        place = start + k * step
        for j in range(0, columns, lanes(sums)):
            total = fma(first, load(matrix, place + j), load(sums, j))
            total = fma(second, load(matrix, place + step + j), total)
            total = fma(third, load(matrix, place + 2 * step + j), total)
            store(sums, fma(fourth, load(matrix, place + 3 * step + j), total), j)
    for k in range(whole, depth):
        element, place = splat(x, x[x_start + k]), start + k * step
        for j in range(0, columns, lanes(sums)):
            store(sums, fma(element, load(matrix, place + j), load(sums, j)), j)


@kernel
def add_to_row(
    sums, columns, has_bias, bias, bias_start, has_addend, addend, addend_start, rectifies, out,
    out_start,
):  # fmt: skip
    """Write sums to a row of out, with a bias, an addend and ReLU as a tile has them."""
    zero = splat(out, 0.0)
    for j in range(0, columns, lanes(sums)):
        total = load(sums, j)
        if has_bias:
            total = total + load(bias, bias_start + j)
        if has_addend:
            total = total + load(addend, addend_start + j)
        if rectifies:
            total = select(total < zero, zero, total)
        store(out, total, out_start + j)
