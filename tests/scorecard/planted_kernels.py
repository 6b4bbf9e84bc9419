"""Kernels with a fault: accesses that are off by one, races, and sums that threads decide."""

from typing import Any

from fastformer.kernels._compile import kernel, prange
from fastformer.kernels._simd import lanes, load_first, store_first


@kernel
def copy_rows(
    x: Any, out: Any, read_shift: int, read_more: int, write_shift: int, write_more: int
) -> None:
    """Copy the rows of a matrix; each number but 0 is an access outside of it."""
    C = x.shape[1]
    for i in range(x.shape[0]):
        for j in range(0, C, lanes(x)):
            row = load_first(x, C - j + read_more, i, j + read_shift)
            store_first(out, C - j + write_more, row, i, j + write_shift)


@kernel
def copy_elements(x: Any, out: Any, read_shift: int, write_shift: int) -> None:
    """Copy a vector; each number but 0 is an access outside of it."""
    for i in range(x.size):
        out[i + write_shift] = x[i + read_shift]


@kernel(parallel=True)
def last_writer(x: Any, out: Any) -> None:
    """Leave in one element what the last turn of the loop wrote."""
    for i in prange(x.size):
        out[0] = x[i]


@kernel(parallel=True)
def running_sum(x: Any, out: Any) -> None:
    """Add all elements to one, in the order of the turns."""
    for i in prange(x.size):
        out[0] += x[i]


@kernel(parallel=True)
def neighbour(x: Any, out: Any) -> None:
    """Read what another turn of the loop may have written."""
    for i in prange(x.size - 1):
        out[i] = out[i + 1] + x[i]


@kernel(parallel=True)
def clean(x: Any, out: Any) -> None:
    """Copy, each turn its own element."""
    for i in prange(x.size):
        out[i] = x[i]


@kernel(parallel=True)
def sum_of_squares_by_threads(x: Any, sums: Any) -> None:
    """Sum the squares of x in as many parts as `sums` has room for: others for other threads."""
    for part in prange(sums.size):
        for i in range(x.size * part // sums.size, x.size * (part + 1) // sums.size):
            sums[part] += x[i] * x[i]


# Arguments of a call that is right, and of such that are wrong, for each of the serial kernels.
OFF_BY_ONE = {
    "copy_rows": ((0, 0, 0, 0), [(0, 1, 0, 0), (0, 0, 0, 1), (-1, 0, 0, 0), (0, 0, -1, 0),
                                 (1, 0, 0, 0), (0, 0, 1, 0)]),
    "copy_elements": ((0, 0), [(1, 0), (0, 1)]),
}  # fmt: skip
RACES = ("last_writer", "running_sum", "neighbour")
