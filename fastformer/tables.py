"""The driver's tables of a program: where operands are, how ops are cut, what waits for what."""

from typing import TYPE_CHECKING

import numpy as np

from fastformer.kernels._llvm import element_lanes
from fastformer.kernels.op import Operand
from fastformer.kernels.program import LONGEST, NO_SIZE, SEQUENCES, SHARDS
from fastformer.parameters import Array
from fastformer.program_step import Step
from fastformer.tensors import Axis, Tensor

if TYPE_CHECKING:
    from fastformer.workspace import Workspace

Word = tuple[int, int, int]


class Tables:
    """The tables that kernels/program.py describes, for a workspace whose tensors have places.

    Attributes:
        segments, ops, waits, words: the tables. Ops have no address until they are loaded.
        record: what the words amount to in a run.
        scratch: elements that an op needs for each thread, at most.
    """

    def __init__(self, space: "Workspace") -> None:
        """Lay them."""
        self._space = space
        for step in space.steps:
            for tensor in (*step.reads, *step.writes):
                tensor.words = []
        words: list[Word] = []
        rows = []
        for step in space.steps:
            rows.append(self._row(step, len(words)))
            for operand in step.op.operands:
                words += self._words(step, operand, len(words))
        self.words = np.array(words or [(0, 0, 0)], np.int64)
        self.record = np.zeros(len(self.words), np.int64)
        self.ops = np.array(rows, np.int64)
        segments, place, first = [], 0, 0
        for segment, waits in zip(space.segments, space.waits, strict=True):
            sharded = int(segment[0].sharded)
            segments.append((first, first + len(segment), 0, sharded, place, place + len(waits)))
            first, place = first + len(segment), place + len(waits)
        self.segments = np.array(segments, np.int64)
        self.waits = np.array([w for waits in space.waits for w in waits] or [0], np.int64)
        self.scratch = max([0, *(scratch_of(space, step) for step in space.steps)])

    def _row(self, step: Step, record: int) -> tuple[int, ...]:
        op, address = step.op, 0  # it is loaded when it is run
        rows, times = NO_SIZE, 1
        if op.cut == "sequences":
            rows, times = SEQUENCES, 1 if op.times is None else step.length(op.times).factor
        elif op.cut is not None:
            times, rows = step.length(op.cut)
        cost = 0 if op.tasks is not None else max(1, step.length(op.cost).factor if op.cost else 1)
        return address, record, rows, times, cost, int(op.each or step.copies)

    def _words(self, step: Step, operand: Operand, place: int) -> list[Word]:
        given = step.operands.get(operand.name)
        if operand.kind == "scratch":
            return [(scratch_of(self._space, step), 0, NO_SIZE)]
        if operand.is_array:
            if given is None:
                return [(0, 0, NO_SIZE)] * operand.words
            assert isinstance(given, Tensor)
            given.words.append(place)
            start = given.start()
            address = _address(given.whole, self._space.memory) + (
                start.factor if start.size == NO_SIZE else 0
            )
            found = [(address, 0, NO_SIZE)] if start.size == NO_SIZE else [(address, *start)]
            found += [_word(axis) for axis in given.axes]
            if operand.added:
                found.append((bytes_of_a_copy(self._space, step, given), 0, NO_SIZE))
            return found
        if operand.name == "shards" and step.produced_by_shards(self._space.steps):
            given = Axis(1, SHARDS)
        if isinstance(given, Axis):
            return [_word(given)]
        assert isinstance(given, float | int | np.number)
        number = np.float64(given) if operand.kind == "float" else np.uint64(int(given) % 2**64)
        return [(int(number.view(np.int64)), 0, NO_SIZE)]  # a seed may have 64 bits


def bytes_of_a_copy(space: "Workspace", step: Step, tensor: Tensor) -> int:
    """Return how far apart the shards' copies of a tensor are; 0 where there is one for all."""
    if not step.copies or tensor.whole is not space.copies:
        return 0
    return tensor.whole.axes[1].factor * tensor.dtype.itemsize


def scratch_of(space: "Workspace", step: Step) -> int:
    """Return how many elements of its own a thread needs for an op."""
    if step.op.scratch is None:
        return 0
    sizes = {letter: axis.at(space.capacity) for letter, axis in step.sizes.items()}
    longest, lanes = int(space.capacity[LONGEST]), element_lanes(space.memory.itemsize)
    return int(step.op.scratch(sizes, longest, lanes))


def _word(axis: Axis) -> Word:
    return (axis.factor, 0, NO_SIZE) if axis.size == NO_SIZE else (0, axis.factor, axis.size)


def _address(tensor: Tensor, memory: Array) -> int:
    if tensor.memory is not None:
        return int(tensor.memory.__array_interface__["data"][0])
    return int(memory.__array_interface__["data"][0]) + tensor.place
