"""Layer normalisation over the last axis, forward and backward.

    xhat = (x - mean) * rstd,   rstd = 1 / sqrt(variance + epsilon),   out = xhat * weight + bias
    dx = rstd * (g - mean(g) - xhat * mean(g * xhat)) + residual,      g = dout * weight
    dweight += sum over rows of dout * xhat,                           dbias += sum of dout

The variance is the biased one; where it is beyond the dtype, rstd is NaN: 0 would hide it.
`residual` is the gradient that reaches x past the norm.
Source: Ba, Kiros & Hinton 2016, arXiv:1607.06450, equation 4.
"""

import math

import numpy as np

from ._compile import kernel, prange
from ._rows import LONG_ROW, SUM_BLOCK, add_block, count_row_tasks, row_tasks, whole_sum
from ._simd import flat, fma, lanes, load_first, load_padded, splat, store_first, sum_lanes
from .op import op

# The rounding of a mean is seen, and made good, where its square is so many times the variance.
LARGE_MEAN = 4.0


def layernorm_forward_reference(x, weight, bias, epsilon, out, mean, rstd):
    """Compute `layernorm_forward` in NumPy."""
    mean[...] = x.mean(axis=1)
    centred = x - mean[:, None]
    variance = (centred * centred).mean(axis=1)
    rstd[...] = 1 / np.sqrt(variance + x.dtype.type(epsilon))
    rstd[np.isinf(variance)] = np.nan
    out[...] = centred * rstd[:, None] * weight
    if bias.size:
        out += bias


def layernorm_backward_reference(dout, x, weight, mean, rstd, residual, dx, dweight, dbias):
    """Compute `layernorm_backward` in NumPy."""
    xhat = (x - mean[:, None]) * rstd[:, None]
    dweight += (dout * xhat).sum(axis=0)
    if dbias.size:
        dbias += dout.sum(axis=0)
    g = dout * weight
    g_mean = g.mean(axis=1, keepdims=True)
    gradient = rstd[:, None] * (g - g_mean - xhat * (g * xhat).mean(axis=1, keepdims=True))
    dx[...] = gradient + residual if residual.size else gradient


@kernel(inline=True)
def _differences(x, place, count, mean):
    """Return the sum of some elements less the mean.

    In two chains, which do not wait for each other.
    """
    even, odd = splat(x, 0.0), splat(x, 0.0)
    for j in range(0, count, 2 * lanes(x)):
        even = even + (load_padded(x, count - j, mean, place + j) - mean)
        left = count - j - lanes(x)
        if left > 0:
            odd = odd + (load_padded(x, left, mean, place + j + lanes(x)) - mean)
    return even + odd


@kernel(inline=True)
def _squares(x, place, count, mean):
    """Return the sum of the squares of some elements less the mean."""
    even, odd = splat(x, 0.0), splat(x, 0.0)
    for j in range(0, count, 2 * lanes(x)):
        centred = load_padded(x, count - j, mean, place + j) - mean
        even = fma(centred, centred, even)
        left = count - j - lanes(x)
        if left > 0:
            centred = load_padded(x, left, mean, place + j + lanes(x)) - mean
            odd = fma(centred, centred, odd)
    return even + odd


@kernel(allocates=False)
def _long_mean(x, start, C, mean, of_squares):
    """Return the mean of a long row's elements less a number, or of their squares."""
    step = 2 * SUM_BLOCK * lanes(x)
    total, left_out = splat(x, 0.0), splat(x, 0.0)
    for j in range(0, C, step):
        if of_squares:
            part = _squares(x, start + j, min(C - j, step), mean)
        else:
            part = _differences(x, start + j, min(C - j, step), mean)
        total, left_out = add_block(total, left_out, part)
    return sum_lanes(whole_sum(total, left_out)) / C


@kernel(part=True)
def _layernorm_forward_row(i, x, weight, bias, epsilon, out, mean, rstd):
    """Normalise row i."""
    C, start = weight.size, i * weight.size
    if C > 2 * LONG_ROW * lanes(x):
        row_mean = _long_mean(x, start, C, 0.0, False)
        variance = _long_mean(x, start, C, row_mean, True)
    else:
        row_mean = sum_lanes(_differences(x, start, C, 0.0)) / C
        variance = sum_lanes(_squares(x, start, C, row_mean)) / C
    rest = 0.0
    if row_mean * row_mean > LARGE_MEAN * variance:
        rest = _long_mean(x, start, C, row_mean, False)
        variance = variance - rest * rest
        if variance < 0:
            variance = 0.0
    row_rstd = math.nan if math.isinf(variance) else 1 / math.sqrt(variance + epsilon)
    mean[i] = row_mean
    rstd[i] = row_rstd
    shift = splat(x, 0.0)
    for j in range(0, C, lanes(x)):
        xhat = ((load_first(x, C - j, start + j) - row_mean) - rest) * row_rstd
        if bias.size > 0:
            shift = load_first(bias, C - j, j)
        store_first(out, C - j, fma(xhat, load_first(weight, C - j, j), shift), start + j)


