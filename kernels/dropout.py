"""Dropout with counter-based random numbers: the mask is computed again in backward, not kept.

    out = residual + x * mask / (1 - rate),     dx = dout * mask / (1 - rate)

Element i is kept where word i % 4 of Philox4x32-10 at counter (i // 4, call) and key `seed` is at
least rate * 2^32. Source: Srivastava et al. 2014, JMLR 15; Salmon et al. 2011, "Parallel random
numbers: as easy as 1, 2, 3".
"""

import numpy as np

from ._compile import kernel, prange
from ._simd import flat, lanes, load_first, select, splat, stack_array, store_first
from .op import op

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
LOW = 0xFFFFFFFF
CHUNK = 16384
# Whose elements' scales are written at once; lanes times this is a multiple of four.
REGISTERS = 16


def _philox_reference(counters, call, seed):
    """Return four words (4, n) uint64, each below 2^32, for each counter (n,) uint64."""
    c0, c1 = counters & LOW, counters >> 32
    c2, c3 = (np.full_like(counters, word) for word in (call & LOW, call >> 32))
    k0, k1 = seed & LOW, seed >> 32
    for _ in range(10):
        product0, product1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> 32) ^ c1 ^ k0,
            product1 & LOW,
            (product0 >> 32) ^ c3 ^ k1,
            product0 & LOW,
        )
        k0, k1 = (k0 + KEY_STEPS[0]) & LOW, (k1 + KEY_STEPS[1]) & LOW
    return np.stack([c0, c1, c2, c3])


