"""ReLU, GELU in both forms and Mish, element by element; and SiLU, for kernels/gated.py.

    relu(x) = max(x, 0);                     relu'(x) = 1 where x > 0, else 0
    gelu(x) = x sigmoid(2 u(x)),             u(x) = sqrt(2 / pi) (x + 0.044715 x^3)
    gelu'(x) = s + 2 x s (1 - s) u'(x),      s = sigmoid(2 u(x))
    exact_gelu(x) = x Phi(x),                Phi(x) = erfc(-x / sqrt(2)) / 2
    exact_gelu'(x) = Phi(x) + x phi(x),      phi(x) = exp(-x^2 / 2) / sqrt(2 pi)
    silu(x) = x sigmoid(x);                  silu'(x) = s + x s (1 - s),  s = sigmoid(x)
    mish(x) = x t,                           t = tanh(log(1 + e^x)) = w / (w + 2)
    mish'(x) = t + 4 x e^x (1 + e^x) / (w + 2)^2,                   w = e^x (e^x + 2)

GELU is in its tanh form, for (1 + tanh(u)) / 2 = sigmoid(2 u), which comes near x Phi(x) to 5e-4:
PyTorch's nn.GELU(approximate="tanh"). Its exact form is PyTorch's nn.GELU(). Sources: Hendrycks &
Gimpel 2016, arXiv:1606.08415, section 2 (GELU and SiLU); Misra 2019, arXiv:1908.08681, section 2
(Mish); for the distribution Phi, kernels/_normal.py.

All are within 2 units in the last place, in either dtype: a sigmoid's relative error is the
absolute error of its argument, so what the rounding of the argument leaves out is carried along,
and so is what the roundings of the quotients' parts leave out. A derivative is a sum of two terms,
which cancel near its root (GELU's at -0.75, SiLU's at -1.28, Mish's at -1.19): there it is within 2
units of the larger term, which are a quarter of the dtype's epsilon, and at the root itself it has
no digits of its own. Where s, Phi(x) or t is below the smallest normal number, it may itself be a
step off, and what it is multiplied by makes |x| steps of one. At NaN all are NaN; at minus
infinity, derivatives are 0, and GELU, SiLU and Mish themselves NaN, for 0 would hide what has
overflowed.

It is one long file, for all of them are made of the same exponential and its rests.
"""

import math
from decimal import Decimal

import numpy as np

from ._compile import kernel, prange
from ._llvm import WIDE
from ._normal import tail_ratio
from ._rows import sum_in_two
from ._simd import (
    end_stream,
    exp,
    exp_of_sum,
    flat,
    fma,
    lanes,
    load,
    load_first,
    maximum,
    select,
    stack_array,
    store,
    store_first,
    stream_first,
)
from .op import op

NO_ACTIVATION, RELU, GELU, MISH, EXACT_GELU = 0, 1, 2, 3, 4
# Of gates alone.
SILU = 5
# Those whose derivative is saved as `slope`, for it costs little beside the activation itself.
SLOPED = (GELU, MISH, EXACT_GELU)

# 2 sqrt(2 / pi), and the cubic term's share. Where GELU's sigmoid is near the smallest number of
# float64, its argument is 700, and a constant of that precision would be wrong by 300 units.
SLOPE_DIGITS, CUBIC_DIGITS = "1.5957691216057307117597842397375274739", "0.044715"
TWICE_SLOPE, CUBIC = np.longdouble(SLOPE_DIGITS), np.longdouble(CUBIC_DIGITS)
# The density at 0 of the normal distribution, 1 / sqrt(2 pi).
DENSITY_DIGITS = "0.39894228040143267793994605993438186848"


def _in_two(digits):
    """Return a number as the sum of one that float32 holds exactly, and a small rest."""
    high = float(np.float32(digits))
    return high, float(Decimal(digits) - Decimal(high))


SLOPE_HIGH, SLOPE_LOW = _in_two(SLOPE_DIGITS)
CUBIC_HIGH, CUBIC_LOW = _in_two(CUBIC_DIGITS)
DENSITY_HIGH, DENSITY_LOW = _in_two(DENSITY_DIGITS)
# Beyond it the sigmoid of GELU is 0 or 1 in either dtype, and that of SiLU and Mish's t are 1.
REACH = 32.0
CERTAIN = 40.0
# Beyond it exp(-x^2 / 2) is 0 in either dtype, and Phi 0 or 1.
FAR = 40.0
# Below its negative, an exponential is 0 in either dtype.
DEEP = 1000.0

