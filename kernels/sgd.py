"""Stochastic gradient descent with momentum on flat arrays.

    g = gradient + penalty * p,    velocity = momentum * velocity + g
    p = p - lr * velocity,    or by Nesterov:    p = p - lr * (g + momentum * velocity)

Where a gradient stays 0, the velocity fades, and ends at 0 (`_denormals.py`).
Source: Sutskever et al. 2013, "On the importance of initialization and momentum in deep learning",
in PyTorch's form, where the learning rate is not part of the velocity; its section 2 for Nesterov's
step. The penalty is that of L2 regularisation.
"""

import numpy as np

from ._compile import kernel, prange
from ._denormals import FAINT, end_denormals, end_denormals_reference
from ._simd import end_stream, fma, lanes, load_first, store_first, stream_first

CHUNK = 8192


def sgd_step_reference(parameters, gradients, velocity, lr, momentum, nesterov, penalty):
    """Compute `sgd_step` in NumPy."""
    real = parameters.dtype.type
    if penalty:
        gradients = gradients + real(penalty) * parameters
    velocity *= real(momentum)
    velocity += gradients
    end_denormals_reference(velocity, gradients, FAINT)
    change = gradients + real(momentum) * velocity if nesterov else velocity
    parameters -= real(lr) * change


@kernel(parallel=True)
def sgd_step(parameters, gradients, velocity, lr, momentum, nesterov, penalty):
    """Update parameters and velocity by one step.

    Args:
        parameters, velocity: (P,) float32|float64, updated in place.    gradients: (P,).
        lr: > 0.    momentum: in [0, 1).    nesterov: True or False.    penalty: >= 0, of L2.
    Threads: chunks of a fixed size; bit-identical for any thread count.
    """
    size = parameters.size
    smallest = np.finfo(velocity.dtype).tiny
    for task in prange((size + CHUNK - 1) // CHUNK):
        stop = min(size, (task + 1) * CHUNK)
        for i in range(task * CHUNK, stop, lanes(parameters)):
            n = stop - i
            p, g = load_first(parameters, n, i), load_first(gradients, n, i)
            if penalty > 0:
                g = fma(p, penalty, g)
            moved = fma(load_first(velocity, n, i), momentum, g)
            moved = end_denormals(moved, g, FAINT * smallest)
            store_first(velocity, n, moved, i)
            if nesterov:
                moved = fma(moved, momentum, g)
            stream_first(parameters, n, p - moved * lr, i)
        end_stream(parameters)
