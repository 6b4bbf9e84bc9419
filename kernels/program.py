"""The driver: one parallel region that runs a table of ops, and knows none of them by name.

A segment is a run of ops that a thread takes its part through without waiting: whole sequences
through all of them, or the tasks of a single op. A segment waits for those that wrote what it
reads, or still use what it writes; which these are is in the table. Threads take their own share of
a segment's tasks first, and go on with what others have not begun: see `_phases.py`.

Tables, int64:

    segments   a row for each: FIRST_OP, LAST_OP, TASKS, SHARDED, FIRST_WAIT, LAST_WAIT
    ops        a row for each: ADDRESS, RECORD, ROWS, TIMES, COST, EACH
    waits      numbers of the segments that are waited for
    words      a row for each number of a record: OFFSET + FACTOR * sizes[SIZE]
    sizes      of the batch, and numbers that change from run to run

So a table is made once, and serves all batches up to a capacity.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ._compile import BUILD, kernel, prange
from ._phases import end_task, new_progress, next_task, wait_for_phase
from ._rows import row_tasks
from ._simd import thread_count
from .op import INT64

FIRST_OP, LAST_OP, TASKS, SHARDED, FIRST_WAIT, LAST_WAIT = range(6)
# An op's machine code; where its record begins; which of the sizes its rows are (NO_SIZE: they are
# a number), how many times; elements of a row, or 0 where it counts its tasks itself; and whether
# it takes each shard by itself.
ADDRESS, RECORD, ROWS, TIMES, COST, EACH = range(6)
OFFSET, FACTOR, SIZE = range(3)
# The first sizes: NO_SIZE is 1, so that a number of rows, too, is so many times a size. BOUNDS is
# the number of sequences and one.
NO_SIZE, TOKENS, SEQUENCES, BOUNDS, LONGEST, SHARDS, GRAIN, FIRST_SEGMENT, LAST_SEGMENT = range(9)
FIRST_FREE_SIZE = 9
# The most shards of a batch: parts of which sums over sharded rows are made.
MOST_SHARDS = 64


@intrinsic
def _call_op(typingctx, scratches, address, record, index, first, last, threads, scratch):
    """Call an op by its address; `scratches` has the program's dtype."""
    kinds = (types.CPointer(scratches.dtype), *[types.int64] * 5)

    def generate(context, builder, signature, args):
        function = context.call_conv.get_function_type(types.int64, kinds)
        code = builder.inttoptr(args[1], function.as_pointer())
        own = builder.inttoptr(args[2], context.get_value_type(kinds[0]))
        given = [own, *args[3:]]
        status, result = context.call_conv.call_function(builder, code, types.int64, kinds, given)
        if BUILD == "checked":
            with cgutils.if_unlikely(builder, status.is_error):
                context.call_conv.return_status_propagate(builder, status)
        return result

    return types.int64(scratches, *[types.int64] * 7), generate


@intrinsic
def clock(typingctx):
    """Return the processor's counter of cycles."""

    def generate(context, builder, signature, args):
        kind = ir.FunctionType(INT64, [])
        counter = cgutils.get_or_insert_function(builder.module, kind, "llvm.readcyclecounter")
        return builder.call(counter, [])

    return types.int64(), generate


