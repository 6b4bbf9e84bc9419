"""ReLU, GELU in both forms and Mish: twin, gradient, extreme values, threads."""

import math

import numpy as np
import pytest
from gradients import assert_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import DTYPES, EDGE_COLUMNS, Out, assert_equals_twin, assert_same_bits
from twins import run_rows as run

from fastformer.kernels.activation import (
    CHUNK,
    EXACT_GELU,
    GELU,
    MISH,
    RELU,
    activation_backward,
    activation_backward_reference,
    activation_forward,
    activation_forward_reference,
)

EACH = pytest.mark.parametrize(
    "activation", [RELU, GELU, MISH, EXACT_GELU], ids=["relu", "gelu", "mish", "exact_gelu"]
)


def check(rng, activation, *shape):
    x, dout = 3 * rng.standard_normal((2, *shape))
    assert_equals_twin(activation_forward, activation_forward_reference, x, activation, Out(shape))
    assert_equals_twin(
        activation_backward, activation_backward_reference, dout, x, activation, Out(shape)
    )


@EACH
@pytest.mark.parametrize("columns", EDGE_COLUMNS)
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_equals_twin(rng, activation, rows, columns):
    check(rng, activation, rows, columns)


@EACH
@pytest.mark.parametrize("size", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
def test_chunk_edges_equal_twin(rng, activation, size):
    check(rng, activation, 1, size)


@EACH
@settings(max_examples=25)
@given(rows=st.integers(0, 50), columns=st.integers(0, 200), seed=st.integers(0, 2**32))
def test_equals_twin_for_any_shape(activation, rows, columns, seed):
    check(np.random.default_rng(seed), activation, rows, columns)


@EACH
def test_gradient(rng, activation):
    x = 2 * rng.standard_normal((4, 5))
    x += np.copysign(0.1, x)  # clear of the kink of ReLU
    assert_gradients(
        lambda x: run(activation_forward_reference, x, activation, Out(x.shape), dtype=np.float64)[
            0
        ],
        lambda dout, x: run(
            activation_backward_reference, dout, x, activation, Out(x.shape), dtype=np.float64
        ),
        x,
    )


def test_gelu_is_its_tanh_form():
    x = np.linspace(-6, 6, 1001)
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    (out,) = run(activation_forward, x, GELU, Out(x.shape), dtype=np.float64)
    np.testing.assert_allclose(out, 0.5 * x * (1 + np.tanh(inner)), rtol=1e-12, atol=1e-15)


def test_exact_gelu_is_x_times_the_normal_distribution():
    x = np.linspace(-40, 40, 2001)
    (out,) = run(activation_forward, x, EXACT_GELU, Out(x.shape), dtype=np.float64)
    shares = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in x])
    np.testing.assert_allclose(out, x * shares, rtol=3e-13, atol=1e-300)
    (tanh_form,) = run(activation_forward, x, GELU, Out(x.shape), dtype=np.float64)
    assert 4e-4 < np.abs(out - tanh_form).max() < 5e-4


