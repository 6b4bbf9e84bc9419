"""Moments of gradients that have become 0, which are multiplied by a number below 1 at each step.

They would never be 0: 0.9 times the smallest number of all is rounded to that number. Below the
smallest normal number an operation takes some processors hundreds of cycles, and a step of an
optimiser twenty times as long. A moment ends at 0 while a learning rate times it is still normal,
where it has long been too small to change a parameter.
"""

import numpy as np

from ._compile import kernel
from ._simd import maximum, select

FAINT_FLOAT32, FAINT_FLOAT64 = 2.0**-100, 2.0**-900
SMALLEST_FLOAT32, SMALLEST_FLOAT64 = 2.0**-126, 2.0**-1022


def end_fading_reference(moments):
    """Do what `end_fading` does, in NumPy, in place."""
    moments[np.abs(moments) < (FAINT_FLOAT32 if moments.itemsize == 4 else FAINT_FLOAT64)] = 0


@kernel(inline=True)
def end_fading(v, moments):
    """Return a register of moments, 0 where they are too small to count; NaN stays NaN."""
    faint = FAINT_FLOAT32 if moments.itemsize == 4 else FAINT_FLOAT64
    return select(maximum(v, -v) < faint, 0.0, v)


@kernel(inline=True)
def smallest_normal(x):
    """Return the smallest number of x's dtype that has all of its digits."""
    return SMALLEST_FLOAT32 if x.itemsize == 4 else SMALLEST_FLOAT64
