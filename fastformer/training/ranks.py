"""Processes that train one model together: one, or those that mpiexec has started (extra `mpi`).

Each computes some shards of every batch. Gradients of all shards are added in one fixed binary
tree, so that the sum has the same bits for any number of processes. A rank has a whole subtree: it
adds that up by itself, and the rest of the tree is added in slices, each by one rank, as in the
reduce-scatter and allgather of Thakur et al. 2005, "Optimization of Collective Communication
Operations in MPICH".
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np

from fastformer import launcher
from fastformer.errors import FastformerError, MissingLibraryError
from fastformer.parameters import Array

ResultT = TypeVar("ResultT")
Span: TypeAlias = tuple[int, int]
Add: TypeAlias = Callable[[Array, Array], None]


def shares(leaves: int, ranks: int) -> list[Span]:
    """Return which leaves of a tree each rank computes: first and last + 1; alike if it has none.

    Args:
        leaves: a power of two.    ranks: how many.
    """
    found = [(0, 0)] * ranks

    def divide(low: int, high: int, first: int, count: int) -> None:
        if count == 1 or high - low == 1:
            found[first] = low, high
            return
        left, middle = (count + 1) // 2, (low + high) // 2
        divide(low, middle, first, left)
        divide(middle, high, first + left, count - left)

    divide(0, leaves, 0, ranks)
    return found


def add_subtrees(subtrees: dict[int, Array], leaves: int, ranks: int, add: Add) -> Array:
    """Return the sum of what each rank has of a tree, which is left in the first one's array.

    Args:
        subtrees: by rank, of those that have leaves.    leaves, ranks: as of `shares`.
        add: (total, other), adds to total in place.
    """

    def total(low: int, high: int, first: int, count: int) -> Array:
        if count == 1 or high - low == 1:
            return subtrees[first]
        left, middle = (count + 1) // 2, (low + high) // 2
        one = total(low, middle, first, left)
        add(one, total(middle, high, first + left, count - left))
        return one

    return total(0, leaves, 0, ranks)


class RankStoppedError(FastformerError, RuntimeError):
    """Another process has stopped, and says why."""


class Ranks:
    """One process, which is all there is.

    Attributes:
        rank: its number.    size: how many there are.
    """

    rank, size = 0, 1

    @property
    def leads(self) -> bool:
        """Whether this one writes files, and speaks."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Return what every rank gives, in their order. All of them must call it."""
        return [value]

    def first(self, work: Callable[[], ResultT]) -> ResultT:
        """Let the first rank do some work, and return its result in all. All must call it.

        Raises:
            RankStoppedError: in the others, where the first one has raised something.
        """
        if not self.leads:
            done, result = self.gather(None)[0]
            if not done:
                raise RankStoppedError("the first process has stopped")
            return result  # type: ignore[no-any-return]
        try:
            result = work()
        except BaseException:
            self.gather((False, None))
            raise
        self.gather((True, result))
        return result

    def add_up(self, gradients: Array, leaves: int, add: Add) -> None:
        """Add what each rank has of a tree, and give the sum to all.

        Args:
            gradients: (P,) of this rank's leaves; overwritten by the sum of all.
            leaves: of the tree.    add: as of `add_subtrees`.
        """


ALONE: Final = Ranks()
"""A process that shares with nobody."""


class MPIRanks(Ranks):
    """The processes of MPI's world."""

    def __init__(self) -> None:
        """Join the others.

        Raises:
            ImportError: mpi4py is not installed.
        """
        try:
            from mpi4py import MPI  # type: ignore[import-not-found,unused-ignore]
        except ImportError:
            raise MissingLibraryError(
                "several processes need mpi4py and an MPI: pip install 'fastformer[mpi]', or start "
                "one process without mpiexec"
            ) from None
        self._world = MPI.COMM_WORLD
        self._kinds = {"float32": MPI.FLOAT, "float64": MPI.DOUBLE}
        self.rank, self.size = self._world.rank, self._world.size
        self._received = np.zeros(0, np.uint8)

    def gather(self, value: Any) -> list[Any]:
        """Return what every rank gives; see `Ranks`."""
        return list(self._world.allgather(value))

    def add_up(self, gradients: Array, leaves: int, add: Add) -> None:
        """Add what each rank has of a tree; see `Ranks`."""
        kind, size = self._kinds[gradients.dtype.name], self.size
        spans = shares(leaves, size)
        bounds = [gradients.size * part // size for part in range(size + 1)]
        counts, starts = np.diff(bounds), np.array(bounds[:-1])
        given = counts if spans[self.rank][0] < spans[self.rank][1] else np.zeros(size, np.int64)
        own = int(counts[self.rank])
        having = [rank for rank, (low, high) in enumerate(spans) if low < high]
        taken = np.array([own if rank in having else 0 for rank in range(size)])
        places = np.concatenate([[0], np.cumsum(taken)[:-1]])
        if self._received.nbytes < own * len(having) * gradients.itemsize:
            self._received = np.zeros(own * len(having) * gradients.itemsize, np.uint8)
        received = self._received.view(gradients.dtype)
        self._world.Alltoallv([gradients, given, starts, kind], [received, taken, places, kind])
        parts = {rank: received[places[rank] : places[rank] + own] for rank in having}
        total = add_subtrees(parts, leaves, size, add)
        self._world.Allgatherv([total, own, kind], [gradients, counts, starts, kind])


@functools.cache
def all_ranks() -> Ranks:
    """Return the processes that train together: those of mpiexec, or this one alone.

    Raises:
        ImportError: mpiexec has started several, and mpi4py is not installed.
    """
    return MPIRanks() if launcher.are_several() else ALONE


def disagreement(named: Sequence[dict[str, Any]]) -> str | None:
    """Return in which setting a rank differs from the first one, or None.

    Args:
        named: the settings of each rank, by name.
    """
    first = named[0]
    for rank, other in enumerate(named):
        for name in first.keys() | other.keys():
            mine, theirs = first.get(name), other.get(name)
            if mine != theirs:
                return f"rank {rank} has {name} {theirs!r:.60}, and rank 0 has {mine!r:.60}"
    return None
