"""Rows of a table by token, plus rows of another by position, and the scatter back.

    out[i] = table[tokens[i]] + position_table[positions[i]]
    dtable[ids[i]] += dout[i]

Source: Vaswani et al. 2017, arXiv:1706.03762, sections 3.4 and 3.5.
"""

import numpy as np

from ._compile import kernel, prange
from ._rows import row_tasks
from ._simd import lanes, load_first, splat, store_first
from .op import op


def embedding_forward_reference(tokens, positions, table, position_table, out):
    """Compute `embedding_forward` in NumPy."""
    out[...] = table[tokens]
    if position_table.size:
        out += position_table[positions]


def embedding_backward_reference(ids, dout, dtable):
    """Compute `embedding_backward` in NumPy."""
    np.add.at(dtable, ids, dout)


@kernel
def embed_rows(first, last, tokens, positions, table, position_table, out):
    """Look up tokens first to last, and add their positions' rows."""
    C = out.shape[1]
    for i in range(first, last):
        for j in range(0, C, lanes(out)):
            row = load_first(table, C - j, tokens[i], j)
            if position_table.size:
                row = row + load_first(position_table, C - j, positions[i], j)
            store_first(out, C - j, row, i, j)


@kernel(parallel=True)
def embedding_forward(tokens, positions, table, position_table, out):
    """Look up each token, and add its position's row.

    Args:
        tokens, positions: (N,) int64, in range: not checked here.
        table: (V, C) float32|float64, C-contiguous.    position_table: (T, C), or (0, C) for none.
        out: (N, C) overwritten.
    Threads: rows; bit-identical for any thread count.
    """
    N, C = out.shape
    tasks = row_tasks(N, C)
    for task in prange(tasks):
        first, last = N * task // tasks, N * (task + 1) // tasks
        embed_rows(first, last, tokens, positions, table, position_table, out)


@kernel(parallel=True)
def embedding_backward(ids, dout, dtable):
    """Add each row of dout to its id's row of dtable.

    Args:
        ids: (N,) int64, in range: not checked here.
        dout: (N, C) float32|float64, C-contiguous.    dtable: (V, C) accumulated.
    Threads: registers' worths of columns, each in the order of rows, so that no two threads meet
    in an element and bits are the same for any thread count.
    """
    N, C = dout.shape
    width = lanes(dout)
    for task in prange((C + width - 1) // width):
        j = task * width
        for i in range(N):
            row = load_first(dtable, C - j, ids[i], j) + load_first(dout, C - j, i, j)
            store_first(dtable, C - j, row, ids[i], j)


def _embedding_gradient_reference(ids, dout, overwrites, dtable):
    if overwrites:
        dtable[...] = 0
    embedding_backward_reference(ids, dout, dtable)


def _embedding_gradient_tasks(threads, ids, dout, overwrites, dtable):
    return (dout.shape[1] + lanes(dout) - 1) // lanes(dout)


@op(
    "tokens:int[R] positions:int[R] table[V,C] position_table?[T,C] -> out[R,C]",
    cut="R", cost="C", twin=embedding_forward_reference,
)  # fmt: skip
def embedding(part, tokens, positions, table, position_table, out):
    """Look up each token, and add its position's row."""
    embed_rows(part.first, part.last, tokens, positions, table, position_table, out)


@op(
    "ids:int[R] dout[R,C] overwrites:int -> +dtable[V,C]",
    cut="R", sums=True, tasks=_embedding_gradient_tasks, twin=_embedding_gradient_reference,
)  # fmt: skip
def embedding_gradient(part, ids, dout, overwrites, dtable):
    """Add each row to its id's row of the table: a register's worth of columns, or some rows."""
    C, first, last = dout.shape[1], part.first, part.last
    begin, end = 0, C
    if first < 0:
        begin, first, last = part.index * lanes(dout), 0, ids.size
        end = min(C, begin + lanes(dout))
    for j in range(begin, end, lanes(dout)):
        for row in range(dtable.shape[0] if overwrites > 0 else 0):
            store_first(dtable, C - j, splat(dtable, 0.0), row, j)
    for i in range(first, last):
        for j in range(begin, end, lanes(dout)):
            row = load_first(dtable, C - j, ids[i], j) + load_first(dout, C - j, i, j)
            store_first(dtable, C - j, row, ids[i], j)
