"""The rows on determinism: the same bits for any threads, process, and place to go on from."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from program import ROOT
from runs import Recorder, everything, small_settings

from fastformer.training.digits_run import resume_digits, train_digits
from fastformer.training.run_directory import RunDirectory
from tests.scorecard.rows import Finding, Row, Tier

# Where there is one, a file system in memory: forcing thousands of files to disk takes minutes.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

OPTIONS = (
    "--examples 400 --embed-dim 16 --num-heads 2 --num-layers 1 --ffn-dim 32 --epochs 20 "
    "--dropout 0.1"
).split()
THREADS = (1, 2, 3, 4, 5, 7, 8, 16)


def run_digest(number: int, seed: int = 42, **environment: str) -> str:
    """Train 200 steps in a new process; return the SHA-256 of weights and moments."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        command = [sys.executable, "-m", "fastformer", "train", "--out", f"{name}/run", *OPTIONS]
        # Padding shifts the process's stack, and arenas its heap.
        noise = {"PADDING": "x" * (number * 97 % 4096), "MALLOC_ARENA_MAX": str(1 + number % 4)}
        places = {
            "PYTHONPATH": str(ROOT),
            "PYTHONHASHSEED": str(number),
            "OMP_WAIT_POLICY": "passive",
        }
        subprocess.run(
            [*command, "--seed", str(seed)],
            env=os.environ | places | noise | environment,
            **{"check": True, "capture_output": True, "timeout": 300},
        )
        saved = Path(f"{name}/run/checkpoints/step-00000200.safetensors")
        return hashlib.sha256(saved.read_bytes()).hexdigest()


def finding(digests: list[str], other: str) -> Finding:
    """Count the digests that equal the first, and the planted one that must not."""
    held = sum(digest == digests[0] for digest in digests)
    return Finding(held, len(digests), int(other != digests[0]), 1, f"{len(set(digests))} hash")


def measure_threads(tier: Tier) -> Finding:
    """B1: each number of threads on each layer. Planted: another seed."""
    digests = [
        run_digest(0, NUMBA_NUM_THREADS=str(threads), NUMBA_THREADING_LAYER=layer)
        for layer in ("omp", "workqueue")
        for threads in THREADS
    ]
    return finding(digests, run_digest(0, seed=43, NUMBA_NUM_THREADS="1"))


def measure_processes(tier: Tier) -> Finding:
    """B2: fresh processes with other hashes and heaps. Planted: another seed."""
    count = 50 if tier == "fast" else 200
    with ThreadPoolExecutor(2) as pool:
        digests = list(
            pool.map(lambda number: run_digest(number, NUMBA_NUM_THREADS="1"), range(count))
        )
    return finding(digests, run_digest(0, seed=43, NUMBA_NUM_THREADS="1"))


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
    resume_digits(copy, Recorder())
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
    """Plant a fault: a checkpoint that begins its epoch again."""
    run = RunDirectory.open(copy)
    latest = run.latest()
    metadata = latest.metadata | {"progress": latest.metadata["progress"] | {"batch": 0}}
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
        train_digits(settings, whole, Copier(whole, copies))
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
    ),
    Row("B2", "the same bits in fresh processes", "1 hash of 50", measure_processes),
    Row("B4", "a run goes on from every step with the same bits", "199 of 199", measure_resume),
)
