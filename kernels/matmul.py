"""Matrix products, plain and batched, with bias, residual sum and activation as epilogues.

    matmul:     out[g] = activation(a[g] @ b[g] + bias[g] + addend[g])         a linear layer
    matmul_nt:  out[g] = (a[g] @ b[g].T + addend[g]) * activation'(saved[g])   its input's gradient
    matmul_tn:  out[g] += a[g].T @ b[g];  column_sums[g] += sum of b[g]'s rows  its weights'
    matmul_backward: the last two at once, for a linear layer

Matrices that have a row for each token are two-dimensional; their G groups are stacked. Weights,
`b` of the first two and `out` of the third, have an axis for G. Where `a` has as many rows as one
group, all groups share it; and where `out` of `matmul_nt` has, the groups' products are added up.
An array that is not wanted is given with size 0.

All are one compiled kernel, for they differ only in what is a matrix's row and what a step. Where a
product is one task, no other thread is woken: that would take as long as the product.

It is one long file, for the three products share how they are cut, packed and dealt out.
"""

from collections import namedtuple

import numpy as np

from ._blocks import (
    DEPTH_BLOCK,
    pack_panel,
    pack_panel_transposed,
    pack_rows,
    pack_tiles,
    panel_width,
    task_grid,
    task_part,
)
from ._compile import kernel, prange
from ._gemv import add_to_row, gemv, pack_for_gemv, row_by_matrix
from ._llvm import HIGH_TILES, NARROW, TILE_ROWS, WIDE
from ._rows import SUM_BLOCK
from ._simd import (
    flat,
    lanes,
    load,
    load_first,
    prefetch,
    splat,
    stack_array,
    store,
    store_first,
    thread_count,
)
from ._tile import multiply
from .activation import (
    NO_ACTIVATION,
    RELU,
    activate_block,
    activation_backward_reference,
    activation_forward_reference,
    activation_slope,
    differentiate_block,
    end_activation,
)
from .op import op

NO_PRODUCT, FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT = 0, 1, 2, 3
# As WEIGHT_GRADIENT, but what `out` and the sums over columns held does not count.
FIRST_WEIGHT_GRADIENT = 4
# Rows that are multiplied before an activation goes over them, in the first-level cache. What it
# needs of them is asked for before: a few columns of a wide matrix come from memory one by one.
ACTIVATED_ROWS = 2 * TILE_ROWS
# From so many rows on, what a product reads and writes comes from beyond the second-level cache: it
# is asked for, and of the next panel a part each time that ASKING_ROWS are multiplied.
FAR_ROWS, ASKING_ROWS = 100, 4 * TILE_ROWS
# Rows up to which a panel is read where it lies: packing costs as much as 4 rows.
UNPACKED_ROWS = 128 if HIGH_TILES else 48
# Bytes between rows that are in one place of the first-level cache, which holds CACHE_WAYS of them,
# and bytes of its lines.
PAGE, CACHE_WAYS, LINE = 4096, 8, 64
# Where there are few columns, less than two panels or a last narrow one, sums can be shorter at
# little cost, and are as accurate as others'.
SHORT_DEPTH_BLOCK = 64
# Sums of a layer's products that are no longer than this are not cut.
WHOLE_DEPTH = DEPTH_BLOCK * 3 // 2
PANEL_REGISTERS = WHOLE_DEPTH * WIDE
# Room for the rows of `left` that are copied at once, 266 of float32, so that packing a panel for
# them is cheap, and they are FAR_ROWS.
ROWS_REGISTERS = (18 if HIGH_TILES else 36) * DEPTH_BLOCK
# Panels of a single row whose sums are made at once: at most half of the first-level cache.
PANELS_AT_ONCE = 128
# So few rows are not packed by tiles: their lines stay in the second-level cache.
UNPACKED_COLUMNS = 95
NOTHING = {np.dtype(name): np.zeros(0, name) for name in ("float32", "float64")}

# out (groups, rows, columns) = left @ right, summed over `parts` groups and over `depth`. Element
# (i, k) of a group of left is at i * left_row_step + k * left_k_step; right has rows of right_step.
Plan = namedtuple(
    "Plan",
    "form groups parts rows columns depth "
    "left_group left_row_step left_k_step right_group right_step",
)
# Where elements of a plan's left matrix are, themselves or copies of some: of a group, of a row's
# tile and place in it, and of k, as the plan counts them from a first row and a first k.
Left = namedtuple("Left", "elements start group_step tile_step row_step k_step")


