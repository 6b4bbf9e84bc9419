"""Vector operations against their Python bodies, and the accuracy of exp and log."""

import itertools
import math
import platform
import re
from fractions import Fraction

import numpy as np
import pytest
from llvmlite import binding
from twins import DTYPES, TRUTH, assembly, guarded

from fastformer.kernels._compile import kernel
from fastformer.kernels._llvm import HAS_SCALEF, NEGLIGIBLE, element_lanes
from fastformer.kernels._simd import (
    array_at,
    drop_first,
    end_stream,
    exp,
    exp_of_sum,
    exp_or_zero,
    flat,
    fma,
    keep_first,
    lanes,
    load,
    load_first,
    load_padded,
    log,
    max_lanes,
    maximum,
    select,
    splat,
    sqrt,
    stack_array,
    store,
    store_first,
    stream_first,
    sum_lanes,
)
from fastformer.kernels._target import VECTOR_BITS

DTYPE = pytest.mark.parametrize("dtype", DTYPES)


@kernel
def _arithmetic(x, y, z, s, out):
    """Write what each operation makes of a register of x, y and z and the scalar s."""
    a, b, c = load(x, 0), load(y, 0), load(z, 0)
    store(out, a + b, 0, 0)
    store(out, a - b, 1, 0)
    store(out, a * b, 2, 0)
    store(out, a / b, 3, 0)
    store(out, a + s, 4, 0)
    store(out, s - a, 5, 0)
    store(out, 2 * a, 6, 0)
    store(out, s / b, 7, 0)
    store(out, splat(x, s), 8, 0)
    store(out, select(a > b, a, b), 9, 0)
    store(out, select(a < b, a, s), 10, 0)
    store(out, select(a > 0.0, 1, c), 11, 0)
    store(out, maximum(a, b), 12, 0)
    store(out, maximum(a, s), 13, 0)
    store(out, sqrt(b), 14, 0)
    store(out, splat(x, sum_lanes(a)), 15, 0)
    store(out, splat(x, max_lanes(a)), 16, 0)
    # The next two are 0 and rounded only where nothing is reassociated.
    store(out, (a + 1e30) - 1e30, 17, 0)
    store(out, (a * 3.0) / 3.0, 18, 0)
    store(out, a * b + c, 19, 0)
    store(out, -a, 20, 0)


ARITHMETIC_ROWS = 21


@kernel
def _fused(x, y, z, s, out):
    """Write fused multiply-adds."""
    a, b, c = load(x, 0), load(y, 0), load(z, 0)
    store(out, fma(a, b, c), 0, 0)
    store(out, fma(a, s, c), 1, 0)
    store(out, fma(a, b, s), 2, 0)


@kernel
def _tails(x, n, start, out):
    """Write what operations on the first n lanes make of x from `start` on."""
    store(out, load_first(x, n, start), 0, 0)
    store(out, keep_first(load(x, 0), n, -math.inf), 1, 0)
    store(out, drop_first(load(x, 0), n, -math.inf), 2, 0)
    store_first(out, n, load(x, 0), 3, 0)
    store(out, load_padded(x, n, 3.5, start), 4, 0)


@kernel
def _streamed(x, n, start, out):
    """Write the first n lanes of x to out from `start` on, past the caches."""
    stream_first(out, n, load(x, 0), start)
    end_stream(out)


@kernel
def _stacked(x, out):
    """Write two registers of x in the other order, by way of two arrays on the stack."""
    first, second = stack_array(x, 1), stack_array(x, 2)
    size = lanes(x)
    store(second, load(x, 0), size)
    store(first, load(x, size), 0)
    store(second, load(first, 0), 0)
    for i in range(second.size):
        out[i] = second[i]


