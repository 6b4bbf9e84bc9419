"""Root mean square normalisation over the last axis, forward and backward.

    xhat = x * rrms,   rrms = 1 / sqrt(mean(x^2) + epsilon),   out = xhat * weight
    dx = rrms * (g - xhat * mean(g * xhat)) + residual,        g = dout * weight
    dweight += sum over rows of dout * xhat

Rows keep their mean, and there is no bias. Where the mean square is beyond the dtype, rrms is NaN:
0 would hide it. `residual` is the gradient that reaches x past the norm.
Source: Zhang & Sennrich 2019, arXiv:1910.07467, equation 4.
"""

import math

import numpy as np

from ._compile import kernel, prange
from ._rows import SUM_BLOCK, add_block, count_row_tasks, row_tasks, whole_sum
from ._simd import array_at, fma, lanes, load_first, splat, store_first, sum_lanes
from .op import op


def rmsnorm_forward_reference(x, weight, epsilon, out, rrms):
    """Compute `rmsnorm_forward` in NumPy."""
    mean_square = (x * x).mean(axis=1)
    rrms[...] = 1 / np.sqrt(mean_square + x.dtype.type(epsilon))
    rrms[np.isinf(mean_square)] = np.nan
    out[...] = x * rrms[:, None] * weight


def rmsnorm_backward_reference(dout, x, weight, rrms, residual, dx, dweight):
    """Compute `rmsnorm_backward` in NumPy."""
    xhat = x * rrms[:, None]
    dweight += (dout * xhat).sum(axis=0)
    g = dout * weight
    gradient = rrms[:, None] * (g - xhat * (g * xhat).mean(axis=1, keepdims=True))
    dx[...] = gradient + residual if residual.size else gradient


@kernel(inline=True)
def _squares(i, start, stop, x):
    """Return the sum of a block's squares, in two chains, which do not wait for each other."""
    C = x.shape[1]
    even, odd = splat(x, 0.0), splat(x, 0.0)
    for j in range(start, stop, 2 * lanes(x)):
        v = load_first(x, C - j, i, j)
        even = fma(v, v, even)
        if j + lanes(x) < C:
            v = load_first(x, C - j - lanes(x), i, j + lanes(x))
            odd = fma(v, v, odd)
    return even + odd


@kernel
def _rmsnorm_forward_row(i, x, weight, epsilon, out, rrms):
    """Normalise row i."""
    C, step = x.shape[1], 2 * SUM_BLOCK * lanes(x)
    total = _squares(i, 0, min(C, step), x)
    if C > step:
        left_out = splat(x, 0.0)
        for start in range(step, C, step):
            part = _squares(i, start, min(C, start + step), x)
            total, left_out = add_block(total, left_out, part)
        total = whole_sum(total, left_out)
    mean_square = sum_lanes(total) / C
    row_rrms = math.nan if math.isinf(mean_square) else 1 / math.sqrt(mean_square + epsilon)
    rrms[i] = row_rrms
    for j in range(0, C, lanes(x)):
        xhat = load_first(x, C - j, i, j) * row_rrms
        store_first(out, C - j, xhat * load_first(weight, C - j, j), i, j)


@kernel
def _rmsnorm_forward_rows(first, last, x, weight, epsilon, out, rrms):
    """Normalise rows first to last."""
    for i in range(first, last):
        _rmsnorm_forward_row(i, x, weight, epsilon, out, rrms)


@kernel(parallel=True)
def rmsnorm_forward(x, weight, epsilon, out, rrms):
    """Normalise each row.

    Args:
        x: (N, C) float32|float64, C-contiguous.    weight: (C,).    epsilon: > 0.
        out: (N, C) overwritten.    rrms: (N,) overwritten, for backward.
    Threads: rows; bit-identical for any thread count.
    """
    N, C = x.shape
    tasks = row_tasks(N, C)
    if tasks == 1:
        _rmsnorm_forward_rows(0, N, x, weight, epsilon, out, rrms)
    else:
        for task in prange(tasks):
            first, last = N * task // tasks, N * (task + 1) // tasks
            _rmsnorm_forward_rows(first, last, x, weight, epsilon, out, rrms)


@kernel(inline=True)
def _add_gradients(i, start, stop, dout, x, weight, row_rrms, task, sums):
    """Add dout * xhat to the task's present sums, and return the sum of g * xhat, of a block."""
    C, total = x.shape[1], splat(x, 0.0)
    for j in range(start, stop, lanes(x)):
        d = load_first(dout, C - j, i, j)
        xhat = load_first(x, C - j, i, j) * row_rrms
        total = fma(d * load_first(weight, C - j, j), xhat, total)
        store_first(sums, C - j, fma(d, xhat, load_first(sums, C - j, task, j)), task, j)
    return total


@kernel
def _rmsnorm_backward_row(i, dout, x, weight, rrms, residual, dx, task, sums):
    """Differentiate row i, and add dout * xhat to the task's present sums."""
    C, step = x.shape[1], SUM_BLOCK * lanes(x)
    row_rrms = rrms[i]
    total = _add_gradients(i, 0, min(C, step), dout, x, weight, row_rrms, task, sums)
    if C > step:
        left_out = splat(x, 0.0)
        for start in range(step, C, step):
            stop = min(C, start + step)
            part = _add_gradients(i, start, stop, dout, x, weight, row_rrms, task, sums)
            total, left_out = add_block(total, left_out, part)
        total = whole_sum(total, left_out)
    mean_g_xhat = sum_lanes(total) / C
    for j in range(0, C, lanes(x)):
        xhat = load_first(x, C - j, i, j) * row_rrms
        g = load_first(dout, C - j, i, j) * load_first(weight, C - j, j)
        y = (g - xhat * mean_g_xhat) * row_rrms
        if residual.size:
            y = y + load_first(residual, C - j, i, j)
        store_first(dx, C - j, y, i, j)


