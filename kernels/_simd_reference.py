"""What each operation on a vector register means, in NumPy; `_simd` compiles the same names.

A register is a one-dimensional array of `lanes(x)` elements.
"""

import math
from typing import Any

import numba
import numpy as np

from ._llvm import NEGLIGIBLE, TILE_ROWS, element_lanes


def lanes(x: Any) -> int:
    """Return the number of elements of x's dtype in a register."""
    return element_lanes(x.dtype.itemsize)


def _part(x: Any, index: tuple[int, ...], count: int) -> Any:
    """Return a view of `count` elements of x from `index` on; none may be outside x."""
    start = 0
    for position, length in zip(index, x.shape, strict=True):
        start = start * length + int(position)
    if count > 0 and (start < 0 or start + count > x.size):
        raise IndexError(f"elements {start} to {start + count - 1} of {x.size}")
    return x.reshape(-1)[start : start + count]


def load(x: Any, *index: int) -> Any:
    """Return the register's worth of elements that begins at `index`."""
    return _part(x, index, lanes(x)).copy()


def load_first(x: Any, count: int, *index: int) -> Any:
    """Return the first `count` elements from `index` on, and 0 in the other lanes."""
    v = np.zeros(lanes(x), x.dtype)
    used = min(max(count, 0), lanes(x))
    v[:used] = _part(x, index, used)
    return v


def load_padded(x: Any, count: int, other: float, *index: int) -> Any:
    """Return the first `count` elements from `index` on, and `other` in the other lanes."""
    return keep_first(load_first(x, count, *index), count, other)


def store(x: Any, v: Any, *index: int) -> None:
    """Write all lanes of v at `index` and after it."""
    _part(x, index, lanes(x))[...] = v


def store_first(x: Any, count: int, v: Any, *index: int) -> None:
    """Write the first `count` lanes of v at `index` and after it."""
    used = min(max(count, 0), lanes(x))
    _part(x, index, used)[...] = v[:used]


def stream_first(x: Any, count: int, v: Any, *index: int) -> None:
    """Store past the caches; see `_simd`."""
    store_first(x, count, v, *index)


def end_stream(x: Any) -> None:
    """See `_simd`."""


def thread_count() -> int:
    """Return how many threads a parallel region that begins now has."""
    return int(numba.get_num_threads())


def fetch_add(x: Any, i: int, value: int) -> int:
    """Add to an element that other threads add to as well, and return what it was before."""
    before = int(x[i])
    x[i] += value
    return before


def load_fresh(x: Any, i: int) -> int:
    """Return an element as other threads left it, and with it all that they had written before."""
    return int(x[i])


def yield_core() -> None:
    """Let other threads run on this core: see `_simd`."""


def stack_array(x: Any, registers: int) -> Any:
    """Return an array of x's dtype for so many registers, whose elements are not set."""
    return np.empty(registers * lanes(x), x.dtype)


def prefetch(x: Any, *index: int) -> None:
    """Do nothing: the memory at `index`, which may be outside x, is there already."""


def array_at(x: Any, start: int, *shape: int) -> Any:
    """Return the elements of a flat x from `start` on as an array of a shape."""
    return _part(x, (start,), int(np.prod(shape))).reshape(shape)


def flat(x: Any) -> Any:
    """Return all elements of x as an array of one axis."""
    return x.reshape(x.size)


def splat(x: Any, scalar: float) -> Any:
    """Return the scalar in every lane."""
    return np.full(lanes(x), scalar, x.dtype)


def fma(a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c (rounded once when compiled)."""
    return a * b + c


def select(mask: Any, a: Any, b: Any) -> Any:
    """Return a where the mask is true, b elsewhere."""
    return np.where(mask, a, b)


def maximum(a: Any, b: Any) -> Any:
    """Return a where a > b, else b: the larger of two numbers, b where one is NaN."""
    return np.where(a > b, a, b)


def sqrt(a: Any) -> Any:
    """Return the square root, correctly rounded."""
    return np.sqrt(a)


def exp(a: Any) -> Any:
    """Return e to the power a, at most 1 ULP from the true value."""
    return np.exp(a)


def exp_or_zero(a: Any) -> Any:
    """Return e to the power a, or 0 where that is below 2 to the power of NEGLIGIBLE."""
    exponent = NEGLIGIBLE["float" if a.dtype == np.float32 else "double"]
    return np.where(a < a.dtype.type(exponent * math.log(2)), a.dtype.type(0), np.exp(a))


def exp_of_sum(a: Any, b: Any) -> Any:
    """Return e to the power a + b, where b is what the rounding of a left out."""
    return np.exp(np.add(a, b, dtype=np.longdouble)).astype(a.dtype)


def log(a: Any) -> Any:
    """Return the natural logarithm of numbers > 0 that are normal; infinity of infinity."""
    return np.log(a)


def keep_first(v: Any, count: int, other: float) -> Any:
    """Return the first `count` lanes of v, and `other` in the rest."""
    return np.where(np.arange(v.size) < count, v, v.dtype.type(other))


def drop_first(v: Any, count: int, other: float) -> Any:
    """Return `other` in the first `count` lanes, and v in the rest."""
    return np.where(np.arange(v.size) < count, v.dtype.type(other), v)


def sum_lanes(v: Any) -> Any:
    """Return the sum of all lanes, halves added to halves."""
    while v.size > 1:
        v = v[: v.size // 2] + v[v.size // 2 :]
    return v[0]


def max_lanes(v: Any) -> Any:
    """Return the largest lane; a NaN among them may be passed over."""
    return np.fmax.reduce(v)


# ---- the blocks of `_tile`, whose docstrings say what their arguments are ----


def multiply(
    rows: int, columns: int, depth: int, a: Any, a_start: int, a_row_step: int, a_k_step: int,
    a_tile_step: int, panel: Any, panel_start: int, panel_step: int, has_bias: bool, bias: Any,
    bias_start: int, has_addend: bool, addend: Any, rectifies: bool, is_far: bool, out: Any,
    out_start: int, out_step: int,
) -> None:  # fmt: skip
    """Multiply rows by a panel, and add bias and addend."""
    width = lanes(out) * (1 if columns <= lanes(out) else 2)
    lines = [_part(panel, (panel_start + k * panel_step,), width)[:columns] for k in range(depth)]
    for row in range(rows):
        start = a_start + row // TILE_ROWS * a_tile_step + row % TILE_ROWS * a_row_step
        left = [_part(a, (start + k * a_k_step,), 1) for k in range(depth)]
        total = np.zeros(columns, out.dtype)
        for element, line in zip(left, lines, strict=True):
            total += element * line
        if has_bias:
            total += _part(bias, (bias_start,), columns)
        place = (out_start + row * out_step,)
        if has_addend:
            total += _part(addend, place, columns)
        _part(out, place, columns)[...] = np.maximum(total, 0) if rectifies else total


def transpose_block(
    source: Any, source_start: int, source_step: int, count: int, out: Any, out_start: int,
    out_step: int,
) -> None:  # fmt: skip
    """Transpose a square block, whose last row stands for those that are missing."""
    size = lanes(out)
    for i in range(size):
        row = _part(source, (source_start + min(i, count - 1) * source_step,), size)
        for j in range(size):
            _part(out, (out_start + j * out_step + i,), 1)[...] = row[j]
