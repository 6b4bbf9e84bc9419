"""The matrix product's pieces: packed panels, one tile, whole rows of tiles, machine code."""

import platform

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import DTYPES, LANES32, called, guarded, has_full_width_fma

from fastformer.kernels import _blocks
from fastformer.kernels._blocks import DEPTH_BLOCK, STEPS_OF_A_COPY
from fastformer.kernels._compile import kernel
from fastformer.kernels._llvm import NARROW, TILE_ROWS, WIDE, element_lanes
from fastformer.kernels._precompiled import Precompiled
from fastformer.kernels._tile import CHAIN_STEPS, LATE_STEPS, TILE_HEIGHTS, TILES, multiply

multiply_panels = called(_blocks.multiply_panels)
multiply_rows = called(_blocks.multiply_rows)
pack_panel = called(_blocks.pack_panel)
pack_panel_transposed = called(_blocks.pack_panel_transposed)
pack_panels = called(_blocks.pack_panels)
pack_panels_transposed = called(_blocks.pack_panels_transposed)
pack_rows = called(_blocks.pack_rows)
pack_tiles = called(_blocks.pack_tiles)

DTYPE = pytest.mark.parametrize("dtype", DTYPES)
COLUMNS = st.integers(1, WIDE * LANES32)


def lanes_of(dtype):
    return element_lanes(np.dtype(dtype).itemsize)


def width_for(columns, dtype):
    """Return the width of a panel: one register, or two where the columns do not fit into one."""
    lanes = lanes_of(dtype)
    return NARROW * lanes if columns <= NARROW * lanes else WIDE * lanes


def padded(matrix, mode="constant"):
    """Return the matrix as a panel: with zeros beyond its columns, or with copies of the last."""
    beyond = width_for(matrix.shape[1], matrix.dtype) - matrix.shape[1]
    return np.pad(matrix, ((0, 0), (0, beyond)), mode).ravel()


@DTYPE
@settings(max_examples=40)
@given(depth=st.integers(0, 70), columns=COLUMNS, left=st.integers(0, 5), gap=st.integers(0, 5))
def test_panel_is_the_block_with_zeros_beyond(dtype, depth, columns, left, gap):
    """The block may end where the array does: nothing beyond it may be read."""
    columns = min(columns, WIDE * lanes_of(dtype))
    step = left + columns + gap
    b = np.random.default_rng(0).standard_normal((depth, step)).astype(dtype)
    expected = padded(b[:, left : left + columns])
    panel = guarded(np.full(left + expected.size, np.nan, dtype))
    pack_panel(guarded(b.ravel()[: max(0, depth * step - gap)]), left, step, depth, columns,
               panel, left)  # fmt: skip
    np.testing.assert_array_equal(panel[left:], expected)
    assert np.isnan(panel[:left]).all()


@DTYPE
@settings(max_examples=40)
@given(depth=st.integers(0, 70), columns=COLUMNS, top=st.integers(0, 5), gap=st.integers(0, 5))
def test_transposed_panel_is_the_transpose_with_the_last_column_beyond(
    dtype, depth, columns, top, gap
):
    columns = min(columns, WIDE * lanes_of(dtype))
    step = depth + gap
    b = np.random.default_rng(0).standard_normal((top + columns, step)).astype(dtype)
    expected = padded(b[top:, :depth].T, "edge")
    panel = guarded(np.full(top + expected.size, np.nan, dtype))
    flat = guarded(b.ravel()[: (top + columns - 1) * step + depth])
    pack_panel_transposed(flat, top * step, step, depth, columns, panel, top)
    np.testing.assert_array_equal(panel[top:], expected)
    assert np.isnan(panel[:top]).all()


