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
from ._rows import row_tasks
from ._simd import flat, fma, lanes, load_first, load_padded, splat, store_first, sum_lanes


def layernorm_forward_reference(x, weight, bias, epsilon, out, mean, rstd):
    """Compute `layernorm_forward` in NumPy."""
    mean[...] = x.mean(axis=1)
    centred = x - mean[:, None]
    variance = (centred * centred).mean(axis=1)
    rstd[...] = 1 / np.sqrt(variance + x.dtype.type(epsilon))
    rstd[np.isinf(variance)] = np.nan
    out[...] = centred * rstd[:, None] * weight + bias


def layernorm_backward_reference(dout, x, weight, mean, rstd, residual, dx, dweight, dbias):
    """Compute `layernorm_backward` in NumPy."""
    xhat = (x - mean[:, None]) * rstd[:, None]
    dweight += (dout * xhat).sum(axis=0)
    dbias += dout.sum(axis=0)
    g = dout * weight
    g_mean = g.mean(axis=1, keepdims=True)
    gradient = rstd[:, None] * (g - g_mean - xhat * (g * xhat).mean(axis=1, keepdims=True))
    dx[...] = gradient + residual if residual.size else gradient


@kernel(part=True)
def _layernorm_forward_row(i, x, weight, bias, epsilon, out, mean, rstd):
    """Normalise row i."""
    C, start = weight.size, i * weight.size
    # Sums run in two chains, which do not wait for each other.
    even, odd = splat(x, 0.0), splat(x, 0.0)
    for j in range(0, C, 2 * lanes(x)):
        even = even + load_first(x, C - j, start + j)
        if j + lanes(x) < C:
            odd = odd + load_first(x, C - j - lanes(x), start + j + lanes(x))
    row_mean = sum_lanes(even + odd) / C
    even, odd = splat(x, 0.0), splat(x, 0.0)
    for j in range(0, C, 2 * lanes(x)):
        centred = load_padded(x, C - j, row_mean, start + j) - row_mean
        even = fma(centred, centred, even)
        if j + lanes(x) < C:
            n = C - j - lanes(x)
            centred = load_padded(x, n, row_mean, start + j + lanes(x)) - row_mean
            odd = fma(centred, centred, odd)
    variance = sum_lanes(even + odd) / C
    row_rstd = math.nan if math.isinf(variance) else 1 / math.sqrt(variance + epsilon)
    mean[i] = row_mean
    rstd[i] = row_rstd
    for j in range(0, C, lanes(x)):
        xhat = (load_first(x, C - j, start + j) - row_mean) * row_rstd
        y = fma(xhat, load_first(weight, C - j, j), load_first(bias, C - j, j))
        store_first(out, C - j, y, start + j)


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
        x: (N, C) float32|float64, C-contiguous.    weight, bias: (C,).    epsilon: > 0.
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


@kernel(part=True)
def _layernorm_backward_row(i, dout, x, weight, mean, rstd, residual, dx, task, sums):
    """Differentiate row i, and add to the task's sums: of dout * xhat, and of dout."""
    C, start = weight.size, i * weight.size
    row_mean, row_rstd = mean[i], rstd[i]
    total = splat(x, 0.0)
    total_xhat = splat(x, 0.0)
    for j in range(0, C, lanes(x)):
        d = load_first(dout, C - j, start + j)
        xhat = (load_first(x, C - j, start + j) - row_mean) * row_rstd
        g = d * load_first(weight, C - j, j)
        total = total + g
        total_xhat = fma(g, xhat, total_xhat)
        dweight = fma(d, xhat, load_first(sums, C - j, task, 0, j))
        store_first(sums, C - j, dweight, task, 0, j)
        store_first(sums, C - j, d + load_first(sums, C - j, task, 1, j), task, 1, j)
    mean_g = sum_lanes(total) / C
    mean_g_xhat = sum_lanes(total_xhat) / C
    for j in range(0, C, lanes(x)):
        xhat = (load_first(x, C - j, start + j) - row_mean) * row_rstd
        g = load_first(dout, C - j, start + j) * load_first(weight, C - j, j)
        y = (g - mean_g - xhat * mean_g_xhat) * row_rstd
        if residual.size:
            y = y + load_first(residual, C - j, start + j)
        store_first(dx, C - j, y, start + j)


@kernel(once=True, allocates=False)
def layernorm_backward_rows(first, last, dout, x, weight, mean, rstd, residual, dx, task, sums):
    """Differentiate rows first to last, in one thread.

    Args:
        sums: (tasks, 2, C), of which the task's part gains the sums of dout * xhat, and of dout.
    """
    flat_dout, flat_x, flat_dx = flat(dout), flat(x), flat(dx)
    flat_residual = flat(residual)
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
    for task in range(1, sums.shape[0]):
        for j in range(C):
            sums[0, 0, j] += sums[task, 0, j]
            sums[0, 1, j] += sums[task, 1, j]
    for j in range(C):
        dweight[j] += sums[0, 0, j]
        dbias[j] += sums[0, 1, j]


@kernel(parallel=True)
def layernorm_backward(dout, x, weight, mean, rstd, residual, dx, dweight, dbias):
    """Differentiate the normalisation of each row.

    Args:
        dout, x: (N, C) float32|float64, C-contiguous.    weight: (C,).
        mean, rstd: (N,) from forward.    residual: (N, C) added to dx, or (0, 0).
        dx: (N, C) overwritten; may be dout or residual.    dweight, dbias: (C,) accumulated.
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
