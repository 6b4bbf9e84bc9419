"""ReLU and GELU, forward and backward, element by element.

    relu(x) = max(x, 0);                     relu'(x) = 1 where x > 0, else 0
    gelu(x) = x sigmoid(2 u(x)),             u(x) = sqrt(2 / pi) (x + 0.044715 x^3)
    gelu'(x) = s + 2 x s (1 - s) u'(x),      s = sigmoid(2 u(x))

GELU is in its tanh form, for (1 + tanh(u)) / 2 = sigmoid(2 u). Source: Hendrycks & Gimpel 2016,
arXiv:1606.08415, section 2.
"""

import math

import numpy as np
from numba import prange

from ._compile import kernel
from ._simd import fma, lanes, load_first, select, sigmoid, store_first

NO_ACTIVATION, RELU, GELU = 0, 1, 2

TWICE_SLOPE = 2 * math.sqrt(2 / math.pi)
CUBIC = 0.044715

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


def activation_backward_reference(dout, x, activation, dx):
    """Write dout times the derivative at x to dx, which may be dout; arrays of one shape."""
    if activation == RELU:
        dx[...] = np.where(x > 0, dout, 0)
    else:
        s = _sigmoid_of_gelu(x)
        slope = x.dtype.type(TWICE_SLOPE) * (1 + x.dtype.type(3 * CUBIC) * x * x)
        dx[...] = dout * (s + x * s * (1 - s) * slope)


@kernel
def relu_vector(x):
    """Return relu of a register; NaN stays NaN."""
    return select(x < 0.0, 0.0, x)


@kernel
def gelu_vector(x):
    """Return gelu of a register."""
    return x * sigmoid(x * TWICE_SLOPE * fma(x * CUBIC, x, 1.0))


@kernel
def relu_gradient_vector(dout, x):
    """Return dout where x > 0, else 0."""
    return select(x > 0.0, dout, 0.0)


@kernel
def gelu_gradient_vector(dout, x):
    """Return dout times the derivative of gelu at x."""
    square = x * x
    s = sigmoid(x * TWICE_SLOPE * fma(square, CUBIC, 1.0))
    slope = fma(square, 3 * CUBIC, 1.0) * TWICE_SLOPE
    return dout * fma(x * s * (1.0 - s), slope, s)


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
            v = relu_vector(v) if activation == RELU else gelu_vector(v)
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
            d = relu_gradient_vector(d, v) if activation == RELU else gelu_gradient_vector(d, v)
            store_first(flat_dx, stop - i, d, i)


@kernel
def activate_block(activation, first, last, columns, preactivation, out, start, step):
    """Apply an activation to rows first to last of a block of `columns`, hot from its product.

    `out` is 1-D, its row r begins at start + r * step; GELU keeps what it was given in
    `preactivation`, of the same layout.
    """
    for row in range(first, last):
        for j in range(0, columns, lanes(out)):
            i = start + row * step + j
            v = load_first(out, columns - j, i)
            if activation == RELU:
                store_first(out, columns - j, relu_vector(v), i)
            else:
                store_first(preactivation, columns - j, v, i)
                store_first(out, columns - j, gelu_vector(v), i)


@kernel
def differentiate_block(activation, first, last, columns, saved, out, start, step):
    """Multiply a block by the derivative of an activation; the layout is as in `activate_block`.

    `saved` is what `activate_block` left: ReLU's output, or GELU's input.
    """
    for row in range(first, last):
        for j in range(0, columns, lanes(out)):
            i = start + row * step + j
            d = load_first(out, columns - j, i)
            x = load_first(saved, columns - j, i)
            if activation == RELU:
                store_first(out, columns - j, relu_gradient_vector(d, x), i)
            else:
                store_first(out, columns - j, gelu_gradient_vector(d, x), i)
