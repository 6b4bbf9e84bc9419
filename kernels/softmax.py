"""Softmax over the last axis, forward and backward.

    out = exp(x - max(x)) / sum(exp(x - max(x))),      dx = out * (dout - sum(dout * out))

Source: Bridle 1990; the shift by the largest element keeps every exponential at most 1.
"""

import math

import numpy as np

from ._compile import kernel, prange
from ._rows import row_tasks
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


@kernel
def _softmax_forward_row(i, x, out):
    """Write the softmax of row i."""
    V = x.shape[1]
    largest = row_maximum(x, i)
    total = splat(x, 0.0)
    whole = V // lanes(x) * lanes(x)
    for j in range(0, whole, lanes(x)):
        e = exp(load(x, i, j) - largest)
        store(out, e, i, j)
        total = total + e
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


@kernel
def _softmax_backward_row(i, dout, out, dx):
    """Differentiate the softmax of row i."""
    V = out.shape[1]
    total = splat(out, 0.0)
    for j in range(0, V, lanes(out)):
        total = fma(load_first(dout, V - j, i, j), load_first(out, V - j, i, j), total)
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
