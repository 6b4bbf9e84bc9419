"""A model as a program: a table of ops with named operands, which one parallel region runs.

A layer says itself once, by appending ops in `forward_ops`, and its mirror image in `backward_ops`.
All else follows from the table: which ops threads share and where they meet (schedule.py), where
arrays lie in the workspace and how long, the pure NumPy form, the profile and the print.
"""

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fastformer.errors import InvalidTypeError, InvalidValueError
from fastformer.kernels.op import Op, Operand
from fastformer.kernels.program import (
    FIRST_FREE_SIZE,
)
from fastformer.parameters import Array, Parameter
from fastformer.program_step import Field, Step
from fastformer.tensors import DTYPES, OFFSETS, ROWS, SEQUENCE_ROWS, Axis, Tensor

if TYPE_CHECKING:
    from fastformer.layers.base import Layer


class KeyValues(Protocol):
    """Keys and values of tokens that were read before, for programs of generation."""

    def keep(self, p: "Program", k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Append ops that keep a layer's new keys and values, (N, E).

        Returns:
            All that are kept, (rows, E) each, and for each sequence its first row and its end.
        """


class Program:
    """Ops in their order, appended by layers; see the head of this file.

    Attributes:
        dtype: "float32" or "float64".    steps: the ops.
        given: what the batch brings: tokens, positions, offsets, first_rows, last_rows,
            one_row_offsets, targets.
        stages: the number of steps at the end of each stage: what can be run by itself.
        recompute: what backward computes again, and is not kept until then: "none", "attention"
            (queries, keys, values and what is made of them) or "block" (all but each's input).
        cache: where attention keeps keys and values; None where each batch brings all tokens.
    """

    def __init__(self, dtype: str, root: "Layer | None" = None, training: bool = False) -> None:
        """Begin an empty program.

        Args:
            dtype: of its arrays.    root: the layer whose children's names ops are told by.
            training: whether dropouts drop.
        """
        self.dtype, self.training = np.dtype(dtype), training
        self.steps: list[Step] = []
        self.stages: list[int] = []
        self.section, self.has_workspace = 0, False
        self.keeps = False  # whether what layers save stays after backward
        self.named: dict[str, Tensor] = {}  # those for which each run brings an array
        self.numbers: dict[str, int] = {}  # sizes that are numbers of their own, by name
        self.given = {
            name: Tensor(name, (axis,), DTYPES["int"])
            for name, axis in (
                ("tokens", ROWS), ("positions", ROWS), ("offsets", OFFSETS),
                ("first_rows", SEQUENCE_ROWS), ("last_rows", SEQUENCE_ROWS),
                ("one_row_offsets", OFFSETS), ("first_positions", SEQUENCE_ROWS),
                ("last_positions", SEQUENCE_ROWS),
            )
        }  # fmt: skip
        # Views of where sequences begin, and where they end.
        for name, offset in (("starts", 0), ("ends", DTYPES["int"].itemsize)):
            offsets = self.given["offsets"]
            self.given[name] = Tensor(
                name, (SEQUENCE_ROWS,), DTYPES["int"], whole=offsets, offset=offset
            )
        self.cache: KeyValues | None = None
        self.recompute = "none"
        self._outside: dict[int, Tensor] = {}
        self._names = dict(_names_of(root)) if root is not None else {}
        self._layers: list[Layer] = []
        self._saved: dict[Layer, SimpleNamespace] = {}

    # What layers call.

    def forward(self, layer: "Layer", *arguments: Any, **options: Any) -> Tensor:
        """Append the ops of a layer's forward, and return its result, if it has one."""
        with self._within(layer):
            result: Tensor = layer.forward_ops(self, *arguments, **options)
        return result

    def backward(self, layer: "Layer", *arguments: Any, **options: Any) -> Tensor:
        """Append the ops of a layer's backward, and return the gradient of its input, if any."""
        with self._within(layer):
            result: Tensor = layer.backward_ops(self, *arguments, **options)
        return result

    def save(self, **tensors: Any) -> None:
        """Keep what the backward of the layer that is forwarded needs."""
        for tensor in tensors.values():
            if self.keeps and isinstance(tensor, Tensor):
                tensor.whole.kept = True
        self._saved.setdefault(self._layers[-1], SimpleNamespace()).__dict__.update(tensors)

    @property
    def saved(self) -> Any:
        """What the forward of the layer has saved."""
        return self._saved[self._layers[-1]]

    def saved_of(self, layer: "Layer") -> Any:
        """Return what the forward of a layer has saved; None where it was not forwarded."""
        return self._saved.get(layer)

    def forward_again(self, layer: "Layer", *arguments: Any, **options: Any) -> None:
        """Append a layer's forward once more, so that backward finds what it saves."""
        result = self.forward(layer, *arguments, **options)
        if self.steps[-1].writes == [result]:  # which was there already, and nobody reads it again
            self.steps.pop()

    def new(self, name: str, *axes: int | Axis, kind: str = "real") -> Tensor:
        """Return a tensor in the workspace."""
        lengths = tuple(axis if isinstance(axis, Axis) else Axis(axis) for axis in axes)
        return Tensor(self._named(name), lengths, DTYPES.get(kind, self.dtype))

    def bound(self, name: str, *axes: Axis, kind: str = "real") -> Tensor:
        """Return a tensor for which each run brings an array; see `Workspace.run`."""
        dtype = DTYPES.get(kind, self.dtype)
        self.named[name] = Tensor(self._named(name), axes, dtype, np.empty(0, dtype))
        self.named[name].bound = True
        return self.named[name]

    def copied(self, name: str, *axes: Axis, kind: str = "real") -> Tensor:
        """Return a tensor that each run copies an array into, or out of, by its name."""
        dtype = DTYPES.get(kind, self.dtype)
        self.given[name] = Tensor(self._named(name), axes, dtype)
        return self.given[name]

    def outside(self, name: str, array: Array) -> Tensor | None:
        """Return the tensor of an array that lies elsewhere, or None where it is empty."""
        if not array.size:
            return None
        if not array.flags.c_contiguous:
            raise InvalidValueError(f"{self._named(name)}: the array must be C-contiguous")
        key = array.__array_interface__["data"][0]
        if key not in self._outside:
            axes = tuple(map(Axis, array.shape))
            self._outside[key] = Tensor(self._named(name), axes, array.dtype, array)
        found = self._outside[key]
        if found.memory is not None and found.memory.shape != array.shape:
            return Tensor(found.name, tuple(map(Axis, array.shape)), array.dtype, array, found)
        return found

    def value(self, parameter: Parameter, name: str = "weight") -> Tensor | None:
        """Return a parameter's value, or None for one that stands for none."""
        return self.outside(name, parameter.value)

    def gradient(self, parameter: Parameter, name: str = "weight") -> Tensor | None:
        """Return a parameter's gradient, or None for one that stands for none."""
        return self.outside(f"{name} gradient", parameter.gradient)

    def number(self, name: str) -> Axis:
        """Return a number that is set anew for each run, by name; see `Workspace.run`."""
        return Axis(1, self.numbers.setdefault(name, FIRST_FREE_SIZE + len(self.numbers)))

    def add(self, op: Op, **fields: Field) -> tuple[Tensor, ...]:
        """Append an op.

        Args:
            op: which.
            fields: its operands by name. What it reads must be there, unless it is optional; what
                it writes is made where it is not given, and not optional.

        Returns:
            The tensors that were made, in order.

        Raises:
            TypeError: an operand that is missing, or that the op does not have.
            ValueError: shapes that do not fit: the message names both.
        """
        unknown = [name for name in fields if name not in op.by_name]
        missing = [
            o.name for o in op.operands
            if fields.get(o.name) is None and not o.optional and o.kind != "scratch"
            and (o.name in fields or not o.written)
        ]  # fmt: skip
        if unknown or missing:
            names = " ".join(op.by_name)
            raise InvalidTypeError(
                f"{self._title() or 'program'}: {op.name} has the operands {names}; "
                f"unknown: {' '.join(unknown) or 'none'}, missing: {' '.join(missing) or 'none'}"
            )
        for name, given in fields.items():
            self._check_kind(op, op.by_name[name], given)
        step = Step(op, self._title(), dict(fields), self.section)
        made = []
        for operand in op.writes:
            if operand.is_array and operand.name not in fields and not operand.optional:
                axes = [step.length(letters) for letters in operand.axes or ()]
                made.append(self.new(operand.name, *axes, kind=operand.kind))
                step.operands[operand.name] = made[-1]
        self.steps.append(step)
        return tuple(made)

    def _check_kind(self, op: Op, operand: Operand, given: Field) -> None:
        """Raise where a number is given for an array, or one of another dtype, or the reverse."""
        dtype = DTYPES.get(operand.kind, self.dtype)
        if given is None:
            return
        if isinstance(given, Tensor) and operand.is_array and given.dtype == dtype:
            return
        if operand.is_array:
            wanted = f"an array of {dtype}"
        elif operand.kind == "scratch":
            wanted = "nothing, for each thread has its own"
        elif isinstance(given, Axis | int | np.integer):
            return
        elif operand.kind == "float" and isinstance(given, float | np.floating):
            return
        else:
            wanted = "a number" if operand.kind == "float" else "an integer"
        found = f"{given} of {given.dtype}" if isinstance(given, Tensor) else repr(given)
        raise InvalidTypeError(
            f"{self._title() or 'program'}: {op.name}: {operand.name} must be given {wanted}, "
            f"got {found}"
        )

    def new_section(self) -> None:
        """Begin a section: ops that are cut by sequences are joined within one."""
        self.section += 1

    def end_stage(self) -> None:
        """End a stage, which can be run by itself; a section ends with it."""
        self.stages.append(len(self.steps))
        self.new_section()

    @contextlib.contextmanager
    def _within(self, layer: "Layer") -> Iterator[None]:
        self._layers.append(layer)
        try:
            yield
        finally:
            self._layers.pop()

    def _title(self) -> str:
        """Return the name of the layer whose ops are appended; of the root it is empty."""
        if not self._layers:
            return ""
        layer = self._layers[-1]
        return self._names.get(layer, type(layer).__name__)

    def _named(self, name: str) -> str:
        title = self._title()
        return f"{title}.{name}" if title else name


def _names_of(root: "Layer", prefix: str = "") -> "Iterator[tuple[Layer, str]]":
    """Yield (layer, name) of a layer and of all that it is made of."""
    yield root, prefix.rstrip(".")
    for name, child in root.children():
        yield from _names_of(child, f"{prefix}{name}.")
