"""A run from where it stands to its result: train, test the best weights, write what came out."""

import time
from collections.abc import Callable
from typing import Any, Final

from fastformer import checks
from fastformer.errors import RunError
from fastformer.training.checkpoint import Checkpoint
from fastformer.training.json_text import LARGEST, number_in
from fastformer.training.loop import Trainer

_COUNTS: Final = ("test_examples", "steps", "epochs", "best_epoch", "parameters", "seed")
_NUMBERS: Final = ("test_accuracy", "test_loss", "seconds", "examples_per_second")
_TEXTS: Final = ("backend", "run")
RESULT_NAMES: Final = frozenset({*_COUNTS, *_NUMBERS, *_TEXTS, "per_operation"})
"""What a result has."""


def checked_result(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result if it is one of `train_to_the_end`.

    Raises:
        RunError: something is missing, unknown or of another kind.
    """
    try:
        checks.known_keys("a result", result, RESULT_NAMES)
        for name in _COUNTS:
            checks.integer(name, result[name], int(name == "test_examples"))
        for name in _NUMBERS:
            checks.number(name, result[name], at_least=0, at_most=LARGEST)
        for name in _TEXTS:
            checks.instance("a result", name, result[name], str)
        checks.instance("a result", "per_operation", result["per_operation"], dict)
        shares = {"test_accuracy": result["test_accuracy"], **result["per_operation"]}
        for name, share in shares.items():
            checks.number(f"accuracy of {name}", share, at_least=0, at_most=1)
        if len(shares) == 1:
            checks.fail("per_operation is empty")
    except (KeyError, TypeError, ValueError) as error:
        problem = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise RunError(
            f"result.json does not hold the result of a run: {problem}; remove it, and evaluate "
            "the run anew"
        ) from error
    return result


def finished_result(trainer: Trainer) -> dict[str, Any] | None:
    """Return the result of a run that has ended, if it has one that can be read."""
    if not trainer.ended:
        return None
    trainer.observer.message(
        f"run {trainer.run.path} has ended after epoch {trainer.progress.epoch}: nothing is left "
        "to train; for more epochs start a new run"
    )
    try:
        return checked_result(trainer.run.read_result())
    except RunError:
        return None


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
    times = [number_in(record.get("seconds")) for record in records]
    rates = [number_in(record.get("examples_per_second")) for record in records]
    known = [(t, rate) for t, rate in zip(times, rates, strict=True) if t >= 0 and rate >= 0]
    seconds, seen = sum(t for t, _ in known), sum(t * rate for t, rate in known)
    result = {
        **test(run.best()),
        "steps": trainer.progress.step,
        "epochs": trainer.progress.epoch,
        "seconds": trained if first_step == 0 else seconds,
        # Without records, of a run whose file was lost or changed, there is nothing to divide by.
        "examples_per_second": seen / seconds if seconds else 0.0,
        "best_epoch": trainer.tracker.best_epoch,
        "parameters": model.num_parameters,
        "backend": model.ops.name,
        "seed": trainer.seed,
        "run": str(run.path),
    }
    run.write_result(result)
    return result
