"""ReLU and GELU, forward and backward, element by element.

    relu(x) = max(x, 0);                     relu'(x) = 1 where x > 0, else 0
    gelu(x) = x sigmoid(2 u(x)),             u(x) = sqrt(2 / pi) (x + 0.044715 x^3)
    gelu'(x) = s + 2 x s (1 - s) u'(x),      s = sigmoid(2 u(x))

GELU is in its tanh form, for (1 + tanh(u)) / 2 = sigmoid(2 u). Source: Hendrycks & Gimpel 2016,
arXiv:1606.08415, section 2.

Both are within 2 units in the last place: a sigmoid's relative error is the absolute error of its
argument, so what the rounding of the argument leaves out is carried along.
"""

import math

import numpy as np

from ._compile import kernel, prange
from ._simd import exp_of_sum, fma, lanes, load_first, select, store_first

NO_ACTIVATION, RELU, GELU = 0, 1, 2

TWICE_SLOPE = 2 * math.sqrt(2 / math.pi)
CUBIC = 0.044715


def _in_two(value):
    """Return a number as the sum of one that float32 holds exactly, and a small rest."""
    high = float(np.float32(value))
    return high, value - high


SLOPE_HIGH, SLOPE_LOW = _in_two(TWICE_SLOPE)
CUBIC_HIGH, CUBIC_LOW = _in_two(CUBIC)
STEEP_HIGH, STEEP_LOW = _in_two(3 * CUBIC)
# Beyond it the sigmoid is 0 or 1 in either dtype.
REACH = 32.0

# Elements of one task: enough to pay for its start.
CHUNK = 16384


def _sigmoid_of_gelu(x):
    """Return s of the formula above; the exponential may overflow, and s is then 0."""
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x.dtype.type(TWICE_SLOPE) * (x + x.dtype.type(CUBIC) * x * x * x)))


def activation_forward_reference(x, activation, out):
    """Write relu(x) or gelu(x) to out; arrays of one shape."""
    if activation == RELU:
        out[...] = np.where(x < 0, 0, x)
    else:
        out[...] = x * _sigmoid_of_gelu(x)


def gelu_slope(x):
    """Return the derivative of gelu at x."""
    s = _sigmoid_of_gelu(x)
    return s + x * s * (1 - s) * x.dtype.type(TWICE_SLOPE) * (1 + x.dtype.type(3 * CUBIC) * x * x)


def activation_backward_reference(dout, x, activation, dx):
    """Write dout times the derivative at x to dx, which may be dout; arrays of one shape."""
    dx[...] = np.where(x > 0, dout, 0) if activation == RELU else dout * gelu_slope(x)


@kernel
def relu_vector(x):
    """Return relu of a register; NaN stays NaN."""
    return select(x < 0.0, 0.0, x)


@kernel
def _minus_size(x):
    """Return -|x|, and at least -REACH."""
    x = select(x > 0.0, 0.0 - x, x)
    return select(x < -REACH, -REACH, x)


@kernel
def _slope_times_cubic(x, high, low):
    """Return TWICE_SLOPE x (1 + (high + low) x^2), and what its rounding left out."""
    square = x * x
    square_low = fma(x, x, 0.0 - square)
    factor = fma(square, high, 1.0)
    factor_low = fma(square, high, 1.0 - factor) + fma(square_low, high, square * low)
    line = x * SLOPE_HIGH
    line_low = fma(x, SLOPE_HIGH, 0.0 - line) + x * SLOPE_LOW
    value = line * factor
    left_out = fma(line, factor_low, line_low * factor)
    return value, fma(line, factor, 0.0 - value) + left_out


@kernel
def _quotient(top, top_low, bottom, bottom_low, inverse):
    """Return (top + top_low) / (bottom + bottom_low), rounded about once.

    `inverse` is 1 / bottom to a few percent: it serves the correction only.
    """
    result = top / bottom
    rest = fma(0.0 - result, bottom, top) + top_low
    return fma(fma(0.0 - result, bottom_low, rest), inverse, result)


