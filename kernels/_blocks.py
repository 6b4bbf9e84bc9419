"""Serial pieces of a blocked matrix product: panels, rows of tiles, and how work is cut.

The sum over k is never cut across tasks, so the bits of a product are the same for any number of
tasks and threads.
"""

from ._compile import kernel
from ._llvm import HIGH_TILES, NARROW, TILE_ROWS, WIDE
from ._simd import lanes, load, load_first, store, store_first
from ._tile import multiply, transpose_block

# Rows of a packed panel: 256 of them stay in the first-level cache.
DEPTH_BLOCK = 256
# Steps of k for which the columns of all tiles are copied before the next ones, so that what the
# tiles share of a cache line is read once.
STEPS_OF_A_COPY = 16
# A task is worth its start from about a million multiply-adds on.
TASK_SIZE = 1 << 19
MOST_TASKS = 32
# Reading a matrix from memory takes as long as multiplying so many rows by it.
READING_ROWS = 2
# Tasks that a thread has at least, and tiles that a task has at least, where the rows allow it.
TASKS_OF_A_THREAD = 2
TILES_OF_A_TASK = 16 if HIGH_TILES else 32
# Rows that a task has at least; and panels, where it copies its rows, which costs as much as
# multiplying them by half a panel; and more of these once each thread has its tasks.
FEWEST_ROWS = 56
# Rows are cut alike, for a thread that waits does nothing, but not into fewer than this: two rows
# that are left over take as long as four.
ROW_STEP = 4
FEWEST_PANELS, MANY_PANELS = 6, 24


