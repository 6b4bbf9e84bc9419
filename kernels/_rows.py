"""How work on the rows of a matrix is cut, and how long sums are: by size, never by threads."""

import math

import numpy as np

from ._compile import kernel
from ._simd import select, splat, store_first

# Elements that make a task worth its start, and the most tasks (so also the most partial sums).
TASK_ELEMENTS = 4096
MOST_TASKS = 32
# Long sums are made of sums of so many terms: the error of a chain grows with its length, for what
# is added to a large sum again and again is rounded in one direction.
SUM_BLOCK = 16
# As many of those that the compiler adds up in chains of its own.
SCALAR_BLOCK = 512
# Registers of a row whose sums are a chain or two: blocks of shorter ones would take longer.
LONG_ROW = 64
# Of exponentials: a processor is so far ahead of them that the end of a block costs it 200 cycles.
# They are in four chains.
EXP_BLOCK = 256


def count_row_tasks(rows: int, columns: int) -> int:
    """Return the number of tasks for a matrix."""
    return max(1, min(MOST_TASKS, rows, rows * columns // TASK_ELEMENTS))


row_tasks = kernel(count_row_tasks)


@kernel
def sum_in_two(first, second):
    """Return the sum of two registers, and what its rounding left out, whichever is larger.

    Source: Knuth 1969, "The Art of Computer Programming", volume 2, section 4.2.2.
    """
    total = first + second
    part = total - first
    return total, (first - (total - part)) + (second - part)


@kernel
def add_block(total, left_out, block):
    """Return a sum of blocks with one more, and the sum of what roundings have left out of it."""
    total, more = sum_in_two(total, block)
    return total, left_out + more


@kernel
def whole_sum(total, left_out):
    """Return a sum that `add_block` made: where it is infinite, what was left out is NaN."""
    both = total + left_out
    return select(both < math.inf, both, total)


@kernel
def sum_in_float64(x):
    """Return the sum of an array of one axis, in float64, of blocks of elements."""
    result = np.zeros(1)
    total, left_out = splat(result, 0.0), splat(result, 0.0)
    for first in range(0, x.size, SCALAR_BLOCK):
        block = 0.0
        for i in range(first, min(x.size, first + SCALAR_BLOCK)):
            block += np.float64(x[i])
        total, left_out = add_block(total, left_out, splat(result, block))
    store_first(result, 1, whole_sum(total, left_out), 0)
    return result[0]
