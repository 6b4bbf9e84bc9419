"""Products of operands rounded to bfloat16: exact emulation, twins, edges, groups, threads."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_matmul import ACTIVATIONS, Case, integers
from twins import LANES32, Out, assert_equals_twin, assert_same_bits, called, run

from fastformer.kernels._bfloat16 import round_bfloat16
from fastformer.kernels._bfloat16_blocks import DEPTH_BLOCK
from fastformer.kernels._blocks import task_grid
from fastformer.kernels._llvm import TILE_ROWS
from fastformer.kernels.activation import GELU, NO_ACTIVATION
from fastformer.kernels.matmul import (
    matmul_backward_reference,
    matmul_nt_reference,
    matmul_reference,
    matmul_tn_reference,
)
from fastformer.kernels.matmul_bfloat16 import (
    LEFT_ROWS,
    PANELS,
    matmul_backward_bfloat16,
    matmul_backward_bfloat16_reference,
    matmul_bfloat16,
    matmul_bfloat16_reference,
    matmul_nt_bfloat16,
    matmul_nt_bfloat16_reference,
    matmul_tn_bfloat16,
    matmul_tn_bfloat16_reference,
)

task_grid = called(task_grid)

FLOAT32 = (np.float32,)
WIDTH = 2 * LANES32
ROWS = [1, TILE_ROWS - 1, TILE_ROWS + 1, 2 * TILE_ROWS + 3]
COLUMNS = sorted({1, WIDTH // 2 - 1, WIDTH // 2 + 1, WIDTH, WIDTH + 1, 67})
DEPTHS = [1, 2, 17, 64, DEPTH_BLOCK - 1, DEPTH_BLOCK, DEPTH_BLOCK + 1, 2 * DEPTH_BLOCK + 3]
# Rows, depth and columns beyond what is packed at a time.
LARGE = (LEFT_ROWS + 3, DEPTH_BLOCK + 5, (PANELS + 1) * WIDTH + 3)


def check(case):
    product, dx, dweight = case.forward(), case.input_gradient(), case.weight_gradient()
    both = matmul_backward_bfloat16_reference
    assert_equals_twin(matmul_bfloat16, matmul_bfloat16_reference, *product, dtypes=FLOAT32)
    assert_equals_twin(matmul_nt_bfloat16, matmul_nt_bfloat16_reference, *dx, dtypes=FLOAT32)
    assert_equals_twin(matmul_tn_bfloat16, matmul_tn_bfloat16_reference, *dweight, dtypes=FLOAT32)
    assert_equals_twin(matmul_backward_bfloat16, both, *case.gradients(), dtypes=FLOAT32)


def rounded(x):
    return round_bfloat16(x.astype(np.float32)).astype(np.float64)


def exact(case):
    """Return a case whose operands are rounded already, to the same numbers."""
    case.x, case.weight, case.dout = (rounded(v) for v in (case.x, case.weight, case.dout))
    return case


def twins(case):
    """Yield each twin's arguments, with the twin that rounds and the one that does not."""
    yield case.forward(), matmul_bfloat16_reference, matmul_reference
    yield case.input_gradient(), matmul_nt_bfloat16_reference, matmul_nt_reference
    yield case.weight_gradient(), matmul_tn_bfloat16_reference, matmul_tn_reference
    yield case.gradients(), matmul_backward_bfloat16_reference, matmul_backward_reference


@pytest.mark.smoke
def test_twins_multiply_rounded_operands():
    """In float64 they are the float32 twins on operands that were rounded before."""
    sizes = (TILE_ROWS + 3, 21, WIDTH + 5, 3)
    for shared, activation in itertools.product((True, False), ACTIVATIONS.values()):
        before = Case(*sizes, shared, activation)
        after = exact(Case(*sizes, shared, activation))
        sums = before.dout.reshape(3, sizes[0], -1).sum(axis=1).ravel()
        for (arguments, twin, _), (others, _, plain) in zip(
            twins(before), twins(after), strict=True
        ):
            found = run(twin, *arguments, dtype=np.float64)
            # What gradients are added to is the same.
            others = [
                b if isinstance(b, Out) else a for a, b in zip(others, arguments, strict=True)
            ]
            expected = run(plain, *others, dtype=np.float64)
            if "tn" in plain.__name__ or "backward" in plain.__name__:
                # Sums of columns are of what was not rounded.
                place = 0 if "tn" in plain.__name__ else 2
                np.testing.assert_allclose(found[place], before.start + sums, rtol=1e-12)
                del found[place], expected[place]
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(one, other)


def test_a_twin_that_does_not_round_is_found():
    case = Case(5, 40, 9)
    with pytest.raises(AssertionError, match="matmul_bfloat16, output 1, float32: error"):
        assert_equals_twin(matmul_bfloat16, matmul_reference, *case.forward(), dtypes=FLOAT32)


@pytest.mark.parametrize("rows", ROWS)
def test_edges_equal_twin(rows):
    for columns in COLUMNS:
        check(Case(rows, 19, columns))
        check(Case(columns, rows, 19))


@pytest.mark.parametrize("extras", [True, False])
def test_depths_equal_twin(extras):
    for depth in DEPTHS:
        check(Case(TILE_ROWS + 1, depth, WIDTH + 1, extras=extras))
        check(Case(3, 5, depth, extras=extras))
        check(Case(depth, 5, 3, extras=extras))


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS.keys())
def test_groups_and_epilogues_equal_twin(activation):
    for (groups, shared), extras in itertools.product(
        ((1, False), (3, True), (3, False)), (True, False)
    ):
        check(Case(TILE_ROWS + 3, 21, WIDTH + 5, groups, shared, activation, extras))
    check(Case(2, DEPTH_BLOCK + 9, 7, 2, True, activation))


