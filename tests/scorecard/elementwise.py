"""Row A2: every elementwise function of the kernels, in units in the last place.

In float32, against float64; activations in float64, too, against what is wider, where there is any.
The unit is that of the true result. The derivatives of GELU, SiLU and Mish are sums of two terms
that cancel, GELU's near x = -0.75, and their unit is that of the larger term. Where the sigmoid, or
Phi, or Mish's factor, is below the smallest normal number, the unit is no less than its step times
what it is multiplied by.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastformer.kernels._compile import kernel
from fastformer.kernels._simd import exp, lanes, load_first, log, splat, sqrt, store_first
from fastformer.kernels.activation import (
    CUBIC,
    DENSITY_DIGITS,
    FAR,
    TWICE_SLOPE,
    exact_gelu_and_slope,
    gelu_and_slope,
    mish_and_slope,
    relu_gradient_vector,
    relu_vector,
    silu_and_slope,
)
from tests.scorecard.rows import Finding, Row, Tier

LIMIT = 2.0
WIDER: dict[Any, Any] = {np.float32: np.float64, np.float64: np.longdouble}
NARROW = {np.dtype(wide): narrow for narrow, wide in WIDER.items()}
HAS_WIDER = np.finfo(np.longdouble).eps < np.finfo(np.float64).eps
PART = 1 << 20

Array = np.ndarray[Any, Any]


@kernel
def _exp(x: Any, out: Any) -> None:
    for i in range(0, x.size, lanes(x)):
        store_first(out, x.size - i, exp(load_first(x, x.size - i, i)), i)


@kernel
def _log(x: Any, out: Any) -> None:
    for i in range(0, x.size, lanes(x)):
        store_first(out, x.size - i, log(load_first(x, x.size - i, i)), i)


@kernel
def _sqrt(x: Any, out: Any) -> None:
    for i in range(0, x.size, lanes(x)):
        store_first(out, x.size - i, sqrt(load_first(x, x.size - i, i)), i)


@kernel
def _inverse_root(x: Any, out: Any) -> None:
    """Compute what a layer norm multiplies by: its variance plus epsilon is a float64."""
    for i in range(x.size):
        out[i] = 1 / math.sqrt(np.float64(x[i]))


@kernel
def _gelu(x: Any, out: Any) -> None:
    for i in range(0, x.size, lanes(x)):
        store_first(out, x.size - i, gelu_and_slope(load_first(x, x.size - i, i))[0], i)


@kernel
def _gelu_gradient(x: Any, out: Any) -> None:
    for i in range(0, x.size, lanes(x)):
        store_first(out, x.size - i, gelu_and_slope(load_first(x, x.size - i, i))[1], i)


@kernel
def _exact_gelu(x: Any, out: Any) -> None:
    for i in range(0, x.size, lanes(x)):
        store_first(out, x.size - i, exact_gelu_and_slope(load_first(x, x.size - i, i))[0], i)


@kernel
def _exact_gelu_gradient(x: Any, out: Any) -> None:
    for i in range(0, x.size, lanes(x)):
        store_first(out, x.size - i, exact_gelu_and_slope(load_first(x, x.size - i, i))[1], i)


@kernel
def _silu(x: Any, out: Any) -> None:
    for i in range(0, x.size, lanes(x)):
        store_first(out, x.size - i, silu_and_slope(load_first(x, x.size - i, i))[0], i)


@kernel
def _silu_gradient(x: Any, out: Any) -> None:
    for i in range(0, x.size, lanes(x)):
        store_first(out, x.size - i, silu_and_slope(load_first(x, x.size - i, i))[1], i)


@kernel
def _mish(x: Any, out: Any) -> None:
    for i in range(0, x.size, lanes(x)):
        store_first(out, x.size - i, mish_and_slope(load_first(x, x.size - i, i))[0], i)


@kernel
def _mish_gradient(x: Any, out: Any) -> None:
    for i in range(0, x.size, lanes(x)):
        store_first(out, x.size - i, mish_and_slope(load_first(x, x.size - i, i))[1], i)


@kernel
def _relu(x: Any, out: Any) -> None:
    for i in range(0, x.size, lanes(x)):
        store_first(out, x.size - i, relu_vector(load_first(x, x.size - i, i)), i)


@kernel
def _relu_gradient(x: Any, out: Any) -> None:
    for i in range(0, x.size, lanes(x)):
        v = relu_gradient_vector(splat(x, 1.0), load_first(x, x.size - i, i))
        store_first(out, x.size - i, v, i)


def _tiny(x: Array) -> Any:
    """Return the smallest normal number of the dtype that x, which is wider, stands for."""
    return np.finfo(NARROW[x.dtype]).tiny


def _step(x: Array) -> Any:
    """Return the smallest number of that dtype."""
    return x.dtype.type(np.finfo(NARROW[x.dtype]).smallest_subnormal)


def _spacing(x: Array) -> Array:
    """Return the unit in the last place of the numbers of that dtype."""
    return np.spacing(np.abs(x).astype(NARROW[x.dtype])).astype(x.dtype)


def _sigmoid(z: Array) -> Array:
    e = np.exp(-np.abs(z))
    return np.where(z < 0, e, 1) / (1 + e)


def _argument(x: Array) -> Array:
    return x.dtype.type(TWICE_SLOPE) * (x + x.dtype.type(CUBIC) * x * x * x)


def _steep(x: Array) -> Array:
    """Return the derivative of the argument."""
    return x.dtype.type(TWICE_SLOPE) * (1 + 3 * x.dtype.type(CUBIC) * x * x)


def _gelu_truth(x: Array) -> Array:
    return x * _sigmoid(_argument(x))


def _gelu_unit(x: Array) -> Array:
    s = _sigmoid(_argument(x))
    return np.where(s < _tiny(x), np.abs(x) * _step(x), 0)


def _terms(x: Array) -> tuple[Array, Array]:
    """Return both terms of the derivative; at the infinities their limits."""
    near = np.clip(x, -100, 100)
    s, other = _sigmoid(_argument(near)), _sigmoid(-_argument(near))
    return s, near * s * other * _steep(near)


def _gradient_unit(x: Array) -> Array:
    s, term = _terms(x)
    unit = _spacing(np.maximum(np.abs(s), np.abs(term)))
    steep = np.abs(1 + np.clip(x, -100, 100) * _steep(x))
    return np.fmax(unit, np.where(s < _tiny(x), np.minimum(steep, 1e9) * _step(x), 0))


def _tail(a: Array) -> Array:
    """Return Phi(-a) for a >= 0, and 0 beyond FAR.

    For float32 by Python's erfc; in wider numbers than that has, below 2 by a series, above by a
    continued fraction: what each leaves out is below 2^-64 of the result. Source: Abramowitz &
    Stegun 1964, 26.2.11 and 26.2.14.
    """
    if a.dtype == np.float64:
        return np.asarray(np.frompyfunc(math.erfc, 1, 1)(a * math.sqrt(0.5)), float) / 2
    is_near, is_far = (a > 1e-12) & (a < 2), (a >= 2) & (a < FAR)
    near, far = a[is_near], a[is_far]
    term, total = near.copy(), near.copy()
    for k in range(1, 50):
        term *= near * near / (2 * k + 1)
        total += term
    fraction = far.copy()
    for k in range(140, 0, -1):
        fraction = far + k / fraction
    half = a.dtype.type(0.5)
    found = np.where(a < 1, half - a * _density(np.zeros_like(a)), 0)
    found[is_near] = half - _density(near) * total
    found[is_far] = _density(far) / fraction
    return found


def _density(x: Array) -> Array:
    """Return phi(x), with the square of a number of few bits, which is not rounded."""
    high = x.astype(np.float32).astype(x.dtype)
    rest = np.exp((high - x) * (high + x) / 2)
    return x.dtype.type(np.longdouble(DENSITY_DIGITS)) * np.exp(-high * high / 2) * rest


def _exact_gelu_terms(x: Array) -> tuple[Array, Array]:
    """Return both terms of the exact GELU's derivative; at the infinities their limits."""
    near = np.clip(x, -FAR, FAR)
    tail = _tail(np.abs(near))
    return np.where(near < 0, tail, 1 - tail), near * _density(near)


