"""Matrix products: twins, exact integers, tile and block edges, groups, epilogues, threads."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from gradients import assert_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import (
    COMPARED_DTYPES,
    DTYPES,
    LANES32,
    Out,
    assert_equals_twin,
    assert_same_bits,
    called,
    run,
)

from fastformer.kernels._blocks import DEPTH_BLOCK, ROW_STEP, TILES_OF_A_TASK, task_grid, task_part
from fastformer.kernels._llvm import TILE_ROWS
from fastformer.kernels.activation import EXACT_GELU, GELU, MISH, NO_ACTIVATION, RELU, SLOPED
from fastformer.kernels.matmul import (
    PAGE,
    PANELS_AT_ONCE,
    SHORT_DEPTH_BLOCK,
    WHOLE_DEPTH,
    matmul,
    matmul_backward,
    matmul_backward_reference,
    matmul_nt,
    matmul_nt_reference,
    matmul_reference,
    matmul_tn,
    matmul_tn_reference,
)

task_grid, task_part = map(called, (task_grid, task_part))

EMPTY, NONE = np.empty(0), np.empty((0, 0))
WIDTH = 2 * LANES32  # of a packed panel
ROWS = [1, TILE_ROWS - 1, TILE_ROWS, TILE_ROWS + 1, 2 * TILE_ROWS + 3]
COLUMNS = sorted({1, WIDTH // 4, WIDTH // 2 - 1, WIDTH // 2 + 1, WIDTH, WIDTH + 1, 67})
DEPTHS = [
    1,
    2,
    17,
    *range(SHORT_DEPTH_BLOCK - 1, SHORT_DEPTH_BLOCK + 2),
    DEPTH_BLOCK - 1,
    DEPTH_BLOCK,
    DEPTH_BLOCK + 1,
    WHOLE_DEPTH,
    WHOLE_DEPTH + 1,
    2 * DEPTH_BLOCK + 3,
]
FAR = PAGE // 4  # elements of rows that are pages apart, in either dtype
ACTIVATIONS = {
    "none": NO_ACTIVATION,
    "relu": RELU,
    "gelu": GELU,
    "mish": MISH,
    "exact_gelu": EXACT_GELU,
}


@dataclass
class Case:
    """Operands of all three products; `x` is the layer's input and `dout` its output's gradient."""

    rows: int
    depth: int
    columns: int
    groups: int = 1
    shared: bool = False
    activation: int = NO_ACTIVATION
    extras: bool = True
    seed: int = 0

    def __post_init__(self):
        rng = np.random.default_rng(self.seed)
        G, M, K, N = self.groups, self.rows, self.depth, self.columns
        self.x = rng.standard_normal((M if self.shared else G * M, K))
        self.weight = rng.standard_normal((G, K, N))
        self.dout, self.other_out = rng.standard_normal((2, G * M, N))
        self.other_x, self.saved = rng.standard_normal((2, *self.x.shape))
        self.bias, self.start = rng.standard_normal((2, G * N))
        # Sums of many terms may come out near zero.
        self.size = max(1.0, K) ** 0.5

    def forward(self):
        extras = (self.bias, self.other_out) if self.extras else (EMPTY, NONE)
        # As uncertain as what the activation is given.
        slope = Out(self.dout.shape if self.activation in SLOPED else (0, 0), scale=self.size)
        out = Out(self.dout.shape, scale=self.size)
        return self.x, self.weight, *extras, self.activation, slope, out

    def input_gradient(self):
        saved = self.saved if self.activation != NO_ACTIVATION else NONE
        addend = self.other_x if self.extras else NONE
        out = Out(self.x.shape, scale=max(1.0, self.groups * self.columns) ** 0.5)
        return self.dout, self.weight, saved, addend, self.activation, out

    def weight_gradient(self):
        scale = max(1.0, self.rows) ** 0.5
        sums = Out(self.bias.shape, self.start, scale) if self.extras else Out((0,))
        out = Out(self.weight.shape, self.weight, scale)
        return self.x, self.dout, sums, out

    def gradients(self):
        dout, weight, saved, addend, activation, dx = self.input_gradient()
        _, _, sums, dweight = self.weight_gradient()
        return self.x, weight, dout, saved, addend, activation, dx, dweight, sums


def check(case):
    assert_equals_twin(matmul, matmul_reference, *case.forward())
    assert_equals_twin(matmul_nt, matmul_nt_reference, *case.input_gradient())
    assert_equals_twin(matmul_tn, matmul_tn_reference, *case.weight_gradient())
    assert_equals_twin(matmul_backward, matmul_backward_reference, *case.gradients())


@pytest.mark.smoke
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("columns", COLUMNS)
def test_tile_edges_equal_twin(rows, columns):
    # Each dimension is in turn the rows, the columns and the depth of a product.
    check(Case(rows, 19, columns))
    check(Case(columns, rows, 19))


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("extras", [True, False])
def test_depth_edges_equal_twin(depth, extras):
    check(Case(TILE_ROWS + 1, depth, WIDTH + 1, extras=extras))
    check(Case(3, 5, depth, extras=extras))
    check(Case(depth, 5, 3, extras=extras))


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS.keys())
@pytest.mark.parametrize("extras", [True, False])
@pytest.mark.parametrize(("groups", "shared"), [(1, False), (3, True), (3, False)])
def test_groups_and_epilogues_equal_twin(activation, extras, groups, shared):
    for rows, depth, columns in ((TILE_ROWS + 3, 21, WIDTH + 5), (2, DEPTH_BLOCK + 9, 7)):
        check(Case(rows, depth, columns, groups, shared, activation, extras))


@pytest.mark.parametrize(("groups", "shared"), [(1, False), (2, True), (2, False)])
def test_rows_that_are_pages_apart_equal_twin(groups, shared):
    """They are copied before they are multiplied, some hundred at a time; columns are packed."""
    check(Case(290, FAR, WIDTH + 5, groups, shared, GELU))
    check(Case(DEPTH_BLOCK + 9, FAR + 6, 3 * WIDTH + 5, groups, shared))
    check(Case(290, WIDTH + 5, FAR, groups, shared, GELU))
    check(Case(TILE_ROWS, 3 * FAR, 3, groups, shared))


@pytest.mark.parametrize(("groups", "shared"), [(1, False), (2, True), (2, False)])
def test_columns_of_many_tiles_equal_twin(groups, shared):
    """With few registers they are packed before they are multiplied, some tiles at a time."""
    check(Case(DEPTH_BLOCK + 9, TILES_OF_A_TASK * TILE_ROWS + 2, WIDTH + 5, groups, shared))
    check(Case(31, 3 * TILES_OF_A_TASK * TILE_ROWS + 1, 3, groups, shared))


@settings(max_examples=40)
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


def integers(rng, *shape):
    return rng.integers(-8, 9, shape)


def assert_exact(case, rng):
    """Compare all three products of small integers with integer arithmetic, bit by bit."""
    G, M = case.groups, case.rows
    x, weight = integers(rng, *case.x.shape), integers(rng, *case.weight.shape)
    dout, bias = integers(rng, *case.dout.shape), integers(rng, *case.bias.shape)
    stacked_x, stacked_dout = x.reshape(-1, M, case.depth), dout.reshape(G, M, -1)
    product = (stacked_x @ weight + bias.reshape(G, 1, -1)).reshape(dout.shape)
    dx = stacked_dout @ weight.transpose(0, 2, 1)
    dx = (dx.sum(axis=0) if case.shared else dx).reshape(x.shape)
    dweight = weight + stacked_x.transpose(0, 2, 1) @ stacked_dout
    column_sums = bias + stacked_dout.sum(axis=1).ravel()
    # Every partial sum is exact in float32.
    assert max(np.abs(values).max() for values in (product, dx, dweight, column_sums)) < 2**23
    for dtype in COMPARED_DTYPES:
        x_real, weight_real, dout_real, bias_real, none = (
            values.astype(dtype) for values in (x, weight, dout, bias, NONE)
        )
        out, dx_real = np.full(dout.shape, np.nan, dtype), np.full(x.shape, np.nan, dtype)
        matmul(x_real, weight_real, bias_real, none, NO_ACTIVATION, none, out)
        np.testing.assert_array_equal(out, product)
        matmul_nt(dout_real, weight_real, none, none, NO_ACTIVATION, dx_real)
        np.testing.assert_array_equal(dx_real, dx)
        matmul_tn(x_real, dout_real, bias_real, weight_real)
        np.testing.assert_array_equal(weight_real, dweight)
        np.testing.assert_array_equal(bias_real, column_sums)


def test_integers_are_exact_at_all_edges(rng):
    for rows, depth, columns in itertools.product(ROWS, DEPTHS, COLUMNS):
        assert_exact(Case(rows, depth, columns), rng)


@pytest.mark.smoke
@settings(max_examples=100)
@given(
    sizes=st.tuples(*[st.integers(1, 80)] * 3),
    groups=st.integers(1, 4),
    shared=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_integers_are_exact(sizes, groups, shared, seed):
    assert_exact(Case(*sizes, groups, shared), np.random.default_rng(seed))


@pytest.mark.parametrize(("rows", "depth", "columns"), [(65, 300, 130), (7, 520, 520)])
def test_integers_are_exact_over_several_tasks(rng, rows, depth, columns):
    row_tasks, column_tasks = task_grid(rows, columns, depth, WIDTH)
    assert row_tasks * column_tasks > 1
    assert_exact(Case(rows, depth, columns), rng)
    assert_exact(Case(rows, depth, columns // 2, groups=2), rng)


def test_gradient(rng):
    """matmul_nt and matmul_tn are the gradients of matmul, by its input, weight and bias."""
    for groups, shared in ((1, False), (2, False), (2, True)):
        case = Case(3, 4, 2, groups, shared, extras=False)

        def forward(x, weight, bias, addend, case=case):
            arguments = (x, weight, bias, addend, NO_ACTIVATION, Out((0, 0)), Out(addend.shape))
            return run(matmul_reference, *arguments, dtype=np.float64)[-1]

        def backward(dout, x, weight, bias, addend):
            arguments = (dout, weight, NONE, NONE, NO_ACTIVATION, Out(x.shape))
            (dx,) = run(matmul_nt_reference, *arguments, dtype=np.float64)
            sums, out = Out(bias.shape, 0.0), Out(weight.shape, 0.0)
            dbias, dweight = run(matmul_tn_reference, x, dout, sums, out, dtype=np.float64)
            return dx, dweight, dbias, dout

        assert_gradients(forward, backward, case.x, case.weight, case.bias, case.other_out)


@pytest.mark.parametrize(
    "activation",
    [RELU, GELU, MISH, EXACT_GELU],
    ids=["relu", "gelu", "mish", "exact_gelu"],
)
def test_gradient_through_activation(rng, activation):
    """A second layer's matmul_nt, with what the first one saved, is the gradient of both."""
    first, second = rng.standard_normal((1, 4, 3)), rng.standard_normal((1, 3, 2))

    def hidden(x):
        shape = (len(x), 3)
        saved = Out(shape if activation in SLOPED else (0, 0))
        arguments = (x, first, EMPTY, NONE, activation, saved, Out(shape))
        return run(matmul_reference, *arguments, dtype=np.float64)

    def backward(dout, x):
        slope, out = hidden(x)
        saved = slope if activation in SLOPED else out
        arguments = (dout, second, saved, NONE, activation, Out(out.shape))
        (dhidden,) = run(matmul_nt_reference, *arguments, dtype=np.float64)
        arguments = (dhidden, first, NONE, NONE, NO_ACTIVATION, Out(x.shape))
        return run(matmul_nt_reference, *arguments, dtype=np.float64)

    assert_gradients(lambda x: hidden(x)[1] @ second[0], backward, rng.standard_normal((5, 4)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("depth", "columns"),
    [(WHOLE_DEPTH, 2 * WIDTH + 3), (DEPTH_BLOCK + 50, WHOLE_DEPTH + 3), (FAR, FAR)],
)
def test_a_row_does_not_depend_on_the_others(dtype, depth, columns):
    """The same bits whatever the tile, the task and the batch that a row is in."""
    case = Case(max(150, 5 * TILE_ROWS) + 3, depth, columns)
    row_tasks, column_tasks = task_grid(case.rows, case.columns, case.depth, WIDTH)
    assert row_tasks * column_tasks > 1
    (out,) = run(matmul, *case.forward(), dtype=dtype)[1:]
    x, dout, other_out = case.x, case.dout, case.other_out
    (dx,) = run(matmul_nt, *case.input_gradient(), dtype=dtype)
    other_x = case.other_x
    for row in (0, 1, TILE_ROWS, case.rows - 1):
        case.x, case.dout, case.other_out = (v[row : row + 1] for v in (x, dout, other_out))
        case.other_x = other_x[row : row + 1]
        np.testing.assert_array_equal(run(matmul, *case.forward(), dtype=dtype)[1], out[[row]])
        alone = run(matmul_nt, *case.input_gradient(), dtype=dtype)[0]
        np.testing.assert_array_equal(alone, dx[[row]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("depth", "columns", "groups"),
    [
        (1, 2 * WIDTH, 1),
        (7, (PANELS_AT_ONCE + 1) * WIDTH + 5, 1),
        (WHOLE_DEPTH, 3 * WIDTH - 1, 3),
        (2 * DEPTH_BLOCK + 3, 2 * WIDTH, 2),
    ],
)
@pytest.mark.parametrize("activation", [NO_ACTIVATION, RELU, GELU])
def test_a_single_row_has_the_bits_that_it_has_among_others(
    dtype, depth, columns, groups, activation
):
    """It is multiplied in another way: by a matrix as it lies, many columns at once."""
    case = Case(5, depth, columns, groups, activation=activation)
    slopes, out = run(matmul, *case.forward(), dtype=dtype)
    x, dout, other_out = case.x, case.dout, case.other_out
    for row in (0, 4):
        case.x, case.dout, case.other_out = (v[row::5] for v in (x, dout, other_out))
        found = run(matmul, *case.forward(), dtype=dtype)
        np.testing.assert_array_equal(found[1], out[row::5])
        np.testing.assert_array_equal(found[0], slopes[row::5] if slopes.size else slopes)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(DEPTH_BLOCK, 2 * WIDTH), (SHORT_DEPTH_BLOCK, 37)])
