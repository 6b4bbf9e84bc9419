"""Softmax and cross-entropy in one, forward and backward, with targets that are ignored.

    losses[i] = log(row_sum[i]) - (1 - smoothing) * (logits[i, targets[i]] - row_max[i])
                - smoothing * mean(logits[i] - row_max[i]),             0 where targets[i] < 0
    dlogits[i] = scale * (exp(logits[i] - row_max[i]) / row_sum[i]
                 - (1 - smoothing) * onehot(targets[i]) - smoothing / V),
                                                                        0 where targets[i] < 0
    row_max[i] = max(logits[i]),   row_sum[i] = sum(exp(logits[i] - row_max[i]))

With weights w of classes, each term -log softmax(logits[i])[c] of the loss counts w[c] times: that
of the target (1 - smoothing) * w[targets[i]], and those of all classes smoothing * w[c] / V, as in
PyTorch's CrossEntropyLoss. The mean is then over the weights of the targets, which is `scale`.

Label smoothing aims at the target with 1 - smoothing, and spreads the rest evenly over all classes.
Source: Szegedy et al. 2016, arXiv:1512.00567, section 7.

The largest logit and the sum are kept apart: their logarithms' sum would lose the digits of the
loss where logits are large. This is the gradient by the logits, not by the softmax.
Source: Goodfellow, Bengio & Courville 2016, "Deep Learning", section 6.2.2.3.
"""

import math

import numpy as np

from ._compile import kernel, prange
from ._rows import EXP_BLOCK, SUM_BLOCK, add_block, row_tasks, sum_in_float64, whole_sum
from ._simd import (
    exp,
    fma,
    lanes,
    load_first,
    load_padded,
    log,
    splat,
    store_first,
    sum_lanes,
)
from .op import op
from .softmax import row_maximum


def _shares_reference(logits, targets, weights, smoothing):
    """Return what each row's target counts, (N,), and what all classes count together."""
    real = logits.dtype.type
    shares = np.full(targets.shape, real(1 - smoothing))
    if not weights.size:
        return shares, real(smoothing)
    return shares * weights[np.maximum(targets, 0)], real(smoothing) * weights.mean()


def cross_entropy_forward_reference(
    logits, targets, smoothing, losses, row_max, row_sum, weights=None
):
    """Compute `cross_entropy_forward` in NumPy."""
    weights = losses[:0] if weights is None else weights
    row_max[...] = logits.max(axis=1)
    distances = logits - row_max[:, None]
    row_sum[...] = np.exp(distances).sum(axis=1)
    aim = np.take_along_axis(distances, np.maximum(targets, 0)[:, None], axis=1)[:, 0]
    aim, total = _shares_reference(logits, targets, weights, smoothing)[0] * aim, 1
    if weights.size:
        total = sum(_shares_reference(logits, targets, weights, smoothing))
        distances = distances * weights
    if smoothing:
        aim = aim + logits.dtype.type(smoothing) * distances.mean(axis=1)
    losses[...] = np.where(targets >= 0, total * np.log(row_sum) - aim, 0)
    return float(losses.sum(dtype=np.float64))


def cross_entropy_backward_reference(
    logits, targets, row_max, row_sum, smoothing, scale, dlogits, weights=None
):
    """Compute `cross_entropy_backward` in NumPy."""
    weights = row_max[:0] if weights is None else weights
    shares, spread = _shares_reference(logits, targets, weights, smoothing)
    dlogits[...] = np.exp(logits - row_max[:, None]) / row_sum[:, None]
    if weights.size:
        dlogits *= (shares + spread)[:, None]
    if smoothing:
        each = logits.dtype.type(smoothing / logits.shape[1])
        dlogits -= each * weights if weights.size else each
    kept = np.flatnonzero(targets >= 0)
    dlogits[kept, targets[kept]] -= shares[kept]
    dlogits *= logits.dtype.type(scale)
    dlogits[targets < 0] = 0