# Rows of a block of which the first part of GELU is kept, three registers for each of a row's.
KEPT_ROWS = 16
KEPT_REGISTERS = 3 * WIDE * KEPT_ROWS
# Elements of one task: enough to pay for its start.
CHUNK = 16384


def _sigmoid_of_gelu(x):
    """Return s of the formula above; the exponential may overflow, and s is then 0."""
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x.dtype.type(TWICE_SLOPE) * (x + x.dtype.type(CUBIC) * x * x * x)))


def gelu_slope(x):
    """Return the derivative of gelu at x."""
    x = np.clip(x, -CERTAIN, CERTAIN)
    s = _sigmoid_of_gelu(x)
    return s + x * s * (1 - s) * x.dtype.type(TWICE_SLOPE) * (1 + x.dtype.type(3 * CUBIC) * x * x)


def normal_distribution(x):
    """Return Phi(x), with the digits of float64 at most: NumPy has no erfc, and Python has."""
    twice = np.frompyfunc(math.erfc, 1, 1)(x.astype(np.float64) * -math.sqrt(0.5))
    return (np.asarray(twice, np.float64) / 2).astype(x.dtype)


def exact_gelu_slope(x):
    """Return the derivative of the exact gelu at x."""
    x = np.clip(x, -FAR, FAR)
    density = x.dtype.type(np.longdouble(DENSITY_DIGITS)) * np.exp(-x * x / 2)
    return normal_distribution(x) + x * density


def _parts_of_mish(x):
    """Return top and bottom of t = top / bottom; where x > 0, both are divided by e^(2 x)."""
    e = np.exp(-np.abs(x))
    top = np.where(x < 0, e * (e + 2), 1 + 2 * e)
    return top, top + np.where(x < 0, 2, 2 * e * e), e


def mish_slope(x):
    """Return the derivative of mish at x."""
    x = np.clip(x, -DEEP, DEEP)
    top, bottom, e = _parts_of_mish(x)
    return top / bottom + 4 * x * np.where(x < 0, e, e * e) * (1 + e) / (bottom * bottom)


def activation_slope(x, activation):
    """Return the derivative at x of one of `SLOPED`."""
    slopes = {GELU: gelu_slope, EXACT_GELU: exact_gelu_slope}
    return slopes.get(activation, mish_slope)(x)


def activation_forward_reference(x, activation, out):
    """Write an activation of x to out; arrays of one shape."""
    if activation == RELU:
        out[...] = np.where(x < 0, 0, x)
    elif activation == GELU:
        out[...] = x * _sigmoid_of_gelu(x)
    elif activation == EXACT_GELU:
        out[...] = x * normal_distribution(x)
    else:
        top, bottom, _ = _parts_of_mish(x)
        out[...] = x * (top / bottom)


def activation_backward_reference(dout, x, activation, dx):
    """Write dout times the derivative at x to dx, which may be dout; arrays of one shape."""
    if activation == RELU:
        dx[...] = np.where(x > 0, dout, np.where(np.isnan(x), x, 0))
    else:
        dx[...] = dout * activation_slope(x, activation)


@kernel
def relu_vector(x):
    """Return relu of a register; NaN stays NaN."""
    return select(x < 0.0, 0.0, x)


@kernel
def _minus_size(x, reach):
    """Return -|x|, and at least -reach."""
    x = select(x > 0.0, -x, x)
    return select(x < -reach, -reach, x)


@kernel
def _argument_of_gelu(x):
    """Return 2 u(x), x times its derivative, and what the rounding of either left out.

    With v = 2 u(x) and its cubic term c = v - TWICE_SLOPE x, the second is v + 2 c: two sums, which
    take half as long as products do.
    """
    square = x * x
    square_low = fma(x, x, -square)
    factor = fma(square, CUBIC_HIGH, 1.0)
    factor_low = fma(square_low, CUBIC_HIGH, square * CUBIC_LOW)
    factor_low = fma(square, CUBIC_HIGH, 1.0 - factor) + factor_low
    line = x * SLOPE_HIGH
    line_low = fma(x, SLOPE_LOW, fma(x, SLOPE_HIGH, -line))
    value = line * factor
    value_low = fma(line, factor_low, fma(line_low, factor, fma(line, factor, -value)))
    value_low = fma(line_low, factor_low, value_low)
    cubic = value - line
    cubic_low = ((value - cubic) - line) + (value_low - line_low)
    steep, steep_low = sum_in_two(value, cubic + cubic)
    steep_low = steep_low + (value_low + (cubic_low + cubic_low))
    return value, value_low, steep, steep_low


