"""Serial pieces of a product of bfloat16 operands: how float32 matrices are rounded and packed.

A step holds STEP elements that follow each other in k. What is beyond a matrix's depth is 0.
"""

from ._bfloat16 import STEP, pack, pack_run
from ._blocks import panel_width
from ._compile import kernel
from ._simd import lanes, load, load_first, store
from ._tile import transpose_block

# Elements of k that are multiplied at a time: as many bytes as in a product of float32.
DEPTH_BLOCK = 256 * STEP


@kernel
def steps_of(depth, x):
    """Return the steps that there is room for with such a depth: whole registers of them."""
    steps = (depth + STEP - 1) // STEP
    return (steps + lanes(x) - 1) // lanes(x) * lanes(x)


@kernel(inline=True)
def pack_across(x, x_start, x_step, depth, columns, width, out, start):
    """Pack `depth` rows of `columns` elements; those of one step are `width` lanes side by side.

    Args:
        x: 1-D; row k begins at x_start + k * x_step.
        width: at least `columns`, whole registers; columns beyond are 0.
        out: 1-D, overwritten from `start` on.
    """
    for k in range(0, depth, STEP):
        row, target = x_start + k * x_step, start + k // STEP * width
        # The last row of an odd number has no partner.
        partner = k + STEP <= depth
        for j in range(0, width, lanes(out)):
            if partner and j + lanes(out) <= columns:
                low, high = load(x, row + j), load(x, row + (STEP - 1) * x_step + j)
            else:
                i = row + min(j, columns)
                low = load_first(x, columns - j, i)
                high = load_first(x, columns - j if partner else 0, i + (STEP - 1) * x_step)
            store(out, pack(low, high), target + j)


@kernel(inline=True)
def pack_along(x, x_start, depth, out, start):
    """Pack a row of `depth` elements that lie side by side.

    Args:
        x: 1-D; the row begins at x_start.
        out: 1-D, overwritten from `start` on, whole registers.
    """
    size = STEP * lanes(out)
    whole = depth // size * size
    for k in range(0, whole, size):
        i = x_start + k
        low, high = load(x, i), load(x, i + (STEP - 1) * lanes(x))
        store(out, pack_run(low, high), start + k // STEP)
    if whole < depth:
        left, i = depth - whole, x_start + whole
        low = load_first(x, left, i)
        high = load_first(x, left - lanes(x), i + min(left, lanes(x)))
        store(out, pack_run(low, high), start + whole // STEP)


@kernel(inline=True)
def pack_along_transposed(x, x_start, x_step, depth, columns, rows, out, start):
    """Pack the transpose of `columns` rows of `depth` elements as a panel.

    Args:
        x: 1-D; row j begins at x_start + j * x_step.    columns: 1 to WIDE registers' worth.
        rows: 1-D, overwritten: room for a square of lanes.
        out: 1-D, overwritten from `start` on: `steps_of(depth)` steps of the panel's width.
    """
    width = panel_width(columns, out)
    size = STEP * lanes(out)
    for j in range(0, width, lanes(out)):
        for k in range(0, depth, size):
            count = min(lanes(out), columns - j)
            for r in range(count):
                row = x_start + (j + r) * x_step + k
                pack_along(x, row, min(size, depth - k), rows, r * lanes(out))
            target = start + k // STEP * width + j
            transpose_block(rows, 0, lanes(out), count, out, target, width)
