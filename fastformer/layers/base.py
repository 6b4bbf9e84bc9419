"""What all layers share: a backend, a dtype, buffers, and the walk over parameters."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from fastformer import checks
from fastformer.backend import check_precision, get_backend
from fastformer.buffers import Buffers
from fastformer.errors import InvalidTypeError, NotForwardedError
from fastformer.parameters import Array, Parameter, Parameters
from fastformer.random import generator

DTYPES = ("float32", "float64")
LayerT = TypeVar("LayerT", bound="Layer")

# A source of initial weights: a seed, or the stream that a model draws all its layers from.
Seed = int | np.random.Generator


def initial_stream(seed: Seed) -> np.random.Generator:
    """Return the stream of initial weights of a seed."""
    if isinstance(seed, np.random.Generator):
        return seed
    return generator(checks.integer("seed", seed, 0), "initial weights")


class Layer:
    """A part of a model: it owns parameters and buffers, and calls kernels.

    `forward` gives a buffer that the layer's next forward overwrites, and keeps what `backward`
    needs. `backward(dout)` adds to the parameters' gradients and gives the gradient by the
    input, in a buffer that is shared by all layers of a model: use it before the next call.
    """

    def __init__(self, backend: str, dtype: str, precision: str = "float32") -> None:
        """Choose how the layer computes.

        Args:
            backend: "numba" or "reference".    dtype: "float32" or "float64".
            precision: of the operands of matrix products with weights: "float32", which stands
                for the dtype, or "bfloat16", to which they are rounded; dtype is then "float32".
        """
        self.dtype = np.dtype(checks.choice("dtype", dtype, DTYPES))
        check_precision(precision, dtype)
        self.precision = precision
        self.ops = get_backend(backend, precision)
        self.buffers = Buffers(self.dtype)
        self.scratch = Buffers(self.dtype)
        self.nothing = np.zeros((0, 0), self.dtype)
        self.no_vector = np.zeros(0, self.dtype)
        self._parameters: Parameters | None = None

    def __getattr__(self, name: str) -> Any:
        """Say what to do where something is missing that only a forward pass leaves."""
        raise NotForwardedError(
            f"{type(self).__name__} has no {name!r}; where forward leaves it, call forward first"
        )

    def __deepcopy__(self: LayerT, memo: dict[int, Any]) -> LayerT:
        """Return a copy with parameters and flat arrays of its own."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        for name, value in vars(self).items():
            kept = name in ("ops", "_parameters")
            vars(copied)[name] = value if kept else copy.deepcopy(value, memo)
        if self._parameters is not None:
            copied._parameters = None
            copied.parameters()
        return copied

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled: a pickle can run code, and says nothing of its version."""
        raise InvalidTypeError(
            f"{type(self).__name__} cannot be pickled; save state_dict() and the config"
        )

    def children(self) -> Iterator[tuple[str, "Layer"]]:
        """Yield (name, layer) for each layer that this one is made of."""
        for name, value in vars(self).items():
            if isinstance(value, Layer):
                yield name, value
            elif isinstance(value, list) and value and isinstance(value[0], Layer):
                for index, layer in enumerate(value):
                    yield f"{name}.{index}", layer

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """Yield (name, parameter), this layer's and its children's, each once.

        A bias of size 0, which stands for none, is no parameter.
        """
        found = [(prefix + k, v) for k, v in vars(self).items() if isinstance(v, Parameter)]
        for name, layer in self.children():
            found += layer.named_parameters(f"{prefix}{name}.")
        seen: set[int] = set()
        for name, parameter in found:
            if parameter.value.size and id(parameter) not in seen:
                seen.add(id(parameter))
                yield name, parameter

    def _share_scratch(self, scratch: Buffers) -> None:
        self.scratch = scratch
        for _, layer in self.children():
            layer._share_scratch(scratch)

    def parameters(self) -> Parameters:
        """Return all parameters, gathered into one flat array on the first call."""
        if self._parameters is None:
            self._parameters = Parameters(self.named_parameters(), self.dtype, self.ops)
            self._share_scratch(self.scratch)
        return self._parameters

    @property
    def num_parameters(self) -> int:
        """The number of trained numbers."""
        return self.parameters().count

    def zero_grad(self) -> None:
        """Set every gradient to 0. Backward adds to gradients."""
        self.parameters().zero_gradients()

    def state_dict(self) -> dict[str, Array]:
        """Return a copy of each parameter by name; weights of linear layers are (in, out)."""
        return {name: value.copy() for name, value, _ in self.parameters()}

    def grad_dict(self) -> dict[str, Array]:
        """Return a copy of each gradient by name."""
        return {name: gradient.copy() for name, _, gradient in self.parameters()}

    def load_state_dict(self, weights: Mapping[str, npt.ArrayLike]) -> None:
        """Copy weights in; nothing is changed unless all of them fit.

        Raises:
            ValueError: a name that is missing or unknown, or a shape that differs.
            TypeError: an array that is not of floats.
        """
        owned = {name: value for name, value, _ in self.parameters()}
        arrays = checks.fitting_arrays(type(self).__name__, "weights", owned, weights)
        for name, value in owned.items():
            value[...] = arrays[name]
