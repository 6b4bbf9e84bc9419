"""Where the examples of training come from: a set in an order of its own, or a stream."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fastformer.batch import Ids, PackedBatch
from fastformer.data.batches import batch_order, iterate_batches
from fastformer.data.text import Documents


class Source(Protocol):
    """Where the examples of training come from."""

    @property
    def size(self) -> int:
        """How many examples an epoch has."""

    def batches(
        self, seed: int, epoch: int, batch_size: int, start: int
    ) -> Iterator[tuple[PackedBatch, Ids]]:
        """Yield an epoch's batches with their targets, from batch `start` on.

        They depend on the arguments alone, so that a run which goes on needs nothing else.
        """


def numbered_batches(
    size: int, epoch: int, batch_size: int, start: int
) -> Iterator[tuple[int, int]]:
    """Yield (number, examples) of an epoch's batches from `start` on, for streams of fresh ones.

    No two batches of a run have one number.
    """
    count = -(-size // batch_size)
    for batch in range(start, count):
        yield epoch * count + batch, min(batch_size, size - batch * batch_size)


@dataclass(frozen=True)
class Examples:
    """What is learned: sequences, and the class of each or what comes after each token."""

    inputs: PackedBatch
    targets: Ids

    @property
    def size(self) -> int:
        """How many examples there are."""
        return self.inputs.num_sequences

    @property
    def lengths(self) -> Ids:
        """How many tokens each has, (size,)."""
        return np.diff(self.inputs.offsets)

    def batches(
        self, seed: int, epoch: int, batch_size: int, start: int
    ) -> Iterator[tuple[PackedBatch, Ids]]:
        """Yield the batches of an epoch in its own order; see `Source`."""
        order = batch_order(self.size, seed, epoch)
        return iterate_batches(self.inputs, self.targets, batch_size, order, start=start)


@dataclass(frozen=True)
class DocumentExamples:
    """The documents of a text, of which a batch at a time is in memory."""

    documents: Documents

    @property
    def size(self) -> int:
        """How many sequences there are."""
        return self.documents.size

    @property
    def lengths(self) -> Ids:
        """How many tokens each has, (size,)."""
        return self.documents.lengths

    def batches(
        self, seed: int, epoch: int, batch_size: int, start: int
    ) -> Iterator[tuple[PackedBatch, Ids]]:
        """Yield the batches of an epoch in its own order; see `Source`."""
        order = batch_order(self.size, seed, epoch)
        for first in range(start * batch_size, order.size, batch_size):
            yield self.documents.batch(order[first : first + batch_size])
