"""A program's memory, and its runs: batch after batch, up to a size that grows."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
import numpy.typing as npt

from fastformer.batch import Ids, PackedBatch
from fastformer.errors import InvalidValueError
from fastformer.kernels._compile import BUILD
from fastformer.kernels.program import (
    ADDRESS,
    BOUNDS,
    FIRST_FREE_SIZE,
    FIRST_SEGMENT,
    GRAIN,
    LAST_SEGMENT,
    LONGEST,
    MOST_SHARDS,
    NO_SIZE,
    OFFSET,
    SEQUENCES,
    SHARDS,
    TOKENS,
    shard_count,
)
from fastformer.listing import listing
from fastformer.parameters import Array, aligned_zeros
from fastformer.places import LINE, Places
from fastformer.program import Program
from fastformer.program_step import Step
from fastformer.python_driver import calls_of, run_shuffled
from fastformer.schedule import SHARDING, add_to_copies, cut_into_segments, waits_of
from fastformer.tables import Tables
from fastformer.tensors import Axis, Tensor
from fastformer.warmup import DRIVER

if TYPE_CHECKING:
    from fastformer.layers.base import Layer

# What a batch brings, by name.
_GIVEN: dict[str, Callable[[PackedBatch], Ids]] = {
    "tokens": lambda batch: batch._tokens,
    "positions": lambda batch: batch._positions,
    "offsets": lambda batch: batch._offsets,
    "first_rows": lambda batch: batch._first_rows,
    "last_rows": lambda batch: batch._last_rows,
    "last_positions": lambda batch: batch._positions[batch._last_rows],
}


class Workspace:
    """A program's memory and tables, for batches up to a capacity, which grows when it must.

    Attributes:
        program, way: what is run, and how it is cut into segments.
        segments: the steps of each.    waits: the numbers of the segments that each waits for.
        memory: the array in which the program's own tensors lie.
        unshared: bytes that they would take, had each a place of its own.
        batch: that of the last run.
        clocks: (threads, ops + segments) int64, to which runs add the cycles of each op's work and
            of the waits before each segment; (0, 0) for none.
    """

    def __init__(
        self,
        program: Program,
        way: str,
        *,
        ops: SimpleNamespace,
        max_seq_len: int,
        gradients: Array | None = None,
    ) -> None:
        """Cut a program into segments.

        Args:
            program: complete.    way: one of schedule.WAYS.    ops: the backend.
            max_seq_len: the longest sequence of any batch.
            gradients: the flat array of all gradients, of which "whole" has copies.

        Raises:
            ValueError: the program has a workspace already.
        """
        if program.has_workspace:
            raise InvalidValueError(
                "the program has a workspace, and its steps and tensors know their places there; "
                "make another program"
            )
        program.has_workspace = True
        self.program, self.way, self.ops, self.longest = program, way, ops, max_seq_len
        self.copies: Tensor | None = None
        if way == "whole" and gradients is not None:
            self.copies = add_to_copies(program, gradients)
        self.segments = cut_into_segments(program, way)
        self.steps = [step for segment in self.segments for step in segment]
        self.bounds = [0, *(self._segments_before(end) for end in program.stages)]
        if self.bounds[-1] < len(self.segments):
            self.bounds.append(len(self.segments))
        self.sizes = np.zeros(FIRST_FREE_SIZE + len(program.numbers), np.int64)
        self.sizes[NO_SIZE] = self.sizes[GRAIN] = 1
        self._float_sizes = self.sizes.view(np.float64)
        self.capacity = self.sizes.copy()
        self.memory = np.zeros(0, program.dtype)
        self.batch: PackedBatch | None = None
        self.clocks: npt.NDArray[np.int64] = np.zeros((0, 0), np.int64)
        self._loaded: set[tuple[int, int]] = set()
        self._kernels: dict[tuple[int, int] | None, tuple[str, ...]] = {}
        self._brought: list[tuple[Ids, Callable[[PackedBatch], Ids]]] = []
        self._batch_brought: PackedBatch | None = None
        self._sized: tuple[int, int, int] | None = None
        self.waits: list[list[int]] = []
        self.unshared = 0
        self._floats = {
            given.size
            for step in self.steps
            for operand in step.op.operands
            if operand.kind == "float"
            and isinstance(given := step.operands.get(operand.name), Axis)
        }
        self._bound: dict[tuple[int, int], list[tuple[Tensor, Axis]]] = {}

    def kernels(self, stages: tuple[int, int] | None = None) -> tuple[str, ...]:
        """Return the names of what is compiled ahead, for float32: the driver and the ops.

        Args:
            stages: first and last + 1; None for all.
        """
        if stages not in self._kernels:
            found: tuple[str, ...] = ()
            if self.ops.name == "numba" and self.memory.dtype == np.float32:
                ops = {step.op for step in self.steps_of(stages)}
                found = (*sorted(op.path for op in ops if op.is_known), DRIVER)
            self._kernels[stages] = found
        return self._kernels[stages]

    def steps_of(self, stages: tuple[int, int] | None = None) -> list[Step]:
        """Return the ops of some stages, or of all, in the order in which they are run."""
        first, last = stages or (0, len(self.bounds) - 1)
        return [
            s for segment in self.segments[self.bounds[first] : self.bounds[last]] for s in segment
        ]

    def _segments_before(self, end: int) -> int:
        ended = set(self.program.steps[:end])
        return sum(all(step in ended for step in segment) for segment in self.segments)

    def __str__(self) -> str:
        """Show each op on a line; see `listing`."""
        return listing(self)

    # Memory.

    def grow(self, tokens: int, sequences: int) -> None:
        """Make room for batches of so many tokens and sequences, and for those before."""
        capacity = self.capacity
        tokens, sequences = (
            max(tokens, int(capacity[TOKENS])),
            max(sequences, int(capacity[SEQUENCES])),
        )
        longest = self.longest if self.program.cache else min(tokens, self.longest)
        _set_sizes(capacity, self.way, tokens, sequences, longest)
        capacity[SHARDS] = MOST_SHARDS
        for tensor in self.program.given.values():
            if tensor.whole is not tensor:
                continue
            tensor.memory = np.zeros(tensor.shape(capacity), tensor.dtype)
        self.program.given["one_row_offsets"].memory = np.arange(sequences + 1)
        places = Places(self.segments, capacity)
        self.unshared = places.unshared
        if self.memory.nbytes < places.end:
            self.memory = aligned_zeros(-(-places.end // self.memory.itemsize), self.memory.dtype)
        self.waits = waits_of(self.segments, places.shared)
        self.tables = Tables(self)
        self._loaded.clear()
        self._brought = [
            (tensor.memory, _GIVEN[name])
            for name, tensor in self.program.given.items()
            if tensor.words and tensor.memory is not None and name in _GIVEN
        ]
        self._batch_brought = None
        line = LINE // self.memory.itemsize
        threads = numba.config.NUMBA_NUM_THREADS
        shape = threads, -(-self.tables.scratch // line) * line + line
        self.scratches = np.empty(shape, self.memory.dtype)

    def _bound_in(self, first: int, last: int) -> list[tuple[Tensor, Axis]]:
        """Return the tensors of some stages for which a run brings an array, and their bytes."""
        if (first, last) not in self._bound:
            steps = self.steps_of((first, last))
            used = dict.fromkeys(t for step in steps for t in (*step.reads, *step.writes))
            self._bound[first, last] = [(t, t.all_bytes()) for t in used if t.bound]
        return self._bound[first, last]

    def _load(self, first: int, last: int) -> None:
        """Compile the ops of some stages, or load them, and note where they are."""
        self._loaded.add((first, last))
        if self.ops.name == "numba" and BUILD != "python":
            wanted = set(self.steps_of((first, last)))
            for row, step in zip(self.tables.ops, self.steps, strict=True):
                if step in wanted:
                    row[ADDRESS] = step.op.address(self.program.dtype.name)

    # Runs.

    def run(
        self,
        batch: PackedBatch,
        *,
        stages: tuple[int, int] | None = None,
        longest: int | None = None,
        numbers: Mapping[str, float | int] | None = None,
        bound: Mapping[Tensor, Array] | None = None,
        copied: Mapping[str, Array] | None = None,
    ) -> None:
        """Run all stages, or some, on a batch.

        Args:
            batch: its tokens, sequences and offsets.
            stages: first and last + 1; None for all.
            longest: of the sequences with what was read before; of the batch's unless given.
            numbers: by name, those that `Program.number` names.
            bound: arrays that stand for tensors in this run: C-contiguous, of the tensor's shape.
            copied: arrays that are copied into those that `Program.copied` names.

        Raises:
            ValueError: a sequence that is too long, a number that the program does not name, or an
                array that is missing or is not as its tensor says.
        """
        self.batch = None  # where the run fails, there is none to go on with
        tokens, sequences = batch.num_tokens, batch.num_sequences
        longest = batch.longest if longest is None else longest
        if longest > self.longest:
            raise InvalidValueError(
                f"a sequence has {longest} tokens, and the program is for {self.longest}"
            )
        if tokens > self.capacity[TOKENS] or sequences > self.capacity[SEQUENCES]:
            self.grow(tokens, sequences)
        sizes = self.sizes
        if self._sized != (tokens, sequences, longest):
            self._sized = tokens, sequences, longest
            _set_sizes(sizes, self.way, tokens, sequences, longest)
        first, last = stages or (0, len(self.bounds) - 1)
        if (first, last) not in self._loaded:
            self._load(first, last)
        sizes[FIRST_SEGMENT], sizes[LAST_SEGMENT] = self.bounds[first], self.bounds[last]
        for name, value in (numbers or {}).items():
            if name not in self.program.numbers:
                names = ", ".join(self.program.numbers) or "none"
                raise InvalidValueError(f"the program's numbers are: {names}; got {name!r}")
            place = self.program.numbers[name]
            (self._float_sizes if place in self._floats else sizes)[place] = value
        if batch is not self._batch_brought:  # it cannot have changed
            self._batch_brought = batch
            for memory, given in self._brought:
                source = given(batch)
                memory[: source.size] = source
        for name, ids in (copied or {}).items():
            self._copy(name, ids)
        for tensor, array in (bound or {}).items():
            if tensor.memory is array:  # as the last run has left it
                continue
            tensor.memory, address = array, array.__array_interface__["data"][0]
            self.tables.words[tensor.words, OFFSET] = address
        for tensor, (factor, size) in self._bound_in(first, last):
            brought = tensor.memory
            assert brought is not None
            fits = brought.nbytes == factor * sizes[size] and brought.dtype == tensor.dtype
            if not fits or not brought.flags.c_contiguous:
                _fail_to_bind(tensor, brought, sizes)
        if self.bounds[first] == self.bounds[last]:
            pass
        elif self.ops.name == "reference":
            self.ops.run_program(calls_of(self, first, last))
        elif BUILD == "python":
            run_shuffled(self, first, last, batch._offsets)
        else:
            tables = self.tables
            self.ops.run_program(
                tables.segments, tables.ops, tables.waits, tables.words, tables.record, sizes,
                batch._offsets, self.scratches, self.clocks,
            )  # fmt: skip
        self.batch = batch

    def left(self, name: str, rows: int) -> Array:
        """Return some rows of what a run left under a name of `Program.copied`, a view."""
        return self.program.given[name].memory[:rows]  # type: ignore[index]

    def _copy(self, name: str, source: Array) -> None:
        """Copy an array into what the program has under a name."""
        tensor = self.program.given[name]
        if source.shape != tensor.shape(self.sizes):
            _fail_to_bind(tensor, source, self.sizes)
        self.left(name, len(source))[...] = source

    def array(self, tensor: Tensor, further: int = 0) -> Array:
        """Return a tensor's array of the last run, a view; or what lies so many bytes further."""
        shape, itemsize = tensor.shape(self.sizes), tensor.dtype.itemsize
        start = further + tensor.start().at(self.sizes)
        size = int(np.prod(shape, dtype=np.int64))
        if tensor.whole.memory is not None:
            flat = tensor.whole.memory.reshape(-1)[start // itemsize :]
        else:
            place = tensor.whole.place + start
            flat = self.memory.view(np.uint8)[place : place + size * itemsize].view(tensor.dtype)
        return flat[:size].reshape(shape)

    def shown(self, layer: "Layer", name: str) -> Any:
        """Return what a layer's forward has saved under a name in the last run; None if nothing."""
        if name == "batch":
            return self.batch
        found = getattr(self.program.saved_of(layer), name, None)
        return self.array(found) if isinstance(found, Tensor) else found


class Workspaces:
    """Those of one model.

    Attributes:
        made: by name of the program, way, whether dropouts drop, and what is computed again.
        shown: that of the last forward of the whole model.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self.made: dict[tuple[str, str, bool, str], Workspace] = {}
        self.shown: Workspace | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Workspaces":
        """Return none: a copied model makes its own."""
        return Workspaces()


def _set_sizes(
    sizes: npt.NDArray[np.int64], way: str, tokens: int, sequences: int, longest: int
) -> None:
    sizes[TOKENS], sizes[SEQUENCES], sizes[BOUNDS] = tokens, sequences, sequences + 1
    sizes[LONGEST], sizes[SHARDS] = longest, shard_count(tokens, sequences, *SHARDING[way])


def _fail_to_bind(tensor: Tensor, array: Array, sizes: npt.NDArray[np.int64]) -> None:
    """Raise, for a run has no array for a tensor, or one that is not as the tensor says."""
    order = "" if array.flags.c_contiguous else ", not C-contiguous"
    got = f"{array.dtype} {array.shape}{order}" if array.shape != (0,) else "none"
    raise InvalidValueError(
        f"{tensor} must be bound to a C-contiguous array, {tensor.dtype} {tensor.shape(sizes)}, "
        f"got {got}"
    )
