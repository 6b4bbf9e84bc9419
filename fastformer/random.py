"""Counter-based random numbers: a stream is named by numbers, so nothing need be stored to go on.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox), as NumPy has it.
"""

import zlib

import numpy as np


def generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """Return the random stream of a purpose.

    Args:
        seed: the run's seed, >= 0.
        purpose: what the numbers are for ("initial weights", "batch order", ...).
        counters: the position in that purpose, each >= 0 (an epoch, a step).

    Returns:
        A generator over Philox whose stream depends on nothing but the arguments.
    """
    entropy = (seed, zlib.crc32(purpose.encode()), *counters)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
