"""Where threads meet: which ops of a program are one segment, and what each segment waits for.

The one place that chooses, by sizes. Ways:

    "ops"      each op is a segment, cut as it is cut by itself: for wide models, and few sequences.
    "blocks"   threads take whole sequences through all ops of a section that can be cut by rows;
               sums over rows, such as weights' gradients, come a section later, when nobody waits.
    "whole"    threads take whole sequences through everything, and each shard of the sequences adds
               to its own copy of the gradients, which are added up last: for small classifiers.
"""

from collections.abc import Iterable

import numpy as np

from fastformer.kernels.gradient import add_gradient_copies
from fastformer.kernels.program import MOST_SHARDS, SEQUENCES, SHARDS, TOKENS
from fastformer.parameters import Array, aligned_zeros
from fastformer.program import Program
from fastformer.program_step import Step
from fastformer.tensors import Axis, Tensor

WAYS = ("ops", "blocks", "whole")
# Tokens of a shard, about, and the most shards. A thread takes all of its shards at once through
# what is no sum, for it packs all weights, which costs as much as 4 rows.
SHARDING = {"ops": (64, 1), "blocks": (64, MOST_SHARDS), "whole": (128, 8)}
# Threads take whole sequences through blocks where they share at least so many, which have no more
# elements than this on average, and where a block has no more parameters, which each thread reads.
FEWEST_SEQUENCES = 4
MOST_OF_A_SEQUENCE = 1 << 14
MOST_OF_A_BLOCK = 1 << 20
# And through everything up to so many elements of a batch's states, and parameters, of which each
# shard has a copy.
MOST_ELEMENTS = 1 << 17
MOST_PARAMETERS = 1 << 19


def choose_way(sequences: int, elements: int, block: int, parameters: int | None) -> str:
    """Return the way of a batch, by sizes alone.

    Args:
        sequences: of the batch.    elements: of its states, tokens times width.
        block: parameters of a block.    parameters: of the model, where forward and backward are
            one program; else None.
    """
    if sequences < FEWEST_SEQUENCES:
        return "ops"
    if parameters is not None and parameters <= MOST_PARAMETERS and elements <= MOST_ELEMENTS:
        return "whole"
    fits = block <= MOST_OF_A_BLOCK and elements <= sequences * MOST_OF_A_SEQUENCE
    return "blocks" if fits else "ops"


def is_local(step: Step) -> bool:
    """Tell whether an op needs nothing of other sequences than those whose rows it is given."""
    if step.op.cut is None or step.op.sums:
        return False
    return step.op.cut == "sequences" or step.length(step.op.cut).size in (TOKENS, SEQUENCES)


def add_to_copies(program: Program, gradients: Array) -> Tensor:
    """Let each shard add to a copy of all gradients, and append the op that adds them up.

    The first op that adds to a parameter's gradient then overwrites that of the copy.

    Args:
        gradients: (P,) of all parameters.

    Returns:
        The copies, (shards, P).
    """
    most = SHARDING["whole"][1]
    memory = aligned_zeros(most * gradients.size, gradients.dtype).reshape(most, -1)
    copies = Tensor("copies", (Axis(most), Axis(gradients.size)), gradients.dtype, memory)
    written: set[int] = set()
    for step in program.steps:
        added = {o.name: step.operands.get(o.name) for o in step.op.writes if o.added}
        tensors = {name: t for name, t in added.items() if isinstance(t, Tensor)}
        if not step.op.sums or not all(_lies_in(t, gradients) for t in tensors.values()):
            continue
        step.copies = True
        for name, tensor in tensors.items():
            assert tensor.memory is not None
            offset = tensor.memory.ctypes.data - gradients.ctypes.data
            step.operands[name] = Tensor(
                tensor.name, tensor.axes, tensor.dtype, whole=copies, offset=offset
            )
            if "overwrites" in step.operands:
                step.operands["overwrites"] = int(offset not in written)
            written.add(offset)
    everything = Tensor("gradients", (Axis(gradients.size),), gradients.dtype, gradients)
    program.add(add_gradient_copies, copies=copies, shards=Axis(1, SHARDS), gradients=everything)
    return copies