def _stacked(a, groups, rows):
    """Return a as (groups, rows, columns), or as (1, rows, columns) where all groups share it."""
    return a.reshape(1 if a.shape[0] == rows else groups, rows, a.shape[1])


def matmul_reference(a, b, bias, addend, activation, slope, out):
    """Compute `matmul` in NumPy."""
    groups, depth, columns = b.shape
    product = np.matmul(_stacked(a, groups, out.shape[0] // groups), b)
    if bias.size:
        product += bias.reshape(groups, 1, columns)
    if addend.size:
        product += addend.reshape(product.shape)
    out[...] = product.reshape(out.shape)
    if activation != NO_ACTIVATION:
        if slope.size:
            slope[...] = activation_slope(out, activation)
        activation_forward_reference(out, activation, out)


def matmul_nt_reference(a, b, saved, addend, activation, out):
    """Compute `matmul_nt` in NumPy."""
    groups, columns, depth = b.shape
    left = a.reshape(groups, a.shape[0] // groups, depth)
    product = np.matmul(left, b.transpose(0, 2, 1))
    summed = out.shape[0] != a.shape[0]
    out[...] = product.sum(axis=0) if summed else product.reshape(out.shape)
    if addend.size:
        out += addend
    if activation == RELU:
        activation_backward_reference(out, saved, activation, out)
    elif activation != NO_ACTIVATION:
        out *= saved


def matmul_tn_reference(a, b, column_sums, out):
    """Compute `matmul_tn` in NumPy."""
    groups, rows, columns = out.shape
    right = b.reshape(groups, b.shape[0] // groups, columns)
    out += np.matmul(_stacked(a, groups, right.shape[1]).transpose(0, 2, 1), right)
    if column_sums.size:
        column_sums += right.sum(axis=1).reshape(column_sums.shape)


def matmul_backward_reference(a, b, dout, saved, addend, activation, da, db, column_sums):
    """Compute `matmul_backward` in NumPy."""
    matmul_tn_reference(a, dout, column_sums, db)
    matmul_nt_reference(dout, b, saved, addend, activation, da)


@kernel
def add_column_sums(panel, panel_start, step, depth, columns, column_sums, start):
    """Add the sums over rows of a panel, or of a block as it lies, to elements of column_sums."""
    for j in range(0, columns, lanes(panel)):
        total = splat(panel, 0.0)
        for first in range(0, depth, SUM_BLOCK):
            part = splat(panel, 0.0)
            for k in range(first, min(depth, first + SUM_BLOCK)):
                part = part + load_first(panel, columns - j, panel_start + k * step + j)
            total = total + part
        total = total + load_first(column_sums, columns - j, start + j)
        store_first(column_sums, columns - j, total, start + j)


@kernel
def _pack_and_sum(b, b_start, b_step, depth, panel, column_sums, start):
    """Pack a whole panel, and add the sums over its rows to column_sums, with the same bits."""
    size = lanes(panel)
    left_total, right_total = splat(panel, 0.0), splat(panel, 0.0)
    for first in range(0, depth, SUM_BLOCK):
        left_part, right_part = splat(panel, 0.0), splat(panel, 0.0)
        for k in range(first, min(depth, first + SUM_BLOCK)):
            row, place = b_start + k * b_step, k * WIDE * size
            left, right = load(b, row), load(b, row + size)
            store(panel, left, place)
            store(panel, right, place + size)
            left_part, right_part = left_part + left, right_part + right
        left_total, right_total = left_total + left_part, right_total + right_part
    store(column_sums, left_total + load(column_sums, start), start)
    store(column_sums, right_total + load(column_sums, start + size), start + size)


@kernel
def prefetch_rows(x, first, last, columns, start, step):
    """Ask for rows first to last of a block that is needed later; there is none if x has size 0."""
    for row in range(first, last if x.size else first):
        for j in range(0, columns, lanes(x)):
            prefetch(x, start + row * step + j)


@kernel(inline=True)
def _pages_apart(step, x):
    """Tell whether rows of so many elements are in one place of the first-level cache."""
    return step * x.itemsize % PAGE == 0


@kernel(inline=True)
def _reads_in_place(rows, right_step, out):
    """Tell whether so many rows are multiplied by a panel where it lies, and not by a copy of it.

    Low tiles take twice as long where the panel's rows push each other out of the cache.
    """
    return rows <= UNPACKED_ROWS and (rows >= TILE_ROWS or not _pages_apart(right_step, out))


@kernel(inline=True)
def _copies_rows(plan, rows, left):
    """Tell whether so many rows of `left` are copied before they are multiplied.

    A tile's rows push each other out of the cache, which doubles its time, where there are more
    than the cache has room for in one place.
    """
    enough = rows >= TILE_ROWS > CACHE_WAYS and plan.left_k_step == 1
    return enough and _pages_apart(plan.left_row_step, left)


@kernel(inline=True)
def _packs_tiles(plan, rows, left):
    """Tell whether so many rows of `left`, whose columns are contiguous, are packed by tiles.

    Low tiles use less than half of each cache line that they read across rows, and there is one
    for each step of k: as much of the cache as the panel needs. And where each step is in another
    page, their lines share few places of the cache.
    """
    enough = rows > UNPACKED_COLUMNS and plan.left_k_step != 1
    is_low = 2 * TILE_ROWS * left.itemsize <= LINE
    return enough and (is_low or plan.left_k_step * left.itemsize >= PAGE)


@kernel(inline=True)
def block_of_right(plan, right_start, j, columns, k, depth):
    """Return where some columns and steps of k of `right` begin, in how many rows of how many."""
    if plan.form == INPUT_GRADIENT:
        return right_start + j * plan.right_step + k, columns, depth
    return right_start + k * plan.right_step + j, depth, columns


@kernel(part=True)
def _panel_product(
    plan, group, j, first, last, first_part, last_part, first_k, last_k, left, right, bias, addend,
    activation, saved, out, panel,
):  # fmt: skip
    """Compute, of one panel of columns from column j of a group on, some terms of some rows' sums.

    An activation follows each few tiles, while they are in the first-level cache.

    Args:
        first, last: the rows.    first_part, last_part, first_k, last_k: the terms.
        left: a Left whose first row and k are `first` and first_k.
    """
    width = WIDE * lanes(out)
    used = min(width, plan.columns - j)
    start = group * plan.rows * plan.columns + j
    accumulates = plan.form == WEIGHT_GRADIENT
    of_weights = plan.form >= WEIGHT_GRADIENT
    bias_start = group * plan.columns + j
    sums = of_weights and first == 0 and bias.size > 0
    is_far = last - first >= FAR_ROWS
    single = used == 1
    few = not single and (plan.columns < 2 * width or used <= NARROW * lanes(out))
    block = DEPTH_BLOCK
    if few:
        block = SHORT_DEPTH_BLOCK
    elif plan.depth <= WHOLE_DEPTH and not of_weights:
        block = WHOLE_DEPTH
    for part in range(first_part, last_part):
        left_start = left.start + (group + part) * left.group_step
        right_start = (group + part) * plan.right_group
        for k in range(first_k, max(last_k, 1), block):
            depth = min(block, last_k - k)
            # Whole panels are read where they lie, if there are few rows to multiply by them and no
            # sums to take, which cost more than the copy.
            used_panel, panel_start = panel, 0
            step = 1 if single else panel_width(used, out)
            b_start, _, _ = block_of_right(plan, right_start, j, used, k, depth)
            if sums and k == 0 and plan.form == FIRST_WEIGHT_GRADIENT:
                for column in range(0, used, lanes(bias)):
                    store_first(bias, used - column, splat(bias, 0.0), bias_start + column)
            if single:
                b_step = 1 if plan.form == INPUT_GRADIENT else plan.right_step
                pack_for_gemv(right, b_start, b_step, depth, panel)
            elif plan.form == INPUT_GRADIENT:
                pack_panel_transposed(right, b_start, plan.right_step, depth, used, panel, 0)
            elif sums and used == width:
                _pack_and_sum(right, b_start, plan.right_step, depth, panel, bias, bias_start)
            elif used == step and _reads_in_place(last - first, plan.right_step, out):
                used_panel, panel_start, step = right, b_start, plan.right_step
            else:
                pack_panel(right, b_start, plan.right_step, depth, used, panel, 0)
            begins = part == 0 and k == 0
            added = addend if begins and not accumulates else out
            ends = part == plan.parts - 1 and k + block >= plan.depth
            # ReLU is made in registers; others follow a few tiles, and ReLU's gradient does.
            rectifies = ends and activation == RELU and plan.form == FORWARD
            activates = ends and activation != NO_ACTIVATION and not rectifies
            size = ASKING_ROWS if is_far else ACTIVATED_ROWS if activates else max(1, last - first)
            next_j, next_k = (j, k + block) if k + block < last_k else (j + width, first_k)
            next_start, next_rows, next_columns = block_of_right(
                plan, right_start, next_j, min(width, plan.columns - next_j), next_k,
                min(block, last_k - next_k),
            )  # fmt: skip
            asked = 0
            for row in range(first, last, size):
                stop = min(last, row + size)
                if is_far and next_j < plan.columns:
                    before, asked = asked, next_rows * (stop - first) // (last - first)
                    prefetch_rows(right, before, asked, next_columns, next_start, plan.right_step)
                if activates and plan.form != FORWARD:
                    prefetch_rows(saved, row, stop, used, start, plan.columns)
                tiles = (row - first) // TILE_ROWS
                rows_start = left_start + tiles * left.tile_step + (k - first_k) * left.k_step
                has_bias = begins and not of_weights and bias.size > 0
                has_addend = accumulates or not begins or addend.size > 0
                out_start = start + row * plan.columns
                if single:
                    gemv(
                        stop - row, depth, left.elements, rows_start, left.row_step, left.k_step,
                        left.tile_step, panel, has_bias, bias, bias_start, has_addend, added,
                        rectifies, out, out_start, plan.columns,
                    )  # fmt: skip
                else:
                    multiply(
                        stop - row, used, depth, left.elements, rows_start, left.row_step,
                        left.k_step, left.tile_step, used_panel, panel_start, step, has_bias, bias,
                        bias_start, has_addend, added, rectifies, is_far, out, out_start,
                        plan.columns,
                    )  # fmt: skip
                if activates and plan.form == FORWARD:
                    activate_block(activation, row, stop, used, saved, out, start, plan.columns)
                elif activates:
                    differentiate_block(
                        activation, row, stop, used, saved, out, start, plan.columns
                    )
            if sums and used < width:
                add_column_sums(used_panel, panel_start, step, depth, used, bias, bias_start)
    if plan.form == FORWARD:
        end_activation(saved)


@kernel(part=True)
def _row_product(plan, group, first_panel, last_panel, left, right, bias, addend, activation, saved,
                 out, sums):  # fmt: skip
    """Compute a single row's product with whole panels of a group, read as the matrix lies.

    Args:
        left: the elements of the plan's left matrix.    sums: overwritten.
    """
    width = WIDE * lanes(out)
    block = WHOLE_DEPTH if plan.depth <= WHOLE_DEPTH else DEPTH_BLOCK
    for panel in range(first_panel, last_panel, PANELS_AT_ONCE):
        j = panel * width
        columns = min(last_panel - panel, PANELS_AT_ONCE) * width
        start = group * plan.columns + j
        for k in range(0, max(1, plan.depth), block):
            ends = k + block >= plan.depth
            row_by_matrix(
                left, group * plan.left_group + k, right,
                group * plan.right_group + k * plan.right_step + j, plan.right_step,
                min(block, plan.depth - k), columns, sums,
            )  # fmt: skip
            added = addend if k == 0 else out
            add_to_row(
                sums, columns, k == 0 and bias.size > 0, bias, start,
                k > 0 or addend.size > 0, added, start,
                ends and activation == RELU, out, start,
            )  # fmt: skip
        if activation != NO_ACTIVATION and activation != RELU:
            for column in range(0, columns, width):
                activate_block(activation, 0, 1, width, saved, out, start + column, plan.columns)
    end_activation(saved)


@kernel(once=True, allocates=False)
def _product_part(plan, first, last, first_panel, last_panel, left, right, bias, addend, activation,
                  saved, out):  # fmt: skip
    """Compute rows first to last of some panels of columns, of all groups' panels in a row."""
    width = WIDE * lanes(out)
    panels = (plan.columns + width - 1) // width
    panel = stack_array(out, PANEL_REGISTERS)
    rows = stack_array(out, ROWS_REGISTERS)
    copies = _copies_rows(plan, last - first, left)
    packs = _packs_tiles(plan, last - first, left)
    row_count, part_count, k_count = max(1, last - first), plan.parts, max(1, plan.depth)
    # A register more than a row has, or than a row of a tile has.
    copied_step = DEPTH_BLOCK + lanes(out)
    if copies or packs:
        row_count = ROWS_REGISTERS * lanes(out) // copied_step // TILE_ROWS * TILE_ROWS
        part_count, k_count = 1, DEPTH_BLOCK
    # A row's products with whole panels; a last panel that is not whole is left for the tiles.
    single_row = plan.form == FORWARD and plan.rows == 1 and last - first == 1
    single_row = single_row and plan.parts == 1 and plan.columns >= 2 * width
    begin = first_panel
    while begin < last_panel:
        if single_row and begin % panels < plan.columns // width:
            group, place = begin // panels, begin % panels
            stop = min(plan.columns // width, place + last_panel - begin)
            _row_product(
                plan, group, place, stop, left, right, bias, addend, activation, saved, out, panel
            )  # fmt: skip
            begin += stop - place
            continue
        # Panels for which the same rows are copied.
        end = begin + 1 if single_row else last_panel
        if (copies or packs) and plan.left_group > 0:
            end = min(end, (begin // panels + 1) * panels)
        for row in range(first, last, row_count):
            last_row = min(last, row + row_count)
            for part in range(0, plan.parts, part_count):
                for k in range(0, max(1, plan.depth), k_count):
                    last_k = min(plan.depth, k + k_count)
                    start = row * plan.left_row_step + k * plan.left_k_step
                    used_left = Left(
                        left, start, plan.left_group, TILE_ROWS * plan.left_row_step,
                        plan.left_row_step, plan.left_k_step,
                    )  # fmt: skip
                    start += (begin // panels + part) * plan.left_group
                    if copies:
                        pack_rows(
                            left, start, plan.left_row_step, last_row - row, last_k - k, rows,
                            copied_step,
                        )  # fmt: skip
                        used_left = Left(rows, 0, 0, TILE_ROWS * copied_step, copied_step, 1)
                    elif packs:
                        tile_step = TILE_ROWS * copied_step
                        pack_tiles(
                            left, start, plan.left_k_step, last_row - row, last_k - k, rows,
                            tile_step,
                        )  # fmt: skip
                        used_left = Left(rows, 0, 0, tile_step, 1, TILE_ROWS)
                    for p in range(begin, end):
                        _panel_product(
                            plan, p // panels, p % panels * width, row, last_row, part,
                            part + part_count, k, last_k, used_left, right, bias, addend,
                            activation, saved, out, panel,
                        )  # fmt: skip
        begin = end


@kernel
def weight_gradient_task(
    form, task, row_tasks, column_tasks, first, last, x, y, column_sums, dweight
):  # fmt: skip
    """Compute what rows first to last of each group give of a task of `matmul_tn`, in one thread.

    Args:
        form: WEIGHT_GRADIENT to accumulate, FIRST_WEIGHT_GRADIENT to overwrite.
        task, row_tasks, column_tasks: of a grid over dweight, from `product_grid`.
        dweight: (G, K, N).    column_sums: (G N,) or (0,).
    """
    groups, K, N = dweight.shape
    M = y.shape[0] // groups
    shared = 0 if x.shape[0] == M else M * K
    plan = Plan(form, groups, 1, K, N, last - first, shared, 1, K, M * N, N)
    panels = (N + WIDE * lanes(x) - 1) // (WIDE * lanes(x))
    first_row, last_row, first_panel, last_panel = task_part(
        task, row_tasks, column_tasks, K, groups * panels
    )
    nothing = column_sums[:0]
    _product_part(
        plan, first_row, last_row, first_panel, last_panel, flat(x)[first * K :],
        flat(y)[first * N :], column_sums, nothing, np.int64(NO_ACTIVATION), nothing, flat(dweight),
    )  # fmt: skip


@kernel
def weight_gradient_rows(form, first, last, x, y, column_sums, dweight):
    """Compute what rows first to last of each group give of `matmul_tn`, in one thread."""
    weight_gradient_task(form, 0, 1, 1, first, last, x, y, column_sums, dweight)


@kernel
def product_task(task, row_tasks, column_tasks, form, x_rows, weight_shape, y_rows, left, right,
                 bias, addend, activation, saved, out):  # fmt: skip
    """Compute the rows and panels of one task of a grid from `product_grid`."""
    plan = product_plan(form, x_rows, weight_shape, y_rows)
    panels = (plan.columns + WIDE * lanes(out) - 1) // (WIDE * lanes(out))
    first, last, first_panel, last_panel = task_part(
        task, row_tasks, column_tasks, plan.rows, plan.groups * panels
    )
    _product_part(
        plan, first, last, first_panel, last_panel, left, right, bias, addend, activation, saved,
        out,
    )  # fmt: skip


@kernel
def product_plan(form, x_rows, weight_shape, y_rows):
    """Return the plan of a product between x (x_rows, K), weight (G, K, N) and y (y_rows, N)."""
    groups, K, N = weight_shape
    M = y_rows // groups
    shared = 0 if x_rows == M else M * K
    if form == FORWARD:
        return Plan(form, groups, 1, M, N, K, shared, K, 1, K * N, N)
    if form == INPUT_GRADIENT:
        parts = 1 if x_rows == y_rows else groups
        return Plan(form, groups // parts, parts, M, K, N, M * N, N, 1, K * N, N)
    return Plan(form, groups, 1, K, N, M, shared, 1, K, M * N, N)


@kernel
def product_grid(form, x_rows, weight_shape, y_rows, out, threads):
    """Return the (row tasks, column tasks) of a product; none where it is not wanted."""
    if form == NO_PRODUCT:
        return 0, 0
    plan = product_plan(form, x_rows, weight_shape, y_rows)
    copies = _packs_tiles(plan, plan.rows, out) or _copies_rows(plan, plan.rows, out)
    return task_grid(
        plan.rows, plan.groups * plan.columns, plan.depth * plan.parts, WIDE * lanes(out),
        threads, copies,
    )  # fmt: skip


@kernel(inline=True)
def turn_of(task, first_form, first_grid, second_grid):
    """Return the form, the number and the grid of a task of a product, or of INPUT_GRADIENT too.

    They take turns: threads are given tasks that follow each other, and the two take unlike times.
    """
    firsts = first_grid[0] * first_grid[1]
    tasks = firsts + second_grid[0] * second_grid[1]
    before = task * firsts // tasks
    if (task + 1) * firsts // tasks > before:
        return first_form, before, first_grid
    return INPUT_GRADIENT, task - before, second_grid


@kernel
def operands_of(form, x, weight, y, bias, addend, activation, saved, dx, dweight):
    """Return (left, right, bias, addend, activation, saved, out) of a product of a form."""
    left, right, out = x, weight, y
    if form == INPUT_GRADIENT:
        left, out, bias = y, dx, bias[:0]
    elif form == WEIGHT_GRADIENT:
        right, out, addend, saved, activation = y, dweight, addend[:0], saved[:0], NO_ACTIVATION
    return left, right, bias, addend, activation, saved, out


@kernel
def task_of_two(
    task, first_form, first_grid, second_grid, x_rows, weight_shape, y_rows, x, weight, y,
    bias, addend, activation, saved, dx, dweight,
):  # fmt: skip
    """Compute a task of the first product or of the second one, the input's gradient."""
    form, index, grid = turn_of(task, first_form, first_grid, second_grid)
    left, right, bias, addend, activation, saved, out = operands_of(
        form, x, weight, y, bias, addend, activation, saved, dx, dweight
    )
    product_task(
        index, grid[0], grid[1], form, x_rows, weight_shape, y_rows, left, right, bias, addend,
        activation, saved, out,
    )  # fmt: skip


@kernel(parallel=True)
def _product(form, and_then, x, weight, y, bias, addend, activation, saved, dx, dweight):
    """Compute y from x and weight, dx from y and weight, or dweight from x and y; see `matmul`.

    Args:
        form: which of them.    and_then: INPUT_GRADIENT, for dx too, or NO_PRODUCT.
        dx, dweight: like x and weight; not used where they are not computed.
    """
    flat_x, flat_weight, flat_y = flat(x), flat(weight), flat(y)
    flat_dx, flat_dweight = flat(dx), flat(dweight)
    flat_addend, flat_saved = flat(addend), flat(saved)
    threads = thread_count()
    first_grid = product_grid(form, x.shape[0], weight.shape, y.shape[0], y, threads)
    second_grid = product_grid(and_then, x.shape[0], weight.shape, y.shape[0], y, threads)
    firsts, seconds = first_grid[0] * first_grid[1], second_grid[0] * second_grid[1]
    if firsts <= 1 and seconds <= 1:
        for task in range(firsts + seconds):
            task_of_two(
                task, form, first_grid, second_grid, x.shape[0], weight.shape, y.shape[0], flat_x,
                flat_weight, flat_y, bias, flat_addend, activation, flat_saved, flat_dx,
                flat_dweight,
            )  # fmt: skip
    else:
        for task in prange(firsts + seconds):
            task_of_two(
                task, form, first_grid, second_grid, x.shape[0], weight.shape, y.shape[0], flat_x,
                flat_weight, flat_y, bias, flat_addend, activation, flat_saved, flat_dx,
                flat_dweight,
            )  # fmt: skip


def matmul(a, b, bias, addend, activation, slope, out):
    """Multiply, add a bias and a residual, apply an activation; see the head of this file.

    Args:
        a: (M, K) or (G M, K) float32|float64, C-contiguous.    b: (G, K, N).
        bias: (G N,) or (0,).    addend: (G M, N) or (0, 0); not out.
        activation: NO_ACTIVATION, or one of kernels/activation.py.
        slope: (G M, N), overwritten by the derivative of one of SLOPED; (0, 0) otherwise.
        out: (G M, N), overwritten.
    Threads: blocks of rows and columns; no sum is cut: bit-identical for any count.
    """
    _product(FORWARD, NO_PRODUCT, a, b, out, bias, addend, activation, slope, a, b)


def matmul_nt(a, b, saved, addend, activation, out):
    """Multiply by a transpose, add, apply an activation's derivative; see the head of this file.

    Args:
        a: (G M, K) float32|float64, C-contiguous.    b: (G, N, K).
        saved: (rows of out, N), ReLU's output or another one's derivative; (0, 0) without any.
        addend: the shape of out, or (0, 0); not out.    activation: as of `matmul`.
        out: (G M, N), or (M, N) for the sum over the groups; overwritten.
    Threads: blocks of rows and columns; no sum is cut: bit-identical for any count.
    """
    nothing = NOTHING[a.dtype]
    _product(INPUT_GRADIENT, NO_PRODUCT, out, b, a, nothing, addend, activation, saved, out, b)


def matmul_tn(a, b, column_sums, out):
    """Add the product of a transpose, and sums over rows; see the head of this file.

    Args:
        a: (M, K) or (G M, K) float32|float64, C-contiguous.    b: (G M, N).
        column_sums: (G N,) accumulated, or (0,).    out: (G, K, N) accumulated.
    Threads: blocks of out's rows and columns; no sum is cut: bit-identical for any count.
    """
    nothing = a[:0]
    _product(
        WEIGHT_GRADIENT, NO_PRODUCT, a, out, b, column_sums, nothing, NO_ACTIVATION, nothing, a, out
    )  # fmt: skip


def matmul_backward(a, b, dout, saved, addend, activation, da, db, column_sums):
    """Differentiate `matmul` by its input, its weights and its bias in one parallel region.

    Args:
        a: (M, K) or (G M, K) float32|float64, C-contiguous.    b: (G, K, N).    dout: (G M, N).
        saved, addend, activation: of a's gradient, as in `matmul_nt`.
        da: the shape of a, overwritten; none of the inputs.
        db: (G, K, N) accumulated.    column_sums: (G N,) accumulated, or (0,).
    Threads: those of the two products side by side; bit-identical for any count.
    """
    _product(
        WEIGHT_GRADIENT, INPUT_GRADIENT, a, b, dout, column_sums, addend, activation, saved, da, db
    )  # fmt: skip


def _linear_tasks(
    threads, x, weight, bias, residual, activation, slope, out
):  # fmt: skip
    grid = product_grid(FORWARD, x.shape[0], weight.shape, out.shape[0], out, threads)
    return grid[0] * grid[1]


def _linear_input_gradient_tasks(threads, dout, weight, saved, residual, activation, dx):
    grid = product_grid(INPUT_GRADIENT, dx.shape[0], weight.shape, dout.shape[0], dx, threads)
    return grid[0] * grid[1]


def _weight_gradient_tasks(threads, x, dout, overwrites, dweight, dbias):
    grid = product_grid(WEIGHT_GRADIENT, x.shape[0], dweight.shape, dout.shape[0], x, threads)
    return grid[0] * grid[1]


def _linear_weight_gradient_reference(x, dout, overwrites, dweight, dbias):
    if overwrites:
        dweight[...] = 0
        dbias[...] = 0
    matmul_tn_reference(x, dout, dbias, dweight)


def _linear_input_gradient_reference(dout, weight, saved, residual, activation, dx):
    matmul_nt_reference(dout, weight, saved, residual, activation, dx)


@kernel
def part_of_product(part, form, x_rows, weight_shape, y_rows, out):
    """Return a product's plan, and the first and last row and panel of a part of it.

    These are some rows of each group and all panels, or those of a task of the product's grid.
    """
    plan = product_plan(form, x_rows, weight_shape, y_rows)
    panels = plan.groups * ((plan.columns + WIDE * lanes(out) - 1) // (WIDE * lanes(out)))
    first, last, first_panel = part.first, part.last, np.int64(0)
    if first < 0:
        grid = product_grid(form, x_rows, weight_shape, y_rows, out, part.threads)
        first, last, first_panel, panels = task_part(
            part.index, grid[0], grid[1], plan.rows, panels
        )
    return plan, first, last, first_panel, panels


@kernel
def _product_of_part(
    part, form, x_rows, weight_shape, y_rows, left, right, bias, addend, activation, saved, out
):
    """Compute a part of a product: some rows of each group, or a task of its grid."""
    plan, first, last, first_panel, last_panel = part_of_product(
        part, form, x_rows, weight_shape, y_rows, out
    )
    _product_part(
        plan, first, last, first_panel, last_panel, left, right, bias, addend, activation, saved,
        out,
    )  # fmt: skip


@op(
    "x[R,K] weight[G,K,M] bias?[GM] residual?[GR,M] activation:int -> slope?[GR,M] out[GR,M]",
    cut="R", tasks=_linear_tasks, twin=matmul_reference,
)  # fmt: skip
def linear(part, x, weight, bias, residual, activation, slope, out):
    """Compute activation(x W + bias + residual), in each of G groups; see `matmul`."""
    _product_of_part(
        part, FORWARD, x.shape[0], weight.shape, out.shape[0], flat(x), flat(weight), bias,
        flat(residual), activation, flat(slope), flat(out),
    )  # fmt: skip


@op(
    "dout[GR,M] weight[G,K,M] saved?[R,K] residual?[R,K] activation:int -> dx[R,K]",
    cut="R", tasks=_linear_input_gradient_tasks, twin=_linear_input_gradient_reference,
)  # fmt: skip
def linear_input_gradient(part, dout, weight, saved, residual, activation, dx):
    """Compute (dout W^T + residual) * activation'(saved), summed over groups; see `matmul_nt`."""
    _product_of_part(
        part, INPUT_GRADIENT, dx.shape[0], weight.shape, dout.shape[0], flat(dout), flat(weight),
        weight[0, 0, :0], flat(residual), activation, flat(saved), flat(dx),
    )  # fmt: skip


@op(
    "x[R,K] dout[GR,M] overwrites:int -> +dweight[G,K,M] +dbias?[GM]",
    cut="R", sums=True, tasks=_weight_gradient_tasks, twin=_linear_weight_gradient_reference,
)  # fmt: skip
def linear_weight_gradient(part, x, dout, overwrites, dweight, dbias):
    """Add x^T dout and the sums of dout's rows, or write them; see `matmul_tn`."""
    form = FIRST_WEIGHT_GRADIENT if overwrites > 0 else WEIGHT_GRADIENT
    if part.first >= 0:
        weight_gradient_rows(form, part.first, part.last, x, dout, dbias, dweight)
    else:
        grid = product_grid(
            WEIGHT_GRADIENT, x.shape[0], dweight.shape, dout.shape[0], x, part.threads
        )
        weight_gradient_task(
            form, part.index, grid[0], grid[1], 0, x.shape[0], x, dout, dbias, dweight
        )
