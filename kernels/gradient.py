"""The norm of the whole gradient, and its scaling, for clipping and accumulation.

    gradient_norm = sqrt(sum of g^2), in float64,        scale_gradient:  g = factor * g

Source: Pascanu, Mikolov & Bengio 2012, arXiv:1211.5063, algorithm 1.
"""

import math

import numpy as np

from ._compile import kernel, prange
from ._simd import lanes, load_first, store_first

CHUNK = 8192


def gradient_norm_reference(gradients):
    """Compute `gradient_norm` in NumPy."""
    return float(np.sqrt(np.sum(np.square(gradients, dtype=np.float64))))


def scale_gradient_reference(gradients, factor):
    """Compute `scale_gradient` in NumPy."""
    gradients *= gradients.dtype.type(factor)


@kernel
def _sum_of_squares(x, first, last):
    """Return the sum of squares of a part, in float64."""
    total = 0.0
    for i in range(first, last):
        value = np.float64(x[i])
        total += value * value
    return total


@kernel(parallel=True)
def gradient_norm(gradients):
    """Return the Euclidean norm; NaN or infinity in a gradient gives NaN or infinity.

    Args:
        gradients: (P,) float32|float64.
    Threads: chunks of a fixed size, added in order in float64: bit-identical for any thread count.
    """
    size = gradients.size
    tasks = (size + CHUNK - 1) // CHUNK
    sums = np.empty(tasks)
    for task in prange(tasks):
        sums[task] = _sum_of_squares(gradients, task * CHUNK, min(size, (task + 1) * CHUNK))
    total = 0.0
    for task in range(tasks):
        total += sums[task]
    return math.sqrt(total)


@kernel(parallel=True)
def scale_gradient(gradients, factor):
    """Multiply every gradient by a factor.

    Args:
        gradients: (P,) float32|float64, updated in place.    factor: a number.
    Threads: chunks of a fixed size; bit-identical for any thread count.
    """
    size = gradients.size
    for task in prange((size + CHUNK - 1) // CHUNK):
        stop = min(size, (task + 1) * CHUNK)
        for i in range(task * CHUNK, stop, lanes(gradients)):
            row = load_first(gradients, stop - i, i) * factor
            store_first(gradients, stop - i, row, i)