@kernel
def _mean_distance(i, logits, weights, highest):
    """Return the mean of row i less its largest logit, each logit times its weight."""
    V, step = logits.shape[1], SUM_BLOCK * lanes(logits)
    total, left_out = splat(logits, 0.0), splat(logits, 0.0)
    for start in range(0, V, step):
        part = splat(logits, 0.0)
        for j in range(start, min(V, start + step), lanes(logits)):
            distance = load_padded(logits, V - j, highest, i, j) - highest
            if weights.size > 0:
                distance = distance * load_first(weights, V - j, j)
            part = part + distance
        total, left_out = add_block(total, left_out, part)
    return sum_lanes(whole_sum(total, left_out)) / V


@kernel(inline=True)
def _exponentials(i, start, stop, logits, highest):
    """Return the sum of a block's exponentials, in four chains that take turns."""
    zero = splat(logits, 0.0)
    a, b, c, d = zero, zero, zero, zero
    for j in range(start, stop, lanes(logits)):
        e = exp(load_padded(logits, stop - j, -math.inf, i, j) - highest)
        a, b, c, d = b, c, d, a + e
    return (a + b) + (c + d)


@kernel(allocates=False)
def _sum_of_long_row(i, logits, highest):
    """Return the sum of a row's exponentials, of blocks."""
    V, step = logits.shape[1], EXP_BLOCK * lanes(logits)
    total, left_out = splat(logits, 0.0), splat(logits, 0.0)
    for start in range(0, V, step):
        part = _exponentials(i, start, min(V, start + step), logits, highest)
        total, left_out = add_block(total, left_out, part)
    return sum_lanes(whole_sum(total, left_out))


@kernel
def _mean_weight(weights):
    """Return the mean of all weights of classes, 1 where there are none."""
    return sum_in_float64(weights) / weights.size if weights.size > 0 else 1.0


@kernel
def _cross_entropy_row(
    i, logits, targets, weights, mean_weight, smoothing, losses, row_max, row_sum
):
    """Write the loss, the largest logit and the sum of exponentials of row i."""
    V = logits.shape[1]
    highest = row_maximum(logits, i)
    row_max[i] = highest
    if V > EXP_BLOCK * lanes(logits):
        row_sum[i] = _sum_of_long_row(i, logits, highest)
    else:
        row_sum[i] = sum_lanes(_exponentials(i, 0, V, logits, highest))
    losses[i] = 0
    if targets[i] >= 0:
        # On registers, where the compiler keeps the order of the sum.
        distance = splat(logits, logits[i, targets[i]]) - highest
        logarithm, share = log(splat(logits, row_sum[i])), 1 - smoothing
        if weights.size > 0:
            share = share * weights[targets[i]]
            logarithm = logarithm * (share + smoothing * mean_weight)
            distance = distance * share
        if smoothing > 0:
            mean = splat(logits, _mean_distance(i, logits, weights, highest)) * smoothing
            if weights.size > 0:
                distance = distance + mean
            else:
                distance = fma(distance, share, mean)
        store_first(losses, 1, logarithm - distance, i)


@kernel
def cross_entropy_rows(first, last, logits, targets, weights, smoothing, losses, row_max, row_sum):
    """Go through rows first to last."""
    mean_weight = _mean_weight(weights)
    for i in range(first, last):
        _cross_entropy_row(
            i, logits, targets, weights, mean_weight, smoothing, losses, row_max, row_sum
        )


@kernel(parallel=True)
def cross_entropy_forward(logits, targets, smoothing, losses, row_max, row_sum, weights=None):
    """Write each row's loss, and return their sum, in float64.

    Args:
        logits: (N, V) float32|float64, C-contiguous.    targets: (N,) int64, below V.
        smoothing: the share that is spread over all classes, 0 to 1.
        losses: (N,) overwritten.    row_max, row_sum: (N,) overwritten, for backward.
        weights: (V,) of classes, >= 0; (0,) or None without.
    Threads: rows; bit-identical for any thread count.
    """
    N, V = logits.shape
    counts = losses[:0] if weights is None else weights
    tasks = row_tasks(N, V)
    if tasks == 1:
        cross_entropy_rows(0, N, logits, targets, counts, smoothing, losses, row_max, row_sum)
    else:
        for task in prange(tasks):
            first, last = N * task // tasks, N * (task + 1) // tasks
            cross_entropy_rows(
                first, last, logits, targets, counts, smoothing, losses, row_max, row_sum
            )
    return sum_in_float64(losses)