@kernel(once=True, allocates=False)
def layernorm_forward_rows(first, last, x, weight, bias, epsilon, out, mean, rstd):
    """Normalise rows first to last, in one thread."""
    flat_x, flat_out = flat(x), flat(out)
    for i in range(first, last):
        _layernorm_forward_row(i, flat_x, weight, bias, epsilon, flat_out, mean, rstd)


@kernel(parallel=True)
def layernorm_forward(x, weight, bias, epsilon, out, mean, rstd):
    """Normalise each row.

    Args:
        x: (N, C) float32|float64, C-contiguous.    epsilon: > 0.
        weight, bias: (C,); bias (0,) for none.
        out: (N, C) overwritten.    mean, rstd: (N,) overwritten, for backward.
    Threads: rows; bit-identical for any thread count.
    """
    N, C = x.shape
    tasks = row_tasks(N, C)
    if tasks == 1:
        layernorm_forward_rows(np.int64(0), N, x, weight, bias, epsilon, out, mean, rstd)
    else:
        for task in prange(tasks):
            first, last = N * task // tasks, N * (task + 1) // tasks
            layernorm_forward_rows(first, last, x, weight, bias, epsilon, out, mean, rstd)


@kernel(inline=True)
def _add_gradients(begin, end, start, dout, x, weight, row_mean, row_rstd, task, sums):
    """Add dout * xhat and dout to the task's sums, and return the sums of g and g * xhat.

    Of the columns from begin to end of a row that begins at start.
    """
    C = weight.size
    total, total_xhat = splat(x, 0.0), splat(x, 0.0)
    for j in range(begin, end, lanes(x)):
        d = load_first(dout, C - j, start + j)
        xhat = (load_first(x, C - j, start + j) - row_mean) * row_rstd
        g = d * load_first(weight, C - j, j)
        total = total + g
        total_xhat = fma(g, xhat, total_xhat)
        dweight = fma(d, xhat, load_first(sums, C - j, task, 0, j))
        store_first(sums, C - j, dweight, task, 0, j)
        store_first(sums, C - j, d + load_first(sums, C - j, task, 1, j), task, 1, j)
    return total, total_xhat


@kernel(inline=True)
def _write_gradient(start, dout, x, weight, row_mean, row_rstd, total, total_xhat, residual, dx):
    """Write dx of a row from the sums of g and g * xhat."""
    C = weight.size
    mean_g = sum_lanes(total) / C
    mean_g_xhat = sum_lanes(total_xhat) / C
    for j in range(0, C, lanes(x)):
        xhat = (load_first(x, C - j, start + j) - row_mean) * row_rstd
        g = load_first(dout, C - j, start + j) * load_first(weight, C - j, j)
        y = (g - mean_g - xhat * mean_g_xhat) * row_rstd
        if residual.size:
            y = y + load_first(residual, C - j, start + j)
        store_first(dx, C - j, y, start + j)


@kernel(part=True)
def _layernorm_backward_row(i, dout, x, weight, mean, rstd, residual, dx, task, sums):
    """Differentiate row i, and add to the task's sums: of dout * xhat, and of dout."""
    C, start = weight.size, i * weight.size
    row_mean, row_rstd = mean[i], rstd[i]
    total, total_xhat = _add_gradients(0, C, start, dout, x, weight, row_mean, row_rstd, task, sums)
    _write_gradient(start, dout, x, weight, row_mean, row_rstd, total, total_xhat, residual, dx)


@kernel(allocates=False)
def _long_backward_row(i, dout, x, weight, mean, rstd, residual, dx, task, sums):
    """Do what `_layernorm_backward_row` does, with sums of blocks."""
    C, start, step = weight.size, i * weight.size, SUM_BLOCK * lanes(x)
    row_mean, row_rstd = mean[i], rstd[i]
    total, left_out = splat(x, 0.0), splat(x, 0.0)
    total_xhat, xhat_left_out = splat(x, 0.0), splat(x, 0.0)
    for begin in range(0, C, step):
        end = min(C, begin + step)
        part, part_xhat = _add_gradients(
            begin, end, start, dout, x, weight, row_mean, row_rstd, task, sums
        )
        total, left_out = add_block(total, left_out, part)
        total_xhat, xhat_left_out = add_block(total_xhat, xhat_left_out, part_xhat)
    total, total_xhat = whole_sum(total, left_out), whole_sum(total_xhat, xhat_left_out)
    _write_gradient(start, dout, x, weight, row_mean, row_rstd, total, total_xhat, residual, dx)


@kernel(once=True, allocates=False)
def layernorm_backward_rows(first, last, dout, x, weight, mean, rstd, residual, dx, task, sums):
    """Differentiate rows first to last, in one thread.

    Args:
        sums: (tasks, 2, C), of which the task's part gains the sums of dout * xhat, and of dout.
    """
    flat_dout, flat_x, flat_dx = flat(dout), flat(x), flat(dx)
    flat_residual = flat(residual)
    if weight.size > LONG_ROW * lanes(x):
        for i in range(first, last):
            _long_backward_row(
                i, flat_dout, flat_x, weight, mean, rstd, flat_residual, flat_dx, task, sums
            )
        return
    for i in range(first, last):
        _layernorm_backward_row(
            i, flat_dout, flat_x, weight, mean, rstd, flat_residual, flat_dx, task, sums
        )