def _kept_reference(size, rate, seed, call):
    """Return the mask of the elements that are kept."""
    words = _philox_reference(np.arange((size + 3) // 4, dtype=np.uint64), call, seed)
    return words.T.reshape(-1)[:size] >= int(rate * 2**32)


def dropout_forward_reference(x, residual, rate, seed, call, out):
    """Compute `dropout_forward` in NumPy."""
    kept = _kept_reference(x.size, rate, seed, call).reshape(x.shape)
    out[...] = np.where(kept, x * x.dtype.type(1 / (1 - rate)), 0)
    if residual.size:
        out += residual


def dropout_backward_reference(dout, rate, seed, call, dx):
    """Compute `dropout_backward` in NumPy."""
    dropout_forward_reference(dout, dout[:0], rate, seed, call, dx)


@kernel(inline=True)
def _round(c0, c1, c2, c3, k0, k1):
    """Return the counter and the key after one more round."""
    low, shift = np.uint64(LOW), np.uint64(32)
    product0 = c0 * np.uint64(MULTIPLIERS[0])
    product1 = c2 * np.uint64(MULTIPLIERS[1])
    return (
        (product1 >> shift) ^ c1 ^ k0,
        product1 & low,
        (product0 >> shift) ^ c3 ^ k1,
        product0 & low,
        (k0 + np.uint64(KEY_STEPS[0])) & low,
        (k1 + np.uint64(KEY_STEPS[1])) & low,
    )


@kernel(inline=True)
def _philox(counter, call, seed):
    """Return four words below 2^32 as uint64."""
    low, shift = np.uint64(LOW), np.uint64(32)
    c0, c1, c2, c3 = counter & low, counter >> shift, call & low, call >> shift
    k0, k1 = seed & low, seed >> shift
    # Ten rounds, not in a loop, so that the compiler can do many counters at once.
    c0, c1, c2, c3, k0, k1 = _round(c0, c1, c2, c3, k0, k1)
    c0, c1, c2, c3, k0, k1 = _round(c0, c1, c2, c3, k0, k1)
    c0, c1, c2, c3, k0, k1 = _round(c0, c1, c2, c3, k0, k1)
    c0, c1, c2, c3, k0, k1 = _round(c0, c1, c2, c3, k0, k1)
    c0, c1, c2, c3, k0, k1 = _round(c0, c1, c2, c3, k0, k1)
    c0, c1, c2, c3, k0, k1 = _round(c0, c1, c2, c3, k0, k1)
    c0, c1, c2, c3, k0, k1 = _round(c0, c1, c2, c3, k0, k1)
    c0, c1, c2, c3, k0, k1 = _round(c0, c1, c2, c3, k0, k1)
    c0, c1, c2, c3, k0, k1 = _round(c0, c1, c2, c3, k0, k1)
    c0, c1, c2, c3, k0, k1 = _round(c0, c1, c2, c3, k0, k1)
    return c0, c1, c2, c3


@kernel
def _write_scales(first, groups, threshold, seed, call, factor, scales):
    """Write what the elements of some groups of four are multiplied by, from `first` on."""
    zero = scales.dtype.type(0)
    for group in range(groups):
        a, b, c, d = _philox(np.uint64(first + group), call, seed)
        scales[4 * group] = factor if a >= threshold else zero
        scales[4 * group + 1] = factor if b >= threshold else zero
        scales[4 * group + 2] = factor if c >= threshold else zero
        scales[4 * group + 3] = factor if d >= threshold else zero


@kernel
def _drop(start, stop, x, residual, rate, seed, call, out):
    """Do elements start to stop of flat arrays; their bits do not depend on where these are cut."""
    threshold, factor = np.uint64(rate * 2.0**32), x.dtype.type(1 / (1 - rate))
    seed, call = np.uint64(seed), np.uint64(call)
    scales, size, width = stack_array(x, REGISTERS), REGISTERS * lanes(x), lanes(x)
    for begin in range(start // 4 * 4, stop, size):
        _write_scales(begin // 4, size // 4, threshold, seed, call, factor, scales)
        for i in range(begin, min(stop, begin + size), width):
            first = max(start, i)
            count = min(stop, i + width) - first
            scale = load_first(scales, count, first - begin)
            y = select(scale > 0.0, load_first(x, count, first) * scale, splat(x, 0.0))
            if residual.size:
                y = y + load_first(residual, count, first)
            store_first(out, count, y, first)


@kernel(parallel=True)
def dropout_forward(x, residual, rate, seed, call, out):
    """Zero a share of the elements, scale up the others, and add a residual.

    Args:
        x: any shape, float32|float64, C-contiguous.    residual: the same shape, or of size 0.
        rate: in [0, 1).    seed, call: >= 0; no two calls of a run have the same.
        out: the shape of x, overwritten; may be x or residual.
    Threads: chunks of a fixed size; bit-identical for any thread count.
    """
    size = x.size
    flat_x, flat_residual = x.reshape(size), residual.reshape(residual.size)
    flat_out = out.reshape(size)
    for task in prange((size + CHUNK - 1) // CHUNK):
        start, stop = task * CHUNK, min(size, (task + 1) * CHUNK)
        _drop(start, stop, flat_x, flat_residual, rate, seed, call, flat_out)


@kernel(parallel=True)
def dropout_backward(dout, rate, seed, call, dx):
    """Differentiate `dropout_forward` by x; by the residual it is the identity.

    Args:
        dout: any shape, float32|float64, C-contiguous.    rate, seed, call: as in forward.
        dx: the shape of dout, overwritten; may be dout.
    Threads: chunks of a fixed size; bit-identical for any thread count.
    """
    size = dout.size
    flat_dout, flat_dx = dout.reshape(size), dx.reshape(size)
    for task in prange((size + CHUNK - 1) // CHUNK):
        start, stop = task * CHUNK, min(size, (task + 1) * CHUNK)
        _drop(start, stop, flat_dout, flat_dout[:0], rate, seed, call, flat_dx)


def _dropout_reference(x, residual, rate, seed, call, place, out):
    dropout_forward_reference(x, residual, rate, seed, call + place, out)


@op(
    "x[R,C] residual?[R,C] rate:float seed:int call:int place:int -> out[R,C]",
    cut="R", cost="C", twin=_dropout_reference,
)  # fmt: skip
def dropout(part, x, residual, rate, seed, call, place, out):
    """Zero a share of the elements, scale up the others, and add a residual."""
    C, key = x.shape[1], np.uint64(call) + np.uint64(place)
    _drop(part.first * C, part.last * C, flat(x), flat(residual), rate, seed, key, flat(out))