@kernel
def gelu_and_slope(x):
    """Return gelu of a register, and its derivative; what is not used is not computed.

    With e = exp(-|2 u|) and b = 1 + e, gelu is x e / b where x < 0, else x / b; the derivative is
    (e b + 2 x u' e) / b^2 where x < 0, else (b + 2 x u' e) / b^2.
    """
    size = _minus_size(x)
    argument, argument_low = _slope_times_cubic(size, CUBIC_HIGH, CUBIC_LOW)
    e = exp_of_sum(argument, argument_low)
    b = 1.0 + e
    b_low = e - (b - 1.0)
    chosen = select(x < 0.0, e, 1.0)
    # A line that is near 1 / b on [1, 2].
    inverse = fma(b, -0.5, 1.457)
    top = x * chosen
    value = _quotient(top, fma(x, chosen, 0.0 - top), b, b_low, inverse)
    value = select(x > REACH, x, value)
    steeper, steeper_low = _slope_times_cubic(size, STEEP_HIGH, STEEP_LOW)
    # In float64 the rest of the constants is more than a rounding.
    steep = steeper + steeper_low
    steep_low = steeper_low - (steep - steeper)
    signed = select(x < 0.0, e, 0.0 - e)
    first, second = chosen * b, steep * signed
    first_low = fma(chosen, b, 0.0 - first) + chosen * b_low
    second_low = fma(steep, signed, 0.0 - second) + steep_low * signed
    # What the rounding of a sum leaves out, whichever is larger (Knuth 1969, section 4.2.2).
    top = first + second
    part = top - first
    sum_low = (first - (top - part)) + (second - part)
    square = b * b
    square_low = fma(b, b, 0.0 - square) + b * b_low * 2.0
    top_low = sum_low + first_low + second_low
    return value, _quotient(top, top_low, square, square_low, inverse * inverse)


@kernel
def relu_gradient_vector(dout, x):
    """Return dout where x > 0, else 0."""
    return select(x > 0.0, dout, 0.0)


@kernel(parallel=True)
def activation_forward(x, activation, out):
    """Write relu(x) or gelu(x) to out.

    Args:
        x: any shape, float32|float64, C-contiguous.    activation: RELU or GELU.
        out: the shape of x, overwritten; may be x.
    Threads: chunks of a fixed size; bit-identical for any thread count.
    """
    flat_x, flat_out = x.reshape(x.size), out.reshape(out.size)
    for task in prange((x.size + CHUNK - 1) // CHUNK):
        stop = min(x.size, (task + 1) * CHUNK)
        for i in range(task * CHUNK, stop, lanes(flat_x)):
            v = load_first(flat_x, stop - i, i)
            v = relu_vector(v) if activation == RELU else gelu_and_slope(v)[0]
            store_first(flat_out, stop - i, v, i)


@kernel(parallel=True)
def activation_backward(dout, x, activation, dx):
    """Write dout times the derivative at x to dx.

    Args:
        dout, x: one shape, float32|float64, C-contiguous; x is what the forward pass was given
            (for RELU its output serves as well).    activation: RELU or GELU.
        dx: the same shape, overwritten; may be dout.
    Threads: chunks of a fixed size; bit-identical for any thread count.
    """
    flat_dout, flat_x, flat_dx = dout.reshape(x.size), x.reshape(x.size), dx.reshape(x.size)
    for task in prange((x.size + CHUNK - 1) // CHUNK):
        stop = min(x.size, (task + 1) * CHUNK)
        for i in range(task * CHUNK, stop, lanes(flat_x)):
            d = load_first(flat_dout, stop - i, i)
            v = load_first(flat_x, stop - i, i)
            d = relu_gradient_vector(d, v) if activation == RELU else d * gelu_and_slope(v)[1]
            store_first(flat_dx, stop - i, d, i)


@kernel
def activate_block(activation, first, last, columns, slope, out, start, step):
    """Apply an activation to rows first to last of a block of `columns`, hot from its product.

    `out` is 1-D, its row r begins at start + r * step; GELU leaves its derivative in `slope`, of
    the same layout: what they share, most of the work, is then done once.
    """
    for row in range(first, last):
        for j in range(0, columns, lanes(out)):
            i = start + row * step + j
            v = load_first(out, columns - j, i)
            if activation == RELU:
                store_first(out, columns - j, relu_vector(v), i)
            else:
                value, derivative = gelu_and_slope(v)
                store_first(slope, columns - j, derivative, i)
                store_first(out, columns - j, value, i)


@kernel
def differentiate_block(activation, first, last, columns, saved, out, start, step):
    """Multiply a block by the derivative of an activation; the layout is as in `activate_block`.

    `saved` is what `activate_block` left: ReLU's output, or GELU's derivative.
    """
    for row in range(first, last):
        for j in range(0, columns, lanes(out)):
            i = start + row * step + j
            d = load_first(out, columns - j, i)
            x = load_first(saved, columns - j, i)
            if activation == RELU:
                store_first(out, columns - j, relu_gradient_vector(d, x), i)
            else:
                store_first(out, columns - j, d * x, i)
