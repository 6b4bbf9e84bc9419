"""Runs of every kind: which kind one is, training, going on."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

from fastformer import checks
from fastformer.errors import RunError
from fastformer.models.decoder import TransformerDecoder
from fastformer.models.transformer import Transformer
from fastformer.training.answered_run import AnsweredSettings
from fastformer.training.answers_run import AnswerJob, AnswerSettings
from fastformer.training.callbacks import TrainingCallbacks
from fastformer.training.checkpoint import Checkpoint
from fastformer.training.classifier_run import ClassifierJob
from fastformer.training.digits_run import RunSettings
from fastformer.training.labelled_run import LabelledJob, LabelledSettings
from fastformer.training.loop import load_weights
from fastformer.training.run_directory import RunDirectory
from fastformer.training.settings import settings_errors
from fastformer.training.split_run import SplitJob
from fastformer.training.text_run import TextJob, TextSettings
from fastformer.training.whole_run import Job, go_on, train_new

AnySettings: TypeAlias = (
    RunSettings | LabelledSettings | AnswerSettings | AnsweredSettings | TextSettings
)
_JOBS: Final[dict[type[Any], Callable[[Any], Job]]] = {
    RunSettings: ClassifierJob,
    LabelledSettings: LabelledJob,
    AnswerSettings: AnswerJob,
    AnsweredSettings: SplitJob,
}
_SETTINGS: Final[tuple[type[Any], ...]] = (*_JOBS, TextSettings)
_KINDS: Final = {kind.kind: kind for kind in _SETTINGS}


def settings_from(
    tables: Mapping[str, Mapping[str, Any]], directory: Path | None = None
) -> AnySettings:
    """Return the settings of any kind that tables hold.

    Args, raises: as of `Settings.from_tables`.
    """
    kind = tables["run"]["kind"]
    checks.choice("kind", kind, tuple(_KINDS))
    found: AnySettings = _KINDS[kind].from_tables(tables, directory)
    return found


def settings_of(run: RunDirectory) -> AnySettings:
    """Read the settings of a run of any kind.

    Raises:
        RunError: they are missing, unknown or not allowed, or `fastformer.fit` has made the run.
    """
    if [*run.config] == ["training"]:
        raise RunError(
            f"{run.path} was made by fastformer.fit, which keeps no settings of the model: save "
            "the model that it leaves with model.save(path), and load that file"
        )
    with settings_errors(run):
        return settings_from(run.config, run.path)


def best_model(
    run: RunDirectory, settings: AnySettings
) -> tuple[Transformer | TransformerDecoder, Checkpoint]:
    """Return the model with the weights of the best epoch, and where they are from.

    It has its run's tokenizer, and the names of its classes, where there are such.

    Raises:
        RunError: the run has no checkpoint yet, or one that is damaged.
    """
    checkpoint = run.best()
    settings.check_sizes(checkpoint)
    model = settings.new_model()
    load_weights(model, checkpoint)
    model.tokenizer = settings.tokenizer
    if isinstance(settings, LabelledSettings):
        model.labels = settings.labels
    return model, checkpoint


def train_run(
    settings: AnySettings,
    directory: Path,
    callbacks: TrainingCallbacks,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train a model, and test it on inputs that it has never seen.

    Args:
        settings: what, and how.    directory: where the run is kept.
        callbacks: is told of each step and epoch.    overwrite: replace a run that is there.

    Returns:
        test_accuracy, test_loss, test_examples, steps, epochs, seconds, examples_per_second,
        best_epoch, parameters, backend, seed, run; and what its kind has besides: per_operation or
        per_class, or of text validation_loss and bits_per_byte.

    Raises:
        RunError: the directory is there and `overwrite` is False, it is being trained, removed or
            replaced by others, or cannot be written.
        ValueError: settings that cannot be met, or data that has changed; then no file is made.
        TrainingInterrupted: a signal came; the run is saved.
    """
    return train_new(_job(settings, callbacks), settings, directory, callbacks, overwrite)


def resume_run(
    directory: Path, callbacks: TrainingCallbacks, epochs: int | None = None
) -> dict[str, Any]:
    """Go on with a run that was stopped; it ends with the bits of one that never was.

    One that was stopped before its first checkpoint starts from its beginning.

    Args:
        directory: of the run.    callbacks: is told of each step and epoch.
        epochs: train so many in all, in place of those that the run was to have, and keep that in
            its settings. The bits are those of a run that was to have them from its beginning,
            unless its schedule is "cosine", which then has another end.

    Returns:
        What `train_run` returns. A run that has ended is not trained further: its result is
        returned as it is, or, where there is none that can be read, tested anew.

    Raises:
        RunError: there is no such run, it is damaged, has lost its checkpoints, has begun more
            epochs, or is being trained by others.
        ValueError: the data has changed since the run began.
        TrainingInterrupted: a signal came; the run is saved.
    """
    kind = type(settings_of(RunDirectory.open(directory)))
    return go_on(kind, lambda own: _job(own, callbacks), directory, callbacks, epochs)


def _job(settings: AnySettings, callbacks: TrainingCallbacks) -> Job:
    """Return what a run trains and tests; of a text, reading it is told."""
    if isinstance(settings, TextSettings):
        return TextJob(settings, callbacks)
    return _JOBS[type(settings)](settings)
