"""Processes that train one model together: one, or those that mpiexec has started (extra `mpi`).

Each computes some shards of every batch. Gradients of all shards are added in one fixed binary
tree, so that the sum has the same bits for any number of processes. A rank has a whole subtree: it
adds that up by itself, and the rest of the tree is added in slices, each by one rank, as in the
reduce-scatter and allgather of Thakur et al. 2005, "Optimization of Collective Communication
Operations in MPICH". Ranks of one machine read and write each other's gradients where they are.
"""

import contextlib
import functools
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np

from fastformer import launcher
from fastformer.errors import FastformerError, MissingLibraryError
from fastformer.models.base import Model
from fastformer.parameters import Array, aligned, aligned_bytes, aligned_zeros

# Seconds after which a rank that others wait for is named; twice their own work, if that is more.
PATIENCE: Final = 10.0
# Seconds for which a rank that waits looks for messages all the time.
SPUN: Final = 1.0
_let_others_run: Final[Callable[[], None]] = getattr(os, "sched_yield", lambda: time.sleep(0))

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

    def gather(self, value: Any, *, alike: bool = True) -> list[Any]:
        """Return what every rank gives, in their order. All of them must call it.

        Args:
            value: of this rank, which can be pickled.
            alike: whether all have had alike much to do, so that one that is late is named.
        """
        return [value]

    def first(self, work: Callable[[], ResultT]) -> ResultT:
        """Let the first rank do some work, and return its result in all. All must call it.

        Raises:
            RankStoppedError: in the others, where the first one has raised something.
        """
        if not self.leads:
            done, result = self.gather(None, alike=False)[0]
            if not done:
                raise RankStoppedError("the first process has stopped")
            return result  # type: ignore[no-any-return]
        try:
            result = work()
        except BaseException:
            self.gather((False, None), alike=False)
            raise
        self.gather((True, result), alike=False)
        return result

    @contextlib.contextmanager
    def sharing_gradients(self, model: Model) -> Iterator[None]:
        """Keep a model's gradients where all ranks see them, if they are on one machine, within.

        All ranks must enter it, and all leave it with an error, or none.
        """
        yield

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
        # Of Open MPI's windows this one is for networks, and complains where there is none.
        os.environ.setdefault("OMPI_MCA_osc", "^ucx")
        try:
            from mpi4py import MPI  # type: ignore[import-not-found,unused-ignore]
        except ImportError:
            raise MissingLibraryError(
                "several processes need mpi4py and an MPI: pip install 'fastformer[mpi]', or start "
                "one process without mpiexec"
            ) from None
        self._mpi, self._world = MPI, MPI.COMM_WORLD
        self._kinds = {"float32": MPI.FLOAT, "float64": MPI.DOUBLE}
        self.rank, self.size = self._world.rank, self._world.size
        self._names = self._world.allgather(f"{socket.gethostname()}, process {os.getpid()}")
        self._met = time.monotonic()  # when this rank last had what all others gave
        self._received = np.zeros(0, np.uint8)
        self._shared: list[Array] = []  # the gradients of each rank, within `sharing_gradients`

    def gather(self, value: Any, *, alike: bool = True) -> list[Any]:
        """Return what every rank gives; see `Ranks`."""
        patience = max(PATIENCE, 2 * (time.monotonic() - self._met)) if alike else math.inf
        if self.rank == 0:
            values, awaited = [value] * self.size, set(range(1, self.size))
            while awaited:
                rank, given = self._message(awaited, patience).recv()
                values[rank] = given
                awaited.discard(rank)
            sent = [self._world.isend(values, rank) for rank in range(1, self.size)]
        else:
            sent = [self._world.isend((self.rank, value), 0)]
            # One of them speaks for all where the first one is late.
            values = self._message([0], patience if self.rank == 1 else math.inf).recv()
        self._mpi.Request.waitall(sent)
        self._met = time.monotonic()
        return values

    def _message(self, awaited: Collection[int], patience: float) -> Any:
        """Return the next message of one of some ranks, which are named where none comes.

        Args:
            patience: seconds.
        """
        begun, told = time.monotonic(), False
        while (message := self._world.improbe()) is None:
            waited = time.monotonic() - begun
            if waited > patience and not told:
                names = "; ".join(f"{rank} ({self._names[rank]})" for rank in sorted(awaited))
                late = "rank" if len(awaited) == 1 else "ranks"
                told = True
                print(
                    f"fastformer: rank {self.rank} has waited {waited:.0f} s for {late} {names}: "
                    "slow, or stopped",
                    file=sys.stderr,
                )
            if waited > SPUN:
                time.sleep(1e-3)
            else:  # where there are more processes than cores, another one needs this core
                _let_others_run()
        return message

    @contextlib.contextmanager
    def sharing_gradients(self, model: Model) -> Iterator[None]:
        """Keep a model's gradients where all ranks see them; see `Ranks`."""
        here = self._world.Split_type(self._mpi.COMM_TYPE_SHARED)
        size, dtype = model.parameters().gradients.size, model.dtype
        if self._world.allreduce(here.size, self._mpi.MIN) < self.size:
            yield
            return
        length = aligned_bytes(size, dtype)
        window = self._mpi.Win.Allocate_shared(length, 1, comm=here)  # type: ignore[arg-type,unused-ignore]
        # Memory begins at the same place of a page in each process, and so do the gradients in it.
        self._shared = [
            aligned(np.asarray(window.Shared_query(rank)[0]), size, dtype)
            for rank in range(self.size)
        ]
        model.put_gradients_in(self._shared[self.rank])
        yield
        # Where one fails the memory stays until the end: the others may never come to give it back.
        self._shared = []
        model.put_gradients_in(aligned_zeros(size, dtype))
        window.Free()

    def add_up(self, gradients: Array, leaves: int, add: Add) -> None:
        """Add what each rank has of a tree; see `Ranks`."""
        size = self.size
        bounds = [gradients.size * part // size for part in range(size + 1)]
        own = slice(bounds[self.rank], bounds[self.rank + 1])
        having = [rank for rank, (low, high) in enumerate(shares(leaves, size)) if low < high]
        self.gather(None)
        if self._shared and gradients is self._shared[self.rank]:
            total = add_subtrees({r: self._shared[r][own] for r in having}, leaves, size, add)
            for other in self._shared[1:]:
                other[own] = total
            self._world.Barrier()
            return
        self._add_up_by_messages(gradients, bounds, having, leaves, add)

    def _add_up_by_messages(
        self, gradients: Array, bounds: list[int], having: list[int], leaves: int, add: Add
    ) -> None:
        """Do so where ranks are on several machines."""
        kind, size = self._kinds[gradients.dtype.name], self.size
        counts, starts = np.diff(bounds), np.array(bounds[:-1])
        given = counts if self.rank in having else np.zeros(size, np.int64)
        own = int(counts[self.rank])
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
