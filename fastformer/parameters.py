"""One flat array for all parameters of a model and one for their gradients, with named views.

The optimiser, the gradient's norm and a save are then each one pass over one array.
"""

import copy
import weakref
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any, NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from fastformer.errors import InvalidTypeError, InvalidValueError
from fastformer.fixed import Fixed
from fastformer.thread_safety import ThreadGuard

Array = npt.NDArray[Any]
ALIGNMENT = 64  # bytes: a cache line, and the widest vector register


def aligned_zeros(size: int, dtype: Any) -> Array:
    """Return a zeroed (size,) array that begins at a cache line."""
    return aligned(np.zeros(aligned_bytes(size, dtype), np.uint8), size, dtype)


def aligned_bytes(size: int, dtype: Any) -> int:
    """Return how many bytes have a (size,) array that begins at a cache line, wherever they are."""
    return int(size * np.dtype(dtype).itemsize + ALIGNMENT)


def aligned(memory: Array, size: int, dtype: Any) -> Array:
    """Return the (size,) array that begins at the first cache line of so many bytes."""
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size * np.dtype(dtype).itemsize].view(dtype)


class Parameter(Fixed):
    """A trained array and its gradient.

    The arrays can be written into, and not replaced: `parameter.value[...] = array`.

    Attributes:
        value, gradient: arrays of one shape; after `Parameters` took it, views into flat arrays.
        flat_value, flat_gradient: the same, one-dimensional.
        parts: names of the slices along the first axis, where these are parameters of their own
            (query, key and value are one array for one product, and three names for people).
        decays: whether weight decay acts on it: on matrices, not on biases and norms.
    """

    value: Array
    gradient: Array
    flat_value: Array
    flat_gradient: Array

    def __init__(self, value: Array, *, parts: tuple[str, ...] = (), decays: bool = False) -> None:
        """Own an array until `Parameters` takes it."""
        self.parts = parts
        self.decays = decays
        self._owner: Parameters | None = None
        self.point_to(value, np.zeros_like(value))

    def __deepcopy__(self, memo: dict[int, Any]) -> "Parameter":
        """Return a copy that no model owns yet."""
        copied = Parameter(self.value.copy(), parts=self.parts, decays=self.decays)
        copied.gradient[...] = self.gradient
        memo[id(self)] = copied
        return copied

    def point_to(self, value: Array, gradient: Array) -> None:
        """Use these arrays from now on."""
        flat = {"flat_value": value.reshape(-1), "flat_gradient": gradient.reshape(-1)}
        self.__dict__.update(flat, value=value, gradient=gradient)

    def named(self, name: str) -> Iterator[tuple[str, Array, Array]]:
        """Yield (name, value, gradient) as people know them; the parts replace the last word."""
        if not self.parts:
            yield name, self.value, self.gradient
        stem = name.rpartition(".")[0]
        for index, part in enumerate(self.parts):
            full = f"{stem}.{part}" if stem else part
            yield full, self.value[index], self.gradient[index]


class Owner(Protocol):
    """What `Parameters` knows of the layer that they are gathered for."""

    @property
    def guard(self) -> ThreadGuard:
        """Whose turn it is."""

    def parameters(self) -> "Parameters":
        """Return them."""


class Parameters(Fixed):
    """All parameters of a model or of a layer that stands alone, in two flat arrays.

    Those that decay come first. Each begins at a cache line; the gaps are zero and stay zero.

    Attributes:
        values, gradients: (P,) flat arrays.
        decaying: how many elements from the start on are subject to weight decay.
        ops: the backend that works on them.
        guard: of the layer; its lock is held while they change.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, Parameter]],
        dtype: Any,
        ops: SimpleNamespace,
        layer: Owner | None = None,
    ) -> None:
        """Take parameters over: copy their values, and make them views.

        Args:
            named: name and parameter.    dtype: of all of them.    ops: the backend.
            layer: whose they are, where they are all of a layer's or model's; it is not kept alive.

        Raises:
            ValueError: one belongs to a model already.
        """
        self._named = list(named)
        self._layer = None if layer is None else weakref.ref(layer)
        self._copied_first = False
        self._aside: dict[int, Array] = {}
        self.guard = ThreadGuard() if layer is None else layer.guard
        for name, parameter in self._named:
            if parameter._owner is not None:
                raise InvalidValueError(
                    f"parameter {name!r} belongs to a model; use the model's parameters()"
                )
        self.ops = ops
        step = ALIGNMENT // np.dtype(dtype).itemsize
        ordered = sorted(self._named, key=lambda item: not item[1].decays)
        starts, size, decaying = [], 0, 0
        for _, parameter in ordered:
            starts.append(size)
            size += -(-parameter.value.size // step) * step
            decaying = size if parameter.decays else decaying
        self.decaying = decaying
        self.values, self.gradients = aligned_zeros(size, dtype), aligned_zeros(size, dtype)
        for start, (_, parameter) in zip(starts, ordered, strict=True):
            shape, part = parameter.value.shape, slice(start, start + parameter.value.size)
            self.values[part] = parameter.flat_value
            self.gradients[part] = parameter.flat_gradient
            parameter.point_to(
                self.values[part].reshape(shape), self.gradients[part].reshape(shape)
            )
            parameter._owner = self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Parameters":
        """Return those of a copy of their layer; it must be copied in the same call, to be kept.

        Raises:
            TypeError: their layer is gone.
        """
        layer = self.layer()
        if layer is None:
            raise InvalidTypeError("parameters cannot be copied: their model is gone")
        copied = copy.deepcopy(layer, memo).parameters()
        copied._copied_first = True
        return copied

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled: what comes back would be no model's."""
        raise InvalidTypeError(
            "parameters cannot be pickled or copied without their model; save the state_dict() of "
            "the model, or use copy.deepcopy((model, optimizer))"
        )

    def layer(self) -> Owner | None:
        """Return whose they are, or None where it is gone."""
        return self._layer() if self._layer else None

    def check_used(self, owner: str) -> None:
        """Raise where these were copied, and nobody has the copy of the model.

        Raises:
            ValueError: so that training them would change nothing that anybody sees.
        """
        if self._copied_first and self.layer() is None:
            raise InvalidValueError(
                f"{owner}: it was copied without its model, so nothing would be trained; "
                "copy both at once: copy.deepcopy((model, optimizer))"
            )

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

    def put_gradients_aside(self, place: int) -> Array:
        """Return a copy of the gradients, (P,), which are 0 then.

        Args:
            place: of the array that has them; it is the same array each time.
        """
        kept = self._aside.get(place)
        if kept is None:
            kept = self._aside[place] = aligned_zeros(self.gradients.size, self.gradients.dtype)
        with self.guard.lock:
            kept[...] = self.gradients
            self.zero_gradients()
        return kept

    def put_gradients_in(self, memory: Array) -> None:
        """Keep the gradients in other memory from now on, as they are.

        Args:
            memory: (P,) of their dtype, which begins at a cache line; overwritten.
        """
        before = self.gradients.ctypes.data
        with self.guard.lock:
            memory[...] = self.gradients
            for _, parameter in self._named:
                start = (parameter.gradient.ctypes.data - before) // memory.itemsize
                part = memory[start : start + parameter.gradient.size]
                parameter.point_to(parameter.value, part.reshape(parameter.gradient.shape))
            self.__dict__["gradients"] = memory

    def zero_gradients(self) -> None:
        """Set every gradient to 0."""
        with self.guard.lock:
            self.ops.zero_gradient(self.gradients)
