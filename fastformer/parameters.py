"""One flat array for all parameters of a model and one for their gradients, with named views.

The optimiser, the gradient's norm and a save are then each one pass over one array.
"""

from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from fastformer.errors import InvalidValueError

Array = npt.NDArray[Any]
ALIGNMENT = 64  # bytes: a cache line, and the widest vector register


def aligned_zeros(size: int, dtype: Any) -> Array:
    """Return a zeroed (size,) array that begins at a cache line."""
    itemsize = np.dtype(dtype).itemsize
    memory = np.zeros(size * itemsize + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size * itemsize].view(dtype)


class Parameter:
    """A trained array and its gradient.

    Attributes:
        value, gradient: arrays of one shape; after `Parameters` took it, views into flat arrays.
        flat_value, flat_gradient: the same, one-dimensional.
        parts: names of the slices along the first axis, where these are parameters of their own
            (query, key and value are one array for one product, and three names for people).
        decays: whether weight decay acts on it: on matrices, not on biases and norms.
    """

    def __init__(self, value: Array, *, parts: tuple[str, ...] = (), decays: bool = False) -> None:
        """Own an array until `Parameters` takes it."""
        self.parts = parts
        self.decays = decays
        self.owner: Parameters | None = None
        self.point_to(value, np.zeros_like(value))

    def __deepcopy__(self, memo: dict[int, Any]) -> "Parameter":
        """Return a copy that no model owns yet."""
        copied = Parameter(self.value.copy(), parts=self.parts, decays=self.decays)
        copied.gradient[...] = self.gradient
        memo[id(self)] = copied
        return copied

    def point_to(self, value: Array, gradient: Array) -> None:
        """Use these arrays from now on."""
        self.value, self.gradient = value, gradient
        self.flat_value, self.flat_gradient = value.reshape(-1), gradient.reshape(-1)

    def named(self, name: str) -> Iterator[tuple[str, Array, Array]]:
        """Yield (name, value, gradient) as people know them; the parts replace the last word."""
        if not self.parts:
            yield name, self.value, self.gradient
        stem = name.rpartition(".")[0]
        for index, part in enumerate(self.parts):
            full = f"{stem}.{part}" if stem else part
            yield full, self.value[index], self.gradient[index]


class Parameters:
    """All parameters of a model or of a layer that stands alone, in two flat arrays.

    Those that decay come first. Each begins at a cache line; the gaps are zero and stay zero.

    Attributes:
        values, gradients: (P,) flat arrays.
        decaying: how many elements from the start on are subject to weight decay.
        ops: the backend that works on them.
    """

    def __init__(
        self, named: Iterable[tuple[str, Parameter]], dtype: Any, ops: SimpleNamespace
    ) -> None:
        """Take parameters over: copy their values, and make them views.

        Raises:
            ValueError: one belongs to a model already.
        """
        self._named = list(named)
        for name, parameter in self._named:
            if parameter.owner is not None:
                raise InvalidValueError(
                    f"parameter {name!r} belongs to a model; use the model's parameters()"
                )
        self.ops = ops
        step = ALIGNMENT // np.dtype(dtype).itemsize
        ordered = sorted(self._named, key=lambda item: not item[1].decays)
        starts, size, self.decaying = [], 0, 0
        for _, parameter in ordered:
            starts.append(size)
            size += -(-parameter.value.size // step) * step
            self.decaying = size if parameter.decays else self.decaying
        self.values, self.gradients = aligned_zeros(size, dtype), aligned_zeros(size, dtype)
        for start, (_, parameter) in zip(starts, ordered, strict=True):
            shape, part = parameter.value.shape, slice(start, start + parameter.value.size)
            self.values[part] = parameter.flat_value
            self.gradients[part] = parameter.flat_gradient
            parameter.point_to(
                self.values[part].reshape(shape), self.gradients[part].reshape(shape)
            )
            parameter.owner = self

    def __iter__(self) -> Iterator[tuple[str, Array, Array]]:
        """Yield (name, value, gradient), views, in the order in which layers declare them."""
        for name, parameter in self._named:
            yield from parameter.named(name)

    def views_of(self, flat: Array) -> Iterator[tuple[str, Array]]:
        """Yield (name, view) into another flat array that is laid out as these are."""
        start_of_values = self.values.ctypes.data
        for name, value, _ in self:
            start = (value.ctypes.data - start_of_values) // value.itemsize
            yield name, flat[start : start + value.size].reshape(value.shape)

    @property
    def count(self) -> int:
        """The number of trained numbers."""
        return sum(parameter.value.size for _, parameter in self._named)

    def zero_gradients(self) -> None:
        """Set every gradient to 0."""
        self.ops.zero_gradient(self.gradients)
