"""Counter-based random numbers: a stream is named by numbers, so nothing need be stored to go on.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox), as NumPy has it.
"""

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[Any]  # of uint32 or uint64

# Of Philox4x64-10: multipliers, and what is added to the keys in each round.
_MULTIPLIERS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
_KEY_STEPS = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
_LOW = 0xFFFFFFFF


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


def first_numbers(
    seed: int, purpose: str, *counters: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Return what `generator(seed, purpose, *counters).random()` is first, for many counters.

    A generator takes some 30 microseconds to make; a thousand numbers at once take a millisecond.

    Args:
        seed, purpose: as for `generator`.
        counters: arrays that broadcast to one shape, of integers >= 0 and < 2^32.

    Returns:
        Numbers >= 0 and < 1, of that shape.
    """
    shape = np.broadcast_shapes((1,), *(array.shape for array in counters))
    seeds = [seed >> place & _LOW for place in range(0, max(1, seed.bit_length()), 32)]
    entropy: list[Any] = [*seeds, zlib.crc32(purpose.encode()), *counters]
    words = [np.broadcast_to(np.asarray(word, np.uint32), shape) for word in entropy]
    numbers = _philox(*_keys(words)) >> np.uint64(11)
    return numbers.astype(np.float64) * 2.0**-53


def _keys(entropy: list[Words]) -> tuple[Words, Words]:
    """Return the two uint64 that NumPy's SeedSequence makes of uint32 words."""
    constant, multiplier = 0x43B0D7E5, 0x931E8875

    def hashed(word: Words) -> Words:
        nonlocal constant
        word = word ^ np.uint32(constant)
        constant = constant * multiplier & _LOW
        word = word * np.uint32(constant)
        word ^= word >> np.uint32(16)
        return word

    def mixed(x: Words, y: Words) -> Words:
        word: Words = x * np.uint32(0xCA01F9DD) - y * np.uint32(0x4973F715)
        word ^= word >> np.uint32(16)
        return word

    nothing = np.zeros_like(entropy[0])
    pool = [hashed(word) for word in [*entropy, *[nothing] * 4][:4]]
    for source in range(4):
        for target in range(4):
            if source != target:
                pool[target] = mixed(pool[target], hashed(pool[source]))
    for word in entropy[4:]:
        for target in range(4):
            pool[target] = mixed(pool[target], hashed(word))
    constant, multiplier = 0x8B51F9DD, 0x58F38DED
    low0, high0, low1, high1 = (hashed(word).astype(np.uint64) for word in pool)
    return low0 | high0 << np.uint64(32), low1 | high1 << np.uint64(32)


def _philox(key0: Words, key1: Words) -> Words:
    """Return the first of the four words of Philox4x64-10 at counter 1, where NumPy begins."""
    c0, c1, c2, c3 = np.ones_like(key0), *[np.zeros_like(key0)] * 3
    for _ in range(10):
        high0, high1 = _high(_MULTIPLIERS[0], c0), _high(_MULTIPLIERS[1], c2)
        low0, low1 = c0 * np.uint64(_MULTIPLIERS[0]), c2 * np.uint64(_MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0, key1 = key0 + np.uint64(_KEY_STEPS[0]), key1 + np.uint64(_KEY_STEPS[1])
    return c0


def _high(number: int, words: Words) -> Words:
    """Return the upper 64 bits of the products of uint64."""
    low, high = np.uint64(number & _LOW), np.uint64(number >> 32)
    half, mask = np.uint64(32), np.uint64(_LOW)
    words_low, words_high = words & mask, words >> half
    one, other = low * words_high, high * words_low
    middle = (low * words_low >> half) + (one & mask) + (other & mask)
    result: Words = high * words_high + (one >> half) + (other >> half) + (middle >> half)
    return result
