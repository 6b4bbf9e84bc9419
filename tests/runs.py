"""Small runs of the digit task, and what is compared of them, for tests."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numba
import pytest

from fastformer.data import DigitTask
from fastformer.models.config import TransformerConfig
from fastformer.training.callbacks import TrainingCallbacks
from fastformer.training.checkpoint import load_checkpoint
from fastformer.training.config import TrainingConfig
from fastformer.training.digits_run import RunSettings

TIMES = ("seconds", "examples_per_second", "tokens_per_second")
SIZES: dict[str, Any] = {"embed_dim": 16, "num_heads": 2, "num_layers": 1, "ffn_dim": 32}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Run small models on one thread: they gain nothing from more, and lose where CPUs are busy."""
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    yield
    numba.set_num_threads(before)


def small_settings(dropout: float = 0.0, examples: int = 400, **options: Any) -> RunSettings:
    """Return the settings of a run with 318 training examples, 10 batches, that takes a moment."""
    own = {
        name: options.pop(name)
        for name in ("seed", "backend", "dtype", "precision")
        if name in options
    }
    return RunSettings(
        task=DigitTask(examples=examples),
        model=TransformerConfig(vocab_size=20, dropout=dropout, **SIZES),
        training=TrainingConfig(**{"epochs": 3, "learning_rate": 0.01, **options}),
        **own,
    )


class Recorder(TrainingCallbacks):
    """Keeps all that it is told."""

    def __init__(self) -> None:
        self.starts: list[tuple[int, int, str]] = []
        self.steps: list[tuple[int, float, float, int]] = []
        self.records: list[dict[str, Any]] = []
        self.messages: list[str] = []
        self.ends = 0

    def started(self, total_steps: int, first_step: int, description: str) -> None:
        self.starts.append((total_steps, first_step, description))

    def stepped(self, step: int, loss: float, learning_rate: float, examples: int) -> None:
        self.steps.append((step, loss, learning_rate, examples))

    def epoch_finished(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def message(self, text: str) -> None:
        self.messages.append(text)

    def finished(self) -> None:
        self.ends += 1


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    """Return a metrics record or a result without what differs from run to run."""
    return {name: value for name, value in record.items() if name not in (*TIMES, "run")}


def everything(run: Path) -> dict[str, Any]:
    """Return all that a run holds, bit for bit, apart from times."""
    found: dict[str, Any] = {"config.toml": (run / "config.toml").read_text()}
    lines = (run / "metrics.jsonl").read_text().splitlines()
    found["metrics.jsonl"] = [without_times(json.loads(line)) for line in lines]
    result = run / "result.json"
    found["result.json"] = without_times(json.loads(result.read_text())) if result.exists() else {}
    for path in sorted((run / "checkpoints").iterdir()):
        checkpoint = load_checkpoint(path)
        found[path.name] = (
            checkpoint.metadata,
            {
                name: (array.dtype.str, array.shape, array.tobytes())
                for name, array in checkpoint.tensors.items()
            },
        )
    return found


def weights_digest(checkpoint: Path) -> str:
    """Return the SHA-256 of a checkpoint's weights: all but the optimizer's state."""
    digest = hashlib.sha256()
    for name, array in sorted(load_checkpoint(checkpoint).tensors.items()):
        if not name.startswith("optimizer."):
            digest.update(name.encode() + array.tobytes())
    return digest.hexdigest()


def tree(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of each file below a directory, and the names of all directories."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "directory"
        for path in sorted(directory.rglob("*"))
    }
