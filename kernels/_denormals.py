"""Moments of what has no gradient any more: they are multiplied by a number below 1 at each step.

They would never be 0: 0.9 times the smallest number of all is rounded to that number. Below the
smallest normal number an operation takes some processors hundreds of cycles, and a step of an
optimiser twenty times as long. Where a gradient is 0, a moment ends at 0 instead.
"""

import numpy as np

from ._compile import kernel
from ._simd import maximum, select

# How many times the smallest normal number a first moment ends at: a learning rate times it is then
# normal, too, and it has long been too small to change a parameter.
FAINT = 2.0**26


def end_denormals_reference(moments, gradients, margin=1.0):
    """Do what `end_denormals` does, in NumPy, in place, below margin times the smallest normal."""
    faint = np.abs(moments) < margin * np.finfo(moments.dtype).tiny
    moments[(gradients == 0) & faint] = 0


@kernel(inline=True)
def end_denormals(moment, gradient, below):
    """Return a register of moments, 0 where they are smaller than `below` and have no gradient.

    NaN stays NaN.
    """
    left = select(maximum(moment, -moment) < below, 0.0, moment)
    return select(maximum(gradient, -gradient) > 0.0, moment, left)