def shard_count(tokens: int, sequences: int, tokens_of_a_shard: int, most: int) -> int:
    """Return the number of shards of a batch: by its size, never by the number of threads."""
    shards = 1
    while 2 * shards <= min(most, sequences, tokens // tokens_of_a_shard):
        shards *= 2
    return shards


def first_sequence(shard: int, shards: int, offsets: Any) -> int:
    """Return the first sequence of a shard: shards have whole sequences and alike many tokens."""
    low, high = 0, offsets.size - 1
    before = offsets[high] * shard
    while low < high:
        middle = (low + high) // 2
        if offsets[middle] * shards < before:
            low = middle + 1
        else:
            high = middle
    return low


_first_sequence = kernel(first_sequence)


@kernel
def _row_of(shard, op, sizes, offsets):
    """Return the first row of an op that is cut by rows in a shard."""
    sequence = _first_sequence(shard, sizes[SHARDS], offsets)
    return (offsets[sequence] if op[ROWS] == TOKENS else sequence) * op[TIMES]


@kernel
def _call_part(op, record, sizes, first, last, tasks, sharded, threads, offsets, scratches, thread):
    """Call an op for a task of its own, or for shards first to last."""
    where = record.ctypes.data + 8 * op[RECORD]
    scratch = scratches.ctypes.data + thread * scratches.strides[0]
    if sharded:
        step = 1 if op[EACH] else last - first
        for shard in range(first, last, step):
            begin = _row_of(shard, op, sizes, offsets)
            end = _row_of(shard + step, op, sizes, offsets)
            _call_op(scratches, op[ADDRESS], where, shard, begin, end, threads, scratch)
    elif op[COST] > 0:
        rows = sizes[op[ROWS]] * op[TIMES]
        begin, end = rows * first // tasks, rows * last // tasks
        _call_op(scratches, op[ADDRESS], where, first, begin, end, threads, scratch)
    else:
        _call_op(scratches, op[ADDRESS], where, first, np.int64(-1), np.int64(-1), threads, scratch)


@kernel(once=True, allocates=False)
def _run_thread(
    thread, threads, segments, ops, waits, record, sizes, offsets, scratches, progress, clocks
):
    """Take tasks of each segment in turn, and wait for nothing but what it needs.

    Clocks: (threads, ops + segments), cycles of each op's work and each segment's waiting; or none.
    """
    begins, profiles, waiting = sizes[FIRST_SEGMENT], clocks.size > 0, ops.shape[0]
    for s in range(begins, sizes[LAST_SEGMENT]):
        start = clock() if profiles else 0
        for w in range(segments[s, FIRST_WAIT], segments[s, LAST_WAIT]):
            if waits[w] >= begins:
                wait_for_phase(progress, waits[w], segments[waits[w], TASKS], threads)
        if profiles:
            clocks[thread, waiting + s] += clock() - start
        tasks, sharded = segments[s, TASKS], segments[s, SHARDED]
        task = next_task(progress, s, tasks, thread, threads)
        while task >= 0:
            first, last = task, task + 1
            if sharded:
                first, last = sizes[SHARDS] * task // tasks, sizes[SHARDS] * (task + 1) // tasks
            for k in range(segments[s, FIRST_OP], segments[s, LAST_OP]):
                start = clock() if profiles else 0
                _call_part(
                    ops[k], record, sizes, first, last, tasks, sharded, threads, offsets, scratches,
                    thread,
                )  # fmt: skip
                if profiles:
                    clocks[thread, k] += clock() - start
            end_task(progress, s, threads)
            task = next_task(progress, s, tasks, thread, threads)


@kernel
def _count_tasks(segments, ops, record, sizes, scratches, threads):
    """Count the tasks of each segment that is run, and return the most."""
    most = 1
    for s in range(sizes[FIRST_SEGMENT], sizes[LAST_SEGMENT]):
        op = ops[segments[s, FIRST_OP]]
        if segments[s, SHARDED]:
            tasks = min(sizes[SHARDS], threads * sizes[GRAIN])
        elif op[COST] > 0:
            tasks = row_tasks(sizes[op[ROWS]] * op[TIMES], op[COST])
        else:
            where = record.ctypes.data + 8 * op[RECORD]
            none = np.int64(-1)
            tasks = _call_op(scratches, op[ADDRESS], where, none, none, none, threads, np.int64(0))
        segments[s, TASKS] = tasks
        most = max(most, tasks)
    return most


@kernel(parallel=True)
def run_program(segments, ops, waits, words, record, sizes, offsets, scratches, clocks):
    """Run the segments from sizes[FIRST_SEGMENT] up to sizes[LAST_SEGMENT].

    Args:
        segments, ops, waits, words, sizes: the tables; see the head of this file. TASKS of the
            segments are overwritten.
        record: int64, overwritten: what the words amount to.
        offsets: (B + 1,) int64, where the sequences of the batch begin.
        scratches: (threads or more, any) of the program's dtype, overwritten.
        clocks: (threads or more, ops + segments) int64, to which cycles are added; or (0, 0).
    Threads: tasks of each segment; ops are cut by sizes alone: bit-identical for any thread count.
    """
    for i in range(words.shape[0]):
        record[i] = words[i, OFFSET] + words[i, FACTOR] * sizes[words[i, SIZE]]
    threads = thread_count()
    most = _count_tasks(segments, ops, record, sizes, scratches, threads)
    progress = new_progress(segments.shape[0], threads)
    if most == 1:
        # No other thread is woken, which would take as long as the work.
        _run_thread(
            np.int64(0), threads, segments, ops, waits, record, sizes, offsets, scratches, progress,
            clocks,
        )  # fmt: skip
    else:
        for part in prange(threads):
            _run_thread(
                np.int64(part), threads, segments, ops, waits, record, sizes, offsets, scratches,
                progress, clocks,
            )  # fmt: skip


def run_program_reference(calls):
    """Compute what a program does in NumPy: the twins of its ops, in order.

    Args:
        calls: (op, operands) for each op.
    """
    for op, operands in calls:
        op.twin(*operands)