@kernel
def _rmsnorm_backward_rows(task, tasks, dout, x, weight, rrms, residual, dx, sums, totals):
    """Differentiate the rows of one task; its totals, in float64, gain the sums of a few rows."""
    N, C = x.shape
    last = N * (task + 1) // tasks
    for start in range(N * task // tasks, last, SUM_BLOCK):
        for i in range(start, min(last, start + SUM_BLOCK)):
            _rmsnorm_backward_row(i, dout, x, weight, rrms, residual, dx, task, sums)
        for j in range(C):
            totals[task, j] += sums[task, j]
            sums[task, j] = 0


@kernel
def _new_sums(tasks, x):
    """Return zeros, (tasks, C), in x's dtype and in float64.

    Within a parallel kernel, filling them would be two more regions.
    """
    return np.zeros((tasks, x.shape[1]), x.dtype), np.zeros((tasks, x.shape[1]))


@kernel(parallel=True)
def rmsnorm_backward(dout, x, weight, rrms, residual, dx, dweight):
    """Differentiate the normalisation of each row.

    Args:
        dout, x: (N, C) float32|float64, C-contiguous.    weight: (C,).
        rrms: (N,) from forward.    residual: (N, C) added to dx, or (0, 0).
        dx: (N, C) overwritten; may be dout or residual.    dweight: (C,) accumulated.
    Threads: rows; the parameter's sums over a number of tasks that N and C fix, added in order:
    bit-identical for any thread count.
    """
    N, C = x.shape
    tasks = row_tasks(N, C)
    sums, totals = _new_sums(tasks, x)
    if tasks == 1:
        _rmsnorm_backward_rows(0, 1, dout, x, weight, rrms, residual, dx, sums, totals)
    else:
        for task in prange(tasks):
            _rmsnorm_backward_rows(task, tasks, dout, x, weight, rrms, residual, dx, sums, totals)
    for task in range(1, tasks):
        for j in range(C):
            totals[0, j] += totals[task, j]
    for j in range(C):
        dweight[j] += totals[0, j]


def _rmsnorm_gradient_reference(dout, x, weight, rrms, residual, dx, totals):
    dweight = np.zeros_like(weight)
    rmsnorm_backward_reference(dout, x, weight, rrms, residual, dx, dweight)
    totals[...] = 0
    totals[0] = dweight


def _one_rmsnorm_task(threads, totals, rows, shards, overwrites, dweight):
    return 1


def _add_rmsnorm_gradient_reference(totals, rows, shards, overwrites, dweight):
    parts = shards if shards else count_row_tasks(rows, dweight.size)
    if overwrites:
        dweight[...] = 0
    dweight += totals[:parts].sum(axis=0).astype(dweight.dtype)


@op(
    "x[R,C] weight[C] epsilon:float -> out[R,C] rrms[R]",
    cut="R", cost="C", twin=rmsnorm_forward_reference,
)  # fmt: skip
def rmsnorm(part, x, weight, epsilon, out, rrms):
    """Normalise each row; see `rmsnorm_forward`."""
    _rmsnorm_forward_rows(part.first, part.last, x, weight, epsilon, out, rrms)


@op(
    "dout[R,C] x[R,C] weight[C] rrms[R] residual?[R,C] "
    "-> dx[R,C] totals:double[P,C] scratch:scratch",
    cut="R", cost="C", each=True, twin=_rmsnorm_gradient_reference,
    scratch=lambda sizes, longest, lanes: sizes["C"],
)  # fmt: skip
def rmsnorm_gradient(part, dout, x, weight, rrms, residual, dx, totals, scratch):
    """Differentiate by x, and leave a part's sums for the gradient of the weight."""
    C, sums = weight.size, array_at(scratch, 0, 1, weight.size)
    for j in range(C):
        totals[part.index, j] = 0
        sums[0, j] = 0
    for start in range(part.first, part.last, SUM_BLOCK):
        for i in range(start, min(part.last, start + SUM_BLOCK)):
            _rmsnorm_backward_row(i, dout, x, weight, rrms, residual, dx, 0, sums)
        for j in range(C):
            totals[part.index, j] += sums[0, j]
            sums[0, j] = 0


@op(
    "totals:double[P,C] rows:int shards:int overwrites:int -> +dweight[C]",
    cut="sequences", sums=True, tasks=_one_rmsnorm_task, twin=_add_rmsnorm_gradient_reference,
)  # fmt: skip
def add_rmsnorm_gradient(part, totals, rows, shards, overwrites, dweight):
    """Add up what `rmsnorm_gradient` left of each part of the rows, or that of a shard."""
    first, last = part.index, part.index + 1
    if part.first < 0:
        first, last = 0, shards if shards > 0 else row_tasks(rows, dweight.size)
    for j in range(dweight.size):
        total = totals[first, j]
        for other in range(first + 1, last):
            total += totals[other, j]
        dweight[j] = total if overwrites > 0 else dweight[j] + total
