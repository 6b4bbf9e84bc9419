"""Dropout with counter-based random numbers: the mask is computed again in backward, not kept.

    out = residual + x * mask / (1 - rate),     dx = dout * mask / (1 - rate)

Element i is kept where word i % 4 of Philox4x32-10 at counter (i // 4, call) and key `seed` is at
least rate * 2^32. Source: Srivastava et al. 2014, JMLR 15; Salmon et al. 2011, "Parallel random
numbers: as easy as 1, 2, 3".
"""

import numpy as np

from ._compile import kernel, prange
from ._simd import flat
from .op import op

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
LOW = 0xFFFFFFFF
CHUNK = 16384


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


@kernel
def _philox(counter, call, seed):
    """Return four words below 2^32 as uint64."""
    low, shift = np.uint64(LOW), np.uint64(32)
    call, seed = np.uint64(call), np.uint64(seed)
    c0, c1, c2, c3 = counter & low, counter >> shift, call & low, call >> shift
    k0, k1 = seed & low, seed >> shift
    for _ in range(10):
        product0 = c0 * np.uint64(MULTIPLIERS[0])
        product1 = c2 * np.uint64(MULTIPLIERS[1])
        c0, c1, c2, c3 = (
            (product1 >> shift) ^ c1 ^ k0,
            product1 & low,
            (product0 >> shift) ^ c3 ^ k1,
            product0 & low,
        )
        k0 = (k0 + np.uint64(KEY_STEPS[0])) & low
        k1 = (k1 + np.uint64(KEY_STEPS[1])) & low
    return c0, c1, c2, c3


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
    threshold = np.uint64(rate * 2.0**32)
    factor = x.dtype.type(1 / (1 - rate))
    for task in prange((size + CHUNK - 1) // CHUNK):
        stop = min(size, (task + 1) * CHUNK)
        for i in range(task * CHUNK, stop, 4):
            words = _philox(np.uint64(i // 4), call, seed)
            for lane in range(min(4, stop - i)):
                kept = words[lane] >= threshold
                value = flat_x[i + lane] * factor if kept else x.dtype.type(0)
                if residual.size:
                    value += flat_residual[i + lane]
                flat_out[i + lane] = value


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
    threshold = np.uint64(rate * 2.0**32)
    factor = dout.dtype.type(1 / (1 - rate))
    for task in prange((size + CHUNK - 1) // CHUNK):
        stop = min(size, (task + 1) * CHUNK)
        for i in range(task * CHUNK, stop, 4):
            words = _philox(np.uint64(i // 4), call, seed)
            for lane in range(min(4, stop - i)):
                kept = words[lane] >= threshold
                flat_dx[i + lane] = flat_dout[i + lane] * factor if kept else dout.dtype.type(0)


def _dropout_reference(x, residual, rate, seed, call, place, out):
    dropout_forward_reference(x, residual, rate, seed, call + place, out)


@op(
    "x[R,C] residual?[R,C] rate:float seed:int call:int place:int -> out[R,C]",
    cut="R", cost="C", twin=_dropout_reference,
)  # fmt: skip
def dropout(part, x, residual, rate, seed, call, place, out):
    """Zero a share of the elements, scale up the others, and add a residual."""
    C = x.shape[1]
    start, stop = part.first * C, part.last * C
    flat_x, flat_residual, flat_out = flat(x), flat(residual), flat(out)
    threshold = np.uint64(rate * 2.0**32)
    factor = x.dtype.type(1 / (1 - rate))
    for i in range(start // 4 * 4, stop, 4):
        words = _philox(np.uint64(i // 4), np.uint64(call + place), np.uint64(seed))
        for lane in range(max(0, start - i), min(4, stop - i)):
            value = flat_x[i + lane] * factor if words[lane] >= threshold else x.dtype.type(0)
            if residual.size:
                value += flat_residual[i + lane]
            flat_out[i + lane] = value
