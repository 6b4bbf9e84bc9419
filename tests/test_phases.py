"""Phases of tasks in one parallel region."""

import os

import numba
import numpy as np
import pytest
from twins import called

from fastformer.kernels import _phases
from fastformer.kernels._compile import BUILD, kernel, prange
from fastformer.kernels._simd import load_fresh, thread_count

next_task = called(_phases.next_task)
PHASES, TASKS = 40, 50


@kernel
def take_turns(thread, threads, progress, waits, looks, values, turns):
    """In each phase, make each element of the sum of its neighbours in the phase before."""
    for phase in range(1, PHASES):
        task = _phases.next_task(progress, phase, TASKS, thread, threads)
        while task >= 0:
            turns[phase, task] += 1
            for _ in range(looks):  # so that a task takes its time
                load_fresh(progress, 0)
            left, right = values[phase - 1, task - 1], values[phase - 1, (task + 1) % TASKS]
            values[phase, task] = (left + right) % 1_000_003
            _phases.end_task(progress, phase, threads)
            task = _phases.next_task(progress, phase, TASKS, thread, threads)
        if waits:
            _phases.wait_for_phase(progress, phase, TASKS, threads)


@kernel(parallel=True)
def in_phases(waits, looks, values, turns):
    threads = thread_count()
    progress = _phases.new_progress(PHASES, threads)
    for thread in prange(threads):
        take_turns(np.int64(thread), threads, progress, waits, looks, values, turns)


def run(waits=True, looks=0):
    values, turns = np.zeros((2, PHASES, TASKS), np.int64)
    values[0] = np.arange(TASKS)
    in_phases(waits, looks, values, turns)
    return values, turns


def expected():
    values = [np.arange(TASKS)]
    for _ in range(1, PHASES):
        values.append((np.roll(values[-1], 1) + np.roll(values[-1], -1)) % 1_000_003)
    return np.array(values)


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_each_task_is_done_once_and_after_all_of_the_phase_before(threads):
    """With more threads than cores, too."""
    if BUILD == "production":
        numba.set_num_threads(threads)
    for _ in range(50):
        values, turns = run()
        np.testing.assert_array_equal(turns[1:], 1)
        np.testing.assert_array_equal(values, expected())


@pytest.mark.skipif(BUILD != "production", reason="another build has no threads")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one thread at a time waits for nobody")
def test_threads_that_do_not_wait_are_noticed():
    """With tasks so long that threads meet on a busy machine too, where they have turns."""
    numba.set_num_threads(2)
    found = (run(waits=False, looks=20_000)[0] != expected() for _ in range(500))
    assert any(wrong.any() for wrong in found)


def test_a_thread_begins_with_its_share_and_goes_on_with_others():
    progress = _phases.new_progress(1, 3) if BUILD == "python" else np.zeros(200, np.int64)
    taken = [next_task(progress, 0, 7, 1, 3) for _ in range(9)]
    assert taken == [2, 3, 4, 5, 6, 0, 1, -1, -1]
