"""The machine's own limits, measured: arithmetic, memory, and what a call and a region cost."""

import functools
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastformer.bench.timing import time_calls
from fastformer.parameters import aligned_zeros

ROUNDS = 100_000
LARGEST_ARRAY = 384 * 2**20
# Bytes a second: so much memory is gone over at least once in the time that there is.
SLOWEST_MEMORY = 12e9
# Bytes that the arrays of a stream take together; a last one is beyond the caches.
WORKING_SETS = tuple(96 * 2**10 * 4**power for power in range(5))


def _best(call: Callable[[], Any], seconds: float) -> float:
    """Return the shortest time of a call: what the machine can do when it is left alone."""
    call()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - begin)
    return best


def fma_flops(dtype: type, threads: int, measured: float) -> float:
    """Return the multiply-adds per second, each counted as two operations."""
    from fastformer.bench.peak_kernels import CHAINS, fma_peak
    from fastformer.kernels._llvm import element_lanes

    width = element_lanes(np.dtype(dtype).itemsize)
    x: Any = np.repeat(np.array([0.999, 0.001], dtype), width)
    out: Any = np.empty(threads, dtype)
    seconds = _best(lambda: fma_peak(x, ROUNDS, out), measured)
    return threads * ROUNDS * CHAINS * width * 2 / seconds


def _last_level_cache() -> int:
    """Return the bytes of the largest cache, or 64 MiB where the system does not say.

    Three arrays as large as it are beyond it. Virtual machines are told of caches that they share
    with many others, so there is a limit.
    """
    sizes = [64 * 2**20]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        if text.endswith("K") and text[:-1].isdecimal():
            sizes.append(int(text[:-1]) * 2**10)
    return min(max(sizes), LARGEST_ARRAY)


def _bandwidth(working_set: int, measured: float) -> tuple[int, float]:
    """Return (working set in bytes, bytes per second) of the faster of two streams.

    A triad reads two arrays and writes a third, which most machines read first as well; the same
    in place has nothing to read that is not asked for.
    """
    from fastformer.bench.peak_kernels import CHUNK, triad

    fastest = 0.0
    for arrays in (3, 2):
        size = max(1, working_set // (arrays * 4 * CHUNK)) * CHUNK
        made = [aligned_zeros(size, np.float32) for _ in range(arrays)]
        for array in made:
            array.fill(0.5)
        a, b, c = made[0], made[arrays - 2], made[-1]  # of two arrays, a and b are the same
        seconds = _best(functools.partial(triad, a, b, c, 1e-9), measured)
        fastest = max(fastest, 3 * 4 * size / seconds)
    return working_set, fastest


def _bandwidths(measured: float) -> list[tuple[int, float]]:
    """Return (working set in bytes, bytes per second), small to large."""
    beyond = min(3 * _last_level_cache(), int(measured * SLOWEST_MEMORY))
    largest = max(beyond, 2 * WORKING_SETS[-1])
    return [_bandwidth(size, measured) for size in (*WORKING_SETS, largest)]


def _empty_arguments(threads: int) -> tuple[Any, ...]:
    x = np.zeros((4, 4), np.float32)
    return (x, x, x, x, x, x, 1.0, np.zeros(threads, np.float32))


def call_cost() -> float:
    """Return the seconds that a call of a kernel from Python takes, were the kernel empty."""
    from fastformer.bench.peak_kernels import empty_call

    arguments = _empty_arguments(1)
    return time_calls(lambda: empty_call(*arguments), seconds=0.2).minimum


def measure(seconds: float) -> dict[str, Any]:
    """Measure this machine with the threads that this process has.

    Args:
        seconds: for each number, of which there are twenty-eight.

    Returns:
        threads; fma: {dtype: {"one", "all"}} in FLOP/s; bandwidth: {"one", "all"} as lists of
        (working set in bytes, bytes/s); kernel_call, parallel_call, parallel_region in seconds.
    """
    import numba

    from fastformer.bench.peak_kernels import empty_parallel_call

    threads = numba.get_num_threads()
    fma: dict[str, dict[str, float]] = {"float32": {}, "float64": {}}
    bandwidth: dict[str, list[tuple[int, float]]] = {}
    for name, count in (("one", 1), ("all", threads)):
        numba.set_num_threads(count)
        for dtype in (np.float32, np.float64):
            fma[np.dtype(dtype).name][name] = fma_flops(dtype, count, seconds)
        bandwidth[name] = _bandwidths(seconds)
    arguments = _empty_arguments(threads)
    serial = call_cost()
    parallel = time_calls(lambda: empty_parallel_call(*arguments), seconds=0.2).minimum
    return {
        "threads": threads,
        "cpus": os.cpu_count(),
        "fma": fma,
        "bandwidth": bandwidth,
        "kernel_call": serial,
        "parallel_call": parallel,
        "parallel_region": max(0.0, parallel - serial),
    }


def bandwidth_at(machine: Mapping[str, Any], working_set: float, threads: str = "all") -> float:
    """Return the bytes per second that the machine reaches on so many bytes.

    Args:
        machine: what `measure` returned.    working_set: bytes.    threads: "one" or "all".

    Returns:
        Between measured working sets a value between theirs, on logarithmic scales.
    """
    sizes, speeds = zip(*machine["bandwidth"][threads], strict=True)
    between = np.interp(math.log(max(1.0, working_set)), np.log(sizes), np.log(speeds))
    return float(np.exp(between))


def attainable_seconds(
    machine: Mapping[str, Any],
    flops: float,
    traffic: float,
    footprint: float,
    threads: str = "all",
) -> float:
    """Return the least time for so much arithmetic and memory traffic: the roofline.

    Args:
        machine: what `measure` returned.    flops: operations in float32.
        traffic: bytes that are read and written.    footprint: bytes of distinct memory.
        threads: "one" or "all".
    """
    arithmetic = flops / float(machine["fma"]["float32"][threads])
    return max(arithmetic, traffic / bandwidth_at(machine, footprint, threads))
