"""The gate of SwiGLU, forward and backward, element by element.

    out = silu(gate) * x,   silu(z) = z sigmoid(z)
    dgate = dout * x * silu'(gate),   dx = dout * silu(gate)

Source: Shazeer 2020, arXiv:2002.05202, equation 5: FFN(x) = (swish(x W) * (x V)) W2.
"""

import numpy as np

from ._compile import kernel, prange
from ._simd import flat, lanes, load_first, store_first
from .activation import CHUNK, DEEP, silu_and_slope
from .op import op


def _silu_and_slope_reference(z):
    """Return silu at z, and its derivative."""
    e = np.exp(-np.abs(z))
    s = np.where(z < 0, e, 1) / (1 + e)
    near = np.clip(z, -DEEP, DEEP)
    return z * s, s + near * s * np.where(z < 0, 1, e) / (1 + e)


def swiglu_forward_reference(gate, x, out):
    """Compute `swiglu_forward` in NumPy."""
    out[...] = _silu_and_slope_reference(gate)[0] * x


def swiglu_backward_reference(dout, gate, x, dgate, dx):
    """Compute `swiglu_backward` in NumPy."""
    silu, slope = _silu_and_slope_reference(gate)
    dgate[...] = dout * x * slope
    dx[...] = dout * silu


@kernel(parallel=True)
def swiglu_forward(gate, x, out):
    """Write silu(gate) * x to out.

    Args:
        gate, x: one shape, float32|float64, C-contiguous.
        out: the same shape, overwritten; may be gate or x.
    Threads: chunks of a fixed size; bit-identical for any thread count.
    """
    flat_gate, flat_x, flat_out = gate.reshape(x.size), flat(x), out.reshape(x.size)
    for task in prange((x.size + CHUNK - 1) // CHUNK):
        stop = min(x.size, (task + 1) * CHUNK)
        for i in range(task * CHUNK, stop, lanes(flat_x)):
            silu, _ = silu_and_slope(load_first(flat_gate, stop - i, i))
            store_first(flat_out, stop - i, silu * load_first(flat_x, stop - i, i), i)


@kernel(parallel=True)
def swiglu_backward(dout, gate, x, dgate, dx):
    """Write the gradients by the gate and by x.

    Args:
        dout: the shape of gate and x, which are what the forward pass was given.
        dgate, dx: the same shape, overwritten; either may be dout, and each its own input.
    Threads: chunks of a fixed size; bit-identical for any thread count.
    """
    flat_dout, flat_gate, flat_x = dout.reshape(x.size), gate.reshape(x.size), flat(x)
    flat_dgate, flat_dx = dgate.reshape(x.size), dx.reshape(x.size)
    for task in prange((x.size + CHUNK - 1) // CHUNK):
        stop = min(x.size, (task + 1) * CHUNK)
        for i in range(task * CHUNK, stop, lanes(flat_x)):
            d = load_first(flat_dout, stop - i, i)
            silu, slope = silu_and_slope(load_first(flat_gate, stop - i, i))
            dgated = d * load_first(flat_x, stop - i, i) * slope
            store_first(flat_dx, stop - i, d * silu, i)
            store_first(flat_dgate, stop - i, dgated, i)


@op("gate[R,F] x[R,F] -> out[R,F]", cut="R", cost="F", twin=swiglu_forward_reference)
def swiglu(part, gate, x, out):
    """Write silu(gate) * x."""
    F = x.shape[1]
    flat_gate, flat_x, flat_out, stop = flat(gate), flat(x), flat(out), part.last * F
    for i in range(part.first * F, stop, lanes(x)):
        silu, _ = silu_and_slope(load_first(flat_gate, stop - i, i))
        store_first(flat_out, stop - i, silu * load_first(flat_x, stop - i, i), i)


@op(
    "dout[R,F] gate[R,F] x[R,F] -> dgate[R,F] dx[R,F]",
    cut="R", cost="F", twin=swiglu_backward_reference,
)  # fmt: skip
def swiglu_gradient(part, dout, gate, x, dgate, dx):
    """Write the gradients by the gate and by x."""
    F = x.shape[1]
    flat_dout, flat_gate, flat_x = flat(dout), flat(gate), flat(x)
    flat_dgate, flat_dx, stop = flat(dgate), flat(dx), part.last * F
    for i in range(part.first * F, stop, lanes(x)):
        d = load_first(flat_dout, stop - i, i)
        silu, slope = silu_and_slope(load_first(flat_gate, stop - i, i))
        dgated = d * load_first(flat_x, stop - i, i) * slope
        store_first(flat_dx, stop - i, d * silu, i)
        store_first(flat_dgate, stop - i, dgated, i)
