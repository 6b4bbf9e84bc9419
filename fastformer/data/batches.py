"""The order of examples in an epoch, and packed batches in that order."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fastformer import checks
from fastformer.batch import PackedBatch
from fastformer.errors import InvalidTypeError
from fastformer.random import generator


def batch_order(num_examples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order in which an epoch visits the examples.

    Args:
        num_examples: how many there are, >= 1.
        seed: the run's seed, >= 0.
        epoch: counted from 0. The order of an epoch does not depend on earlier ones, so a resumed
            run needs nothing but this number.

    Returns:
        (num_examples,) int64: each index once.

    Raises:
        ValueError, TypeError: an argument that is not an integer in its range.
    """
    checks.integer("num_examples", num_examples, 1)
    checks.integer("seed", seed, 0)
    checks.integer("epoch", epoch, 0)
    return generator(seed, "batch order", epoch).permutation(num_examples).astype(np.int64)


def iterate_batches(
    inputs: PackedBatch,
    targets: NDArray[np.int64],
    batch_size: int,
    order: NDArray[np.int64],
    start: int = 0,
) -> Iterator[tuple[PackedBatch, NDArray[np.int64]]]:
    """Cut the examples into batches. The last one is smaller when the sizes do not divide.

    The arguments are checked here, before the first batch is asked for.

    Args:
        inputs: all examples, packed.
        targets: (inputs.num_sequences,) int64, one per example; or one for each token.
        batch_size: sequences in a batch, >= 1.
        order: (any,) integers: which examples, in which order; each from 0 to
            inputs.num_sequences - 1.
        start: the first batch to give, from 0 to the number of batches (which gives none). A
            resumed epoch starts here.

    Returns:
        An iterator over (batch, its targets), (B,) or one for each of its tokens.

    Raises:
        ValueError, TypeError: an argument that is not allowed; the message names it.
    """
    if not isinstance(inputs, PackedBatch):
        raise InvalidTypeError(
            f"inputs must be a PackedBatch, got {type(inputs).__name__}; make one with "
            "fastformer.pack(inputs)"
        )
    checks.integer("batch_size", batch_size, 1)
    targets = np.asarray(targets)
    if targets.shape not in ((inputs.num_sequences,), (inputs.num_tokens,)):
        checks.fail(
            f"targets must have shape ({inputs.num_sequences},), one per input, got {targets.shape}"
        )
    order = np.asarray(order)
    _check_order(order, inputs.num_sequences)
    num_batches = -(-len(order) // batch_size)
    checks.integer("start", start, 0, num_batches)
    return _batches(inputs, targets, batch_size, order, start)


def _batches(
    inputs: PackedBatch,
    targets: NDArray[np.int64],
    batch_size: int,
    order: NDArray[np.int64],
    start: int,
) -> Iterator[tuple[PackedBatch, NDArray[np.int64]]]:
    """Yield the batches; apart from the checks, which a generator would put off."""
    for first in range(start * batch_size, len(order), batch_size):
        chosen = order[first : first + batch_size]
        batch = inputs.select(chosen)
        if targets.size == inputs.num_sequences:
            yield batch, targets[chosen]
        else:
            behind = inputs.offsets[chosen] - batch.offsets[:-1]
            rows = np.arange(batch.num_tokens) + np.repeat(behind, np.diff(batch.offsets))
            yield batch, targets[rows]


def _check_order(order: NDArray[np.int64], num_examples: int) -> None:
    """Raise unless `order` is a list of indices of the examples."""
    if order.ndim != 1 or (order.size and not np.issubdtype(order.dtype, np.integer)):
        raise InvalidTypeError(
            f"order must be a 1-D array of integers, got {order.ndim}-D {order.dtype}"
        )
    if order.size and (order.min() < 0 or order.max() >= num_examples):
        checks.fail(
            f"order must have indices from 0 to {num_examples - 1}, "
            f"got {order.min()} to {order.max()}"
        )
