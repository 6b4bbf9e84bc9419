"""Hold a backward pass to differences of its forward pass, in float64."""

from collections.abc import Callable, Sequence

import numpy as np

RTOL, ATOL = 1e-6, 1e-9
STEP = 2.0**-10


def jacobian(forward: Callable[..., np.ndarray], inputs: Sequence[np.ndarray], which: int):
    """Return d forward / d inputs[which] by central differences: (outputs, elements of the input).

    Four points give an error of the fourth power of the step, so the step may be wide, and the
    roundings of the forward pass, which are divided by it, small.
    """
    columns = []
    for index in np.ndindex(inputs[which].shape):

        def at(shift: float, index: tuple[int, ...] = index) -> np.ndarray:
            moved = [x.copy() for x in inputs]
            moved[which][index] += shift
            return forward(*moved).ravel()

        near, far = at(STEP) - at(-STEP), at(2 * STEP) - at(-2 * STEP)
        columns.append((8 * near - far) / (12 * STEP))
    return np.stack(columns, axis=1)


def assert_gradients(
    forward: Callable[..., np.ndarray],
    backward: Callable[..., Sequence[np.ndarray]],
    *inputs: np.ndarray,
) -> None:
    """Compare the whole Jacobian of every input.

    Args:
        forward: forward(*inputs) -> the output.
        backward: backward(dout, *inputs) -> one gradient for each input.
        inputs: float64 arrays, small: forward runs four times for each of their elements.
    """
    shape = forward(*inputs).shape
    directions = np.eye(int(np.prod(shape))).reshape(-1, *shape)
    rows = [backward(dout, *inputs) for dout in directions]
    for which in range(len(inputs)):
        found = np.stack([gradients[which].ravel() for gradients in rows])
        expected = jacobian(forward, inputs, which)
        np.testing.assert_allclose(found, expected, RTOL, ATOL, err_msg=f"input {which}")
