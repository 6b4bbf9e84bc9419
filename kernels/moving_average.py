"""The exponential moving average of all parameters, on flat arrays.

    average = average + (1 - decay) * (values - average)

Source: Tarvainen & Valpola 2017, arXiv:1703.01780, section 3; Polyak & Juditsky 1992, "Acceleration
of stochastic approximation by averaging", for averages of weights that are not exponential.
"""

from ._compile import kernel, prange
from ._simd import fma, lanes, load_first, store_first

CHUNK = 8192


def average_step_reference(average, values, decay):
    """Compute `average_step` in NumPy."""
    average += average.dtype.type(1 - decay) * (values - average)


@kernel(parallel=True)
def average_step(average, values, decay):
    """Bring an average nearer to new values.

    Args:
        average: (P,) float32|float64, updated in place.    values: (P,).    decay: from 0 to 1.
    Threads: chunks of a fixed size; bit-identical for any thread count.
    """
    size, share = average.size, 1 - decay
    for task in prange((size + CHUNK - 1) // CHUNK):
        stop = min(size, (task + 1) * CHUNK)
        for i in range(task * CHUNK, stop, lanes(average)):
            old = load_first(average, stop - i, i)
            new = fma(load_first(values, stop - i, i) - old, share, old)
            store_first(average, stop - i, new, i)
