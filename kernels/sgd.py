"""Stochastic gradient descent with momentum on flat arrays.

    velocity = momentum * velocity + g,    p = p - lr * velocity

Where a gradient stays 0, the velocity fades, and ends at 0 (`_denormals.py`).
Source: Sutskever et al. 2013, "On the importance of initialization and momentum in deep learning",
in PyTorch's form, where the learning rate is not part of the velocity.
"""

import numpy as np

from ._compile import kernel, prange
from ._denormals import FAINT, end_denormals, end_denormals_reference
from ._simd import end_stream, fma, lanes, load_first, store_first, stream_first

CHUNK = 8192


def sgd_step_reference(parameters, gradients, velocity, lr, momentum):
    """Compute `sgd_step` in NumPy."""
    velocity *= velocity.dtype.type(momentum)
    velocity += gradients
    end_denormals_reference(velocity, gradients, FAINT)
    parameters -= parameters.dtype.type(lr) * velocity


@kernel(parallel=True)
def sgd_step(parameters, gradients, velocity, lr, momentum):
    """Update parameters and velocity by one step.

    Args:
        parameters, velocity: (P,) float32|float64, updated in place.    gradients: (P,).
        lr: > 0.    momentum: in [0, 1).
    Threads: chunks of a fixed size; bit-identical for any thread count.
    """
    size = parameters.size
    smallest = np.finfo(velocity.dtype).tiny
    for task in prange((size + CHUNK - 1) // CHUNK):
        stop = min(size, (task + 1) * CHUNK)
        for i in range(task * CHUNK, stop, lanes(parameters)):
            n = stop - i
            g = load_first(gradients, n, i)
            moved = fma(load_first(velocity, n, i), momentum, g)
            moved = end_denormals(moved, g, FAINT * smallest)
            store_first(velocity, n, moved, i)
            stream_first(parameters, n, load_first(parameters, n, i) - moved * lr, i)
        end_stream(parameters)
