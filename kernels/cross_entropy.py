"""Softmax and cross-entropy in one, forward and backward, with targets that are ignored.

    losses[i] = log(total[i]) - (logits[i, targets[i]] - largest[i]),   0 where targets[i] < 0
    dlogits[i] = scale * (exp(logits[i] - largest[i]) / total[i] - onehot(targets[i])),
                                                                        0 where targets[i] < 0
    largest[i] = max(logits[i]),   total[i] = sum(exp(logits[i] - largest[i]))

The largest logit and the sum are kept apart: their logarithms' sum would lose the digits of the
loss where logits are large. This is the gradient by the logits, not by the softmax.
Source: Goodfellow, Bengio & Courville 2016, "Deep Learning", section 6.2.2.3.
"""

import numpy as np

from ._compile import kernel, prange
from ._rows import row_tasks
from ._simd import exp, keep_first, lanes, load_first, log, splat, store_first, sum_lanes
from .softmax import row_maximum


def cross_entropy_forward_reference(logits, targets, losses, largest, total):
    """Compute `cross_entropy_forward` in NumPy."""
    largest[...] = logits.max(axis=1)
    total[...] = np.exp(logits - largest[:, None]).sum(axis=1)
    chosen = np.take_along_axis(logits, np.maximum(targets, 0)[:, None], axis=1)[:, 0]
    losses[...] = np.where(targets >= 0, np.log(total) - (chosen - largest), 0)


def cross_entropy_backward_reference(logits, targets, largest, total, scale, dlogits):
    """Compute `cross_entropy_backward` in NumPy."""
    dlogits[...] = np.exp(logits - largest[:, None]) / total[:, None]
    kept = np.flatnonzero(targets >= 0)
    dlogits[kept, targets[kept]] -= 1
    dlogits *= logits.dtype.type(scale)
    dlogits[targets < 0] = 0


@kernel
def _cross_entropy_row(i, logits, targets, losses, largest, total):
    """Write the loss, the largest logit and the sum of exponentials of row i."""
    V = logits.shape[1]
    highest = row_maximum(logits, i)
    sums = splat(logits, 0.0)
    for j in range(0, V, lanes(logits)):
        sums = sums + keep_first(exp(load_first(logits, V - j, i, j) - highest), V - j, 0.0)
    largest[i] = highest
    total[i] = sum_lanes(sums)
    losses[i] = 0
    if targets[i] >= 0:
        # On registers, where the compiler keeps the order of the sum.
        distance = splat(logits, logits[i, targets[i]]) - highest
        store_first(losses, 1, log(splat(logits, total[i])) - distance, i)


@kernel
def _cross_entropy_rows(first, last, logits, targets, losses, largest, total):
    """Go through rows first to last."""
    for i in range(first, last):
        _cross_entropy_row(i, logits, targets, losses, largest, total)


@kernel(parallel=True)
def cross_entropy_forward(logits, targets, losses, largest, total):
    """Write each row's loss.

    Args:
        logits: (N, V) float32|float64, C-contiguous.    targets: (N,) int64, below V.
        losses: (N,) overwritten.    largest, total: (N,) overwritten, for backward.
    Threads: rows; bit-identical for any thread count.
    """
    N, V = logits.shape
    tasks = row_tasks(N, V)
    if tasks == 1:
        _cross_entropy_rows(0, N, logits, targets, losses, largest, total)
    else:
        for task in prange(tasks):
            first, last = N * task // tasks, N * (task + 1) // tasks
            _cross_entropy_rows(first, last, logits, targets, losses, largest, total)


@kernel
def _cross_entropy_gradient_row(i, logits, targets, largest, total, scale, dlogits):
    """Write the gradient of row i."""
    V = logits.shape[1]
    factor = scale / total[i]
    for j in range(0, V, lanes(logits)):
        gradient = splat(logits, 0.0)
        if targets[i] >= 0:
            gradient = exp(load_first(logits, V - j, i, j) - largest[i]) * factor
        store_first(dlogits, V - j, gradient, i, j)
    if targets[i] >= 0:
        dlogits[i, targets[i]] -= scale


@kernel
def _cross_entropy_gradient_rows(first, last, logits, targets, largest, total, scale, dlogits):
    """Go through rows first to last."""
    for i in range(first, last):
        _cross_entropy_gradient_row(i, logits, targets, largest, total, scale, dlogits)


@kernel(parallel=True)
def cross_entropy_backward(logits, targets, largest, total, scale, dlogits):
    """Write the gradient by the logits.

    Args:
        logits: (N, V) float32|float64, C-contiguous.    targets: (N,) int64, below V.
        largest, total: (N,) from forward.
        scale: what each loss counts, 1 / (targets that count).
        dlogits: (N, V) overwritten; not logits.
    Threads: rows; bit-identical for any thread count.
    """
    N, V = logits.shape
    tasks = row_tasks(N, V)
    if tasks == 1:
        _cross_entropy_gradient_rows(0, N, logits, targets, largest, total, scale, dlogits)
    else:
        for task in prange(tasks):
            first, last = N * task // tasks, N * (task + 1) // tasks
            _cross_entropy_gradient_rows(
                first, last, logits, targets, largest, total, scale, dlogits
            )
