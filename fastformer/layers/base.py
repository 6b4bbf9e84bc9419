"""What all layers share: a backend, a dtype, calls on arrays, and the walk over parameters."""

import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from fastformer import checks, eager
from fastformer.backend import check_precision, get_backend
from fastformer.batch import PackedBatch
from fastformer.errors import InvalidTypeError, NotForwardedError
from fastformer.fixed import Fixed
from fastformer.parameters import Array, Parameter, Parameters
from fastformer.random import generator
from fastformer.tensors import Axis
from fastformer.thread_safety import ThreadGuard

if TYPE_CHECKING:
    from fastformer.program import Program
    from fastformer.workspace import Workspace

DTYPES = ("float32", "float64")
_OF_PROGRAMS = ("_shown", "_uses", "_last_use")  # what a layer has of programs that it ran
LayerT = TypeVar("LayerT", bound="Layer")

# A source of initial weights: a seed, or the stream that a model draws all its layers from.
Seed = int | np.random.Generator


def initial_stream(seed: Seed) -> np.random.Generator:
    """Return the stream of initial weights of a seed."""
    if isinstance(seed, np.random.Generator):
        return seed
    return generator(checks.integer("seed", seed, 0), "initial weights")


class Layer(Fixed):
    """A part of a model: it owns parameters, and says what it computes as ops of a program.

    It says so once, in `forward_ops`, and its mirror image in `backward_ops`; a model's program is
    made of these. `forward` and `backward` run the same ops on arrays, for this layer alone.

    A layer that is called on arrays is for one thread at a time: another one's call is an
    `OtherThreadError`. Whole models may be shared. Attributes cannot be set.

    Attributes:
        left: names of the public attributes that forward leaves: what it has saved for backward.
        reads_batch: whether `forward` is given a PackedBatch, after the arrays that it must have.
        elementwise: whether arrays may have any shape, for each element is by itself.
        active: whether it drops anything now.    guard: whose turn it is.
    """

    reads_batch: ClassVar[bool] = False
    elementwise: ClassVar[bool] = False
    active: bool = False

    def __init__(
        self, backend: str = "numba", dtype: str = "float32", precision: str = "float32"
    ) -> None:
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
        self.guard = ThreadGuard()
        self._parameters: Parameters | None = None

    def __getattr__(self, name: str) -> Any:
        """Say what to do where something is missing that only a forward pass leaves."""
        shown = self.__dict__.get("_shown")
        if shown is not None and not name.startswith("__"):
            found = shown.shown(self, name)
            if found is not None:
                return found
        if name in type(self).left:
            raise NotForwardedError(
                f"{type(self).__name__} has no {name!r} yet: forward leaves it; call forward first"
            )
        raise AttributeError(
            f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self
        )

    def __copy__(self) -> NoReturn:
        """Refuse: two layers would write to one buffer."""
        raise InvalidTypeError(
            f"a {type(self).__name__} cannot be copied without what it owns; use copy.deepcopy"
        )

    def __deepcopy__(self: LayerT, memo: dict[int, Any]) -> LayerT:
        """Return a copy with parameters and flat arrays of its own; forward has left it nothing."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        with self.guard.lock:
            for name, value in vars(self).items():
                if name not in _OF_PROGRAMS:
                    kept = name in ("ops", "_parameters")
                    vars(copied)[name] = value if kept else copy.deepcopy(value, memo)
        if self._parameters is not None:
            vars(copied)["_parameters"] = None
            memo[id(self._parameters)] = copied.parameters()
        return copied

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled: a pickle can run code, and says nothing of its version."""
        raise InvalidTypeError(
            f"{type(self).__name__} cannot be pickled; save state_dict() and the config"
        )

    def __repr__(self) -> str:
        """Show the layers that this one is made of, their sizes, and how many numbers it trains."""
        return f"{tree(self)}\n{self.num_parameters:,} parameters, {self.dtype}, {self.ops.name}"

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """Compute the layer by itself, on arrays.

        Args:
            arguments, options: those of `forward_ops` after the program: where that is given
                tensors, C-contiguous arrays of the layer's dtype, a row for each token. They are
                not copied: they must stay as they are until backward. A layer that reads a batch
                is given a `PackedBatch` after the arrays that it must have.

        Returns:
            The result: an array that the layer's next forward overwrites.

        Raises:
            TypeError, ValueError: an array of another dtype, shape or layout, a batch of other
                rows, or an option that is not allowed.
            OtherThreadError: another thread called the layer, or one of the same model, by itself.
        """
        return eager.forward(self, arguments, options)

    def backward(self, dout: Array, **options: Any) -> Any:
        """Undo the layer's last forward by itself: add the gradients of its parameters.

        Args:
            dout: the gradient by the result, of its shape.
            options: none: what programs tell `backward_ops` is not for arrays.

        Returns:
            The gradient by forward's first array, which the next backward overwrites; None of a
            layer that is given ids alone. Where forward was given a residual, its gradient is dout.

        Raises:
            NotForwardedError: there was no such forward, or one of a whole model came after it.
            TypeError, ValueError: what is no such gradient.
            NotImplementedError: the layer has no `backward_ops`.
            OtherThreadError: another thread's forward came in between.
        """
        if options:
            raise InvalidTypeError(
                f"{type(self).__name__}.backward is given dout alone by itself, got also "
                f"{', '.join(options)}"
            )
        return eager.backward(self, dout)

    def forward_ops(self, p: "Program", *arguments: Any, **options: Any) -> Any:
        """Append the ops of forward to a program, and return its result's tensor."""
        raise NotImplementedError(f"{type(self).__name__} appends no ops of forward to a program")

    def backward_ops(self, p: "Program", *arguments: Any, **options: Any) -> Any:
        """Append the ops of backward, and return the tensor of the gradient of forward's input."""
        raise NotImplementedError(f"{type(self).__name__} appends no ops of backward to a program")

    def shapes(self, **options: Any) -> dict[str, tuple[Axis, Axis | None]]:
        """Return the shapes of the arrays that forward is given, by name, for its options.

        A width of None stands for any. Arrays that are not named may have any width, and a row for
        each token; but where some are named, others are refused.
        """
        return {}

    def check_call(self, batch: PackedBatch, **given: Any) -> None:
        """Raise where forward, by itself, is given what it cannot compute."""

    @property
    def has_backward(self) -> bool:
        """Whether the layer says how it is undone."""
        return type(self).backward_ops is not Layer.backward_ops

    @property
    def drops(self) -> bool:
        """Whether this layer, or one that it is made of, drops anything now."""
        return any(layer.active for layer in self.layers())

    def numbers_of(self, space: "Workspace") -> dict[str, float | int]:
        """Return the numbers of this forward pass, by the names of a program's."""
        if "dropout call" not in space.program.numbers:
            return {}
        counter = next(vars(one)["counter"] for one in self.layers() if "counter" in vars(one))
        return {"dropout call": counter.forwards * counter.places}

    def show(self, space: "Workspace") -> None:
        """Let this layer, and those that it is made of, show what a program's run left."""
        if self.guard.shown is not space:
            self.guard.shown = space
            for layer in self.layers():
                layer.__dict__["_shown"] = space

    def forget_programs(self) -> None:
        """Drop the programs of this layer, and of those that it is made of, and what they left."""
        self.guard.shown = None
        for layer in self.layers():
            for name in _OF_PROGRAMS:
                layer.__dict__.pop(name, None)

    def sizes(self) -> dict[str, object]:
        """Return what a person is told of the layer beside its name."""
        return {}

    def layers(self) -> Iterator["Layer"]:
        """Yield this layer, and those that it is made of."""
        yield self
        for _, layer in self.children():
            yield from layer.layers()

    def children(self) -> Iterator[tuple[str, "Layer"]]:
        """Yield (name, layer) for each layer that this one is made of."""
        for name, value in vars(self).items():
            if isinstance(value, Layer):
                yield name, value
            elif isinstance(value, tuple) and value and isinstance(value[0], Layer):
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

    def share(self) -> None:
        """Let all layers that this one is made of have its guard."""
        for layer in self.layers():
            layer.__dict__["guard"] = self.guard

    def parameters(self) -> Parameters:
        """Return all parameters, gathered into one flat array on the first call."""
        if self._parameters is None:
            self._parameters = Parameters(self.named_parameters(), self.dtype, self.ops, self)
            self.share()
        return self._parameters

    @property
    def num_parameters(self) -> int:
        """The number of trained numbers."""
        return sum(parameter.value.size for _, parameter in self.named_parameters())

    def zero_grad(self) -> None:
        """Set every gradient to 0. Backward adds to gradients."""
        self.parameters().zero_gradients()

    def state_dict(self) -> dict[str, Array]:
        """Return a copy of each parameter by name; weights of linear layers are (in, out)."""
        with self.guard.lock:
            return {name: value.copy() for name, value, _ in self.parameters()}

    def grad_dict(self) -> dict[str, Array]:
        """Return a copy of each gradient by name."""
        with self.guard.lock:
            return {name: gradient.copy() for name, _, gradient in self.parameters()}

    def load_state_dict(self, weights: Mapping[str, npt.ArrayLike]) -> None:
        """Copy weights in; nothing is changed unless all of them fit.

        Raises:
            ValueError: a name that is missing or unknown, or a shape that differs.
            TypeError: an array that is not of floats.
        """
        owned = {name: value for name, value, _ in self.parameters()}
        arrays = checks.fitting_arrays(type(self).__name__, "weights", owned, weights)
        with self.guard.lock:
            for name, value in owned.items():
                value[...] = arrays[name]


def tree(layer: Layer, indent: str = "") -> str:
    """Return a layer's name and sizes, and below them those of the layers that it is made of.

    Layers of a list that look alike are one entry, with their number.
    """
    sizes = ", ".join(f"{name}={value}" for name, value in layer.sizes().items())
    inner = indent + "  "
    entries: list[tuple[str, int, str]] = []
    for name, child in layer.children():
        text = tree(child, inner)
        stem, _, place = name.rpartition(".")
        if stem and entries and entries[-1][0] == stem and entries[-1][2] == text:
            entries[-1] = stem, entries[-1][1] + 1, text
        else:
            entries.append((stem or place, 1, text))
    if not entries:
        return f"{type(layer).__name__}({sizes})"
    lines = [
        f"{inner}({name}): " + (f"{count} x " if count > 1 else "") + text
        for name, count, text in entries
    ]
    first = f"{inner}{sizes}\n" if sizes else ""
    return f"{type(layer).__name__}(\n{first}" + "\n".join(lines) + f"\n{indent})"
