"""The product of rows by a single column."""

import platform

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import DTYPES, assembly, called, guarded, has_full_width_fma

from fastformer.kernels import _gemv
from fastformer.kernels._llvm import TILE_ROWS

gemv = called(_gemv.gemv)
pack_for_gemv = called(_gemv.pack_for_gemv)

DTYPE = pytest.mark.parametrize("dtype", DTYPES)


@pytest.mark.smoke
@DTYPE
@settings(max_examples=60)
@given(
    rows=st.integers(1, 3 * TILE_ROWS),
    depth=st.integers(0, 80),
    across=st.booleans(),
    has_bias=st.booleans(),
    has_addend=st.booleans(),
    rectifies=st.booleans(),
    gap=st.integers(0, 3),
)
def test_rows_by_a_column(dtype, rows, depth, across, has_bias, has_addend, rectifies, gap):
    """Small integers, so exact; what lies between the elements of `out` stays as it was."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(-8, 9, (rows, depth)), rng.integers(-8, 9, (depth, 1 + gap))
    bias, addend = rng.integers(-8, 9, 1 + gap), rng.integers(-8, 9, (rows, 1 + gap))
    column = guarded(np.full(depth, np.nan, dtype))
    pack_for_gemv(
        guarded(b.ravel()[: max(0, b.size - gap)].astype(dtype)), 0, 1 + gap, depth, column
    )
    np.testing.assert_array_equal(column, b[:, 0])
    steps = (1, rows, TILE_ROWS) if across else (depth, 1, TILE_ROWS * depth)
    last = rows * (1 + gap) - gap
    out = guarded(np.full(last, np.nan, dtype))
    gemv(
        *(rows, depth, guarded((a.T if across else a).ravel().astype(dtype)), 0, *steps, column),
        *(has_bias, guarded(bias.astype(dtype)), gap),
        *(has_addend, guarded(addend.ravel()[:last].astype(dtype)), rectifies, out, 0, 1 + gap),
    )
    expected = np.full((rows, 1 + gap), np.nan)
    expected[:, 0] = a @ b[:, 0] + has_bias * bias[gap] + has_addend * addend[:, 0]
    if rectifies:
        expected = np.maximum(expected, 0)
    np.testing.assert_array_equal(out, expected.ravel()[:last])


@DTYPE
@pytest.mark.parametrize("across", [True, False])
def test_bits_do_not_depend_on_the_other_rows(rng, dtype, across):
    """Whatever tile a row is in, and whichever row of it."""
    rows, depth = 3 * TILE_ROWS + 1, 75
    a = rng.standard_normal((rows, depth)).astype(dtype)
    column = rng.standard_normal(depth).astype(dtype)
    bias, addend = rng.standard_normal(1).astype(dtype), rng.standard_normal(rows).astype(dtype)

    def product(first, last):
        stored, count = a[first:last], last - first
        steps = (1, count, TILE_ROWS) if across else (depth, 1, TILE_ROWS * depth)
        out = np.full(count, np.nan, dtype)
        gemv(
            *(count, depth, (stored.T if across else stored).ravel(), 0, *steps, column),
            *(True, bias, 0, True, addend[first:last].copy(), False, out, 0, 1),
        )
        return out

    whole = product(0, rows)
    for first, last in ((0, 1), (3, TILE_ROWS + 3), (rows - 2, rows)):
        np.testing.assert_array_equal(product(first, last), whole[first:last])


@DTYPE
@pytest.mark.parametrize("across", [True, False])
def test_a_number_that_is_none_stays_so_through_relu(dtype, across):
    a, out = np.array([np.nan, 1], dtype), np.zeros(2, dtype)
    steps = (1, 2, TILE_ROWS) if across else (1, 1, TILE_ROWS)
    one = np.ones(1, dtype)
    gemv(2, 1, a, 0, *steps, one, False, one, 0, False, one, True, out, 0, 1)
    np.testing.assert_array_equal(out, [np.nan, 1])


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads x86 assembly")
@DTYPE
def test_has_fused_multiply_adds_of_full_width(dtype):
    x = np.empty(1, dtype)
    assert has_full_width_fma(assembly(_gemv._sum_of_row, x, 0, 1, x))
    assert has_full_width_fma(assembly(_gemv._sums_of_rows, x, 0, 1, 1, 1, x, x))
