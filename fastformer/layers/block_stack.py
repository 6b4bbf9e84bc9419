"""A stack of blocks, one after the other."""

from collections.abc import Sequence

from fastformer.batch import Ids, PackedBatch
from fastformer.layers.calls import Calls, make
from fastformer.layers.transformer_block import TransformerBlock
from fastformer.parameters import Array


def forward_through(
    blocks: Sequence[TransformerBlock],
    x: Array,
    batch: PackedBatch,
    last_rows: Ids | None,
    calls: Calls,
) -> Array:
    """Return (N, C) for x of (N, C); with last_rows, (B, C): those rows of the last block alone.

    Arguments as of `TransformerBlock.forward`.
    """
    for block in blocks:
        rows = last_rows if block is blocks[-1] else None
        planned = block.planned_forward(x, batch, rows)
        if planned is None:
            x = block.forward(make(calls, x), batch, rows)
        else:
            more, x = planned
            calls += more
    return x


def backward_through(blocks: Sequence[TransformerBlock], dout: Array, calls: Calls) -> Array:
    """Undo forward; return the gradient of its x, (N, C), in a shared buffer."""
    for block in reversed(blocks):
        planned = block.planned_backward(dout)
        if planned is None:
            dout = block.backward(make(calls, dout))
        else:
            more, dout = planned
            calls += more
    return dout
