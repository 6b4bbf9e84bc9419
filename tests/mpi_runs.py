"""Runs of several processes, for tests."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import everything

MPIEXEC = Path(sys.executable).parent / "mpiexec"
needs_mpi = pytest.mark.skipif(not MPIEXEC.exists(), reason="there is no mpiexec")
DIGITS = [
    "digits", "--examples=300", "--batch-size=24", "--accumulation-steps=2",
    "--shards=8", "--dropout=0.1", "--num-layers=1", "--embed-dim=32", "--ffn-dim=64",
]  # fmt: skip


def words_of(ranks: int, threads: int, *words: object) -> list[str]:
    """Return a command that so many processes run; 0 for one without a launcher."""
    launcher = [str(MPIEXEC), "--oversubscribe", "-n", str(ranks)] if ranks else []
    own = [sys.executable, "-m", "fastformer", "train", *map(str, words)]
    return [*launcher, *own, f"--threads={threads}"]


def environment() -> dict[str, str]:
    """Return variables with which a container's root may start several processes."""
    allowed = ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM")
    kept = {name: value for name, value in os.environ.items() if name != "NUMBA_NUM_THREADS"}
    return kept | dict.fromkeys(allowed, "1")


def run(ranks: int, threads: int, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words_of(ranks, threads, *words), capture_output=True, text=True, timeout=300,
        env=environment(),
    )  # fmt: skip


def without_place(run: Path) -> dict[str, object]:
    found = everything(run)
    found["result.json"] = {k: v for k, v in found["result.json"].items() if k != "run"}
    return found


def steps_of(run: Path) -> list[int]:
    """Return the steps whose checkpoints are there."""
    return [int(file.stem.split("-")[1]) for file in run.glob("checkpoints/step-*.safetensors")]


def wait_for_step(step: int, run: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a checkpoint of a step, or of a later one, is there."""
    deadline = time.monotonic() + 120
    while max(steps_of(run), default=0) < step:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
