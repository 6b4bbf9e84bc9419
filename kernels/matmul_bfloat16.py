"""Matrix products of operands that are rounded to bfloat16, with sums in float32.

    matmul_bfloat16:  out[g] = activation(r(a[g]) @ r(b[g]) + bias[g] + addend[g])

where r rounds to bfloat16; `matmul_nt_bfloat16`, `matmul_tn_bfloat16`, `matmul_backward_bfloat16`
likewise. Operands and results are arrays of float32, and all else is as in `matmul.py`: only what
is multiplied is rounded, so bias, addend, activation and sums of columns are in full precision.
This is what torch.autocast does on a CPU, but that results are not rounded.

A CPU with AVX-512's dot product of bfloat16 pairs does twice the multiply-adds of float32. On
others the rounding costs time and nothing is gained, but results are the same up to the rounding
of float32 sums.

Both operands are packed, in blocks that stay in the second-level cache: a few panels of the right
one, and under each of them some rows of the left one.

It is one long file, as matmul.py is, with which it is read.
"""

import numpy as np

from ._bfloat16 import STEP, round_bfloat16
from ._bfloat16_blocks import (
    DEPTH_BLOCK,
    pack_across,
    pack_along,
    pack_along_transposed,
    steps_of,
)
from ._bfloat16_tile import load_tiles, multiply_packed
from ._blocks import panel_width, task_part
from ._compile import kernel, prange
from ._llvm import TILE_ROWS, WIDE
from ._simd import flat, lanes, thread_count
from .activation import (
    NO_ACTIVATION,
    RELU,
    activate_block,
    differentiate_block,
    end_activation,
)
from .matmul import (
    ACTIVATED_ROWS,
    FAR_ROWS,
    FORWARD,
    INPUT_GRADIENT,
    NO_PRODUCT,
    NOTHING,
    WEIGHT_GRADIENT,
    Plan,
    _linear_input_gradient_tasks,
    _linear_tasks,
    _weight_gradient_tasks,
    add_column_sums,
    block_of_right,
    matmul_nt_reference,
    matmul_reference,
    matmul_tn_reference,
    operands_of,
    part_of_product,
    prefetch_rows,
    product_grid,
    product_plan,
    turn_of,
)
from .op import op

# Panels and rows that are packed at a time: the first take as many bytes as the second-level cache
# has room for, and are multiplied by the second, which are then packed seldom enough.
PANELS = 8
LEFT_ROWS = 8 * TILE_ROWS


def _rounded(x):
    """Return an array with its elements rounded to bfloat16."""
    return round_bfloat16(x.astype(np.float32)).astype(x.dtype)


def matmul_bfloat16_reference(a, b, bias, addend, activation, slope, out):
    """Compute `matmul_bfloat16` in NumPy."""
    matmul_reference(_rounded(a), _rounded(b), bias, addend, activation, slope, out)


def matmul_nt_bfloat16_reference(a, b, saved, addend, activation, out):
    """Compute `matmul_nt_bfloat16` in NumPy."""
    matmul_nt_reference(_rounded(a), _rounded(b), saved, addend, activation, out)


