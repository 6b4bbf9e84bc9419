"""Train a run, ask and evaluate it, and print which kernels were compiled after training began.

A program of its own, for a kernel is compiled, or loaded from disk, once in a process.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from numba.core import event

from fastformer.analysis.loading import load_run
from fastformer.analysis.run_evaluation import evaluate_run
from fastformer.training.callbacks import TrainingCallbacks
from fastformer.training.runs import settings_from, train_run


class Watcher(TrainingCallbacks):
    """Records what numba compiles or loads, from the line above the table on."""

    def __init__(self) -> None:
        self.recorder: Any = event.RecordingListener()
        self.steps = 0

    def started(self, total_steps: int, first_step: int, description: str) -> None:
        event.register("numba:compiler_lock", self.recorder)

    def stepped(self, step: int, loss: float, learning_rate: float, examples: int) -> None:
        self.steps = step


for tables in json.loads(sys.stdin.read()):
    watcher = Watcher()
    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "run"
        train_run(settings_from(tables), run, watcher)
        predictor = load_run(run).predictor
        predictor.predict(predictor.example)
        evaluate_run(run)
    event.unregister("numba:compiler_lock", watcher.recorder)
    late = sum(one.is_start for _, one in watcher.recorder.buffer)
    print(json.dumps({"steps": watcher.steps, "late": late}))
