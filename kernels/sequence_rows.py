"""One row for each packed sequence: a chosen row, or the mean of all; and rows that are kept.

gather_rows:   out[b] = x[rows[b]]                     scatter_rows:  dx[rows[b]] += dout[b]
keep_rows:     kept[rows[i]] = x[i]
mean_forward:  out[b] = mean of x[offsets[b]:offsets[b + 1]]
mean_backward: dx[i] = dout[b] / length of b, for every row i of sequence b
"""

import numpy as np

from ._compile import kernel, prange
from ._rows import SUM_BLOCK, add_block, row_tasks, whole_sum
from ._simd import lanes, load_first, splat, store_first
from .op import op


def gather_rows_reference(x, rows, out):
    """Compute `gather_rows` in NumPy."""
    out[...] = x[rows]


def scatter_rows_reference(dout, rows, dx):
    """Compute `scatter_rows` in NumPy."""
    dx[rows] += dout


def mean_forward_reference(x, offsets, out):
    """Compute `mean_forward` in NumPy."""
    for b in range(offsets.size - 1):
        out[b] = x[offsets[b] : offsets[b + 1]].mean(axis=0)


def mean_backward_reference(dout, offsets, dx):
    """Compute `mean_backward` in NumPy."""
    lengths = np.diff(offsets)
    dx[...] = np.repeat(dout / lengths[:, None].astype(dout.dtype), lengths, axis=0)


@kernel
def copy_rows(first, last, x, rows, out):
    """Copy the chosen rows first to last."""
    C = x.shape[1]
    for b in range(first, last):
        for j in range(0, C, lanes(x)):
            store_first(out, C - j, load_first(x, C - j, rows[b], j), b, j)


@kernel(parallel=True)
def gather_rows(x, rows, out):
    """Copy the chosen rows.

    Args:
        x: (N, C) float32|float64, C-contiguous.    rows: (B,) int64, in range.
        out: (B, C) overwritten.
    Threads: rows; bit-identical for any thread count.
    """
    B, C = out.shape
    tasks = row_tasks(B, C)
    if tasks == 1:
        copy_rows(0, B, x, rows, out)
    else:
        for task in prange(tasks):
            copy_rows(B * task // tasks, B * (task + 1) // tasks, x, rows, out)


@kernel
def add_rows(first, last, dout, rows, dx):
    """Add rows first to last to their places."""
    C = dx.shape[1]
    for b in range(first, last):
        for j in range(0, C, lanes(dx)):
            row = load_first(dx, C - j, rows[b], j) + load_first(dout, C - j, b, j)
            store_first(dx, C - j, row, rows[b], j)


@kernel(parallel=True)
def scatter_rows(dout, rows, dx):
    """Add each row to its place.

    Args:
        dout: (B, C) float32|float64, C-contiguous.    rows: (B,) int64, in range, all different.
        dx: (N, C) accumulated.
    Threads: rows; bit-identical for any thread count.
    """
    B, C = dout.shape
    tasks = row_tasks(B, C)
    if tasks == 1:
        add_rows(0, B, dout, rows, dx)
    else:
        for task in prange(tasks):
            add_rows(B * task // tasks, B * (task + 1) // tasks, dout, rows, dx)


@kernel
def _mean_rows(first, last, x, offsets, out):
    """Write the means of sequences first to last."""
    C = x.shape[1]
    for b in range(first, last):
        length = offsets[b + 1] - offsets[b]
        for j in range(0, C, lanes(x)):
            total, left_out = splat(x, 0.0), splat(x, 0.0)
            for first in range(offsets[b], offsets[b + 1], SUM_BLOCK):
                part = splat(x, 0.0)
                for i in range(first, min(offsets[b + 1], first + SUM_BLOCK)):
                    part = part + load_first(x, C - j, i, j)
                total, left_out = add_block(total, left_out, part)
            store_first(out, C - j, whole_sum(total, left_out) / length, b, j)


@kernel(parallel=True)
def mean_forward(x, offsets, out):
    """Write the mean of each sequence's rows.

    Args:
        x: (N, C) float32|float64, C-contiguous.    offsets: (B + 1,) int64, strictly rising.
        out: (B, C) overwritten.
    Threads: sequences; bit-identical for any thread count.
    """
    B, C = out.shape
    tasks = row_tasks(B, C * max(1, x.shape[0] // max(1, B)))
    for task in prange(tasks):
        _mean_rows(B * task // tasks, B * (task + 1) // tasks, x, offsets, out)


@kernel
def _share_rows(first, last, dout, offsets, dx):
    """Give each row of sequences first to last its share."""
    C = dx.shape[1]
    for b in range(first, last):
        length = offsets[b + 1] - offsets[b]
        for j in range(0, C, lanes(dx)):
            share = load_first(dout, C - j, b, j) / length
            for i in range(offsets[b], offsets[b + 1]):
                store_first(dx, C - j, share, i, j)


@kernel(parallel=True)
def mean_backward(dout, offsets, dx):
    """Give each row its share of the mean's gradient.

    Args:
        dout: (B, C) float32|float64, C-contiguous.    offsets: (B + 1,) int64, strictly rising.
        dx: (N, C) overwritten.
    Threads: sequences; bit-identical for any thread count.
    """
    B, C = dout.shape
    tasks = row_tasks(B, C * max(1, dx.shape[0] // max(1, B)))
    for task in prange(tasks):
        _share_rows(B * task // tasks, B * (task + 1) // tasks, dout, offsets, dx)


@op("x[N,C] rows:int[B] -> out[B,C]", cut="B", cost="C", twin=gather_rows_reference)
def gather(part, x, rows, out):
    """Copy the chosen row of each sequence."""
    copy_rows(part.first, part.last, x, rows, out)


@op("dout[B,C] rows:int[B] -> +dx[N,C]", cut="B", cost="C", twin=scatter_rows_reference)
def scatter(part, dout, rows, dx):
    """Add to the chosen row of each sequence."""
    add_rows(part.first, part.last, dout, rows, dx)


def _keep_rows_reference(x, rows, kept):
    kept[rows] = x


@op("x[R,C] rows:int[R] -> +kept[N,C]", cut="R", cost="C", twin=_keep_rows_reference)
def keep_rows(part, x, rows, kept):
    """Write each row to its place among those that are kept."""
    C = x.shape[1]
    for i in range(part.first, part.last):
        for j in range(0, C, lanes(x)):
            store_first(kept, C - j, load_first(x, C - j, i, j), rows[i], j)


@op("x[N,C] offsets:int[P] -> out[B,C]", cut="B", cost="C", twin=mean_forward_reference)
def mean_of_rows(part, x, offsets, out):
    """Write the mean of each sequence's rows."""
    _mean_rows(part.first, part.last, x, offsets, out)


@op("dout[B,C] offsets:int[P] -> dx[N,C]", cut="B", cost="C", twin=mean_backward_reference)
def mean_of_rows_gradient(part, dout, offsets, dx):
    """Give each row its share of the mean's gradient."""
    _share_rows(part.first, part.last, dout, offsets, dx)
