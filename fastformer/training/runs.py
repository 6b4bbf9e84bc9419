"""Runs of every kind: which kind one is, training, going on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fastformer import checks
from fastformer.training.answers_run import AnswerSettings, resume_answers, train_answers
from fastformer.training.callbacks import TrainingCallbacks
from fastformer.training.digits_run import RunSettings, resume_digits, train_digits
from fastformer.training.run_directory import RunDirectory
from fastformer.training.settings import settings_errors

_KINDS: Final = {kind.kind: kind for kind in (RunSettings, AnswerSettings)}


def settings_from(tables: Mapping[str, Mapping[str, Any]]) -> RunSettings | AnswerSettings:
    """Return the settings of any kind that tables hold.

    Raises:
        KeyError, ValueError, TypeError: they are missing, unknown or not allowed.
    """
    kind = tables["run"]["kind"]
    checks.choice("kind", kind, tuple(_KINDS))
    return _KINDS[kind].from_tables(tables)


def settings_of(run: RunDirectory) -> RunSettings | AnswerSettings:
    """Read the settings of a run of any kind.

    Raises:
        RunError: they are missing, unknown or not allowed.
    """
    with settings_errors(run):
        return settings_from(run.config)


def train_run(
    settings: RunSettings | AnswerSettings,
    directory: Path,
    callbacks: TrainingCallbacks,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train a new run. See `train_digits` and `train_answers`."""
    if isinstance(settings, AnswerSettings):
        return train_answers(settings, directory, callbacks, overwrite=overwrite)
    return train_digits(settings, directory, callbacks, overwrite=overwrite)


def resume_run(
    directory: Path, callbacks: TrainingCallbacks, epochs: int | None = None
) -> dict[str, Any]:
    """Go on with a run of any kind. See `resume_digits` and `resume_answers`."""
    if isinstance(settings_of(RunDirectory.open(directory)), AnswerSettings):
        return resume_answers(directory, callbacks, epochs)
    return resume_digits(directory, callbacks, epochs)
