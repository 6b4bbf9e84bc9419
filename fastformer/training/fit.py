"""Training in one call, on examples that a person has."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import numpy.typing as npt

from fastformer import checks
from fastformer.batch import PackedBatch
from fastformer.errors import InvalidTypeError, InvalidValueError
from fastformer.models.decoder import TransformerDecoder
from fastformer.models.transformer import Transformer
from fastformer.training.callbacks import TrainingCallbacks
from fastformer.training.config import TrainingConfig
from fastformer.training.examples import Examples
from fastformer.training.followed_run import run_of_all_ranks
from fastformer.training.loop import Trainer, load_weights
from fastformer.training.run_directory import RunDirectory

Labelled: TypeAlias = tuple[PackedBatch, npt.ArrayLike]


def fit(
    model: Transformer | TransformerDecoder,
    train: Labelled,
    validation: Labelled,
    *,
    directory: str | Path | None = None,
    callbacks: TrainingCallbacks | None = None,
    class_weights: npt.ArrayLike | None = None,
    best_by: str | None = None,
    seed: int = 42,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Train a model, and leave it with the weights of its best epoch.

    Args:
        model: a classifier or a decoder; it is trained from the weights that it has.
        train, validation: sequences, and the class of each, (B,). Of a classifier with the pooling
            "none" the class of each token, (N,), and of a decoder what comes after each token,
            (N,). -1 where nothing is asked. Processes that mpiexec has started share each batch,
            and must be given the same.
        directory: where metrics and checkpoints are kept, a new run; nothing is kept without one.
        callbacks: is told of each step and epoch.
        class_weights: (V,) numbers >= 0, how much each class counts in the losses; None where all
            count alike.
        best_by: the best epoch has the highest validation "accuracy", or the lowest "loss"; None
            for the accuracy, but of a decoder, and with class weights, for the loss.
        seed: of the order of examples.
        settings: of the training, by the names of `TrainingConfig`: epochs, batch_size, optimizer,
            learning_rate, schedule, warmup_steps, clip_norm, patience and so on.

    Returns:
        A record for each epoch, as in a run's metrics.jsonl: epoch, step, train_loss,
        validation_loss, validation_accuracy, best and more.

    Raises:
        TypeError, ValueError: an argument that is not allowed; nothing is trained then.
        RunError: the directory is there already, or could not be written.
        TrainingInterrupted: a signal came; the model is as its last step left it.
        TrainingDivergedError: a loss or gradient that is not finite.
    """
    checks.instance("fit", "model", model, Transformer, TransformerDecoder)
    if callbacks is not None:
        checks.instance("fit", "callbacks", callbacks, TrainingCallbacks)
    checks.integer("seed", seed, 0)
    if best_by is not None:
        checks.choice("best_by", best_by, ("accuracy", "loss"))
    config = checks.from_settings(TrainingConfig, settings)
    weights, classes = None, model.config.num_logits
    if class_weights is not None:
        weights = checks.class_weights("class_weights", class_weights)
        if weights.size != classes:
            checks.fail(
                f"fit: class_weights must be ({classes},), one for each logit of a row, got "
                f"{weights.shape}"
            )
    parts = _examples("train", model, train), _examples("validation", model, validation)
    with _place(directory) as place, _run(place, {"training": asdict(config)}, directory) as run:
        told = callbacks or TrainingCallbacks()
        by_loss = isinstance(model, TransformerDecoder) or weights is not None
        by_loss = best_by == "loss" if best_by else by_loss
        trainer = Trainer(
            model, config, *parts, run, seed, told, best_by_loss=by_loss, class_weights=weights
        )
        model.recompute, model.memory_limit = config.recompute, config.memory_limit
        trainer.prepare()
        told.started(trainer.total_steps, 0, f"{model.num_parameters:,} parameters, seed {seed}")
        try:
            trainer.train()
        finally:
            told.finished()
            model.eval()
        load_weights(model, run.best())
        return run.read_metrics()


@contextlib.contextmanager
def _place(directory: str | Path | None) -> Iterator[Path]:
    """Give where a run is kept; without a directory one that is gone afterwards."""
    if directory is not None:
        yield Path(directory)
        return
    with tempfile.TemporaryDirectory(prefix="fastformer-") as made:
        yield Path(made) / "run"


def _run(
    place: Path, tables: dict[str, Any], directory: str | Path | None
) -> contextlib.AbstractContextManager[RunDirectory]:
    """Return a new run, which several processes share unless each has a place of its own."""
    run = RunDirectory.new(place, tables)
    return run if directory is None else run_of_all_ranks(place, run)


def _examples(name: str, model: Transformer | TransformerDecoder, given: Any) -> Examples:
    """Return examples that the model can be trained on."""
    if not isinstance(given, tuple) or len(given) != 2 or not isinstance(given[0], PackedBatch):
        raise InvalidTypeError(
            f"fit: {name} must be a pair (PackedBatch, targets), got {given!r:.80}; make the first "
            "with fastformer.pack(list of lists of ids)"
        )
    inputs, targets = given
    try:
        model.check(inputs)
        rows = model.rows_of(inputs)
        ids, _ = checks.target_ids(name, targets, rows, model.config.num_logits, -1)
    except (TypeError, ValueError) as error:
        kind = InvalidTypeError if isinstance(error, TypeError) else InvalidValueError
        own = "" if str(error).startswith(f"{name}:") else f"{name}: "
        raise kind(f"fit: {own}{error}") from error
    return Examples(inputs, ids)
