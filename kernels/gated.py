"""Gates of feed-forward layers, forward and backward, element by element.

    out = f(gate) * x
    dgate = dout * x * f'(gate),   dx = dout * f(gate)

f is SiLU for SwiGLU, GELU in either form for GEGLU; kernels/activation.py has these. Source:
Shazeer 2020, arXiv:2002.05202, equations 5 and 6: FFN(x) = (f(x W) * (x V)) W2.
"""

import numpy as np

from ._compile import kernel, prange
from ._simd import flat, lanes, load_first, store_first
from .activation import (
    CHUNK,
    DEEP,
    GELU,
    SILU,
    activation_forward_reference,
    activation_slope,
    exact_gelu_and_slope,
    gelu_and_slope,
    silu_and_slope,
)
from .op import op


def _value_and_slope_reference(z, activation):
    """Return an activation at z, and its derivative."""
    if activation != SILU:
        value = np.empty_like(z)
        activation_forward_reference(z, activation, value)
        return value, activation_slope(z, activation)
    e = np.exp(-np.abs(z))
    s = np.where(z < 0, e, 1) / (1 + e)
    near = np.clip(z, -DEEP, DEEP)
    return z * s, s + near * s * np.where(z < 0, 1, e) / (1 + e)


def gated_forward_reference(gate, x, activation, out):
    """Compute `gated_forward` in NumPy."""
    out[...] = _value_and_slope_reference(gate, activation)[0] * x


def gated_backward_reference(dout, gate, x, activation, dgate, dx):
    """Compute `gated_backward` in NumPy."""
    value, slope = _value_and_slope_reference(gate, activation)
    dgate[...] = dout * x * slope
    dx[...] = dout * value


@kernel
def _gate(start, stop, gate, x, activation, out):
    """Write f(gate) * x from start to stop of arrays of one axis."""
    for i in range(start, stop, lanes(x)):
        v = load_first(gate, stop - i, i)
        if activation == SILU:
            v = silu_and_slope(v)[0]
        elif activation == GELU:
            v = gelu_and_slope(v)[0]
        else:
            v = exact_gelu_and_slope(v)[0]
        store_first(out, stop - i, v * load_first(x, stop - i, i), i)


@kernel
def _differentiate(start, stop, dout, gate, x, activation, dgate, dx):
    """Write the gradients by the gate and by x from start to stop of arrays of one axis."""
    for i in range(start, stop, lanes(x)):
        d, v = load_first(dout, stop - i, i), load_first(gate, stop - i, i)
        if activation == SILU:
            value, slope = silu_and_slope(v)
        elif activation == GELU:
            value, slope = gelu_and_slope(v)
        else:
            value, slope = exact_gelu_and_slope(v)
        through = d * load_first(x, stop - i, i) * slope
        store_first(dx, stop - i, d * value, i)
        store_first(dgate, stop - i, through, i)


@kernel(parallel=True)
def gated_forward(gate, x, activation, out):
    """Write f(gate) * x to out.

    Args:
        gate, x: one shape, float32|float64, C-contiguous.    activation: SILU, GELU or EXACT_GELU.
        out: the same shape, overwritten; may be gate or x.
    Threads: chunks of a fixed size; bit-identical for any thread count.
    """
    flat_gate, flat_x, flat_out = gate.reshape(x.size), flat(x), out.reshape(x.size)
    for task in prange((x.size + CHUNK - 1) // CHUNK):
        stop = min(x.size, (task + 1) * CHUNK)
        _gate(task * CHUNK, stop, flat_gate, flat_x, activation, flat_out)


@kernel(parallel=True)
def gated_backward(dout, gate, x, activation, dgate, dx):
    """Write the gradients by the gate and by x.

    Args:
        dout: the shape of gate and x, which are what the forward pass was given, as activation is.
        dgate, dx: the same shape, overwritten; either may be dout, and each its own input.
    Threads: chunks of a fixed size; bit-identical for any thread count.
    """
    flat_dout, flat_gate, flat_x = dout.reshape(x.size), gate.reshape(x.size), flat(x)
    flat_dgate, flat_dx = dgate.reshape(x.size), dx.reshape(x.size)
    for task in prange((x.size + CHUNK - 1) // CHUNK):
        stop = min(x.size, (task + 1) * CHUNK)
        _differentiate(
            task * CHUNK, stop, flat_dout, flat_gate, flat_x, activation, flat_dgate, flat_dx
        )


@op(
    "gate[R,F] x[R,F] activation:int -> out[R,F]",
    cut="R", cost="F", twin=gated_forward_reference,
)  # fmt: skip
def gated(part, gate, x, activation, out):
    """Write f(gate) * x."""
    F = x.shape[1]
    _gate(part.first * F, part.last * F, flat(gate), flat(x), activation, flat(out))


@op(
    "dout[R,F] gate[R,F] x[R,F] activation:int -> dgate[R,F] dx[R,F]",
    cut="R", cost="F", twin=gated_backward_reference,
)  # fmt: skip
def gated_gradient(part, dout, gate, x, activation, dgate, dx):
    """Write the gradients by the gate and by x."""
    F = x.shape[1]
    _differentiate(
        part.first * F, part.last * F, flat(dout), flat(gate), flat(x), activation, flat(dgate),
        flat(dx),
    )  # fmt: skip