@kernel
def _views(x, start, rows, columns, out):
    """Copy a part of x, as a matrix and as elements in a row, and one of a matrix's elements."""
    part = array_at(x, start, rows, columns)
    for i in range(rows):
        for j in range(columns):
            out[0, i, j] = part[i, j]
    elements = flat(part)
    for i in range(elements.size):
        out[1, i // columns, i % columns] = elements[i]
    last = array_at(elements, elements.size - 1, 1, 1, 1)
    out[2, 0, 0] = last[0, 0, 0]


@kernel
def _exp_all(x, out):
    for i in range(0, x.size, lanes(x)):
        store_first(out, x.size - i, exp(load_first(x, x.size - i, i)), i)


@kernel
def _exp_or_zero_all(x, out):
    for i in range(0, x.size, lanes(x)):
        store_first(out, x.size - i, exp_or_zero(load_first(x, x.size - i, i)), i)


@kernel
def _exp_of_sum_all(x, low, out):
    for i in range(0, x.size, lanes(x)):
        n = x.size - i
        store_first(out, n, exp_of_sum(load_first(x, n, i), load_first(low, n, i)), i)


@kernel
def _log_all(x, out):
    for i in range(0, x.size, lanes(x)):
        # Lanes beyond the end are 0, of which there is no logarithm.
        v = keep_first(load_first(x, x.size - i, i), x.size - i, 1.0)
        store_first(out, x.size - i, log(v), i)


def operands(rng, dtype):
    size = element_lanes(np.dtype(dtype).itemsize)
    x, y, z = rng.standard_normal((3, size)).astype(dtype)
    return x, np.abs(y) + dtype(0.1), z


def same(found, expected):
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))


@pytest.mark.smoke
@DTYPE
def test_arithmetic_is_that_of_the_python_bodies(rng, dtype):
    """Bit by bit: nothing is fused, reassociated or approximated."""
    for _ in range(20):
        x, y, z = operands(rng, dtype)
        found, expected = np.full((2, ARITHMETIC_ROWS, x.size), np.nan, dtype)
        _arithmetic(x, y, z, 0.3, found)
        with np.errstate(over="ignore"):
            _arithmetic.py_func(x, y, z, dtype(0.3), expected)
        same(found, expected)


@DTYPE
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -0.0])
def test_arithmetic_of_special_values(rng, dtype, value):
    for which in range(2):
        for lane in range(element_lanes(np.dtype(dtype).itemsize)):
            given = operands(rng, dtype)
            given[which][lane] = value
            found, expected = np.full((2, ARITHMETIC_ROWS, given[0].size), np.nan, dtype)
            _arithmetic(*given, 0.3, found)
            with np.errstate(all="ignore"):
                _arithmetic.py_func(*given, dtype(0.3), expected)
            if np.isnan(value) and which == 0:
                assert np.isnan(found[15]).all()
                # The largest lane: any of them where one is NaN.
                found[16] = expected[16]
            np.testing.assert_array_equal(found, expected)


@DTYPE
def test_fma_rounds_once(rng, dtype):
    """Against exact fractions, also where the product and the addend cancel to a rounding."""
    for cancel in (False, True) * 5:
        x, y, z = operands(rng, dtype)
        z = -(x * y) if cancel else z
        found = np.full((3, x.size), np.nan, dtype)
        _fused(x, y, z, 0.3, found)
        for lane, given in enumerate(zip(x, y, z, strict=True)):
            a, b, c, s = (Fraction(float(value)) for value in (*given, dtype(0.3)))
            for row, exact in enumerate((a * b + c, a * s + c, a * b + s)):
                value = found[row, lane]
                error = abs(Fraction(float(value)) - exact)
                assert error <= Fraction(float(np.spacing(abs(value)))) / 2


@DTYPE
def test_tails(rng, dtype):
    size = element_lanes(np.dtype(dtype).itemsize)
    x = guarded(rng.standard_normal(2 * size).astype(dtype))
    for n in (-3, 0, 1, size - 1, size, size + 1, 5 * size):
        start = x.size - min(max(n, 0), size)  # the last element asked for is the array's last
        found, expected = np.full((2, 5, size), 7, dtype)
        _tails(x, n, start, found)
        if n <= 0:
            expected[0], expected[1], expected[2], expected[4] = 0, -np.inf, x[:size], 3.5
        else:
            _tails.py_func(x, n, start, expected)
        np.testing.assert_array_equal(found, expected)