@kernel
def _cross_entropy_gradient_row(
    i, logits, targets, weights, mean_weight, row_max, row_sum, smoothing, scale, dlogits
):
    """Write the gradient of row i."""
    V = logits.shape[1]
    share, total = 1 - smoothing, 1.0
    if weights.size > 0 and targets[i] >= 0:
        share = share * weights[targets[i]]
        total = share + smoothing * mean_weight
    factor, spread = scale * total / row_sum[i], scale * smoothing / V
    for j in range(0, V, lanes(logits)):
        gradient = splat(logits, 0.0)
        if targets[i] >= 0:
            e = exp(load_first(logits, V - j, i, j) - row_max[i])
            if weights.size > 0:
                gradient = fma(e, factor, load_first(weights, V - j, j) * -spread)
            else:
                gradient = fma(e, factor, -spread)
        store_first(dlogits, V - j, gradient, i, j)
    if targets[i] >= 0:
        dlogits[i, targets[i]] -= scale * share


@kernel
def cross_entropy_gradient_rows(
    first, last, logits, targets, weights, row_max, row_sum, smoothing, scale, dlogits
):
    """Go through rows first to last."""
    mean_weight = _mean_weight(weights)
    for i in range(first, last):
        _cross_entropy_gradient_row(
            i, logits, targets, weights, mean_weight, row_max, row_sum, smoothing, scale, dlogits
        )


@kernel(parallel=True)
def cross_entropy_backward(
    logits, targets, row_max, row_sum, smoothing, scale, dlogits, weights=None
):
    """Write the gradient by the logits.

    Args:
        logits: (N, V) float32|float64, C-contiguous.    targets: (N,) int64, below V.
        row_max, row_sum: (N,) from forward.    smoothing, weights: what forward was given.
        scale: what each loss counts: for a mean 1 / (targets that count, or their weights).
        dlogits: (N, V) overwritten; not logits.
    Threads: rows; bit-identical for any thread count.
    """
    N, V = logits.shape
    counts = row_max[:0] if weights is None else weights
    tasks = row_tasks(N, V)
    if tasks == 1:
        cross_entropy_gradient_rows(
            0, N, logits, targets, counts, row_max, row_sum, smoothing, scale, dlogits
        )
    else:
        for task in prange(tasks):
            first, last = N * task // tasks, N * (task + 1) // tasks
            cross_entropy_gradient_rows(
                first, last, logits, targets, counts, row_max, row_sum, smoothing, scale, dlogits
            )


def _cross_entropy_reference(
    logits, targets, weights, smoothing, scale, losses, row_max, row_sum, dlogits
):  # fmt: skip
    cross_entropy_forward_reference(logits, targets, smoothing, losses, row_max, row_sum, weights)
    cross_entropy_backward_reference(
        logits, targets, row_max, row_sum, smoothing, scale, dlogits, weights
    )


def _one_task(threads, losses, loss):
    return 1


def _sum_of_losses_reference(losses, loss):
    loss[0] = losses.sum(dtype=np.float64)


@op(
    "logits[R,V] targets:int[R] weights?[V] smoothing:float scale:float "
    "-> losses[R] row_max[R] row_sum[R] dlogits[R,V]",
    cut="R", cost="V", twin=_cross_entropy_reference,
)  # fmt: skip
def cross_entropy(
    part, logits, targets, weights, smoothing, scale, losses, row_max, row_sum, dlogits
):
    """Write the losses and their gradient."""
    first, last = part.first, part.last
    cross_entropy_rows(first, last, logits, targets, weights, smoothing, losses, row_max, row_sum)
    cross_entropy_gradient_rows(
        first, last, logits, targets, weights, row_max, row_sum, smoothing, scale, dlogits
    )


@op(
    "losses[R] -> loss:double[1]", tasks=_one_task,
    twin=_sum_of_losses_reference,
)  # fmt: skip
def sum_of_losses(part, losses, loss):
    """Add all losses, in float64."""
    loss[0] = sum_in_float64(losses)
