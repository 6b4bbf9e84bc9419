"""The norm of the whole gradient, its scaling and adding, and whether a step may be made by it.

    gradient_norm = sqrt(sum of g^2), in float64,        scale_gradient:  g = factor * g
    zero_gradient:  g = 0,        add_gradient:  g = other + g
    may_step: all of the parameters, the state and the gradients' squares are finite

Source: Pascanu, Mikolov & Bengio 2012, arXiv:1211.5063, algorithm 1.
"""

import math

import numpy as np

from ._compile import kernel, prange
from ._rows import SCALAR_BLOCK, sum_in_float64
from ._simd import fma, lanes, load, load_first, splat, store_first, sum_lanes
from .op import op

CHUNK = 8192


def gradient_norm_reference(gradients):
    """Compute `gradient_norm` in NumPy."""
    return float(np.sqrt(np.sum(np.square(gradients, dtype=np.float64))))


def scale_gradient_reference(gradients, factor):
    """Compute `scale_gradient` in NumPy."""
    gradients *= gradients.dtype.type(factor)


def zero_gradient_reference(gradients):
    """Compute `zero_gradient` in NumPy."""
    gradients[...] = 0


def add_gradient_reference(gradients, other):
    """Compute `add_gradient` in NumPy."""
    np.add(other, gradients, out=gradients)


def may_step_reference(parameters, gradients, first_state, second_state):
    """Compute `may_step` in NumPy."""
    with np.errstate(over="ignore"):
        squares = gradients * gradients
    return all(np.isfinite(x).all() for x in (parameters, squares, first_state, second_state))


@kernel
def _sum_of_squares(x):
    """Return the sum of squares, in float64, in four chains, one for each quarter."""
    quarter = x.size // 4
    first, second = x[:quarter], x[quarter : 2 * quarter]
    third, fourth = x[2 * quarter : 3 * quarter], x[3 * quarter : 4 * quarter]
    a, b, c, d = 0.0, 0.0, 0.0, 0.0
    for i in range(quarter):
        v, w = np.float64(first[i]), np.float64(second[i])
        y, z = np.float64(third[i]), np.float64(fourth[i])
        a += v * v
        b += w * w
        c += y * y
        d += z * z
    for i in range(4 * quarter, x.size):
        a += np.float64(x[i]) * np.float64(x[i])
    return (a + b) + (c + d)


@kernel(parallel=True)
def gradient_norm(gradients):
    """Return the Euclidean norm; NaN or infinity in a gradient gives NaN or infinity.

    Args:
        gradients: (P,) float32|float64.
    Threads: chunks of a fixed size, added in order in float64: bit-identical for any thread count.
    """
    size = gradients.size
    tasks = (size + SCALAR_BLOCK - 1) // SCALAR_BLOCK
    sums = np.empty(tasks)
    for task in prange(tasks):
        first = task * SCALAR_BLOCK
        sums[task] = _sum_of_squares(gradients[first : first + SCALAR_BLOCK])
    return math.sqrt(sum_in_float64(sums))


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


@kernel(parallel=True)
def zero_gradient(gradients):
    """Set every gradient to 0.

    Args:
        gradients: (P,) float32|float64, overwritten.
    Threads: chunks of a fixed size; bit-identical for any thread count.
    """
    size = gradients.size
    for task in prange((size + CHUNK - 1) // CHUNK):
        stop = min(size, (task + 1) * CHUNK)
        for i in range(task * CHUNK, stop, lanes(gradients)):
            store_first(gradients, stop - i, splat(gradients, 0.0), i)


@kernel(parallel=True)
def add_gradient(gradients, other):
    """Add other gradients of the same parameters, or of some of them.

    Args:
        gradients: (P,) float32|float64, updated in place.    other: (P,), of the same dtype.
    Threads: chunks of a fixed size; bit-identical for any thread count.
    """
    size = gradients.size
    for task in prange((size + CHUNK - 1) // CHUNK):
        stop = min(size, (task + 1) * CHUNK)
        for i in range(task * CHUNK, stop, lanes(gradients)):
            row = load_first(other, stop - i, i) + load_first(gradients, stop - i, i)
            store_first(gradients, stop - i, row, i)


@kernel
def add_copies(task, copies, gradients):
    """Add a part of several gradients of all parameters, in order.

    Args:
        task: the part.    copies: (any, P) float32|float64.    gradients: (P,) accumulated.
    """
    stop = min(gradients.size, (task + 1) * CHUNK)
    for i in range(task * CHUNK, stop, lanes(gradients)):
        total = load_first(gradients, stop - i, i)
        for copy in range(copies.shape[0]):
            total = total + load_first(copies, stop - i, copy, i)
        store_first(gradients, stop - i, total, i)


@kernel
def _zero_or_nan(x, first, last, squared):
    """Return 0 where a part is finite, or where its squares are, else NaN.

    Infinity times 0 is NaN, and a sum keeps it. Four chains, which do not wait for each other.
    """
    size = lanes(x)
    last = min(x.size, last)
    whole = first + max(0, last - first) // (4 * size) * (4 * size)
    a, b, c, d = splat(x, 0.0), splat(x, 0.0), splat(x, 0.0), splat(x, 0.0)
    for i in range(first, whole, 4 * size):
        v, w = load(x, i), load(x, i + size)
        y, z = load(x, i + 2 * size), load(x, i + 3 * size)
        if squared:
            v, w, y, z = v * v, w * w, y * y, z * z
        a, b, c, d = fma(v, 0.0, a), fma(w, 0.0, b), fma(y, 0.0, c), fma(z, 0.0, d)
    for i in range(whole, last, size):
        v = load_first(x, last - i, i)
        if squared:
            v = v * v
        a = fma(v, 0.0, a)
    return sum_lanes((a + b) + (c + d))


@kernel(parallel=True)
def may_step(parameters, gradients, first_state, second_state):
    """Tell whether the parameters, the state and the gradients' squares are finite.

    Args:
        parameters, gradients, first_state, second_state: (P,) float32|float64, or (0,).
    Threads: chunks of a fixed size; the answer does not depend on them.
    """
    size = max(parameters.size, gradients.size)
    tasks = (size + CHUNK - 1) // CHUNK
    sums = np.empty(tasks)
    for task in prange(tasks):
        first, last = task * CHUNK, (task + 1) * CHUNK
        sums[task] = (
            _zero_or_nan(gradients, first, last, True)
            + _zero_or_nan(parameters, first, last, False)
            + _zero_or_nan(first_state, first, last, False)
            + _zero_or_nan(second_state, first, last, False)
        )
    for task in range(tasks):
        if math.isnan(sums[task]):
            return False
    return True


def _tasks_of_copies(threads, copies, shards, gradients):
    return (gradients.size + CHUNK - 1) // CHUNK


def _add_copies_reference(copies, shards, gradients):
    gradients += copies[:shards].sum(axis=0)


@op(
    "copies[S,P] shards:int -> +gradients[P]",
    tasks=_tasks_of_copies,
    twin=_add_copies_reference,
)  # fmt: skip
def add_gradient_copies(part, copies, shards, gradients):
    """Add the shards' copies of all gradients, in order."""
    add_copies(part.index, copies[:shards], gradients)
