"""The gradient of a batch, shard by shard, added in one fixed binary tree.

The number of shards depends on the batch's and the model's sizes alone, or is what a run says. So
the sum has the same bits for any number of processes and threads.
"""

from collections.abc import Callable

import numpy as np

from fastformer.batch import Ids, PackedBatch
from fastformer.models.base import Model
from fastformer.training.config import MOST_SHARDS
from fastformer.training.ranks import Ranks, ResultT, shares

# Tokens of a shard, at least. Each one reads all weights, and its gradients are added: of a large
# model, whose weights come from memory each time, a shard must have more to do.
TOKENS_OF_A_SHARD, TOKENS_OF_A_LARGE_ONE = 256, 1024
LARGE_MODEL = 1 << 22


def shard_count(model: Model, batch: PackedBatch, wanted: int = 0) -> int:
    """Return how many shards a batch has: a power of two, at most one for each sequence.

    Args:
        model: that is trained.    batch: all of it.
        wanted: what the run says, a power of two; 0 for what the sizes say.
    """
    most = MOST_SHARDS
    if wanted:
        most = wanted
    elif model.way_of(batch, whole=True) == "whole":
        most = 1  # a batch that is so small is one program, which has shards of its own
    else:
        large = model.parameters().values.size > LARGE_MODEL
        fewest = TOKENS_OF_A_LARGE_ONE if large else TOKENS_OF_A_SHARD
        most = min(most, batch.num_tokens // fewest)
    shards = 1
    while 2 * shards <= min(most, batch.num_sequences):
        shards *= 2
    return shards


def cut(batch: PackedBatch, targets: Ids, first: int, last: int) -> tuple[PackedBatch, Ids]:
    """Return the sequences from first to last - 1, and their targets.

    Args:
        targets: one for each sequence of the batch, or for each token.
    """
    rows = batch.offsets if targets.size == batch.num_tokens else np.arange(targets.size + 1)
    return batch.select(np.arange(first, last)), targets[rows[first] : rows[last]]


def add_shards(
    model: Model,
    batch: PackedBatch,
    targets: Ids,
    shards: int,
    ranks: Ranks,
    fresh: bool,
    compute: Callable[[PackedBatch, Ids, int], ResultT],
) -> list[ResultT]:
    """Add the gradients of all shards to the model's, and return what each own shard gave.

    Args:
        batch: all of it.    targets: one for each sequence, or for each token.
        shards: how many, a power of two.    ranks: who share them.
        fresh: whether the model's gradients are all 0 before.
        compute: (shard, its targets, its number) adds the gradients of one.
    """
    flat = model.parameters()
    add = flat.ops.add_gradient
    bounds = batch.num_sequences * np.arange(shards + 1) // shards
    results = []

    def subtree(low: int, high: int, level: int) -> None:
        """Leave the sum of some shards in the gradients, which are 0 before."""
        if high - low == 1:
            results.append(compute(*cut(batch, targets, bounds[low], bounds[high]), low))
            return
        middle = (low + high) // 2
        subtree(low, middle, level + 1)
        left = flat.put_gradients_aside(level + 1)
        subtree(middle, high, level + 1)
        add(flat.gradients, left)

    before = None
    if not fresh:
        before = flat.put_gradients_aside(0)
    low, high = shares(shards, ranks.size)[ranks.rank]
    if low < high:
        subtree(low, high, 0)
    ranks.add_up(flat.gradients, shards, add)
    if before is not None:
        add(flat.gradients, before)
    return results