@pytest.mark.parametrize("turn", range(3))
def test_blocks_of_rows_and_panels_equal_twin(turn):
    sizes = [min(size, 70) for size in LARGE]
    sizes[turn] = LARGE[turn]
    check(Case(*sizes, groups=2))
    check(Case(*sizes[::-1]))


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, 70)] * 3),
    groups=st.integers(1, 4),
    shared=st.booleans(),
    activation=st.sampled_from(list(ACTIVATIONS.values())),
    extras=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_any_case_equals_twin(sizes, groups, shared, activation, extras, seed):
    check(Case(*sizes, groups, shared, activation, extras, seed))


@pytest.mark.parametrize("groups", [1, 3])
def test_no_rows_and_no_depth_equal_twin(groups):
    check(Case(0, 5, 7, groups))
    case = Case(TILE_ROWS + 1, 0, WIDTH + 1, groups)
    out = run(matmul_bfloat16, *case.forward())[1]
    bias = case.bias.astype(np.float32).reshape(groups, 1, -1)
    other = case.other_out.astype(np.float32).reshape(groups, case.rows, -1)
    np.testing.assert_array_equal(out, (bias + other).reshape(out.shape))


@settings(max_examples=60, deadline=None)
@given(sizes=st.tuples(*[st.integers(1, 80)] * 3), groups=st.integers(1, 3), seed=st.integers(0))
def test_integers_are_exact(sizes, groups, seed):
    """bfloat16 holds small integers, and float32 their sums."""
    rng = np.random.default_rng(seed)
    case = Case(*sizes, groups, extras=False)
    case.x, case.weight, case.dout = (
        integers(rng, *v.shape).astype(np.float64) for v in (case.x, case.weight, case.dout)
    )
    kernels = (matmul_bfloat16, matmul_nt_bfloat16, matmul_tn_bfloat16, matmul_backward_bfloat16)
    for kernel, (arguments, _, plain) in zip(kernels, twins(case), strict=True):
        found, expected = run(kernel, *arguments), run(plain, *arguments, dtype=np.float64)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_error_is_that_of_rounded_operands():
    """Half a unit of bfloat16 for each operand at most, and it is seen: nothing else is rounded."""
    case = Case(40, 300, 50, extras=False)
    _, found = run(matmul_bfloat16, *case.forward())
    error = np.abs(found - case.x @ case.weight[0])
    allowed = 2.0**-8 * 2.01 * (np.abs(case.x) @ np.abs(case.weight[0]))
    assert (error <= allowed).all()
    assert error.max() > 1e-3


def test_a_row_does_not_depend_on_the_others():
    case = Case(LEFT_ROWS + 3, DEPTH_BLOCK + 50, max(6 * WIDTH, 96) + 3)
    assert np.prod(task_grid(case.rows, case.columns, case.depth, WIDTH)) > 1
    (out,) = run(matmul_bfloat16, *case.forward())[1:]
    x, dout, other = case.x, case.dout, case.other_out
    for row in (0, 1, TILE_ROWS, case.rows - 1):
        case.x, case.dout, case.other_out = (v[row : row + 1] for v in (x, dout, other))
        np.testing.assert_array_equal(run(matmul_bfloat16, *case.forward())[1], out[[row]])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_stay_visible_and_in_place(value):
    case = Case(TILE_ROWS + 3, 21, WIDTH + 5, extras=False)
    case.x[4, 20], case.weight = value, np.abs(case.weight)
    _, out = run(matmul_bfloat16, *case.forward())
    np.testing.assert_array_equal(np.flatnonzero(~np.isfinite(out).all(axis=1)), [4])
    np.testing.assert_array_equal(out[4], value)
    case.x[4, 20], case.weight[0, 2, WIDTH + 4] = 0, value
    (dx,) = run(matmul_nt_bfloat16, *case.input_gradient())
    np.testing.assert_array_equal(np.flatnonzero(~np.isfinite(dx).all(axis=0)), [2])


def test_both_gradients_at_once_have_the_bits_of_each():
    case = Case(200, 70, 90, activation=GELU)
    dx, dweight, sums = run(matmul_backward_bfloat16, *case.gradients())
    (dx_alone,) = run(matmul_nt_bfloat16, *case.input_gradient())
    sums_alone, dweight_alone = run(matmul_tn_bfloat16, *case.weight_gradient())
    for together, alone in ((dx, dx_alone), (dweight, dweight_alone), (sums, sums_alone)):
        np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("shared", [True, False])
def test_same_bits_for_any_threads(shared):
    case = Case(150, 130, 129, 2, shared, NO_ACTIVATION if shared else GELU)
    assert np.prod(task_grid(case.rows, case.groups * case.columns, case.depth, WIDTH)) > 3
    assert_same_bits(matmul_bfloat16, *case.forward(), dtypes=FLOAT32)
    assert_same_bits(matmul_nt_bfloat16, *case.input_gradient(), dtypes=FLOAT32)
    assert_same_bits(matmul_tn_bfloat16, *case.weight_gradient(), dtypes=FLOAT32)
    assert_same_bits(matmul_backward_bfloat16, *case.gradients(), dtypes=FLOAT32)
