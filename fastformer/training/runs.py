"""Runs of every kind: which kind one is, training, going on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

from fastformer import checks
from fastformer.training.answers_run import AnswerSettings, resume_answers, train_answers
from fastformer.training.callbacks import TrainingCallbacks
from fastformer.training.digits_run import RunSettings, resume_digits, train_digits
from fastformer.training.run_directory import RunDirectory
from fastformer.training.settings import settings_errors
from fastformer.training.text_run import TextSettings, resume_text, train_text

AnySettings: TypeAlias = RunSettings | AnswerSettings | TextSettings
_KINDS: Final = {kind.kind: kind for kind in (RunSettings, AnswerSettings, TextSettings)}


def settings_from(
    tables: Mapping[str, Mapping[str, Any]], directory: Path | None = None
) -> AnySettings:
    """Return the settings of any kind that tables hold.

    Args, raises: as of `Settings.from_tables`.
    """
    kind = tables["run"]["kind"]
    checks.choice("kind", kind, tuple(_KINDS))
    return _KINDS[kind].from_tables(tables, directory)


def settings_of(run: RunDirectory) -> AnySettings:
    """Read the settings of a run of any kind.

    Raises:
        RunError: they are missing, unknown or not allowed.
    """
    with settings_errors(run):
        return settings_from(run.config, run.path)


def train_run(
    settings: AnySettings,
    directory: Path,
    callbacks: TrainingCallbacks,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train a new run. See `train_digits`, `train_answers` and `train_text`."""
    if isinstance(settings, TextSettings):
        return train_text(settings, directory, callbacks, overwrite=overwrite)
    if isinstance(settings, AnswerSettings):
        return train_answers(settings, directory, callbacks, overwrite=overwrite)
    return train_digits(settings, directory, callbacks, overwrite=overwrite)


def resume_run(
    directory: Path, callbacks: TrainingCallbacks, epochs: int | None = None
) -> dict[str, Any]:
    """Go on with a run of any kind. See `resume_digits`."""
    settings = settings_of(RunDirectory.open(directory))
    if isinstance(settings, TextSettings):
        return resume_text(directory, callbacks, epochs)
    if isinstance(settings, AnswerSettings):
        return resume_answers(directory, callbacks, epochs)
    return resume_digits(directory, callbacks, epochs)
