"""Loops that do nothing but load one part of the machine: its multiply-adders, or its memory."""

from numba import prange

from fastformer.kernels._compile import kernel
from fastformer.kernels._simd import fma, lanes, load, splat, store, sum_lanes

# Enough independent sums to hide the latency of an FMA, and few enough for 16 registers.
CHAINS = 12
CHUNK = 4096


@kernel
def _fma_chains(x, rounds):
    """Return what CHAINS sums are after `rounds` multiply-adds each, all in registers."""
    b, c = load(x, 0), load(x, lanes(x))
    s0, s1, s2, s3 = splat(x, 0.0), splat(x, 0.1), splat(x, 0.2), splat(x, 0.3)
    s4, s5, s6, s7 = splat(x, 0.4), splat(x, 0.5), splat(x, 0.6), splat(x, 0.7)
    s8, s9, s10, s11 = splat(x, 0.8), splat(x, 0.9), splat(x, 1.1), splat(x, 1.2)
    for _ in range(rounds):
        s0, s1, s2, s3 = fma(s0, b, c), fma(s1, b, c), fma(s2, b, c), fma(s3, b, c)
        s4, s5, s6, s7 = fma(s4, b, c), fma(s5, b, c), fma(s6, b, c), fma(s7, b, c)
        s8, s9, s10, s11 = fma(s8, b, c), fma(s9, b, c), fma(s10, b, c), fma(s11, b, c)
    return sum_lanes(s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7 + s8 + s9 + s10 + s11)


@kernel(parallel=True)
def fma_peak(x, rounds, out):
    """Run the chains once for each element of `out`, on as many threads.

    Args:
        x: two registers' worth of elements: the factor in all lanes, then the addend.
        rounds: multiply-adds of each chain.    out: (tasks,) overwritten.
    """
    for task in prange(out.size):
        out[task] = _fma_chains(x, rounds)


@kernel(parallel=True)
def triad(a, b, c, factor):
    """Write b + factor * c to a: STREAM's triad.

    Args:
        a: (n,) overwritten, n a multiple of CHUNK.    b, c: (n,).    factor: a number.
    """
    for task in prange(a.size // CHUNK):
        for i in range(task * CHUNK, (task + 1) * CHUNK, lanes(a)):
            store(a, fma(load(c, i), splat(a, factor), load(b, i)), i)


@kernel
def empty_call(a, b, c, d, e, f, factor, out):
    """Write one number: what is left is the cost of a call with seven arrays and a scalar."""
    out[0] = factor


@kernel(parallel=True)
def empty_parallel_call(a, b, c, d, e, f, factor, out):
    """Write one number on each thread: the call's cost and that of a parallel region."""
    for task in prange(out.size):
        out[task] = factor
