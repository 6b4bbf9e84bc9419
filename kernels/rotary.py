"""Rotary positions: queries and keys are turned, by angles that grow with a token's position.

    x'[d]         = x[d] cos(p w_d) - x[d + D/2] sin(p w_d)
    x'[d + D/2]   = x[d + D/2] cos(p w_d) + x[d] sin(p w_d)         w_d = 10000^(-2d / D), d < D/2

in each head of D columns, for the token at position p of its sequence. The product of a query and
a key then depends on their distance, not on where they stand. The paper turns neighbouring columns
2d and 2d + 1; here the halves of a head are turned, so that a register holds one of them whole.
That is the same model: the columns of the weights that make queries and keys are in another order.
A turn is undone by that of the opposite angle, which is also what turns gradients back.
Source: Su et al. 2021, arXiv:2104.09864, section 3.2.2 and equation 34.
"""

from ._compile import kernel, prange
from ._rows import row_tasks
from ._simd import fma, lanes, load_first, store_first
from .op import op


def _turn_reference(x, positions, cosines, sines):
    """Turn each row of a matrix in NumPy."""
    half = cosines.shape[1]
    pairs = x.reshape(x.shape[0], x.shape[1] // (2 * half), 2, half)
    first, second = pairs[:, :, 0].copy(), pairs[:, :, 1].copy()
    cosine, sine = cosines[positions][:, None], sines[positions][:, None]
    pairs[:, :, 0] = first * cosine - second * sine
    pairs[:, :, 1] = second * cosine + first * sine


def rotary_forward_reference(q, k, query_positions, key_positions, cosines, sines):
    """Compute `rotary_forward` in NumPy."""
    _turn_reference(q, query_positions, cosines, sines)
    _turn_reference(k, key_positions, cosines, sines)


def rotary_backward_reference(dq, dk, query_positions, key_positions, cosines, sines):
    """Compute `rotary_backward` in NumPy."""
    rotary_forward_reference(dq, dk, query_positions, key_positions, cosines, -sines)


@kernel
def _rotate_rows(x, first, last, positions, cosines, sines, direction):
    """Turn rows first to last, by the angle times `direction`, which is 1 or -1."""
    C, half = x.shape[1], cosines.shape[1]
    for i in range(first, last):
        position = positions[i]
        for d in range(0, half, lanes(x)):
            left = half - d
            cosine = load_first(cosines, left, position, d)
            sine = load_first(sines, left, position, d) * direction
            for start in range(d, C, 2 * half):
                one = load_first(x, left, i, start)
                other = load_first(x, left, i, start + half)
                store_first(x, left, fma(one, cosine, -(other * sine)), i, start)
                store_first(x, left, fma(other, cosine, one * sine), i, start + half)


@kernel
def _turn_both(first, last, q, k, query_positions, key_positions, cosines, sines, direction):
    """Turn rows first to last, where those of q come before those of k."""
    rows = q.shape[0]
    _rotate_rows(q, min(first, rows), min(last, rows), query_positions, cosines, sines, direction)
    _rotate_rows(
        k, max(first - rows, 0), max(last - rows, 0), key_positions, cosines, sines, direction
    )


@kernel(parallel=True)
def _turn(q, k, query_positions, key_positions, cosines, sines, direction):
    """Turn all rows of q and k."""
    rows = q.shape[0] + k.shape[0]
    tasks = row_tasks(rows, q.shape[1])
    if tasks == 1:
        _turn_both(0, rows, q, k, query_positions, key_positions, cosines, sines, direction)
    else:
        for task in prange(tasks):
            _turn_both(
                rows * task // tasks, rows * (task + 1) // tasks, q, k, query_positions,
                key_positions, cosines, sines, direction,
            )  # fmt: skip


def rotary_forward(q, k, query_positions, key_positions, cosines, sines):
    """Turn queries and keys where they are.

    Args:
        q: (Nq, C) float32|float64, C-contiguous; turned.    k: (Nk, C), turned.
        query_positions, key_positions: (Nq,) and (Nk,) int64, each a row of the tables.
        cosines, sines: (positions, D / 2), of the angles p w_d; D / 2 >= 1, and D divides C.
    Threads: rows; bit-identical for any thread count.
    """
    _turn(q, k, query_positions, key_positions, cosines, sines, 1.0)


def rotary_backward(dq, dk, query_positions, key_positions, cosines, sines):
    """Turn the gradients by turned queries and keys into those by what was turned.

    Args:
        dq: (Nq, C) float32|float64, C-contiguous; turned back.    dk: (Nk, C), turned back.
        query_positions, key_positions, cosines, sines: as in `rotary_forward`.
    Threads: rows; bit-identical for any thread count.
    """
    _turn(dq, dk, query_positions, key_positions, cosines, sines, -1.0)


def _rotary_reference(positions, cosines, sines, direction, x):
    rotary_turn = rotary_forward_reference if direction > 0 else rotary_backward_reference
    rotary_turn(x, x[:0], positions, positions[:0], cosines, sines)


@op(
    "positions:int[R] cosines[T,D] sines[T,D] direction:float -> +x[R,C]",
    cut="R", cost="C", twin=_rotary_reference,
)  # fmt: skip
def rotary(part, positions, cosines, sines, direction, x):
    """Rotate rows by their positions, or back where the direction is -1."""
    _rotate_rows(x, part.first, part.last, positions, cosines, sines, direction)