@pytest.mark.smoke
@DTYPE
@settings(max_examples=60)
@given(
    rows=st.integers(1, 3 * TILE_ROWS),
    columns=COLUMNS,
    depth=st.integers(0, 40),
    transposed=st.booleans(),
    has_bias=st.booleans(),
    has_addend=st.booleans(),
    rectifies=st.booleans(),
    gap=st.integers(0, 3),
)
def test_rows_of_tiles(
    dtype, rows, columns, depth, transposed, has_bias, has_addend, rectifies, gap
):
    """Small integers, so exact; what lies between and after the rows of `out` stays as it was."""
    rng = np.random.default_rng(0)
    columns = min(columns, WIDE * lanes_of(dtype))
    a, b = rng.integers(-8, 9, (rows, depth)), rng.integers(-8, 9, (depth, columns))
    bias, addend = rng.integers(-8, 9, columns + gap), rng.integers(-8, 9, (rows, columns + gap))
    stored_a = (a.T if transposed else a).ravel().astype(dtype)
    steps = (1, rows) if transposed else (depth, 1)
    # Rows of the panel need not follow each other.
    width = width_for(columns, dtype)
    panel = np.full((depth, width + gap), np.nan, dtype)
    panel[:, gap:] = padded(b.astype(dtype)).reshape(depth, width)
    panel = panel.ravel()
    last = rows * (columns + gap) - gap
    out = guarded(np.full(last, np.nan, dtype))
    multiply_rows(
        *(0, rows, columns, depth, guarded(stored_a), 0, *steps, guarded(panel), gap, width + gap),
        *(has_bias, guarded(bias.astype(dtype)), gap),
        *(
            has_addend,
            guarded(addend.ravel()[:last].astype(dtype)),
            rectifies,
            out,
            0,
            columns + gap,
        ),
    )
    expected = np.full((rows, columns + gap), np.nan)
    expected[:, :columns] = a @ b + has_bias * bias[gap:] + has_addend * addend[:, :columns]
    if rectifies:
        expected = np.maximum(expected, 0)
    np.testing.assert_array_equal(out, expected.ravel()[:last])