def test_second_weight_gradient_doubles(dtype, rows, columns):
    """Exact within one block of the depth, where a call adds one finished sum."""
    case = Case(rows, 21, columns, groups=2)
    x, dout = case.x.astype(dtype), case.dout.astype(dtype)
    sums, dweight = np.zeros(case.bias.shape, dtype), np.zeros(case.weight.shape, dtype)
    matmul_tn(x, dout, sums, dweight)
    once = sums.copy(), dweight.copy()
    matmul_tn(x, dout, sums, dweight)
    np.testing.assert_array_equal(sums, 2 * once[0])
    np.testing.assert_array_equal(dweight, 2 * once[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_stay_visible_and_in_place(dtype, value):
    case = Case(TILE_ROWS + 3, 21, WIDTH + 5, extras=False)
    case.x[4, 20] = value
    case.weight = np.abs(case.weight)
    _, out = run(matmul, *case.forward(), dtype=dtype)
    np.testing.assert_array_equal(np.flatnonzero(~np.isfinite(out).all(axis=1)), [4])
    np.testing.assert_array_equal(out[4], value)
    case.x[4, 20], case.weight[0, 2, WIDTH + 4] = 0, value
    _, out = run(matmul, *case.forward(), dtype=dtype)
    np.testing.assert_array_equal(np.flatnonzero(~np.isfinite(out).all(axis=0)), [WIDTH + 4])
    (dx,) = run(matmul_nt, *case.input_gradient(), dtype=dtype)
    np.testing.assert_array_equal(np.flatnonzero(~np.isfinite(dx).all(axis=0)), [2])
    case.dout[3, 1] = value
    _, dweight = run(matmul_tn, *case.weight_gradient(), dtype=dtype)
    finite = np.isfinite(dweight)
    finite[0, 2, WIDTH + 4] = True  # what was in the weight, to which the gradient is added
    np.testing.assert_array_equal(np.flatnonzero(~finite.all(axis=(0, 1))), [1])


@pytest.mark.parametrize("function", [matmul_nt, matmul_nt_reference])
@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS.keys())
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_that_an_activation_saved_stays_visible_in_place(function, activation, dtype):
    case = Case(TILE_ROWS + 3, WIDTH + 5, 21, activation=activation)
    case.saved[4, [0, WIDTH + 4]] = np.nan
    (dx,) = run(function, *case.input_gradient(), dtype=dtype)
    expected = np.isnan(case.saved) & (activation != NO_ACTIVATION)
    np.testing.assert_array_equal(np.isnan(dx), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_rows_write_nothing(dtype):
    for groups in (1, 3):
        case = Case(0, 5, 7, groups)
        assert run(matmul, *case.forward(), dtype=dtype)[1].shape == (0, 7)
        assert run(matmul_nt, *case.input_gradient(), dtype=dtype)[0].shape == (0, 5)
        sums, dweight = run(matmul_tn, *case.weight_gradient(), dtype=dtype)
        np.testing.assert_array_equal(sums, case.start.astype(dtype))
        np.testing.assert_array_equal(dweight, case.weight.astype(dtype))


@pytest.mark.parametrize("groups", [1, 3])
def test_no_rows_equal_twin(groups):
    """The NumPy twins accept no rows, as the kernels do."""
    check(Case(0, 5, 7, groups))


def test_no_depth_gives_bias_and_addend():
    case = Case(TILE_ROWS + 1, 0, WIDTH + 1)
    out = run(matmul, *case.forward(), dtype=np.float64)[1]
    np.testing.assert_array_equal(out, case.bias + case.other_out)
    case = Case(TILE_ROWS + 1, WIDTH + 1, 0)
    (dx,) = run(matmul_nt, *case.input_gradient(), dtype=np.float64)
    np.testing.assert_array_equal(dx, case.other_x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [3, 200])
def test_both_gradients_at_once_have_the_bits_of_each(dtype, rows):
    case = Case(rows, 70, 90, activation=GELU)
    dx, dweight, sums = run(matmul_backward, *case.gradients(), dtype=dtype)
    (dx_alone,) = run(matmul_nt, *case.input_gradient(), dtype=dtype)
    sums_alone, dweight_alone = run(matmul_tn, *case.weight_gradient(), dtype=dtype)
    for together, alone in ((dx, dx_alone), (dweight, dweight_alone), (sums, sums_alone)):
        np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("wide", [True, False])
def test_same_bits_for_any_threads(wide):
    """Cut by rows where there are many, and by columns where there are few."""
    case = Case(9, 300, 900, 2) if wide else Case(150, 130, 129, 2, activation=GELU)
    sizes = [
        (case.rows, case.groups * case.columns, case.depth),
        (case.rows, case.groups * case.depth, case.columns),
        (case.depth, case.groups * case.columns, case.rows),
    ]
    for width in (WIDTH, WIDTH // 2):
        assert all(np.prod(task_grid(*size, width)) > 3 for size in sizes)
    assert_same_bits(matmul, *case.forward())
    assert_same_bits(matmul_nt, *case.input_gradient())
    assert_same_bits(matmul_tn, *case.weight_gradient())
    assert_same_bits(matmul_backward, *case.gradients())


def test_same_bits_for_any_threads_where_groups_are_summed():
    case = Case(150, 200, 129, 3, shared=True)
    assert np.prod(task_grid(case.rows, case.depth, case.columns * case.groups, WIDTH)) > 3
    assert_same_bits(matmul, *case.forward())
    assert_same_bits(matmul_nt, *case.input_gradient())
    assert_same_bits(matmul_tn, *case.weight_gradient())
    assert_same_bits(matmul_backward, *case.gradients())


@settings(max_examples=200)
@given(
    rows=st.integers(0, 3000),
    columns=st.integers(0, 3000),
    depth=st.integers(0, 3000),
    groups=st.integers(1, 4),
)
def test_tasks_cover_every_row_and_panel_once(rows, columns, depth, groups):
    panels = groups * ((columns + WIDTH - 1) // WIDTH)
    row_tasks, column_tasks = task_grid(rows, groups * columns, depth, WIDTH)
    covered = np.zeros((rows, panels), np.int64)
    for task in range(row_tasks * column_tasks):
        first, last, first_panel, last_panel = task_part(
            task, row_tasks, column_tasks, rows, panels
        )
        assert abs(last - first - rows / row_tasks) < ROW_STEP
        covered[first:last, first_panel:last_panel] += 1
    np.testing.assert_array_equal(covered, 1)
