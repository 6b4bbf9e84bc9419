"""The rows on determinism: the same bits for any threads, process, and place to go on from."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from program import HANG, ROOT
from runs import Recorder, everything, small_settings

from fastformer.training.run_directory import RunDirectory
from fastformer.training.runs import resume_run, train_run
from tests.scorecard.files import MEMORY
from tests.scorecard.rows import Finding, Row, Tier

THREADS = (1, 2, 3, 4, 5, 7, 8, 16)
LAYERS = ("omp", "workqueue")
EPOCHS = 4  # of 50 steps each
PROCESSES: dict[Tier, int] = {"fast": 10, "nightly": 50}


def child(*arguments: object, **environment: str) -> dict[str, Any]:
    """Train in a new process; see `training_child`."""
    places = {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.scorecard.training_child", *map(str, arguments)],
        env=os.environ | places | environment,
        **{"cwd": ROOT, "capture_output": True, "text": True, "timeout": HANG},
    )
    if done.returncode != 0:
        raise RuntimeError(f"{done.args} ended with {done.returncode}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def finding(found: dict[str, dict[str, Any]], planted: list[bool]) -> Finding:
    """Count the runs, by what tells them apart, whose digest is that of the first."""
    digests = [one["digest"] for one in found.values()]
    others = tuple(f"{name}: another hash" for name in found if found[name]["digest"] != digests[0])
    steps = found[next(iter(found))]["steps"]
    count = f"{len(set(digests))} hash of {len(digests)} runs of {steps} steps"
    held = len(digests) - len(others)
    return Finding(held, len(digests), sum(planted), len(planted), count, others[:10])


def on_threads(layer: str, threads: int, *fault: str, epochs: int = EPOCHS) -> dict[str, Any]:
    """Train on so many threads of a layer, and see to it that it was so."""
    found = child(42, epochs, *fault, NUMBA_NUM_THREADS=str(threads), NUMBA_THREADING_LAYER=layer)
    if (found["layer"], found["threads"]) != (layer, threads):
        raise RuntimeError(f"asked for {threads} threads of {layer}, got {found}")
    return found


def measure_threads(
    tier: Tier, layers: tuple[str, ...] = LAYERS, counts: tuple[int, ...] = THREADS
) -> Finding:
    """B1: each number of threads on each layer. Planted: a sum that is cut by the threads."""
    asked = [(layer, threads) for layer in layers for threads in counts]
    with ThreadPoolExecutor(2) as pool:
        ran = list(pool.map(lambda pair: on_threads(*pair), asked))
        planted = [("omp", threads, "chunks-of-threads") for threads in (1, 1, 3)]
        one, same, other = (
            found["digest"] for found in pool.map(lambda given: on_threads(*given), planted)
        )
    found = {f"{pair[1]} threads of {pair[0]}": run for pair, run in zip(asked, ran, strict=True)}
    return finding(found, [one == same != other])


def process(number: int, cold: str | None, *fault: str, epochs: int = EPOCHS) -> dict[str, Any]:
    """Train in a process whose stack, heap, hashes and compiled kernels are its own."""
    # Padding shifts the process's stack, and arenas its heap.
    noise = {"PADDING": "x" * (number * 97 % 4096), "MALLOC_ARENA_MAX": str(1 + number % 4)}
    noise |= {"FASTFORMER_CACHE_DIR": cold} if cold else {}
    return child(42, epochs, *fault, PYTHONHASHSEED=str(number), NUMBA_NUM_THREADS="1", **noise)


def measure_processes(tier: Tier, count: int | None = None) -> Finding:
    """B2: fresh processes, the first with an empty cache. Planted: the order of a set of words."""
    numbers = range(count or PROCESSES[tier])
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(2) as pool:
        ran = list(pool.map(lambda number: process(number, None if number else name), numbers))
    found = {f"process {number}": one for number, one in zip(numbers, ran, strict=True)}
    faulty = {process(number, None, "order-of-hashes")["digest"] for number in range(3)}
    return finding(found, [len(faulty) > 1])


class Copier(Recorder):
    """Keeps a copy of the run after each step, once its checkpoint is there."""

    def __init__(self, run: Path, copies: Path) -> None:
        super().__init__()
        self.run, self.copies = run, copies

    def stepped(self, step: int, loss: float, learning_rate: float, examples: int) -> None:
        if step > 1:  # the checkpoint of this step is written after this call
            shutil.copytree(self.run, self.copies / str(step - 1))


def resumed_equals(copy: Path, expected: dict[str, object]) -> bool:
    """Go on with a run and tell whether it ends with the bits that are expected."""
    resume_run(copy, Recorder())
    return everything(copy) == expected


def forget_moments(copy: Path) -> None:
    """Plant a fault: a checkpoint whose moments are zero."""
    run = RunDirectory.open(copy)
    latest = run.latest()
    tensors = {
        name: array * 0 if name.startswith("optimizer.") else array
        for name, array in latest.tensors.items()
    }
    run.save_step(latest.metadata["progress"]["step"], tensors, latest.metadata)


def forget_batch(copy: Path) -> None:
    """Plant a fault: a checkpoint that takes its batch for the one before."""
    run = RunDirectory.open(copy)
    latest = run.latest()
    progress = latest.metadata["progress"]
    before = {"batch": progress["batch"] - 1, "step": progress["step"] - 1}
    metadata = latest.metadata | {"progress": progress | before}
    run.save_step(metadata["progress"]["step"], latest.tensors, metadata)


FAULTS: tuple[Callable[[Path], None], ...] = (forget_moments, forget_batch)


def measure_resume(tier: Tier, epochs: int = 20) -> Finding:
    """B4: go on from every step. Planted: moments or the place in the epoch forgotten."""
    import numba

    numba.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        whole, copies = Path(name) / "whole", Path(name) / "copies"
        copies.mkdir()
        settings = small_settings(epochs=epochs, checkpoint_every=1, dropout=0.1)
        train_run(settings, whole, Copier(whole, copies))
        expected = everything(whole)
        steps = sorted(int(path.name) for path in copies.iterdir())
        planted = 0
        for fault in FAULTS:
            faulty = Path(name) / fault.__name__
            shutil.copytree(copies / str(steps[len(steps) // 2 + 3]), faulty)
            fault(faulty)
            planted += not resumed_equals(faulty, expected)
        held = [resumed_equals(copies / str(step), expected) for step in steps]
    failures = tuple(f"step {step}" for step, one in zip(steps, held, strict=True) if not one)
    return Finding(sum(held), len(held), planted, len(FAULTS), failures=failures[:5])


ROWS = (
    Row(
        "B1",
        "the same bits for 1 to 16 threads, on the omp and workqueue layers",
        "1 hash",
        measure_threads,
        alone=True,
    ),
    Row(
        "B2",
        "the same bits in fresh processes, with other hashes, heaps and a cold cache",
        "1 hash of 10, nightly of 50",
        measure_processes,
        alone=True,
    ),
    Row("B4", "a run goes on from every step with the same bits", "199 of 199", measure_resume),
)
