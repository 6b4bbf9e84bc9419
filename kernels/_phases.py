"""Phases of work in one parallel region: threads take the tasks of each, and wait for its end.

Each thread begins with its own share of a phase, which it has read or written before, and goes on
with what others have not begun. So one that other programs hold up is helped; and where fewer
threads run than there should, one after the other, the first one does everything, and nobody waits.
"""

import numpy as np

from ._compile import kernel
from ._simd import fetch_add, load_fresh, yield_core

# Numbers that are counted by different threads are so far apart, in elements: two cache lines.
APART = 16
# Looks at what others do, before a thread that waits lets other programs have its core.
LOOKS = 2000


@kernel
def new_progress(phases, threads):
    """Return the counters of a region: for each phase, tasks taken of each share, and finished."""
    return np.zeros(phases * (threads + 1) * APART, np.int64)


@kernel
def next_task(progress, phase, tasks, thread, threads):
    """Return a task of a phase that nobody has taken, or -1 where there is none."""
    for turn in range(threads):
        share = (thread + turn) % threads
        first, last = tasks * share // threads, tasks * (share + 1) // threads
        place = (phase * (threads + 1) + share) * APART
        if first + load_fresh(progress, place) < last:
            task = first + fetch_add(progress, place, 1)
            if task < last:
                return task
    return -1


@kernel
def end_task(progress, phase, threads):
    """Say that a task is finished, and what it wrote can be read."""
    fetch_add(progress, (phase * (threads + 1) + threads) * APART, 1)


@kernel
def wait_for_phase(progress, phase, tasks, threads):
    """Wait until all tasks of a phase are finished."""
    looks = 0
    while load_fresh(progress, (phase * (threads + 1) + threads) * APART) < tasks:
        looks += 1
        if looks > LOOKS:
            yield_core()
