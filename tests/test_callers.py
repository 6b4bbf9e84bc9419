"""Kernels called from several threads of Python and in forked processes, on each layer."""

import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from program import HANG, ROOT

from fastformer import callers

PROGRAM = """
import multiprocessing, sys, threading
import numpy as np
from fastformer.backend import get_backend
from fastformer.errors import ForkedProcessError

def work(times=20):
    ops, x = get_backend("numba"), np.ones(5000, np.float32)
    return {float(ops.gradient_norm(x)) for _ in range(times)}

def in_child(method):
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    process = context.Process(target=answer, args=(queue,))
    process.start()
    process.join(120)
    return queue.get() if process.exitcode == 0 else process.exitcode

def answer(queue):
    try:
        queue.put(work())
    except ForkedProcessError as error:
        queue.put(f"told: {'spawn' in str(error)}")

if __name__ == "__main__":
    work()
    found = []
    if sys.argv[1] == "threads":
        threads = [threading.Thread(target=lambda: found.append(work(200))) for _ in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        print(len(found), set.union(*found))
    else:
        print(in_child(sys.argv[1]))
"""
RIGHT = f"{{{5000**0.5}}}"


def call(tmp_path, layer: str, how: str) -> subprocess.CompletedProcess[str]:
    program = tmp_path / "callers_program.py"
    program.write_text(PROGRAM)
    places = {"PYTHONPATH": str(ROOT), "NUMBA_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
    return subprocess.run(
        [sys.executable, "-W", "ignore", str(program), how],
        env=os.environ | places | {"NUMBA_THREADING_LAYER": layer},
        **{"capture_output": True, "text": True, "timeout": HANG},
    )


@pytest.mark.parametrize("layer", ["omp", "workqueue"])
@pytest.mark.parametrize("how", ["threads", "fork", "spawn", "forkserver"])
def test_every_way_to_call_is_right_or_told(tmp_path, layer, how):
    done = call(tmp_path, layer, how)
    assert done.returncode == 0, done.stderr
    if how == "threads":
        assert done.stdout.strip() == f"8 {RIGHT}"
    elif (layer, how) == ("omp", "fork"):
        assert done.stdout.strip() in ("told: True", RIGHT)  # another OpenMP than GNU's may go on
    else:
        assert done.stdout.strip() == RIGHT


def test_one_caller_waits_for_the_other():
    inside, most, together = [], [], threading.Barrier(8)

    def op(number):
        inside.append(number)
        most.append(len(inside))
        inside.remove(number)
        return number

    table = SimpleNamespace(name="numba", op=op)
    callers._replace_ops(table, callers.one_at_a_time)
    assert table.name == "numba"

    def run(number):
        together.wait()
        for _ in range(200):
            assert table.op(number) == number

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(most), max(most)) == (1600, 1)
