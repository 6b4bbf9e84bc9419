"""A program on the screen: each op on a line."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fastformer.kernels.op import Operand
from fastformer.kernels.program import SEQUENCES, TOKENS
from fastformer.program_step import Step
from fastformer.tensors import Tensor

if TYPE_CHECKING:
    from fastformer.workspace import Workspace


def listing(space: "Workspace") -> str:
    """Show each op on a line: its segment, layer, name, and what it reads and writes, where.

    An s marks segments that are cut by sequences; + what is added to; @ KiB into the workspace.
    """
    lines = [
        f"{len(space.steps)} ops in {len(space.segments)} segments ({space.way}), "
        f"{space.memory.nbytes / 2**20:.1f} MiB (unshared {space.unshared / 2**20:.1f}), for up "
        f"to {space.capacity[TOKENS]} tokens in {space.capacity[SEQUENCES]} sequences"
    ]
    titles = max([0, *(len(step.title) for step in space.steps)])
    names = max([0, *(len(step.op.name) for step in space.steps)])
    for step in space.steps:
        waits = space.waits[step.segment] if space.waits else []
        first = step is space.segments[step.segment][0]
        lines.append(
            f"{step.segment if first else '':>3}{'s' if step.sharded else ' '} "
            f"{step.title:{titles}} {step.op.name:{names}} "
            f"{' '.join(_told(step, step.op.reads))} -> "
            f"{' '.join(_told(step, step.op.writes))}"
            + (f"  waits for {', '.join(map(str, waits))}" if first and waits else "")
        )
    return "\n".join(lines)


def _told(step: Step, operands: list[Operand]) -> Iterator[str]:
    for operand in operands:
        tensor = step.operands.get(operand.name)
        if isinstance(tensor, Tensor):
            axes = ",".join(map(str, tensor.axes))
            place = "" if tensor.whole.memory is not None else f"@{tensor.whole.place >> 10}"
            yield f"{'+' * operand.added}{operand.name}[{axes}]{place}"
