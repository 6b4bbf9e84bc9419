"""A run from where it stands to its result: train, test the best weights, write what came out."""

import time
from collections.abc import Callable
from typing import Any, Final

from fastformer.errors import RunError
from fastformer.training.checkpoint import Checkpoint
from fastformer.training.loop import Trainer

RESULT_NAMES: Final = frozenset(
    "test_accuracy test_loss test_examples per_operation steps epochs seconds examples_per_second "
    "best_epoch parameters backend seed run".split()
)
"""What a result has."""


def finished_result(trainer: Trainer) -> dict[str, Any] | None:
    """Return the result of a run that has ended, if it has one that can be read."""
    if not trainer.ended:
        return None
    trainer.observer.message(
        f"run {trainer.run.path} has ended after epoch {trainer.progress.epoch}: nothing is left "
        "to train; for more epochs start a new run"
    )
    try:
        result = trainer.run.read_result()
    except RunError:
        return None
    return result if result.keys() == RESULT_NAMES else None


def train_to_the_end(
    trainer: Trainer, description: str, test: Callable[[Checkpoint], dict[str, Any]]
) -> dict[str, Any]:
    """Train what is left, test the best weights, and write the result.

    Args:
        trainer: from the beginning, or restored.    description: what is trained, in a line.
        test: takes the best checkpoint, and returns its scores.

    Returns:
        The scores, and steps, epochs, seconds, examples_per_second, best_epoch, parameters,
        backend, seed, run.

    Raises:
        TrainingInterrupted: a signal came; the run is saved.
    """
    model, run, observer = trainer.model, trainer.run, trainer.observer
    observer.started(trainer.total_steps, trainer.progress.step, description)
    started, first_step = time.perf_counter(), trainer.progress.step
    try:
        trainer.train()
    finally:
        observer.finished()
    trained = time.perf_counter() - started
    records = run.read_metrics()
    seconds = sum(record["seconds"] for record in records)
    seen = sum(record["examples_per_second"] * record["seconds"] for record in records)
    result = {
        **test(run.best()),
        "steps": trainer.progress.step,
        "epochs": trainer.progress.epoch,
        "seconds": trained if first_step == 0 else seconds,
        # Without records, of a run whose file was lost, there is nothing to divide by.
        "examples_per_second": seen / seconds if seconds else 0.0,
        "best_epoch": trainer.tracker.best_epoch,
        "parameters": model.num_parameters,
        "backend": model.ops.name,
        "seed": trainer.seed,
        "run": str(run.path),
    }
    run.write_result(result)
    return result
