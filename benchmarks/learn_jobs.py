"""How long it takes to learn the digit task: P13."""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.steppers import build, load_data
from fastformer.bench.stepper import Array, Stepper
from fastformer.bench.workloads import WORKLOADS
from fastformer.data.batches import batch_order
from fastformer.data.digits import DigitExamples, DigitTask, generate, split
from fastformer.errors import InvalidValueError

TARGET_ACCURACY = 0.99
BATCH_SIZE = 32
MOST_EPOCHS = 8


class _Learned(Exception):
    """The validation accuracy is reached."""


def _ours(task: DigitTask, seed: int) -> dict[str, Any]:
    """Train as `fastformer train` does, run directory and all, until the accuracy is reached."""
    from fastformer.models.config import TransformerConfig
    from fastformer.training.callbacks import TrainingCallbacks
    from fastformer.training.config import TrainingConfig
    from fastformer.training.digits_run import RunSettings
    from fastformer.training.runs import train_run

    class Clock(TrainingCallbacks):
        first = 0.0
        seconds = float("inf")
        steps = 0

        def stepped(self, step: int, loss: float, learning_rate: float, examples: int) -> None:
            self.first = self.first or time.perf_counter()

        def epoch_finished(self, record: dict[str, Any]) -> None:
            if record["validation_accuracy"] >= TARGET_ACCURACY:
                self.seconds = time.perf_counter() - self.first
                self.steps = record["step"]
                raise _Learned

    clock = Clock()
    model = TransformerConfig(vocab_size=WORKLOADS["P2"].V)
    settings = RunSettings(task=task, model=model, training=TrainingConfig(), seed=seed)
    with tempfile.TemporaryDirectory() as directory:
        try:
            train_run(settings, Path(directory) / "run", clock)
        except _Learned:
            pass
    return {"seconds": clock.seconds, "steps": clock.steps}


def _batches(examples: DigitExamples, seed: int, epoch: int) -> list[tuple[Array, Array]]:
    """Return the batches that fastformer's loop makes of an epoch, as (B, T) arrays."""
    inputs, order = np.array(examples.inputs), batch_order(len(examples), seed, epoch)
    parts = [order[i : i + BATCH_SIZE] for i in range(0, order.size, BATCH_SIZE)]
    return [(inputs[part], examples.targets[part]) for part in parts]


def _peer(system: str, task: DigitTask, seed: int, weights: str) -> dict[str, Any]:
    """Train another system on the same batches, with the same weights and validation."""
    splits = split(generate(task, seed), task, seed)
    validation = np.array(splits.validation.inputs)
    start = load_data(weights)
    first_epoch = _batches(splits.train, seed, 0)
    # Whatever is compiled, for a whole batch and for the last one, is compiled before the clock.
    trial = build(system, WORKLOADS["P2"], start)
    for batch in (first_epoch[0], first_epoch[-1]):
        trial.loss(trial.train(trial.prepare(*batch)))
    _accuracy(trial, validation, splits.validation.targets)
    stepper, begin, steps = build(system, WORKLOADS["P2"], start), 0.0, 0
    for epoch in range(MOST_EPOCHS):
        for batch in first_epoch if epoch == 0 else _batches(splits.train, seed, epoch):
            stepper.loss(stepper.train(stepper.prepare(*batch)))
            begin = begin or time.perf_counter()
            steps += 1
        if _accuracy(stepper, validation, splits.validation.targets) >= TARGET_ACCURACY:
            return {"seconds": time.perf_counter() - begin, "steps": steps}
    return {"seconds": float("inf"), "steps": steps}


def _accuracy(stepper: Stepper, inputs: Array, targets: Array) -> float:
    """Return the share of right answers."""
    if stepper.predict is None:
        raise InvalidValueError("this system does not predict")
    return float(np.mean(stepper.predict(inputs) == targets))


def time_to_learn(system: str, seed: int, weights: str) -> dict[str, Any]:
    """Train on the digit task of 10,000 examples until 99 % of unseen inputs are right.

    Args:
        system: fastformer trains as its users do; peers on its batches, with its initial weights.
        seed: of examples, split and order.    weights: the file with the seed's initial weights.

    Returns:
        seconds: from the first step to the end of the epoch whose validation reaches it;
        infinity where none does. steps: until then.
    """
    task = DigitTask()
    return _ours(task, seed) if system == "numba" else _peer(system, task, seed, weights)
