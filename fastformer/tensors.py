"""Operands of a program: arrays that ops read and write, as plans with names and shapes."""

from typing import Any, NamedTuple

import numpy as np

from fastformer.errors import InvalidValueError
from fastformer.kernels._rows import MOST_TASKS
from fastformer.kernels.program import (
    BOUNDS,
    LONGEST,
    MOST_SHARDS,
    NO_SIZE,
    SEQUENCES,
    TOKENS,
)
from fastformer.parameters import Array

DTYPES = {"int": np.dtype(np.int64), "double": np.dtype(np.float64)}


class Axis(NamedTuple):
    """The length of an axis: a number, or so many times a size of the batch.

    Attributes:
        factor: the number.    size: which size, of kernels/program.py; NO_SIZE for a plain number.
    """

    factor: int
    size: int = NO_SIZE

    def __str__(self) -> str:
        """Name it as docstrings do: N tokens, B sequences."""
        if self.size == NO_SIZE:
            return str(self.factor)
        name = {TOKENS: "N", SEQUENCES: "B", BOUNDS: "B+1"}.get(self.size, f"size {self.size}")
        return name if self.factor == 1 else f"{self.factor}{name}"

    def at(self, sizes: Any) -> int:
        """Return the length for some sizes."""
        return self.factor if self.size == NO_SIZE else self.factor * int(sizes[self.size])


ROWS, SEQUENCE_ROWS, OFFSETS = Axis(1, TOKENS), Axis(1, SEQUENCES), Axis(1, BOUNDS)
LONGEST_AXIS = Axis(1, LONGEST)
# Parts of which sums over rows are made, at most: tasks of one op, or shards of sequences.
MOST_PARTS = max(MOST_TASKS, MOST_SHARDS)


class Tensor:
    """An operand: an array that ops read and write. It is a plan for one, not the array.

    Attributes:
        name: of the layer and of what it is.    axes: its shape.    dtype: of its elements.
        memory: the array that it is, where it lies outside of the workspace; else None.
        whole, part: of which tensor it is one of the parts along the first axis, and which.
        offset: or how many bytes from the beginning of that it begins.
        kept: whether none may use its place before the program's end.
        bound: whether each run brings the array.
    """

    def __init__(
        self,
        name: str,
        axes: tuple[Axis, ...],
        dtype: np.dtype[Any],
        memory: Array | None = None,
        whole: "Tensor | None" = None,
        part: int = 0,
        offset: int = 0,
    ) -> None:
        """Name it; a program makes tensors."""
        self.name, self.axes, self.dtype, self.memory = name, axes, dtype, memory
        self.whole, self.part, self.offset = whole or self, part, offset
        self.kept, self.bound = False, False
        self.place = 0  # in the workspace, in bytes
        self.words: list[int] = []  # of the table, that hold its address

    def __str__(self) -> str:
        """Name and shape."""
        return f"{self.name}[{','.join(map(str, self.axes))}]"

    def shape(self, sizes: Any) -> tuple[int, ...]:
        """Return the shape for a batch's sizes."""
        return tuple(axis.at(sizes) for axis in self.axes)

    def nbytes(self, sizes: Any) -> int:
        """Return its bytes for a batch's sizes."""
        return int(np.prod(self.shape(sizes), dtype=np.int64)) * self.dtype.itemsize

    def all_bytes(self) -> Axis:
        """Return its bytes as so many times a size of the batch: one axis at most has one."""
        factor = self.dtype.itemsize
        for axis in self.axes:
            factor *= axis.factor
        return Axis(factor, max((axis.size for axis in self.axes), default=NO_SIZE))

    def split(self, parts: int) -> "tuple[Tensor, ...]":
        """Return the parts of equal length that it has along the first axis."""
        first = self.axes[0]
        if self.whole is not self or self.bound:
            what = "each run brings it" if self.bound else "it is a part"
            raise InvalidValueError(f"{self} cannot be split, for {what}")
        if first.factor % parts:
            raise InvalidValueError(f"{self} has no {parts} parts of equal length")
        axes = (Axis(first.factor // parts, first.size), *self.axes[1:])
        return tuple(
            Tensor(f"{self.name}.{part}", axes, self.dtype, whole=self.whole, part=part)
            for part in range(parts)
        )

    def by_heads(self, heads: int) -> "Tensor":
        """Return the same with a row for each head: (N, C) as (N heads, C / heads)."""
        rows, columns = self.axes
        return self.reshaped(Axis(rows.factor * heads, rows.size), Axis(columns.factor // heads))

    def reshaped(self, *axes: Axis) -> "Tensor":
        """Return the same with other axes, of as many elements, in the same order."""
        return Tensor(self.name, axes, self.dtype, self.memory, self.whole, self.part, self.offset)

    def start(self) -> Axis:
        """Return where it begins in the tensor of which it is a part, in bytes."""
        if self.part == 0:
            return Axis(self.offset)
        first, factor = self.axes[0], self.dtype.itemsize
        for axis in self.axes[1:]:
            factor *= axis.factor
        return Axis(self.part * first.factor * factor, first.size)