@kernel
def new_layernorm_sums(tasks, x):
    """Return zeros, (tasks, 2, C), for the sums of rows of x.

    Within a parallel kernel, filling them would be one more region.
    """
    return np.zeros((tasks, 2, x.shape[1]), x.dtype)


@kernel
def add_layernorm_sums(sums, dweight, dbias):
    """Add the sums of all tasks, in order."""
    C = dweight.size
    for j in range(0, C, lanes(sums)):
        weight, bias = load_first(sums, C - j, 0, 0, j), load_first(sums, C - j, 0, 1, j)
        for task in range(1, sums.shape[0]):
            weight = weight + load_first(sums, C - j, task, 0, j)
            bias = bias + load_first(sums, C - j, task, 1, j)
        store_first(dweight, C - j, load_first(dweight, C - j, j) + weight, j)
        if dbias.size > 0:
            store_first(dbias, C - j, load_first(dbias, C - j, j) + bias, j)


@kernel(parallel=True)
def layernorm_backward(dout, x, weight, mean, rstd, residual, dx, dweight, dbias):
    """Differentiate the normalisation of each row.

    Args:
        dout, x: (N, C) float32|float64, C-contiguous.    weight: (C,).
        mean, rstd: (N,) from forward.    residual: (N, C) added to dx, or (0, 0).
        dx: (N, C) overwritten; may be dout or residual.    dweight, dbias: (C,) accumulated;
            dbias (0,) for none.
    Threads: rows; the parameters' sums over a number of tasks that N and C fix, added in order:
    bit-identical for any thread count.
    """
    N, C = x.shape
    tasks = row_tasks(N, C)
    sums = new_layernorm_sums(tasks, x)
    if tasks == 1:
        first = np.int64(0)
        layernorm_backward_rows(first, N, dout, x, weight, mean, rstd, residual, dx, first, sums)
    else:
        for task in prange(tasks):
            first, last = N * task // tasks, N * (task + 1) // tasks
            layernorm_backward_rows(
                first, last, dout, x, weight, mean, rstd, residual, dx, np.int64(task), sums
            )
    add_layernorm_sums(sums, dweight, dbias)


def _layernorm_gradient_reference(dout, x, weight, mean, rstd, residual, dx, sums):
    sums[...] = 0
    layernorm_backward_reference(dout, x, weight, mean, rstd, residual, dx, sums[0, 0], sums[0, 1])


def _one_layernorm_task(threads, sums, rows, shards, overwrites, dweight, dbias):
    return 1


def _add_layernorm_gradient_reference(sums, rows, shards, overwrites, dweight, dbias):
    parts = shards if shards else count_row_tasks(rows, dweight.size)
    if overwrites:
        dweight[...] = 0
        dbias[...] = 0
    dweight += sums[:parts, 0].sum(axis=0)
    if dbias.size:
        dbias += sums[:parts, 1].sum(axis=0)


@op(
    "x[R,C] weight[C] bias?[C] epsilon:float -> out[R,C] mean[R] rstd[R]",
    cut="R", cost="C", twin=layernorm_forward_reference,
)  # fmt: skip
def layernorm(part, x, weight, bias, epsilon, out, mean, rstd):
    """Normalise each row; see `layernorm_forward`."""
    layernorm_forward_rows(part.first, part.last, x, weight, bias, epsilon, out, mean, rstd)


@op(
    "dout[R,C] x[R,C] weight[C] mean[R] rstd[R] residual?[R,C] -> dx[R,C] sums[P,2,C]",
    cut="R", cost="C", each=True, twin=_layernorm_gradient_reference,
)  # fmt: skip
def layernorm_gradient(part, dout, x, weight, mean, rstd, residual, dx, sums):
    """Differentiate by x, and leave a part's sums for the gradients of weight and bias."""
    for i in range(2):
        for j in range(weight.size):
            sums[part.index, i, j] = 0
    layernorm_backward_rows(
        part.first, part.last, dout, x, weight, mean, rstd, residual, dx, part.index, sums
    )


@op(
    "sums[P,2,C] rows:int shards:int overwrites:int -> +dweight[C] +dbias?[C]",
    cut="sequences", sums=True, tasks=_one_layernorm_task, twin=_add_layernorm_gradient_reference,
)  # fmt: skip
def add_layernorm_gradient(part, sums, rows, shards, overwrites, dweight, dbias):
    """Add up what `layernorm_gradient` left of each part of the rows, or that of a shard."""
    if overwrites > 0:
        for j in range(dweight.size):
            dweight[j] = 0
        for j in range(dbias.size):
            dbias[j] = 0
    if part.first >= 0:
        add_layernorm_sums(sums[part.index : part.index + 1], dweight, dbias)
    else:
        parts = shards if shards > 0 else row_tasks(rows, dweight.size)
        add_layernorm_sums(sums[:parts], dweight, dbias)