@kernel
def _quotient(top, top_low, bottom, bottom_low, inverse):
    """Return (top + top_low) / (bottom + bottom_low), rounded about once, without a division.

    `inverse` is 1 / bottom, rounded: one division serves several quotients.
    """
    result = top * inverse
    rest = fma(-result, bottom, top) + top_low
    return fma(fma(-result, bottom_low, rest), inverse, result)


@kernel
def _times_sigmoid(x, e, steep, steep_low):
    """Return x s, and s + |steep| s (1 - s), of the sign of x, for e = exp(-|a|), s = sigmoid(a).

    With b = 1 + e, the first is x e / b where x < 0, else x / b, and may be NaN where x is large;
    the second is (e b + steep e) / b^2 where x < 0, else (b - steep e) / b^2.

    Args:
        x: a register, of the sign of a.    steep: -|x a'|, and what its rounding left out.
    """
    b = 1.0 + e
    b_low = e - (b - 1.0)
    inverse = 1.0 / b
    chosen = select(x < 0.0, e, 1.0)
    top = x * chosen
    value = _quotient(top, fma(x, chosen, -top), b, b_low, inverse)
    signed = select(x < 0.0, e, -e)
    first, second = chosen * b, steep * signed
    first_low = fma(chosen, b_low, fma(chosen, b, -first))
    second_low = fma(steep_low, signed, fma(steep, signed, -second))
    top, sum_low = sum_in_two(first, second)
    square = b * b
    square_low = fma(b, b_low + b_low, fma(b, b, -square))
    top_low = sum_low + first_low + second_low
    return value, _quotient(top, top_low, square, square_low, inverse * inverse)


@kernel
def _exponential_of_gelu(x):
    """Return e, steep and steep_low, for which `_times_sigmoid` gives gelu and its derivative."""
    argument, argument_low, steep, steep_low = _argument_of_gelu(_minus_size(x, REACH))
    return exp_of_sum(argument, argument_low), steep, steep_low


@kernel
def _gelu_of_exponential(x, e, steep, steep_low):
    """Return gelu of a register, and its derivative."""
    value, slope = _times_sigmoid(x, e, steep, steep_low)
    return select(x > REACH, x, value), slope


@kernel
def gelu_and_slope(x):
    """Return gelu of a register, and its derivative; what is not used is not computed."""
    e, steep, steep_low = _exponential_of_gelu(x)
    return _gelu_of_exponential(x, e, steep, steep_low)


@kernel
def _add_product(base, first, first_low, second):
    """Return base + (first + first_low) second, rounded about once; it is 0, or base is larger."""
    product = first * second
    product_low = fma(first_low, second, fma(first, second, -product))
    total = base + product
    return total + (((base - total) + product) + product_low)


@kernel
def exact_gelu_and_slope(x):
    """Return the exact gelu of a register, and its derivative.

    With a = |x|, e = exp(-a^2 / 2) and T of _normal.py they are x T e and (T - a / sqrt(2 pi)) e
    where x < 0, else x and 1 less these.
    """
    size = _minus_size(x, FAR)
    square = size * size
    square_low = fma(size, size, -square)
    e = exp_of_sum(-0.5 * square, -0.5 * square_low)
    ratio, ratio_low = tail_ratio(-size)
    signed = select(x < 0.0, e, -e)
    product = x * ratio
    product_low = fma(x, ratio, -product) + x * ratio_low
    value = _add_product(relu_vector(x), product, product_low, signed)
    line = size * DENSITY_HIGH
    line_low = fma(size, DENSITY_LOW, fma(size, DENSITY_HIGH, -line))
    both, both_low = sum_in_two(ratio, line)
    both_low = both_low + (ratio_low + line_low)
    slope = _add_product(select(x < 0.0, 0.0 * e, 1.0), both, both_low, signed)
    return select(x > FAR, x, value), slope