# x, exact gelu and its derivative, from mpmath with 60 digits.
EXACT = [
    ("-37.0", "-2.118461352334093424392781e-298", "-7.838298669418516242529885e-297"),
    ("-20.0", "-5.507248237212467390151246e-88", "-1.101436048313346404221472e-86"),
    ("-13.0", "-7.952313719414843586957773e-38", "-1.033730444011335615024141e-36"),
    ("-8.5", "-8.057604598872820601028393e-17", "-6.846504938697084349960275e-16"),
    ("-5.25", "-0.0000003992604271156574981851684", "-0.000002091397663865862000431398"),
    ("-3.4375", "-0.001009096549147400528364832", "-0.003432529637204644762383512"),
    ("-2.0", "-0.04550026389635841440056527", "-0.08523180107819689670084576"),
    ("-1.0", "-0.1586552539314570514147675", "-0.08331547058768629838306274"),
    ("-0.75", "-0.1699705142826511494952966", "0.0007742782607648956283087645"),
    ("-0.5", "-0.1542687693629934481811477", "0.1325048753438371574749552"),
    ("-0.0009765625", "-0.0004879007890539252529230706", "0.4992208161062868664554063"),
    ("0.0009765625", "0.0004886617109460747470769294", "0.5007791838937131335445937"),
    ("0.25", "0.1496765814207309310602134", "0.6953733548836360259761602"),
    ("0.5", "0.3457312306370065518188523", "0.8674951246561628425250448"),
    ("1.0", "0.8413447460685429485852325", "1.083315470587686298383063"),
    ("1.5", "1.399789198096712900993259", "1.127469192229979525416655"),
    ("3.0", "2.995950305905109716420045", "1.011945647204183927000155"),
    ("6.0", "5.999999994080474129773811", "1.000000035468709453902015"),
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_gelu_to_two_units(dtype):
    """Numbers that both dtypes have; the last ones are deep in the tail."""
    x, values, slopes = (np.array(column, np.longdouble) for column in zip(*EXACT, strict=True))
    kept = np.abs(values) > np.finfo(dtype).tiny
    x, values, slopes = x[kept].astype(np.float64), values[kept], slopes[kept]
    (out,) = run(activation_forward, x, EXACT_GELU, Out(x.shape), dtype=dtype)
    assert (np.abs(out - values) <= 2 * np.spacing(np.abs(values).astype(dtype))).all()
    (dx,) = run(activation_backward, np.ones(x.shape), x, EXACT_GELU, Out(x.shape), dtype=dtype)
    # The derivative's terms cancel near -0.75.
    terms = np.maximum(np.abs(values / x), np.abs(slopes - values / x)).astype(dtype)
    assert (np.abs(dx - slopes) <= 2 * np.spacing(terms)).all()


def test_mish_is_x_times_tanh_of_softplus():
    x = np.linspace(-40, 40, 1001)
    (out,) = run(activation_forward, x, MISH, Out(x.shape), dtype=np.float64)
    np.testing.assert_allclose(out, x * np.tanh(np.log1p(np.exp(x))), rtol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_values_of_mish(dtype):
    largest = float(np.finfo(dtype).max)
    x = np.array([1e4, largest, np.inf, -1e4, -largest, 0.0, 1e-30, -1e-30])
    (mish,) = run(activation_forward, x, MISH, Out(x.shape), dtype=dtype)
    expected = np.array([1e4, largest, np.inf, 0, 0, 0, 6e-31, -6e-31], dtype)
    np.testing.assert_allclose(mish, expected, rtol=1e-6)
    ones = np.ones(x.shape)
    (slope,) = run(activation_backward, ones, x, MISH, Out(x.shape), dtype=dtype)
    np.testing.assert_allclose(slope, [1, 1, 1, 0, 0, 0.6, 0.6, 0.6], rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_values(dtype):
    x = np.array([1e4, -1e4, 0.0, -0.0, 1e-30, -1e-30])
    (relu,) = run(activation_forward, x, RELU, Out(x.shape), dtype=dtype)
    np.testing.assert_array_equal(relu, np.array([1e4, 0, 0, 0, 1e-30, 0], dtype))
    expected = np.array([1e4, 0, 0, 0, 5e-31, -5e-31], dtype)
    for activation in (GELU, EXACT_GELU):
        (gelu,) = run(activation_forward, x, activation, Out(x.shape), dtype=dtype)
        np.testing.assert_allclose(gelu, expected, rtol=1e-6)
    ones = np.ones(x.shape)
    (relu,) = run(activation_backward, ones, x, RELU, Out(x.shape), dtype=dtype)
    np.testing.assert_array_equal(relu, [1, 0, 0, 0, 1, 0])
    for activation in (GELU, EXACT_GELU):
        (gelu,) = run(activation_backward, ones, x, activation, Out(x.shape), dtype=dtype)
        np.testing.assert_allclose(gelu, [1, 0, 0.5, 0.5, 0.5, 0.5], rtol=1e-6)


@pytest.mark.parametrize("activation", [GELU, MISH, EXACT_GELU])
@pytest.mark.parametrize("forward", [activation_forward, activation_forward_reference])
@pytest.mark.parametrize("dtype", DTYPES)
def test_infinities_stay_visible(activation, forward, dtype):
    """Minus infinity is NaN: 0 would hide what has overflowed."""
    x = np.array([np.inf, -np.inf, float(np.finfo(dtype).max), -float(np.finfo(dtype).max)])
    with np.errstate(invalid="ignore"):
        (out,) = run(forward, x, activation, Out(x.shape), dtype=dtype)
    np.testing.assert_array_equal(out, np.array([np.inf, np.nan, x[2], 0], dtype))


@EACH
@pytest.mark.parametrize("forward", [activation_forward, activation_forward_reference])
@pytest.mark.parametrize("backward", [activation_backward, activation_backward_reference])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_stays_visible(rng, activation, forward, backward, dtype):
    x = rng.standard_normal(37)
    x[[0, 15, 36]] = np.nan
    (out,) = run(forward, x, activation, Out(x.shape), dtype=dtype)
    np.testing.assert_array_equal(np.isnan(out), np.isnan(x))
    dout = rng.standard_normal(37)
    for pair in ((x, np.abs(dout)), (np.abs(dout), x)):
        (dx,) = run(backward, *pair, activation, Out(x.shape), dtype=dtype)
        np.testing.assert_array_equal(np.isnan(dx), np.isnan(x))


@EACH
@pytest.mark.parametrize("backward", [activation_backward, activation_backward_reference])
@pytest.mark.parametrize("dtype", DTYPES)
def test_slope_is_zero_or_one_from_far_out_to_infinity(activation, backward, dtype):
    """Squares, cubes and four times such numbers are infinite, and 0 times that is NaN."""
    largest = float(np.finfo(dtype).max)
    far = np.array([2e3, largest**0.34, largest**0.6, 0.3 * largest, largest, np.inf])
    ones = np.ones(far.shape)
    for x, slope in ((far, 1), (-far, 0)):
        (dx,) = run(backward, ones, x, activation, Out(x.shape), dtype=dtype)
        np.testing.assert_array_equal(dx, slope)


@EACH
def test_in_place_over_several_tasks(rng, activation):
    """A task that strays into the next one's chunk would apply the activation twice."""
    x, dout = rng.standard_normal((2, 3, CHUNK + 37)).astype(np.float32)
    out, dx = x.copy(), dout.copy()
    activation_forward(out, activation, out)
    activation_backward(dx, x, activation, dx)
    expected = run(activation_forward_reference, x, activation, Out(x.shape))
    np.testing.assert_allclose(out, expected[0], rtol=1e-5, atol=1e-6)
    expected = run(activation_backward_reference, dout, x, activation, Out(x.shape))
    np.testing.assert_allclose(dx, expected[0], rtol=1e-5, atol=1e-6)


@EACH
def test_same_bits_for_any_threads(rng, activation):
    x, dout = rng.standard_normal((2, 4, CHUNK + 5))
    assert x.size > 3 * CHUNK
    assert_same_bits(activation_forward, x, activation, Out(x.shape))
    assert_same_bits(activation_backward, dout, x, activation, Out(x.shape))