@DTYPE
@settings(max_examples=60)
@given(
    rows=st.integers(1, TILE_ROWS + 1),
    columns=st.integers(1, 5 * LANES32),
    depth=st.integers(1, 40),
    transposed=st.booleans(),
    accumulates=st.booleans(),
    data=st.data(),
)
def test_product_with_a_part_of_many_panels(
    dtype, rows, columns, depth, transposed, accumulates, data
):
    """Columns from a panel's first to any, and some of the panels' rows; small integers."""
    rng = np.random.default_rng(0)
    wide = WIDE * lanes_of(dtype)
    first = wide * data.draw(st.integers(0, (columns - 1) // wide))
    last = columns  # a panel may be cut short only where the last one is
    top = data.draw(st.integers(0, depth - 1))
    a, b = rng.integers(-8, 9, (rows, depth - top)), rng.integers(-8, 9, (depth, columns))
    panels = guarded(np.full(depth * (columns + wide), np.nan, dtype))
    if transposed:
        pack_panels_transposed(guarded(b.T.ravel().astype(dtype)), 0, depth, depth, columns, panels)
    else:
        pack_panels(guarded(b.ravel().astype(dtype)), 0, columns, depth, columns, panels)
    start = rng.integers(-8, 9, rows * (last - first))
    out = guarded(start.astype(dtype))
    multiply_panels(
        *(rows, first, last, depth - top, guarded(a.ravel().astype(dtype)), depth - top, 1),
        *(panels, 0, depth, 0, top, accumulates, out, 0, last - first, 0),
    )
    expected = (a @ b[top:, first:last]).ravel() + accumulates * start
    np.testing.assert_array_equal(out, expected)


@kernel
def multiply_tiles(rows, columns, depth, tiles, tile_step, panel, panel_step, is_far, out):
    multiply(
        rows, columns, depth, tiles, 0, 1, TILE_ROWS, tile_step, panel, 0, panel_step,
        False, panel, 0, False, panel, False, is_far, out, 0, columns,
    )  # fmt: skip


@DTYPE
@settings(max_examples=60)
@given(
    rows=st.integers(1, 4 * TILE_ROWS),
    columns=COLUMNS,
    depth=st.one_of(
        st.integers(1, 2 * STEPS_OF_A_COPY + 3),
        st.integers(2 * LATE_STEPS - 1, 2 * LATE_STEPS + 1),
        st.integers(2 * LATE_STEPS, 3 * LATE_STEPS),
    ),
    left=st.integers(0, 5),
    gap=st.integers(0, 20),
    is_far=st.booleans(),
)
def test_packed_tiles_are_the_columns_and_multiply_as_they_do(
    dtype, rows, columns, depth, left, gap, is_far
):
    """Also where tiles ask for what they write, some steps before their end; small integers.

    The columns may end where the array does: nothing beyond it may be read.
    """
    rng = np.random.default_rng(0)
    columns = min(columns, WIDE * lanes_of(dtype))
    step = left + rows + gap
    a, b = rng.integers(-8, 9, (depth, step)), rng.integers(-8, 9, (depth, columns))
    tile_step = TILE_ROWS * depth + lanes_of(dtype)
    tiles = guarded(np.full(-(-rows // TILE_ROWS) * tile_step, np.nan, dtype))
    stored = guarded(a.ravel()[: depth * step - gap].astype(dtype))
    pack_tiles(stored, left, step, rows, depth, tiles, tile_step)
    for i in range(rows):
        place = i // TILE_ROWS * tile_step + i % TILE_ROWS
        packed = tiles[place : place + TILE_ROWS * depth : TILE_ROWS]
        np.testing.assert_array_equal(packed, a[:, left + i])

    out = guarded(np.full(rows * columns, np.nan, dtype))
    panel = guarded(padded(b.astype(dtype)))
    multiply_tiles(rows, columns, depth, tiles, tile_step, panel, panel.size // depth, is_far, out)
    expected = a[:, left : left + rows].T @ b
    np.testing.assert_array_equal(out, expected.ravel())


@DTYPE
@settings(max_examples=30)
@given(count=st.integers(1, 9), depth=st.integers(1, 40), gap=st.integers(0, 5))
def test_packed_rows_are_the_rows(dtype, count, depth, gap):
    a = np.random.default_rng(0).standard_normal((count, depth + gap)).astype(dtype)
    out = guarded(np.full(count * (depth + 2) - 2, np.nan, dtype))
    pack_rows(guarded(a.ravel()[: a.size - gap]), 0, depth + gap, count, depth, out, depth + 2)
    found = np.append(out, [np.nan, np.nan]).reshape(count, depth + 2)
    np.testing.assert_array_equal(found[:, :depth], a[:, :depth])
    assert np.isnan(found[:, depth:]).all()


@DTYPE
@pytest.mark.parametrize("depth", [1, CHAIN_STEPS, CHAIN_STEPS + 1, DEPTH_BLOCK - 3])
def test_bits_do_not_depend_on_the_tile(rng, dtype, depth):
    """An element is one chain of fused multiply-adds in the order of k, in any tile.

    In a panel of one register, the sum of chains of CHAIN_STEPS, in their order.
    """
    width, rows = WIDE * lanes_of(dtype), 2 * TILE_ROWS + 1
    a = rng.standard_normal((rows, depth)).astype(dtype)
    b = rng.standard_normal((depth, width)).astype(dtype)

    def product(first, last, columns, steps=depth):
        out, panel = np.full(rows * width, np.nan, dtype), padded(b[:, :columns])
        step = panel.size // depth
        for k in range(0, depth, steps):
            multiply_rows(
                *(first, last, columns, min(steps, depth - k), a.ravel(), k, depth, 1),
                *(panel, k * step, step, False, panel, 0, k > 0, out, False, out, 0, width),
            )
        return out.reshape(rows, width)[first:last, :columns]

    whole, chains = product(0, rows, width), product(0, rows, width, CHAIN_STEPS)
    for columns in (1, max(1, width // 2), width - 1 or 1):
        expected = chains if columns <= NARROW * lanes_of(dtype) else whole
        for first, last in ((0, 1), (3, TILE_ROWS + 1), (rows - 2, rows)):
            found = product(first, last, columns)
            np.testing.assert_array_equal(found, expected[first:last, :columns])


@DTYPE
def test_sum_is_one_chain_of_fused_multiply_adds(dtype):
    """1 + e is squared without rounding, so that taking 1 + 2e off leaves e^2 and not zero."""
    e = dtype(2.0 ** -(np.finfo(dtype).nmant // 2 + 2))
    a = np.array([1, 1 + e], dtype)
    panel = padded(np.array([[-1 - 2 * e], [1 + e]], dtype))
    out = np.empty(1, dtype)
    width = panel.size // 2
    multiply_rows(0, 1, 1, 2, a, 0, 2, 1, panel, 0, width, False, a, 0, False, a, False, out, 0, 1)
    assert out[0] == e * e


def test_what_is_kept_is_loaded_without_writing_its_code_anew():
    """Which takes longer than all else that a start does."""

    def text():
        raise AssertionError("the code is written although its machine code is kept")

    Precompiled("tiles", ["fastformer_multiply_wide_float"], text)
    with pytest.raises(AssertionError, match="is written although"):
        Precompiled("tiles of another name", ["fastformer_multiply_wide_float"], text)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads x86 assembly")
def test_tiles_have_fused_multiply_adds_of_full_width():
    text = TILES.assembly()
    assert has_full_width_fma(text)
    # Each height of tiles has a loop of its own, with all of its sums in registers.
    assert text.count("vfmadd") >= len(DTYPES) * (WIDE + NARROW) * sum(TILE_HEIGHTS)