@kernel
def task_grid(rows, columns, depth, width, threads=2, copies_rows=False):
    """Return (row tasks, column tasks) for an output of rows x columns.

    Each row task packs the panels that it uses for itself, which costs as much as multiplying 4
    rows: so rows are cut into large pieces, and columns into as many as are still wanted. Where
    there are few panels, some of them narrow, rows are cut further, so that halves are alike.

    Args:
        width: of a panel.    threads: that share the tasks.
        copies_rows: whether each task copies its rows, and so wants many panels for them.
    """
    tiles = max(1, (rows + TILE_ROWS - 1) // TILE_ROWS)
    panels = max(1, (columns + width - 1) // width)
    wanted = max(1, min(MOST_TASKS, max(rows, READING_ROWS) * columns * depth // TASK_SIZE))
    row_tasks = 1
    while 2 * row_tasks <= min(wanted, tiles // TILES_OF_A_TASK):
        row_tasks *= 2
    fewest = min(wanted, TASKS_OF_A_THREAD * threads)
    column_tasks = min(panels, (wanted + row_tasks - 1) // row_tasks)
    if copies_rows:
        most, column_tasks = column_tasks, 1
        while 2 * column_tasks <= most:
            each = FEWEST_PANELS if row_tasks * column_tasks < fewest else MANY_PANELS
            if 2 * column_tasks * each > panels:
                break
            column_tasks *= 2
    while row_tasks * column_tasks < fewest and 2 * row_tasks * FEWEST_ROWS <= rows:
        row_tasks *= 2
    return row_tasks, column_tasks


@kernel
def task_part(task, row_tasks, column_tasks, rows, panels):
    """Return the (first row, last row, first panel, last panel) of a task."""
    row_task, column_task = task // column_tasks, task % column_tasks
    first = rows * row_task // row_tasks // ROW_STEP * ROW_STEP
    last = rows * (row_task + 1) // row_tasks // ROW_STEP * ROW_STEP
    return (
        first,
        last if row_task + 1 < row_tasks else rows,
        panels * column_task // column_tasks,
        panels * (column_task + 1) // column_tasks,
    )


@kernel
def panel_width(columns, out):
    """Return the width of the panel for so many columns: one register, or two."""
    return NARROW * lanes(out) if columns <= NARROW * lanes(out) else WIDE * lanes(out)


@kernel(inline=True)
def pack_panel(b, b_start, b_step, depth, columns, panel, start):
    """Copy `depth` rows of `columns` elements into a panel; columns beyond are 0.

    Args:
        b: 1-D; row k begins at b_start + k * b_step.    columns: 1 to WIDE registers' worth.
        panel: 1-D, overwritten from `start` on.
    """
    size, width = lanes(panel), panel_width(columns, panel)
    if columns == WIDE * size:
        # Not in a loop, of which the compiler makes a call of the C library for each row.
        for k in range(depth):
            row, place = b_start + k * b_step, start + k * width
            left, right = load(b, row), load(b, row + size)
            store(panel, left, place)
            store(panel, right, place + size)
    else:
        for k in range(depth):
            for j in range(0, width, size):
                row = load_first(b, columns - j, b_start + k * b_step + min(j, columns))
                store(panel, row, start + k * width + j)


@kernel(inline=True)
def pack_panel_transposed(b, b_start, b_step, depth, columns, panel, start):
    """Copy the transpose of `columns` rows of `depth` elements into a panel.

    Args:
        b: 1-D; row j begins at b_start + j * b_step.    columns: 1 to WIDE registers' worth.
        panel: 1-D, overwritten from `start` on; columns beyond hold copies of the last one.
    """
    size = lanes(panel)
    width = panel_width(columns, panel)
    whole_depth = depth // size * size
    for j in range(0, width, size):
        row = b_start + j * b_step
        for k in range(0, whole_depth, size):
            transpose_block(b, row + k, b_step, columns - j, panel, start + k * width + j, width)
    for j in range(width):
        row = b_start + min(j, columns - 1) * b_step
        for k in range(whole_depth, depth):
            panel[start + k * width + j] = b[row + k]


@kernel
def pack_rows(a, start, row_step, count, depth, out, out_step):
    """Copy `count` rows of `depth` elements to where they are out_step apart."""
    for row in range(count):
        for k in range(0, depth, lanes(a)):
            v = load_first(a, depth - k, start + row * row_step + k)
            store_first(out, depth - k, v, row * out_step + k)


@kernel
def pack_tiles(a, start, k_step, count, depth, out, tile_step):
    """Copy `count` columns of `depth` elements, so that those of a tile are together.

    Column i of step k goes to i // TILE_ROWS * tile_step + i % TILE_ROWS + k * TILE_ROWS.

    Args:
        a: 1-D; step k begins at start + k * k_step.
        out: 1-D, overwritten.    tile_step: a register more than a tile has, at least.
    """
    size = lanes(a)
    written = (TILE_ROWS + size - 1) // size * size
    for first in range(0, depth, STEPS_OF_A_COPY):
        last = min(depth, first + STEPS_OF_A_COPY)
        for i in range(0, count, TILE_ROWS):
            place = i // TILE_ROWS * tile_step
            # Whole registers, whose ends the next step overwrites, for steps where the array does
            # not end before they do.
            whole = max(first, min(last, (a.size - written - start - i) // k_step + 1))
            for k in range(first, whole):
                for j in range(0, TILE_ROWS, size):
                    v = load(a, start + k * k_step + i + j)
                    store(out, v, place + k * TILE_ROWS + j)
            for k in range(whole, last):
                for j in range(min(TILE_ROWS, count - i)):
                    out[place + k * TILE_ROWS + j] = a[start + k * k_step + i + j]


@kernel
def multiply_rows(
    first, last, columns, depth, a, a_start, a_row_step, a_k_step, panel, panel_start, panel_step,
    has_bias, bias, bias_start, has_addend, addend, rectifies, out, out_start, out_step,
):  # fmt: skip
    """Multiply rows first to last of `a` by a panel, into an output that is near.

    The other arguments are those of `multiply`.
    """
    multiply(
        last - first, columns, depth, a, a_start + first * a_row_step, a_row_step, a_k_step,
        TILE_ROWS * a_row_step, panel, panel_start, panel_step, has_bias, bias, bias_start,
        has_addend, addend, rectifies, False, out, out_start + first * out_step, out_step,
    )  # fmt: skip


@kernel(inline=True)
def pack_panels(b, b_start, b_step, depth, columns, panels):
    """Pack all panels of a matrix of `depth` rows and `columns` columns, one after the other."""
    width = WIDE * lanes(panels)
    for j in range(0, columns, width):
        used = min(width, columns - j)
        pack_panel(b, b_start + j, b_step, depth, used, panels, j * depth)


@kernel
def pack_panels_transposed(b, b_start, b_step, depth, columns, panels):
    """Pack all panels of the transpose of a matrix of `columns` rows and `depth` columns."""
    width = WIDE * lanes(panels)
    for j in range(0, columns, width):
        used = min(width, columns - j)
        pack_panel_transposed(b, b_start + j * b_step, b_step, depth, used, panels, j * depth)


@kernel(inline=True)
def whole_panels(columns, x):
    """Tell whether panels of so many columns need no padding: then a matrix can stand for them."""
    return columns == NARROW * lanes(x) or columns % (WIDE * lanes(x)) == 0


@kernel(inline=True)
def multiply_panels(
    rows, first, last, depth, a, a_row_step, a_k_step, panels, panels_start, column_step, row_step,
    panel_row, accumulates, out, out_start, out_step, a_start,
):  # fmt: skip
    """Multiply `rows` rows of `a` by columns first to last of panels, packed or as they lie.

    Args:
        first: a multiple of the width of a wide panel; last: another, or the last column of all,
            for the last panel may be narrow.    depth: steps of k.
        panels: 1-D; row k of the panel that begins with column j is at panels_start +
            j * column_step + k * row_step. What `pack_panels` gave has its number of rows as
            column_step, and as row_step 0, which stands for the panel's width.
        panel_row: from which row of the panels on they are used.
        accumulates: whether the product is added to out.
        out: 1-D; column `first` of row i is at out_start + i * out_step.
    """
    width = WIDE * lanes(out)
    for j in range(first, last, width):
        used = min(width, last - j)
        step = row_step if row_step > 0 else panel_width(used, out)
        multiply_rows(
            0, rows, used, depth, a, a_start, a_row_step, a_k_step, panels,
            panels_start + j * column_step + panel_row * step, step, False, out, 0, accumulates,
            out, False, out, out_start + j - first, out_step,
        )  # fmt: skip
