"""Kernels called from several threads of Python and in forked processes, on each layer."""

import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from program import HANG, ROOT

from fastformer import thread_safety

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

def in_threads():
    found = []
    threads = [threading.Thread(target=lambda: found.append(work(200))) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return f"{len(found)} {set.union(*found)}"

if __name__ == "__main__":
    work()
    for way in sys.argv[1:]:
        print(in_threads() if way == "threads" else in_child(way), flush=True)
"""
LAYERS, WAYS = ("omp", "workqueue"), ("threads", "fork", "spawn", "forkserver")
RIGHT = f"{{{5000**0.5}}}"


@pytest.fixture(scope="module", params=LAYERS)
def answers(request, tmp_path_factory) -> tuple[str, dict[str, str]]:
    """Return a layer, and what a process that runs on it is answered in each way."""
    program = tmp_path_factory.mktemp("callers") / "callers_program.py"
    program.write_text(PROGRAM)
    places = {"PYTHONPATH": str(ROOT), "NUMBA_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(program), *WAYS],
        env=os.environ | places | {"NUMBA_THREADING_LAYER": request.param},
        **{"capture_output": True, "text": True, "timeout": HANG},
    )
    assert done.returncode == 0, done.stderr
    return request.param, dict(zip(WAYS, done.stdout.splitlines(), strict=True))


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_call_is_right_or_told(answers, way):
    layer, found = answers
    if way == "threads":
        assert found[way] == f"8 {RIGHT}"
    elif (layer, way) == ("omp", "fork"):
        assert found[way] in ("told: True", RIGHT)  # another OpenMP than GNU's may go on
    else:
        assert found[way] == RIGHT


def test_one_caller_waits_for_the_other():
    inside, most, together = [], [], threading.Barrier(8)

    def op(number):
        inside.append(number)
        most.append(len(inside))
        inside.remove(number)
        return number

    table = SimpleNamespace(name="numba", op=op)
    thread_safety._replace_ops(table, thread_safety.one_at_a_time)
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