def _lies_in(tensor: Tensor, gradients: Array) -> bool:
    return tensor.memory is not None and np.may_share_memory(tensor.memory, gradients)


class _Group:
    """Ops of sequences that are joined, and sums that wait until these are done."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.read: set[Tensor] = set()
        self.written: set[Tensor] = set()

    def add(self, step: Step) -> None:
        self.steps.append(step)
        self.read |= {tensor.whole for tensor in step.reads}
        self.written |= {tensor.whole for tensor in step.writes}

    def must_precede(self, step: Step) -> bool:
        """Tell whether an op depends on one of these."""
        reads = {tensor.whole for tensor in step.reads}
        writes = {tensor.whole for tensor in step.writes}
        return bool(reads & self.written or writes & (self.read | self.written))


def cut_into_segments(program: Program, way: str) -> list[list[Step]]:
    """Return the segments of a program in the order in which they are run, and set its steps'."""
    segments: list[list[Step]] = []
    start = 0
    for end in [*program.stages, len(program.steps)]:
        segments += _segments_of(program.steps[start:end], way)
        start = end
    for number, segment in enumerate(segments):
        for step in segment:
            step.segment, step.sharded = number, len(segment) > 1 or way == "whole"
            step.sharded &= is_local(step) or step.copies
    return segments


def _segments_of(steps: list[Step], way: str) -> list[list[Step]]:
    if way == "ops":
        return [[step] for step in steps]
    segments: list[list[Step]] = []
    local, later, last = _Group(), _Group(), _Group()
    section = steps[0].section if steps else 0
    for step in steps:
        if way == "blocks" and step.section != section:
            # What waited for the section before, and now this section's sums wait.
            segments += [local.steps] * bool(local.steps) + [[sums] for sums in last.steps]
            local, later, last, section = _Group(), _Group(), later, step.section
        if is_local(step) or step.copies:
            if last.must_precede(step) or later.must_precede(step):
                segments += [local.steps] * bool(local.steps)
                segments += [[sums] for sums in last.steps + later.steps]
                local, later, last = _Group(), _Group(), _Group()
            local.add(step)
        else:
            later.add(step)
    segments += [local.steps] * bool(local.steps)
    return segments + [[sums] for sums in last.steps + later.steps]


def waits_of(segments: list[list[Step]], shared: dict[Tensor, set[Tensor]]) -> list[list[int]]:
    """Return for each segment those that it waits for: all others are done when these are.

    Args:
        segments: in order.    shared: for each tensor, those before it that have had its memory.
    """
    readers: dict[Tensor, list[int]] = {}
    writers: dict[Tensor, list[int]] = {}
    done: list[int] = []  # bits of all segments that are done when a segment is
    found = []
    for number, segment in enumerate(segments):
        needed: set[int] = set()
        reads = {tensor.whole for step in segment for tensor in step.reads}
        writes = {tensor.whole for step in segment for tensor in step.writes}
        for tensor in reads:
            needed.update(writers.get(tensor, ()))
        for tensor in writes:
            needed.update(writers.get(tensor, ()), readers.get(tensor, ()))
        for tensor in reads | writes:
            for other in shared.get(tensor, ()):
                needed.update(writers.get(other, ()), readers.get(other, ()))
        needed.discard(number)
        waits, known = [], 0
        for other_number in sorted(needed, reverse=True):
            if not known >> other_number & 1:
                waits.append(other_number)
                known |= done[other_number] | 1 << other_number
        found.append(waits)
        done.append(known)
        _note(readers, reads, number)
        _note(writers, writes, number)
    return found


def _note(users: dict[Tensor, list[int]], tensors: Iterable[Tensor], number: int) -> None:
    for tensor in tensors:
        users.setdefault(tensor, []).append(number)