@kernel
def silu_and_slope(x):
    """Return silu of a register, and its derivative."""
    size = _minus_size(x, DEEP)
    value, slope = _times_sigmoid(x, exp(size), size, 0.0)
    return select(x > CERTAIN, x, value), slope


@kernel
def mish_and_slope(x):
    """Return mish of a register, and its derivative.

    With e = exp(-|x|), t is top / bottom: where x < 0, top = 2 e + e^2 and bottom = top + 2, else
    top = 1 + 2 e and bottom = top + 2 e^2. The derivative is
    (top bottom + 4 x f (e + e^2)) / bottom^2, f = 1 where x < 0, else e.
    """
    size = _minus_size(x, DEEP)
    e = exp(size)
    square = e * e
    square_low = fma(e, e, -square)
    top, top_low = sum_in_two(select(x < 0.0, square, 1.0), 2.0 * e)
    top_low = top_low + select(x < 0.0, square_low, 0.0)
    bottom, bottom_low = sum_in_two(top, select(x < 0.0, 2.0, 2.0 * square))
    bottom_low = bottom_low + top_low + select(x < 0.0, 0.0, 2.0 * square_low)
    inverse = 1.0 / bottom
    product = x * top
    product_low = fma(x, top, -product) + x * top_low
    value = _quotient(product, product_low, bottom, bottom_low, inverse)
    factor = select(x < 0.0, 1.0, e)
    line = e + square
    line_low = (square - (line - e)) + square_low
    part = factor * line
    part_low = fma(factor, line, -part) + factor * line_low
    steep = select(x < 0.0, 4.0 * size, -4.0 * size)
    first, second = top * bottom, steep * part
    first_low = fma(top, bottom, -first) + (top * bottom_low + top_low * bottom)
    second_low = fma(steep, part, -second) + steep * part_low
    total, sum_low = sum_in_two(first, second)
    total_low = sum_low + first_low + second_low
    whole = bottom * bottom
    whole_low = fma(bottom, bottom, -whole) + bottom * bottom_low * 2.0
    slope = _quotient(total, total_low, whole, whole_low, inverse * inverse)
    return select(x > CERTAIN, x, value), slope


@kernel
def relu_gradient_vector(dout, x):
    """Return dout where x > 0, else 0; NaN where x is NaN."""
    return select(x > 0.0, dout, maximum(0.0, x))


@kernel
def _activate(start, stop, x, activation, out):
    """Write an activation of the elements from start to stop of x, which has one axis."""
    for i in range(start, stop, lanes(x)):
        v = load_first(x, stop - i, i)
        if activation == RELU:
            v = relu_vector(v)
        elif activation == GELU:
            v = gelu_and_slope(v)[0]
        elif activation == MISH:
            v = mish_and_slope(v)[0]
        else:
            v = exact_gelu_and_slope(v)[0]
        store_first(out, stop - i, v, i)


