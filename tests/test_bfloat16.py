"""bfloat16: rounding, packed lanes, packed blocks, and the tile that multiplies them."""

import platform

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import LANES32, called, guarded

from fastformer.kernels import _bfloat16, _bfloat16_blocks, _blocks
from fastformer.kernels._bfloat16 import DOT, STEP, round_bfloat16, unpack
from fastformer.kernels._bfloat16_tile import load_tiles, multiply_packed
from fastformer.kernels._compile import kernel
from fastformer.kernels._llvm import NARROW, TILE_ROWS, WIDE
from fastformer.kernels._simd import lanes, load, store
from fastformer.kernels._target import VECTOR_BITS
from fastformer.kernels._tile import TILE_HEIGHTS

panel_width = called(_blocks.panel_width)
pack_across = called(_bfloat16_blocks.pack_across)
pack_along = called(_bfloat16_blocks.pack_along)
pack_along_transposed = called(_bfloat16_blocks.pack_along_transposed)
steps_of = called(_bfloat16_blocks.steps_of)

WIDTH = WIDE * LANES32
COLUMNS = st.integers(1, WIDTH)
SMALLEST_NORMAL = np.finfo(np.float32).tiny


@kernel
def round_all(x, out):
    for i in range(0, x.size, lanes(x)):
        store(out, _bfloat16.round_bfloat16(load(x, i)), i)


@kernel
def pack_all(a, b, out, runs):
    for i in range(0, a.size, lanes(a)):
        store(out, _bfloat16.pack(load(a, i), load(b, i)), i)
        store(runs, _bfloat16.pack_run(load(a, i), load(b, i)), i)


@kernel
def multiply(rows, columns, steps, a, a_row_step, a_k_step, panel, bias, addend, out, out_step):
    multiply_packed(
        rows, columns, steps, a, 0, a_row_step, a_k_step, panel, 0, panel_width(columns, panel),
        bias.size > 0, bias, 0, addend.size > 0, addend, False, True, out, 0, out_step,
    )  # fmt: skip


def values(seed=0, size=1 << 16):
    """Return float32 numbers of all sizes, with the edges of rounding among them."""
    bits = np.random.default_rng(seed).integers(0, 1 << 32, size, dtype=np.uint32)
    edges = [0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, 0x7F7F7FFF, 0x7F7F8000, 0x7F800000]
    edges += [0xFF800000, 0x00000000, 0x80000000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF]
    bits[: len(edges)] = edges
    return bits.view(np.float32)


def nearest(x):
    """Return each number's nearest bfloat16, of two that are as near the even one, in float64."""
    with np.errstate(over="ignore"):
        unit = 2.0 ** np.maximum(np.floor(np.log2(np.abs(x.astype(np.float64)))) - 7, -133)
    rounded = np.rint(x.astype(np.float64) / unit) * unit
    return np.where(np.abs(rounded) >= 2.0**128, np.copysign(np.inf, rounded), rounded)


def panel_values(packed, width):
    """Return a packed panel as a matrix: rows of k."""
    return unpack(packed.reshape(-1, width)).transpose(0, 2, 1).reshape(-1, width)


@pytest.mark.smoke
def test_rounds_to_the_nearest_and_ties_to_even():
    x = values()
    rounded = round_bfloat16(x)
    normal = np.isfinite(x) & (np.abs(x) >= SMALLEST_NORMAL)
    np.testing.assert_array_equal(rounded[normal], nearest(x[normal]).astype(np.float32))
    assert not (rounded.view(np.uint32)[~np.isnan(x)] & 0xFFFF).any()
    np.testing.assert_array_equal(np.isnan(rounded), np.isnan(x))
    np.testing.assert_array_equal(round_bfloat16(rounded), rounded)
    assert rounded[:2].tolist() == [1.0, 1.015625] and np.isinf(rounded[5])
    out = np.empty_like(x)
    round_all(x, out)
    np.testing.assert_array_equal(out.view(np.uint32), rounded.view(np.uint32))


def test_packed_lanes_are_what_they_mean():
    a, b = values(1), values(2)
    # What is below the smallest normal number may be 0.
    a[np.abs(a) < SMALLEST_NORMAL], b[np.abs(b) < SMALLEST_NORMAL] = 0, 0
    a, b = (np.where(np.isnan(v), np.float32(np.nan), v) for v in (a, b))
    out, runs = np.empty_like(a), np.empty_like(a)
    pack_all(a, b, out, runs)
    expected = [round_bfloat16(v) for v in (a, b)][:STEP]
    np.testing.assert_array_equal(unpack(out), np.stack(expected, axis=-1))
    if DOT:
        shape = (-1, LANES32)
        lines = np.concatenate([v.reshape(shape) for v in expected], axis=1).reshape(-1)
        np.testing.assert_array_equal(unpack(runs).reshape(-1), lines)
    else:
        np.testing.assert_array_equal(runs, expected[0])


