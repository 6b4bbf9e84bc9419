"""Adam, AdamW and AMSGrad on flat arrays.

    g = gradient + penalty * p
    m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2,   AMSGrad: w = max(w, v), else v
    p = p - lr * weight_decay * p - lr * (m / (1 - beta1^t)) / (sqrt(w / (1 - beta2^t)) + epsilon)

Where a gradient is 0 for a thousand steps, as that of a token that is not seen or of a unit that is
off, the moments fade, and end at 0 (`_denormals.py`), not near the smallest number of all.
Source: Kingma & Ba 2014, arXiv:1412.6980, algorithm 1; Loshchilov & Hutter 2017, arXiv:1711.05101,
algorithm 2, for the decay, which is not part of the gradient. Adam is weight_decay = 0, and has the
penalty of L2 regularisation, which is part of it. Reddi, Kale & Kumar 2018, arXiv:1904.09237,
algorithm 2, for AMSGrad, in PyTorch's form: the maximum is of moments before their correction.
"""

import numpy as np

from ._compile import kernel, prange
from ._denormals import FAINT, end_denormals, end_denormals_reference
from ._simd import (
    end_stream,
    fma,
    lanes,
    load_first,
    maximum,
    sqrt,
    store_first,
    stream_first,
)

CHUNK = 8192


def adam_step_reference(
    parameters, gradients, exp_avg, exp_avg_sq, max_exp_avg_sq, lr, beta1, beta2, epsilon,
    weight_decay, penalty, step,
):  # fmt: skip
    """Compute `adam_step` in NumPy."""
    real = parameters.dtype.type
    if penalty:
        gradients = gradients + real(penalty) * parameters
    exp_avg *= real(beta1)
    exp_avg += real(1 - beta1) * gradients
    exp_avg_sq *= real(beta2)
    exp_avg_sq += real(1 - beta2) * gradients * gradients
    end_denormals_reference(exp_avg, gradients, FAINT)
    end_denormals_reference(exp_avg_sq, gradients)
    squares = exp_avg_sq
    if max_exp_avg_sq.size:
        squares = np.maximum(max_exp_avg_sq, exp_avg_sq, out=max_exp_avg_sq)
    corrected = squares * real(1 / (1 - beta2**step))
    change = real(lr / (1 - beta1**step)) * exp_avg / (np.sqrt(corrected) + real(epsilon))
    parameters *= real(1 - lr * weight_decay)
    parameters -= change


@kernel(parallel=True)
def adam_step(
    parameters, gradients, exp_avg, exp_avg_sq, max_exp_avg_sq, lr, beta1, beta2, epsilon,
    weight_decay, penalty, step,
):  # fmt: skip
    """Update parameters and moments by one step.

    Args:
        parameters, exp_avg, exp_avg_sq: (P,) float32|float64, updated in place.
        max_exp_avg_sq: (P,) likewise, for AMSGrad; (0,) without.
        gradients: (P,).    lr, epsilon: > 0.    beta1, beta2: in [0, 1).
        weight_decay: >= 0, apart from the gradient.    penalty: >= 0, of L2, part of the gradient.
        step: the number of this step, from 1.
    Threads: chunks of a fixed size; bit-identical for any thread count.
    """
    size = parameters.size
    step_size = lr / (1 - beta1**step)
    correction = 1 / (1 - beta2**step)
    kept = 1 - lr * weight_decay
    smallest = np.finfo(exp_avg.dtype).tiny
    for task in prange((size + CHUNK - 1) // CHUNK):
        stop = min(size, (task + 1) * CHUNK)
        for i in range(task * CHUNK, stop, lanes(parameters)):
            n = stop - i
            p, g = load_first(parameters, n, i), load_first(gradients, n, i)
            if penalty > 0:
                g = fma(p, penalty, g)
            m = fma(load_first(exp_avg, n, i), beta1, g * (1 - beta1))
            v = fma(load_first(exp_avg_sq, n, i), beta2, g * g * (1 - beta2))
            m, v = end_denormals(m, g, FAINT * smallest), end_denormals(v, g, smallest)
            store_first(exp_avg, n, m, i)
            store_first(exp_avg_sq, n, v, i)
            if max_exp_avg_sq.size > 0:
                v = maximum(load_first(max_exp_avg_sq, n, i), v)
                store_first(max_exp_avg_sq, n, v, i)
            change = m * -step_size / (sqrt(v * correction) + epsilon)
            stream_first(parameters, n, fma(p, kept, change), i)
        end_stream(parameters)