def _silu_terms(x: Array) -> tuple[Array, Array]:
    """Return both terms of SiLU's derivative; at the infinities their limits."""
    near = np.clip(x, -1000, 1000)
    s = _sigmoid(near)
    return s, near * s * _sigmoid(-near)


def _factor(x: Array) -> Array:
    """Return what Mish multiplies by, which is e^x where that is small."""
    return np.tanh(np.log1p(np.exp(np.minimum(x, 100))))


def _mish_terms(x: Array) -> tuple[Array, Array]:
    """Return both terms of Mish's derivative; at the infinities their limits."""
    near = np.clip(x, -1000, 1000)
    e = np.exp(-np.abs(near))
    bottom = np.where(near < 0, e * (e + 2) + 2, 1 + 2 * e + 2 * e * e)
    return _factor(near), 4 * near * np.where(near < 0, e, e * e) * (1 + e) / (bottom * bottom)


def _unit_of(small: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Return the unit of x times a factor that may be below the smallest normal number."""
    return lambda x: np.where(small(x) < _tiny(x), np.abs(x) * _step(x), 0)


def _unit_of_sum(terms: Callable[[Array], tuple[Array, Array]]) -> Callable[[Array], Array]:
    """Return the unit of a derivative whose factor e^x may be below the smallest normal number."""

    def unit(x: Array) -> Array:
        first, second = terms(x)
        steep = np.abs(1 + np.clip(x, -1000, 1000)) * _step(x)
        unit = _spacing(np.maximum(np.abs(first), np.abs(second)))
        return np.fmax(unit, np.where(first < _tiny(x), steep, 0))

    return unit


def _relu_slope(x: Array) -> Array:
    return np.where(np.isnan(x), x, x > 0)


@dataclass(frozen=True)
class Function:
    """A function of one number: as the kernels have it, and as a wider dtype has it."""

    name: str
    run: Callable[[Array, Array], None]
    truth: Callable[[Array], Array]
    unit: Callable[[Array], Array] = np.zeros_like
    domain: Callable[[Array], Array] = lambda x: np.ones(x.shape, bool)


FUNCTIONS = (
    Function("exp", _exp, np.exp),
    # Of sums of exponentials, the largest of which is 1.
    Function("log", _log, np.log, domain=lambda x: (x >= np.finfo(x.dtype).tiny) | np.isnan(x)),
    Function("sqrt", _sqrt, np.sqrt),
    # Of a variance plus epsilon.
    Function("1/sqrt", _inverse_root, lambda x: 1 / np.sqrt(x), domain=lambda x: ~(x <= 0)),
    Function("relu", _relu, lambda x: np.where(x < 0, 0, x)),
    Function("relu'", _relu_gradient, _relu_slope),
    Function("gelu", _gelu, _gelu_truth, _gelu_unit),
    Function("gelu'", _gelu_gradient, lambda x: sum(_terms(x)), _gradient_unit),
    Function(
        "exact gelu", _exact_gelu, lambda x: x * _exact_gelu_terms(x)[0],
        _unit_of(lambda x: _exact_gelu_terms(x)[0]),
    ),
    Function(
        "exact gelu'", _exact_gelu_gradient, lambda x: sum(_exact_gelu_terms(x)),
        _unit_of_sum(_exact_gelu_terms),
    ),
    Function("silu", _silu, lambda x: x * _sigmoid(x), _unit_of(_sigmoid)),
    Function("silu'", _silu_gradient, lambda x: sum(_silu_terms(x)), _unit_of_sum(_silu_terms)),
    Function("mish", _mish, lambda x: x * _factor(x), _unit_of(_factor)),
    Function("mish'", _mish_gradient, lambda x: sum(_mish_terms(x)), _unit_of_sum(_mish_terms)),
)  # fmt: skip
SMOOTH = tuple(f for f in FUNCTIONS if f.name.startswith(("gelu", "exact", "silu", "mish")))


def errors(function: Function, x: Array) -> Array:
    """Return the error for each number in units; infinite where NaN or infinity is misplaced."""
    out = np.empty_like(x)
    function.run(x, out)
    with np.errstate(all="ignore"):
        wide = x.astype(WIDER[x.dtype.type])
        truth = function.truth(wide)
        rounded = truth.astype(x.dtype)
        unit = np.spacing(np.abs(rounded)).astype(wide.dtype)
        unit = np.fmax(unit, function.unit(wide))
        found = np.abs(out.astype(wide.dtype) - truth) / unit
    same = (out == rounded) | (np.isnan(out) & np.isnan(rounded))
    return np.where(np.isfinite(rounded) & np.isfinite(out), found, np.where(same, 0, np.inf))


def sampled(each: int) -> Iterator[Array]:
    """Yield so many floats of each sign and exponent, the first and last of each among them."""
    rng = np.random.default_rng(2)
    for high in range(512):
        low = rng.integers(0, 1 << 23, each).astype(np.uint32)
        low[:64], low[64:128] = np.arange(64), np.arange((1 << 23) - 64, 1 << 23)
        yield (low | np.uint32(high << 23)).view(np.float32)


def sampled64(each: int) -> Iterator[Array]:
    """Yield as many float64, of eight times as many exponents."""
    rng = np.random.default_rng(3)
    few = max(3, each // 8)
    for high in range(0, 4096, 64):
        low = rng.integers(0, 1 << 52, (64, few)).astype(np.uint64)
        low[:, 0], low[:, 1] = 0, (1 << 52) - 1
        places = np.arange(high, high + 64, dtype=np.uint64)[:, None] << np.uint64(52)
        yield (low | places).ravel().view(np.float64)


def every_float() -> Iterator[Array]:
    """Yield all 2^32 floats."""
    for first in range(0, 1 << 32, PART):
        yield np.arange(first, first + PART, dtype=np.uint64).astype(np.uint32).view(np.float32)


def sweep(function: Function, parts: Iterator[Array]) -> tuple[int, int, float, float]:
    """Return how many inputs are within the limit, of how many, the largest error, and where."""
    held, cases, worst, where = 0, 0, 0.0, math.nan
    for part in parts:
        x = part[function.domain(part)]
        if not x.size:
            continue
        found = errors(function, x)
        held, cases = held + int(np.count_nonzero(found <= LIMIT)), cases + x.size
        place = int(np.argmax(np.where(np.isnan(found), np.inf, found)))
        if not found[place] <= worst:
            worst, where = float(found[place]), float(x[place])
    return held, cases, worst, where


def _planted() -> list[bool]:
    """Tell for each planted fault whether it is noticed."""

    def series(x: Array, out: Array) -> None:
        _exp(x, out)
        out *= np.float32(1 + 3 * 2.0**-23)

    def loses_nan(x: Array, out: Array) -> None:
        _exp(x, out)
        out[np.isnan(x)] = 0

    def flushes(x: Array, out: Array) -> None:
        _exp(x, out)
        out[out < np.finfo(x.dtype).tiny] = 0

    def plain_gelu(x: Array, out: Array) -> None:
        with np.errstate(all="ignore"):
            inner = x.dtype.type(TWICE_SLOPE) * (x + x.dtype.type(CUBIC) * x * x * x)
            out[...] = x / (1 + np.exp(-inner))

    wrong = [Function("", run, np.exp) for run in (series, loses_nan, flushes)]

    def plain_mish(x: Array, out: Array) -> None:
        with np.errstate(all="ignore"):
            out[...] = x * np.tanh(np.log1p(np.exp(x)))

    def plain_exact_gelu(x: Array, out: Array) -> None:
        with np.errstate(all="ignore"):
            out[...] = x * _exact_gelu_terms(x)[0]

    wrong.append(Function("", plain_gelu, _gelu_truth, _gelu_unit))
    wrong.append(Function("", plain_mish, lambda x: x * _factor(x), _unit_of(_factor)))
    (exact,) = (function for function in FUNCTIONS if function.name == "exact gelu")
    wrong.append(dataclasses.replace(exact, run=plain_exact_gelu))
    sweeps = [sweep(function, sampled(256)) for function in wrong]
    if HAS_WIDER:
        sweeps += [sweep(function, sampled64(256)) for function in wrong[-3:]]
    return [held < cases for held, cases, _, _ in sweeps]


def measure(tier: Tier, each: int = 8192) -> Finding:
    """Sweep every function over a sample of each exponent, or over all floats of 32 bits."""
    held, cases, numbers, failures = 0, 0, [], []
    sweeps = [
        (function.name, function, every_float() if tier == "nightly" else sampled(each))
        for function in FUNCTIONS
    ]
    if HAS_WIDER:
        sweeps += [(f"{function.name} (64)", function, sampled64(each)) for function in SMOOTH]
    for name, function, parts in sweeps:
        good, all_cases, worst, where = sweep(function, parts)
        held, cases = held + good, cases + all_cases
        numbers.append(f"{name} {worst:.2f}")
        if good < all_cases:
            failures.append(f"{name}: {all_cases - good} above {LIMIT}, worst {worst} at {where!r}")
    planted = _planted()
    number = f"worst in ULP: {', '.join(numbers)}"
    return Finding(held, cases, sum(planted), len(planted), number, tuple(failures))


ROW = Row(
    "A2",
    "elementwise functions are right to 2 units in the last place over every float32",
    "<= 2 ULP; NaN and infinity where they belong",
    measure,
)