@settings(max_examples=40, deadline=None)
@given(depth=st.integers(0, 70), columns=COLUMNS, left=st.integers(0, 5), gap=st.integers(0, 5))
def test_block_across_has_zeros_beyond(depth, columns, left, gap):
    """The block may end where the array does: nothing beyond it may be read."""
    step = left + columns + gap
    b = np.random.default_rng(0).standard_normal((depth, step)).astype(np.float32)
    width, steps = panel_width(columns, b), (depth + STEP - 1) // STEP
    panel = guarded(np.full(left + steps * width, np.nan, np.float32))
    flat = guarded(b.ravel()[: max(0, depth * step - gap)])
    pack_across(flat, left, step, depth, columns, width, panel, left)
    expected = np.zeros((steps * STEP, width), np.float32)
    expected[:depth, :columns] = round_bfloat16(b[:, left : left + columns])
    np.testing.assert_array_equal(panel_values(panel[left:], width), expected)
    assert np.isnan(panel[:left]).all()


@settings(max_examples=40, deadline=None)
@given(depth=st.integers(0, 150), columns=COLUMNS, top=st.integers(0, 5), gap=st.integers(0, 5))
def test_blocks_along_have_zeros_beyond(depth, columns, top, gap):
    step = depth + gap
    b = np.random.default_rng(0).standard_normal((top + columns, step)).astype(np.float32)
    width, steps = panel_width(columns, b), steps_of(depth, b)
    flat = guarded(b.ravel()[: (top + columns - 1) * step + depth])
    expected = np.zeros((steps * STEP, columns), np.float32)
    expected[:depth] = round_bfloat16(b[top:, :depth]).T
    panel = guarded(np.full(top + steps * width, np.nan, np.float32))
    rows = guarded(np.empty(LANES32 * LANES32, np.float32))
    pack_along_transposed(flat, top * step, step, depth, columns, rows, panel, top)
    np.testing.assert_array_equal(panel_values(panel[top:], width)[:, :columns], expected)
    line = guarded(np.full(top + steps, np.nan, np.float32))
    pack_along(flat, (top + columns - 1) * step, depth, line, top)
    np.testing.assert_array_equal(unpack(line[top:]).reshape(-1), expected[:, -1])
    assert np.isnan(panel[:top]).all() and np.isnan(line[:top]).all()


@pytest.mark.smoke
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 3 * TILE_ROWS),
    columns=COLUMNS,
    depth=st.integers(0, 40),
    transposed=st.booleans(),
    extras=st.booleans(),
    gap=st.integers(0, 3),
)
def test_rows_of_tiles(rows, columns, depth, transposed, extras, gap):
    """Small integers, so exact; what lies between the rows of `out` stays as it was."""
    load_tiles()
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-8, 9, shape) for shape in ((rows, depth), (depth, columns)))
    bias, addend = rng.integers(-8, 9, columns), rng.integers(-8, 9, (rows, columns + gap))
    none, room = np.empty(0, np.float32), np.empty(0, np.float32)
    width, steps = panel_width(columns, none), (depth + STEP - 1) // STEP
    panel = guarded(np.full(steps * width, np.nan, np.float32))
    pack_across(b.ravel().astype(np.float32), 0, columns, depth, columns, width, panel, 0)
    if transposed:
        row_step, k_step = 1, -(-rows // LANES32) * LANES32
        left = np.full(steps * k_step, np.nan, np.float32)
        pack_across(a.T.ravel().astype(np.float32), 0, rows, depth, rows, k_step, left, 0)
    else:
        row_step, k_step = steps_of(depth, room), 1
        left = np.full(rows * row_step, np.nan, np.float32)
        for row in range(rows):
            pack_along(a.ravel().astype(np.float32), row * depth, depth, left, row * row_step)
    last = rows * (columns + gap) - gap
    out = guarded(np.full(last, np.nan, np.float32))
    given = (x.ravel().astype(np.float32) if extras else none for x in (bias, addend))
    multiply(rows, columns, steps, guarded(left), row_step, k_step, panel, *given, out,
             columns + gap)  # fmt: skip
    expected = np.full((rows, columns + gap), np.nan)
    expected[:, :columns] = a @ b + extras * (bias + addend[:, :columns])
    np.testing.assert_array_equal(out, expected.ravel()[:last])


@pytest.mark.skipif(not DOT, reason="reads the assembly of the dot product")
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads x86 assembly")
def test_tiles_have_dot_products_of_full_width():
    tiles = load_tiles()
    assert tiles is not None
    text = tiles.assembly()
    assert text.count("vdpbf16ps") >= (WIDE + NARROW) * sum(TILE_HEIGHTS)
    assert "vfmadd" not in text and "%zmm" in text


def test_pairs_are_used_where_the_cpu_multiplies_them():
    assert STEP == (2 if DOT else 1)
    assert VECTOR_BITS == 512 or not DOT
