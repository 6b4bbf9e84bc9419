"""Where tensors lie in a workspace: those whose lifetimes do not meet share memory.

Segments are the unit of time, for threads are at any op of a segment at once. Within one that is
cut by sequences, a thread takes its rows through all ops in order: there, a tensor takes the place
of one with rows of the same length that no op uses any more, so rows stay in the thread's cache.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastformer.program_step import Step
from fastformer.tensors import Axis, Tensor

LINE = 64  # bytes of a cache line
# Segments for which memory that is free lies idle: who takes it then waits for what ended long ago.
SLACK = 6


class Life(NamedTuple):
    """First and last segment that uses a tensor, and first and last step."""

    first: int
    last: int
    first_step: int
    last_step: int


class Places:
    """The places of a program's tensors, which are set as they are found.

    Attributes:
        end: bytes that all take.    unshared: that they would take, each with a place of its own.
        shared: for each tensor, those before it that had some of its memory.
    """

    def __init__(self, segments: list[list[Step]], capacity: npt.NDArray[np.int64]) -> None:
        """Place all tensors that no array outside is.

        Args:
            segments: the program's.    capacity: sizes of the largest batch.
        """
        self.end = self.unshared = 0
        self.shared: dict[Tensor, set[Tensor]] = {}
        self._taken: list[tuple[int, int, Tensor]] = []  # start, end
        self._live: dict[int, tuple[int, int]] = {}  # end and last segment, by start
        self._free: dict[tuple[int, Axis, int], list[tuple[int, Tensor]]] = {}
        lives = lives_of(segments)
        order = sorted(lives, key=lambda t: (lives[t].first, lives[t].first_step))
        for tensor in order:
            life, size = lives[tensor], tensor.nbytes(capacity)
            before = self._left_by(tensor, life) if segments[life.first][0].sharded else None
            if before is None:
                # Whole cache lines, and one more, so that places are staggered.
                self._take(tensor, life, (-(-size // LINE) + 1) * LINE)
            else:
                self._take_over(tensor, life, before)
            if life.first == life.last:
                key = life.first, *_rows_of(tensor)
                self._free.setdefault(key, []).append((life.last_step, tensor))

    def _left_by(self, tensor: Tensor, life: Life) -> Tensor | None:
        """Return a tensor of the same segment and kind of rows that was last used before."""
        free = self._free.get((life.first, *_rows_of(tensor)), [])
        ended = [found for found in free if found[0] < life.first_step]
        if not ended:
            return None
        latest = max(ended, key=lambda found: found[0])
        free.remove(latest)
        return latest[1]

    def _take_over(self, tensor: Tensor, life: Life, before: Tensor) -> None:
        tensor.place = before.place
        self.shared[tensor] = {before, *self.shared[before]}
        stop, last = self._live[tensor.place]
        self._live[tensor.place] = stop, max(last, life.last)
        self._taken.append((tensor.place, stop, tensor))
        self.unshared += stop - tensor.place

    def _take(self, tensor: Tensor, life: Life, size: int) -> None:
        """Take the first gap that is wide enough."""
        at = 0
        self._live = {k: v for k, v in sorted(self._live.items()) if v[1] + SLACK >= life.first}
        for start, (stop, _) in self._live.items():
            if at + size <= start:
                break
            at = max(at, stop)
        tensor.place, stop = at, at + size
        self.shared[tensor] = {t for start, end, t in self._taken if start < stop and at < end}
        self._live[at] = stop, life.last
        self._taken.append((at, stop, tensor))
        self.end, self.unshared = max(self.end, stop), self.unshared + size


def lives_of(segments: list[list[Step]]) -> Mapping[Tensor, Life]:
    """Return when each tensor of the workspace is used."""
    lives: dict[Tensor, Life] = {}
    number = 0
    for segment, steps in enumerate(segments):
        for step in steps:
            for tensor in {t.whole for t in (*step.reads, *step.writes)}:
                if tensor.memory is None:
                    last = len(segments) if tensor.kept else segment
                    known = lives.get(tensor, Life(segment, last, number, number))
                    lives[tensor] = known._replace(last=last, last_step=number)
            number += 1
    return lives


def _rows_of(tensor: Tensor) -> tuple[Axis, int]:
    """Return how many rows a tensor has, and the bytes of one."""
    size = tensor.dtype.itemsize
    for axis in tensor.axes[1:]:
        size *= axis.factor
    return tensor.axes[0], size