def matmul_tn_bfloat16_reference(a, b, column_sums, out):
    """Compute `matmul_tn_bfloat16` in NumPy."""
    matmul_tn_reference(_rounded(a), _rounded(b), column_sums[:0], out)
    if column_sums.size:
        groups, _, columns = out.shape
        right = b.reshape(groups, b.shape[0] // groups, columns)
        column_sums += right.sum(axis=1).reshape(column_sums.shape)


def matmul_backward_bfloat16_reference(a, b, dout, saved, addend, activation, da, db, column_sums):
    """Compute `matmul_backward_bfloat16` in NumPy."""
    matmul_tn_bfloat16_reference(a, dout, column_sums, db)
    matmul_nt_bfloat16_reference(dout, b, saved, addend, activation, da)


@kernel
def _pack_right(plan, start, depth, columns, right, rows, panel, panel_start):
    """Pack one panel of the right operand, whose block begins at `start`."""
    if plan.form == INPUT_GRADIENT:
        pack_along_transposed(
            right, start, plan.right_step, depth, columns, rows, panel, panel_start
        )
    else:
        width = panel_width(columns, panel)
        pack_across(right, start, plan.right_step, depth, columns, width, panel, panel_start)


@kernel
def _pack_left(plan, start, depth, count, left, packed):
    """Pack `count` rows of the left operand; return the steps from row to row and from k to k."""
    if plan.left_row_step == 1:
        width = (count + lanes(packed) - 1) // lanes(packed) * lanes(packed)
        pack_across(left, start, plan.left_k_step, depth, count, width, packed, 0)
        return 1, width
    # One register more, for rows whose distance is a power of two push each other out of a cache.
    row_step = steps_of(depth, packed) + lanes(packed)
    for row in range(count):
        pack_along(left, start + row * plan.left_row_step, depth, packed, row * row_step)
    return row_step, 1


@kernel
def _multiply_panel(
    plan, begins, ends, group, j, first, last, depth, packed_left, row_step, k_step, panel,
    panel_start, bias, addend, activation, saved, out,
):  # fmt: skip
    """Multiply packed rows, which are rows first to last of the product, by one packed panel.

    An activation follows each few tiles, while they are in the first-level cache.
    """
    used = min(WIDE * lanes(out), plan.columns - j)
    start = group * plan.rows * plan.columns + j
    accumulates = plan.form == WEIGHT_GRADIENT
    added = addend if begins and not accumulates else out
    rectifies = ends and activation == RELU and plan.form == FORWARD
    activates = ends and activation != NO_ACTIVATION and not rectifies
    size = ACTIVATED_ROWS if activates else max(1, last - first)
    for row in range(first, last, size):
        stop = min(last, row + size)
        if activates and plan.form != FORWARD:
            prefetch_rows(saved, row, stop, used, start, plan.columns)
        multiply_packed(
            stop - row, used, (depth + STEP - 1) // STEP, packed_left, (row - first) * row_step,
            row_step, k_step, panel, panel_start, panel_width(used, panel),
            begins and not accumulates and bias.size > 0, bias, group * plan.columns + j,
            accumulates or not begins or addend.size > 0, added, rectifies, plan.rows >= FAR_ROWS,
            out, start + row * plan.columns, plan.columns,
        )  # fmt: skip
        if activates and plan.form == FORWARD:
            activate_block(activation, row, stop, used, saved, out, start, plan.columns)
        elif activates:
            differentiate_block(activation, row, stop, used, saved, out, start, plan.columns)
    if plan.form == FORWARD:
        end_activation(saved)


@kernel
def _multiply_panels(
    plan, group, first_panel, last_panel, first, last, left, right, bias, addend, activation,
    saved, out, packed_left, panels, rows,
):  # fmt: skip
    """Compute rows first to last of some panels of columns of a group."""
    width = WIDE * lanes(out)
    for part in range(plan.parts):
        left_start = (group + part) * plan.left_group
        right_start = (group + part) * plan.right_group
        for k in range(0, max(plan.depth, 1), DEPTH_BLOCK):
            depth = min(DEPTH_BLOCK, plan.depth - k)
            panel_size = steps_of(depth, out) * width
            for p in range(first_panel, last_panel):
                j = p * width
                used = min(width, plan.columns - j)
                start, _, _ = block_of_right(plan, right_start, j, used, k, depth)
                _pack_right(
                    plan, start, depth, used, right, rows, panels, (p - first_panel) * panel_size
                )
                if plan.form == WEIGHT_GRADIENT and first == 0 and bias.size:
                    place = group * plan.columns + j
                    add_column_sums(right, start, plan.right_step, depth, used, bias, place)
            begins = part == 0 and k == 0
            ends = part == plan.parts - 1 and k + DEPTH_BLOCK >= plan.depth
            for row in range(first, last, LEFT_ROWS):
                stop = min(last, row + LEFT_ROWS)
                start = left_start + row * plan.left_row_step + k * plan.left_k_step
                row_step, k_step = _pack_left(plan, start, depth, stop - row, left, packed_left)
                for p in range(first_panel, last_panel):
                    _multiply_panel(
                        plan, begins, ends, group, p * width, row, stop, depth, packed_left,
                        row_step, k_step, panels, (p - first_panel) * panel_size, bias, addend,
                        activation, saved, out,
                    )  # fmt: skip


@kernel(once=True)
def _product_part(plan, first, last, first_panel, last_panel, left, right, bias, addend, activation,
                  saved, out):  # fmt: skip
    """Compute rows first to last of some panels of columns, of all groups' panels in a row."""
    width = WIDE * lanes(out)
    panels = (plan.columns + width - 1) // width
    steps = steps_of(min(plan.depth, DEPTH_BLOCK), out)
    packed_rows = min(LEFT_ROWS, last - first)
    packed_left = np.empty((packed_rows + lanes(out)) * (steps + lanes(out)), out.dtype)
    packed_panels = np.empty(min(PANELS, last_panel - first_panel) * width * steps, out.dtype)
    rows = np.empty(lanes(out) * lanes(out), out.dtype)
    panel = first_panel
    while panel < last_panel:
        group = panel // panels
        before = group * panels
        stop = min(last_panel, panel + PANELS, before + panels)
        _multiply_panels(
            plan, group, panel - before, stop - before, first, last, left, right, bias, addend,
            activation, saved, out, packed_left, packed_panels, rows,
        )  # fmt: skip
        panel = stop


@kernel
def _product_task(task, row_tasks, column_tasks, form, x_rows, weight_shape, y_rows, left, right,
                  bias, addend, activation, saved, out):  # fmt: skip
    """Compute the rows and panels of one task."""
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
def _task(
    task, first_form, first_grid, second_grid, x_rows, weight_shape, y_rows, x, weight, y,
    bias, addend, activation, saved, dx, dweight,
):  # fmt: skip
    """Compute a task of the first product or of the second one, the input's gradient."""
    form, index, grid = turn_of(task, first_form, first_grid, second_grid)
    left, right, bias, addend, activation, saved, out = operands_of(
        form, x, weight, y, bias, addend, activation, saved, dx, dweight
    )
    _product_task(
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
            _task(
                task, form, first_grid, second_grid, x.shape[0], weight.shape, y.shape[0], flat_x,
                flat_weight, flat_y, bias, flat_addend, activation, flat_saved, flat_dx,
                flat_dweight,
            )  # fmt: skip
    else:
        for task in prange(firsts + seconds):
            _task(
                task, form, first_grid, second_grid, x.shape[0], weight.shape, y.shape[0], flat_x,
                flat_weight, flat_y, bias, flat_addend, activation, flat_saved, flat_dx,
                flat_dweight,
            )  # fmt: skip


def matmul_bfloat16(a, b, bias, addend, activation, slope, out):
    """Multiply rounded operands, add a bias and a residual, apply an activation.

    Args: those of `matmul`, float32 alone.
    Threads: blocks of rows and columns; no sum is cut: bit-identical for any count.
    """
    load_tiles()
    _product(FORWARD, NO_PRODUCT, a, b, out, bias, addend, activation, slope, a, b)


def matmul_nt_bfloat16(a, b, saved, addend, activation, out):
    """Multiply rounded operands, the second transposed, add, apply an activation's derivative.

    Args: those of `matmul_nt`, float32 alone.
    Threads: blocks of rows and columns; no sum is cut: bit-identical for any count.
    """
    load_tiles()
    nothing = NOTHING[a.dtype]
    _product(INPUT_GRADIENT, NO_PRODUCT, out, b, a, nothing, addend, activation, saved, out, b)


def matmul_tn_bfloat16(a, b, column_sums, out):
    """Add the product of rounded operands, the first transposed; and sums over unrounded rows.

    Args: those of `matmul_tn`, float32 alone.
    Threads: blocks of out's rows and columns; no sum is cut: bit-identical for any count.
    """
    load_tiles()
    nothing = a[:0]
    _product(
        WEIGHT_GRADIENT, NO_PRODUCT, a, out, b, column_sums, nothing, NO_ACTIVATION, nothing, a, out
    )  # fmt: skip


def matmul_backward_bfloat16(a, b, dout, saved, addend, activation, da, db, column_sums):
    """Differentiate `matmul_bfloat16` by its input, its weights and its bias in one region.

    Args: those of `matmul_backward`, float32 alone.
    Threads: those of the two products side by side; bit-identical for any count.
    """
    load_tiles()
    _product(
        WEIGHT_GRADIENT, INPUT_GRADIENT, a, b, dout, column_sums, addend, activation, saved, da, db
    )  # fmt: skip


def _linear_input_gradient_bfloat16_reference(dout, weight, saved, residual, activation, dx):
    matmul_nt_bfloat16_reference(dout, weight, saved, residual, activation, dx)


def _linear_weight_gradient_bfloat16_reference(x, dout, overwrites, dweight, dbias):
    if overwrites:
        dweight[...] = 0
        dbias[...] = 0
    matmul_tn_bfloat16_reference(x, dout, dbias, dweight)


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
    cut="R", tasks=_linear_tasks, twin=matmul_bfloat16_reference, load=load_tiles,
)  # fmt: skip
def linear_bfloat16(part, x, weight, bias, residual, activation, slope, out):
    """Compute activation(x W + bias + residual) of rounded x and W; see `linear`."""
    _product_of_part(
        part, FORWARD, x.shape[0], weight.shape, out.shape[0], flat(x), flat(weight), bias,
        flat(residual), activation, flat(slope), flat(out),
    )  # fmt: skip


@op(
    "dout[GR,M] weight[G,K,M] saved?[R,K] residual?[R,K] activation:int -> dx[R,K]",
    cut="R", tasks=_linear_input_gradient_tasks, twin=_linear_input_gradient_bfloat16_reference,
    load=load_tiles,
)  # fmt: skip
def linear_input_gradient_bfloat16(part, dout, weight, saved, residual, activation, dx):
    """Compute (dout W^T + residual) * activation'(saved) of rounded dout and W."""
    _product_of_part(
        part, INPUT_GRADIENT, dx.shape[0], weight.shape, dout.shape[0], flat(dout), flat(weight),
        weight[0, 0, :0], flat(residual), activation, flat(saved), flat(dx),
    )  # fmt: skip


@kernel
def _clear_panels(first, last, first_panel, last_panel, K, M, flat_dweight, dbias):
    """Make those elements 0 to which `_product_part` adds."""
    width = WIDE * lanes(flat_dweight)
    across = (M + width - 1) // width
    for panel in range(first_panel, last_panel):
        group, j = panel // across, panel % across * width
        used = min(width, M - j)
        for i in range(group * K + first, group * K + last):
            for k in range(i * M + j, i * M + j + used):
                flat_dweight[k] = 0
        if first == 0 and dbias.size > 0:
            for k in range(group * M + j, group * M + j + used):
                dbias[k] = 0


@op(
    "x[R,K] dout[GR,M] overwrites:int -> +dweight[G,K,M] +dbias?[GM]",
    cut="R", sums=True, tasks=_weight_gradient_tasks,
    twin=_linear_weight_gradient_bfloat16_reference, load=load_tiles,
)  # fmt: skip
def linear_weight_gradient_bfloat16(part, x, dout, overwrites, dweight, dbias):
    """Add x^T dout of rounded x and dout, and the sums of dout's rows, or write them."""
    groups, K, M = dweight.shape
    rows = dout.shape[0] // groups
    first, last, flat_dweight, nothing = part.first, part.last, flat(dweight), dbias[:0]
    panels = groups * ((M + WIDE * lanes(x) - 1) // (WIDE * lanes(x)))
    first_row, last_row, first_panel = np.int64(0), K, np.int64(0)
    if first < 0:
        first, last = np.int64(0), rows
        grid = product_grid(
            WEIGHT_GRADIENT, x.shape[0], dweight.shape, dout.shape[0], x, part.threads
        )
        first_row, last_row, first_panel, panels = task_part(
            part.index, grid[0], grid[1], K, panels
        )
    if overwrites > 0:
        _clear_panels(first_row, last_row, first_panel, panels, K, M, flat_dweight, dbias)
    plan = Plan(WEIGHT_GRADIENT, groups, 1, K, M, last - first, 0, 1, K, rows * M, M)
    _product_part(
        plan, first_row, last_row, first_panel, panels, flat(x)[first * K :],
        flat(dout)[first * M :], dbias, nothing, np.int64(NO_ACTIVATION), nothing, flat_dweight,
    )  # fmt: skip