@DTYPE
def test_what_goes_past_the_caches_is_there_wherever_it_begins(rng, dtype):
    size = element_lanes(np.dtype(dtype).itemsize)
    x = rng.standard_normal(size).astype(dtype)
    # Arrays end at a page that cannot be written, so they begin at aligned addresses and others.
    for start, n in itertools.product(range(size + 1), (0, 1, size - 1, size, size + 1)):
        kept = min(n, size)
        for room in (kept, kept + 1, 2 * size):
            found = guarded(np.full(start + room, 7, dtype))
            _streamed(x, n, start, found)
            expected = np.full(start + room, 7, dtype)
            expected[start : start + kept] = x[:kept]
            np.testing.assert_array_equal(found, expected)
            _streamed.py_func(x, n, start, found)
            np.testing.assert_array_equal(found, expected)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads x86 assembly")
def test_whole_aligned_registers_go_past_the_caches():
    x = np.zeros(64, np.float32)
    text = assembly(_streamed, x, 1, 0, x)
    # A single number goes past them on AMD's processors only.
    has_store = VECTOR_BITS > 0 or binding.get_host_cpu_features().get("sse4a")
    assert bool(re.search(r"\bv?movnt", text)) == bool(has_store)
    # Others see it only then.
    assert re.search(r"\bmfence\b|\block\b", text)
    assert not re.search(r"\bv?movnt", assembly(_tails, x, 1, 0, np.zeros((5, 64), np.float32)))


@DTYPE
def test_arrays_on_the_stack(rng, dtype):
    size = element_lanes(np.dtype(dtype).itemsize)
    x = rng.standard_normal(2 * size).astype(dtype)
    for function in (_stacked, _stacked.py_func):
        found = np.zeros(2 * size, dtype)
        function(x, found)
        np.testing.assert_array_equal(found, np.concatenate([x[size:], x[:size]]))


@DTYPE
def test_views_are_parts_of_an_array(rng, dtype):
    x, found = rng.standard_normal(17).astype(dtype), np.zeros((3, 3, 4), dtype)
    _views(x, 5, 3, 4, found)
    part = x[5:].reshape(3, 4)
    expected = np.stack([part, part, np.zeros_like(part)])
    expected[2, 0, 0] = x[-1]
    np.testing.assert_array_equal(found, expected)
    expected = np.zeros_like(found)
    _views.py_func(x, 5, 3, 4, expected)
    np.testing.assert_array_equal(found, expected)


@DTYPE
def test_stored_tail_touches_nothing_beyond_the_array(dtype):
    size = element_lanes(np.dtype(dtype).itemsize)
    ones = np.ones(size, dtype)
    for n in range(size + 1):
        x, out = guarded(ones[:n]), guarded(np.full(n, 7, dtype))
        _exp_all(x, out)
        np.testing.assert_allclose(out, math.e, rtol=1e-6)


def float32_between(first, last, step):
    """Return every step-th float32 from first to last, which have the same sign."""
    bits = np.array([first, last], np.float32).view(np.uint32).astype(np.int64)
    return np.arange(bits[0], bits[1], step).astype(np.uint32).view(np.float32)


def ulps(found, truth):
    """Return the largest distance from the truth in units in the last place of the result."""
    spacing = np.spacing(np.abs(truth).astype(found.dtype)).astype(truth.dtype)
    return float(np.max(np.abs(found.astype(truth.dtype) - truth) / spacing))


@pytest.mark.parametrize(
    ("first", "last", "step"),
    [
        (0.0, 88.72, 499),
        (-0.0, -110.0, 499),
        (-87.0, -104.0, 1),  # all whose result is subnormal
        (88.0, 88.72, 1),
    ],
)
def test_exp_of_float32_is_within_one_ulp(first, last, step):
    x = float32_between(first, last, step)
    assert x.size > 90_000
    out = np.empty_like(x)
    _exp_all(x, out)
    assert ulps(out, np.exp(x.astype(np.float64))) <= 1


