"""Softmax over the last axis, forward and backward.

    out = exp(x - max(x)) / sum(exp(x - max(x))),      dx = out * (dout - sum(dout * out))

Source: Bridle 1990; the shift by the largest element keeps every exponential at most 1.
"""

import math

import numpy as np

from ._compile import kernel, prange
from ._rows import EXP_BLOCK, SUM_BLOCK, add_block, row_tasks, whole_sum
from ._simd import (
    exp,
    fma,
    lanes,
    load,
    load_first,
    load_padded,
    max_lanes,
    maximum,
    splat,
    store,
    store_first,
    sum_lanes,
)
from .op import op


def softmax_forward_reference(x, out):
    """Compute `softmax_forward` in NumPy."""
    out[...] = np.exp(x - x.max(axis=1, keepdims=True))
    out /= out.sum(axis=1, keepdims=True)


def softmax_backward_reference(dout, out, dx):
    """Compute `softmax_backward` in NumPy."""
    dx[...] = out * (dout - (dout * out).sum(axis=1, keepdims=True))


@kernel
def row_maximum(x, i):
    """Return the largest element of row i; a NaN, which the sum shows, may be passed over."""
    V = x.shape[1]
    largest = splat(x, -math.inf)
    for j in range(0, V, lanes(x)):
        largest = maximum(largest, load_padded(x, V - j, -math.inf, i, j))
    return max_lanes(largest)


@kernel(inline=True)
def _exponentials(i, start, stop, x, largest, out):
    """Write the exponentials of whole registers of row i, and return their sum.

    In four chains that take turns.
    """
    zero = splat(x, 0.0)
    a, b, c, d = zero, zero, zero, zero
    for j in range(start, stop, lanes(x)):
        e = exp(load(x, i, j) - largest)
        store(out, e, i, j)
        a, b, c, d = b, c, d, a + e
    return (a + b) + (c + d)


@kernel(allocates=False)
def _exponentials_of_long_row(i, whole, x, largest, out):
    """Do what `_exponentials` does, with sums of blocks."""
    step = EXP_BLOCK * lanes(x)
    total, left_out = splat(x, 0.0), splat(x, 0.0)
    for start in range(0, whole, step):
        part = _exponentials(i, start, min(whole, start + step), x, largest, out)
        total, left_out = add_block(total, left_out, part)
    return whole_sum(total, left_out)


@kernel
def _softmax_forward_row(i, x, out):
    """Write the softmax of row i."""
    V = x.shape[1]
    largest = row_maximum(x, i)
    whole = V // lanes(x) * lanes(x)
    if whole > EXP_BLOCK * lanes(x):
        total = _exponentials_of_long_row(i, whole, x, largest, out)
    else:
        total = _exponentials(i, 0, whole, x, largest, out)
    if whole < V:
        e = exp(load_padded(x, V - whole, -math.inf, i, whole) - largest)
        store_first(out, V - whole, e, i, whole)
        total = total + e
    inverse = 1 / sum_lanes(total)
    for j in range(0, V, lanes(x)):
        store_first(out, V - j, load_first(out, V - j, i, j) * inverse, i, j)


@kernel(parallel=True)
def softmax_forward(x, out):
    """Write the softmax of each row.

    Args:
        x: (N, V) float32|float64, C-contiguous, V >= 1.    out: (N, V) overwritten; may be x.
    Threads: rows; bit-identical for any thread count.
    """
    N, V = x.shape
    tasks = row_tasks(N, V)
    for task in prange(tasks):
        for i in range(N * task // tasks, N * (task + 1) // tasks):
            _softmax_forward_row(i, x, out)


@kernel(inline=True)
def _products(i, start, stop, dout, out):
    """Return the sum of a block's products."""
    V, total = out.shape[1], splat(out, 0.0)
    for j in range(start, stop, lanes(out)):
        total = fma(load_first(dout, V - j, i, j), load_first(out, V - j, i, j), total)
    return total


@kernel
def _softmax_backward_row(i, dout, out, dx):
    """Differentiate the softmax of row i."""
    V, step = out.shape[1], SUM_BLOCK * lanes(out)
    total = _products(i, 0, min(V, step), dout, out)
    if V > step:
        left_out = splat(out, 0.0)
        for start in range(step, V, step):
            part = _products(i, start, min(V, start + step), dout, out)
            total, left_out = add_block(total, left_out, part)
        total = whole_sum(total, left_out)
    product = sum_lanes(total)
    for j in range(0, V, lanes(out)):
        d = load_first(dout, V - j, i, j) - product
        store_first(dx, V - j, load_first(out, V - j, i, j) * d, i, j)


@kernel(parallel=True)
def softmax_backward(dout, out, dx):
    """Differentiate the softmax of each row.

    Args:
        dout: (N, V) float32|float64, C-contiguous.    out: (N, V) from forward.
        dx: (N, V) overwritten; may be dout.
    Threads: rows; bit-identical for any thread count.
    """
    N, V = out.shape
    tasks = row_tasks(N, V)
    for task in prange(tasks):
        for i in range(N * task // tasks, N * (task + 1) // tasks):
            _softmax_backward_row(i, dout, out, dx)


@op("x[R,V] -> out[R,V]", cut="R", cost="V", twin=softmax_forward_reference)
def softmax(part, x, out):
    """Write the softmax of each row; see `softmax_forward`."""
    for i in range(part.first, part.last):
        _softmax_forward_row(i, x, out)


@op("dout[R,V] out[R,V] -> dx[R,V]", cut="R", cost="V", twin=softmax_backward_reference)
def softmax_gradient(part, dout, out, dx):
    """Differentiate the softmax of each row; see `softmax_backward`."""
    for i in range(part.first, part.last):
        _softmax_backward_row(i, dout, out, dx)
