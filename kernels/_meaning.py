"""What each operation on a vector register means, in NumPy; `_simd` compiles the same names.

A register is a one-dimensional array of `lanes(x)` elements.
"""

from typing import Any

import numpy as np

from ._llvm import element_lanes


def lanes(x: Any) -> int:
    """Return the number of elements of x's dtype in a register."""
    return element_lanes(x.dtype.itemsize)


def _flat(x: Any, index: tuple[int, ...]) -> int:
    return int(np.ravel_multi_index(index, x.shape))


def load(x: Any, *index: int) -> Any:
    """Return the register's worth of elements that begins at `index`."""
    start = _flat(x, index)
    return x.reshape(-1)[start : start + lanes(x)].copy()


def load_first(x: Any, count: int, *index: int) -> Any:
    """Return the first `count` elements from `index` on, and 0 in the other lanes."""
    v = np.zeros(lanes(x), x.dtype)
    start, stop = _flat(x, index), min(max(count, 0), lanes(x))
    v[:stop] = x.reshape(-1)[start : start + stop]
    return v


def store(x: Any, v: Any, *index: int) -> None:
    """Write all lanes of v at `index` and after it."""
    start = _flat(x, index)
    x.reshape(-1)[start : start + lanes(x)] = v


def store_first(x: Any, count: int, v: Any, *index: int) -> None:
    """Write the first `count` lanes of v at `index` and after it."""
    start, stop = _flat(x, index), min(max(count, 0), lanes(x))
    x.reshape(-1)[start : start + stop] = v[:stop]


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


def log(a: Any) -> Any:
    """Return the natural logarithm of numbers > 0 that are normal; infinity of infinity."""
    return np.log(a)


def sigmoid(a: Any) -> Any:
    """Return 1 / (1 + exp(-a))."""
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-a))


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
