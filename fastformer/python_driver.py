"""What the driver does, in Python: the twins of a program's ops, or its kernels uncompiled."""

from typing import TYPE_CHECKING, Any

import numpy as np

from fastformer.batch import Ids
from fastformer.kernels._compile import ORDER
from fastformer.kernels._rows import count_row_tasks
from fastformer.kernels.op import Op, Part
from fastformer.kernels.program import SHARDS, TOKENS, first_sequence
from fastformer.program_step import Step
from fastformer.tables import bytes_of_a_copy, scratch_of
from fastformer.tensors import Axis, Tensor

if TYPE_CHECKING:
    from fastformer.workspace import Workspace


def _values(space: "Workspace", step: Step, shard: int | None = None) -> list[Any]:
    """Return what a kernel is given, as arrays and numbers; by a driver that cuts, for a shard.

    Twins leave all sums in one part: for them there are no shards.
    """
    found: list[Any] = []
    for operand in step.op.operands:
        given = step.operands.get(operand.name)
        if operand.kind == "scratch":
            found.append(np.empty(scratch_of(space, step), space.memory.dtype))
        elif operand.is_array and given is None:
            dtype = {"int": np.int64, "double": np.float64}.get(operand.kind, space.memory.dtype)
            found.append(np.zeros((0,) * len(operand.axes or ()), dtype))
        elif isinstance(given, Tensor):
            apart = bytes_of_a_copy(space, step, given) if operand.added else 0
            found.append(space.array(given, (shard or 0) * apart))
        elif (
            shard is not None and operand.name == "shards" and step.produced_by_shards(space.steps)
        ):
            found.append(int(space.sizes[SHARDS]))
        elif isinstance(given, Axis):
            value = given.at(space.sizes)
            is_float = operand.kind == "float"
            found.append(float(np.int64(value).view(np.float64)) if is_float else value)
        else:
            found.append(given)
    return found


def calls_of(space: "Workspace", first: int, last: int) -> list[tuple[Op, list[Any]]]:
    """Return each op of some stages with the operands that its twin is given."""
    steps = space.steps_of((first, last))
    return [
        (
            step.op,
            [
                v
                for v, o in zip(_values(space, step), step.op.operands, strict=True)
                if o.kind != "scratch"
            ],
        )
        for step in steps
    ]


def run_shuffled(space: "Workspace", first: int, last: int, offsets: Ids) -> None:
    """Run uncompiled kernels, the tasks of each segment in a shuffled order."""
    sizes, threads = space.sizes, 2
    for segment in space.segments[space.bounds[first] : space.bounds[last]]:
        row = space.tables.ops[space.steps.index(segment[0])]
        if segment[0].sharded:
            tasks = int(sizes[SHARDS])
        elif row[4] > 0:
            tasks = count_row_tasks(int(sizes[row[2]] * row[3]), int(row[4]))
        else:
            tasks = segment[0].op.python_tasks(threads, *_values(space, segment[0], 0))
        order = list(range(tasks))
        ORDER.shuffle(order)
        for task in order:
            for step in segment:
                part = _part(space, step, task, tasks, threads, offsets)
                step.op.python_function(part, *_values(space, step, task))


def _part(
    space: "Workspace", step: Step, task: int, tasks: int, threads: int, offsets: Ids
) -> Part:
    """Return the rows of a task."""
    _, _, rows, times, cost, _ = space.tables.ops[space.steps.index(step)]
    if step.sharded:
        first, last = (first_sequence(shard, tasks, offsets) for shard in (task, task + 1))
        if rows == TOKENS:
            first, last = offsets[first], offsets[last]
        return Part(task, int(first * times), int(last * times), threads)
    if cost > 0:
        count = int(space.sizes[rows] * times)
        return Part(task, count * task // tasks, count * (task + 1) // tasks, threads)
    return Part(task, -1, -1, threads)