@pytest.mark.skipif(np.finfo(TRUTH).eps >= np.finfo(np.float64).eps, reason="no wider float here")
@pytest.mark.parametrize(("first", "last"), [(-745, 709.78), (-1, 1), (-745.2, -708)])
def test_exp_of_float64_is_within_one_ulp(rng, first, last):
    x = rng.uniform(first, last, 400_000)
    out = np.empty_like(x)
    _exp_all(x, out)
    assert ulps(out, np.exp(x.astype(TRUTH))) <= 1


@DTYPE
def test_exp_of_special_values(dtype):
    largest = {np.float32: 88.72283, np.float64: 709.782712893384}[dtype]
    zero_below = {np.float32: -103.98, np.float64: -745.14}[dtype]
    huge = np.finfo(dtype).max
    x = np.array([0, -0.0, np.inf, -np.inf, np.nan, huge, -huge, largest * 1.0001, zero_below])
    out = np.empty(x.shape, dtype)
    _exp_all(x.astype(dtype), out)
    np.testing.assert_array_equal(out, [1, 1, np.inf, 0, np.nan, np.inf, 0, np.inf, 0])
    _exp_all(np.array([largest], dtype), out[:1])
    assert np.isfinite(out[0])


@pytest.mark.skipif(not HAS_SCALEF, reason="reads the assembly of AVX-512's scalef")
def test_exp_of_what_vanishes_does_not_underflow():
    """On Intel's processors a scalef that underflows costs two hundred cycles."""
    x = np.zeros(1, np.float32)
    scales = re.findall(r"\bvscalefp[sd]\b.*", assembly(_exp_all, x, x))
    assert scales
    assert all(re.search(r"\{%k\d\} ?\{z\}", scale) for scale in scales)


@DTYPE
def test_exp_or_zero_is_exp_unless_it_is_negligible_beside_one(dtype):
    exponent = NEGLIGIBLE[{np.float32: "float", np.float64: "double"}[dtype]]
    edge = exponent * math.log(2)
    x = np.concatenate(
        [np.linspace(edge, 2, 999), np.linspace(2 * edge, 1.001 * edge, 999), [-np.inf]]
    )
    x = np.append(x, np.nan).astype(dtype)
    found, expected = np.empty_like(x), np.empty_like(x)
    _exp_or_zero_all(x, found)
    _exp_all(x, expected)
    np.testing.assert_array_equal(found, np.where(x < dtype(edge), 0, expected))
    assert found[1000:-2].max() == 0 < found[1]
    # A sum of 2^36 of them is less than half of the last place of 1.
    assert 2.0 ** (exponent + 36) < np.finfo(dtype).eps / 2


@DTYPE
def test_log_is_within_two_ulps(rng, dtype):
    """Of all normal numbers, and near 1, where the result is near 0."""
    wider = np.float64 if dtype is np.float32 else TRUTH
    tiny, huge = np.finfo(np.float32).tiny, np.finfo(np.float32).max
    samples = [float32_between(tiny, huge, 1009), float32_between(0.5, 2.0, 31)]
    if dtype is np.float64:
        samples.append(np.exp(rng.uniform(-708, 709, 200_000)))
    for sample in samples:
        x = sample[sample != 1].astype(dtype)
        out = np.empty_like(x)
        _log_all(x, out)
        assert ulps(out, np.log(x.astype(wider))) <= 2
    x = np.array([1, np.inf, np.nan], dtype)
    out = np.empty_like(x)
    _log_all(x, out)
    np.testing.assert_array_equal(out, [0, np.inf, np.nan])


@pytest.mark.parametrize(("first", "last"), [(0.0, 88.72), (-0.0, -110.0)])
def test_exp_of_sum_is_that_of_both_parts(rng, first, last):
    """Of a float32 and of what its rounding left out: without it, the error would be 40 units."""
    x = float32_between(first, last, 4999)
    low = (rng.uniform(-0.5, 0.5, x.size) * np.spacing(x)).astype(np.float32)
    out = np.empty_like(x)
    _exp_of_sum_all(x, low, out)
    truth = np.exp(x.astype(np.float64) + low)
    assert ulps(out, truth) <= 1.5
    assert ulps(np.exp(x.astype(np.float64)), truth) > 20