@kernel(parallel=True)
def activation_forward(x, activation, out):
    """Write an activation of each element of x to out.

    Args:
        x: any shape, float32|float64, C-contiguous.    activation: RELU, GELU, MISH or EXACT_GELU.
        out: the shape of x, overwritten; may be x.
    Threads: chunks of a fixed size; bit-identical for any thread count.
    """
    flat_x, flat_out = flat(x), flat(out)
    for task in prange((x.size + CHUNK - 1) // CHUNK):
        stop = min(x.size, (task + 1) * CHUNK)
        _activate(task * CHUNK, stop, flat_x, activation, flat_out)


@kernel(inline=True)
def _relu_gradients(start, stop, dout, x, dx):
    """Write dout times relu's derivative, from start to stop; most of it in whole registers."""
    whole = stop - (stop - start) % lanes(x)
    for i in range(start, whole, lanes(x)):
        store(dx, relu_gradient_vector(load(dout, i), load(x, i)), i)
    d, v = load_first(dout, stop - whole, whole), load_first(x, stop - whole, whole)
    store_first(dx, stop - whole, relu_gradient_vector(d, v), whole)


@kernel
def _differentiate(start, stop, dout, x, activation, dx):
    """Write dout times the derivative at x, from start to stop of arrays of one axis."""
    if activation == RELU:
        _relu_gradients(start, stop, dout, x, dx)
        return
    for i in range(start, stop, lanes(x)):
        d, v = load_first(dout, stop - i, i), load_first(x, stop - i, i)
        if activation == GELU:
            d = d * gelu_and_slope(v)[1]
        elif activation == MISH:
            d = d * mish_and_slope(v)[1]
        else:
            d = d * exact_gelu_and_slope(v)[1]
        store_first(dx, stop - i, d, i)


@kernel(parallel=True)
def activation_backward(dout, x, activation, dx):
    """Write dout times the derivative at x to dx.

    Args:
        dout, x: one shape, float32|float64, C-contiguous; x is what the forward pass was given
            (for RELU its output serves as well).    activation: as of `activation_forward`.
        dx: the same shape, overwritten; may be dout.
    Threads: chunks of a fixed size; bit-identical for any thread count.
    """
    flat_dout, flat_x, flat_dx = dout.reshape(x.size), flat(x), dx.reshape(x.size)
    for task in prange((x.size + CHUNK - 1) // CHUNK):
        stop = min(x.size, (task + 1) * CHUNK)
        _differentiate(task * CHUNK, stop, flat_dout, flat_x, activation, flat_dx)


@op("x[R,C] activation:int -> out[R,C]", cut="R", cost="C", twin=activation_forward_reference)
def activated(part, x, activation, out):
    """Write an activation of each element; see `activation_forward`."""
    C = x.shape[1]
    _activate(part.first * C, part.last * C, flat(x), activation, flat(out))


@op(
    "dout[R,C] x[R,C] activation:int -> dx[R,C]",
    cut="R", cost="C", twin=activation_backward_reference,
)  # fmt: skip
def activated_gradient(part, dout, x, activation, dx):
    """Write dout times the derivative at x; see `activation_backward`."""
    C = x.shape[1]
    _differentiate(part.first * C, part.last * C, flat(dout), flat(x), activation, flat(dx))


@kernel
def _gelu_block(first, last, columns, slope, out, start, step):
    """Do what `activate_block` does, in two passes over some rows.

    A register's hundred operations wait for each other, and a processor sees some hundred ahead:
    in two passes it works at more registers at a time.
    """
    size = lanes(out)
    kept = stack_array(out, KEPT_REGISTERS)
    for begin in range(first, last, KEPT_ROWS):
        end, place = min(last, begin + KEPT_ROWS), 0
        for row in range(begin, end):
            for j in range(0, columns, size):
                v = load_first(out, columns - j, start + row * step + j)
                e, steep, steep_low = _exponential_of_gelu(v)
                store(kept, e, place)
                store(kept, steep, place + size)
                store(kept, steep_low, place + 2 * size)
                place += 3 * size
        place = 0
        for row in range(begin, end):
            for j in range(0, columns, size):
                i = start + row * step + j
                e, steep = load(kept, place), load(kept, place + size)
                value, derivative = _gelu_of_exponential(
                    load_first(out, columns - j, i), e, steep, load(kept, place + 2 * size)
                )
                stream_first(slope, columns - j, derivative, i)
                store_first(out, columns - j, value, i)
                place += 3 * size


@kernel
def activate_block(activation, first, last, columns, slope, out, start, step):
    """Apply an activation to rows first to last of a block of `columns`, hot from its product.

    There are no more columns than a panel of the product has.
    `out` is 1-D, its row r begins at start + r * step. The derivative is left in `slope`, of the
    same layout: what they share, most of the work, is then done once. It is stored past the caches,
    for backward is the next to read it: `end_activation` follows. ReLU is the product's own.
    """
    if activation == GELU:
        _gelu_block(first, last, columns, slope, out, start, step)
        return
    for row in range(first, last):
        for j in range(0, columns, lanes(out)):
            i = start + row * step + j
            v = load_first(out, columns - j, i)
            if activation == MISH:
                value, derivative = mish_and_slope(v)
            else:
                value, derivative = exact_gelu_and_slope(v)
            stream_first(slope, columns - j, derivative, i)
            store_first(out, columns - j, value, i)


@kernel
def end_activation(slope):
    """End what calls of `activate_block` stored, so that others see it."""
    if slope.size:
        end_stream(slope)


@kernel
def differentiate_block(activation, first, last, columns, saved, out, start, step):
    """Multiply a block by the derivative of an activation; the layout is as in `activate_block`.

    `saved` is ReLU's output, or the derivative that `activate_block` left.
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
