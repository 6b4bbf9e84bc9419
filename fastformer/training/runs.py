"""Runs of every kind: which kind one is, training, going on."""

from pathlib import Path
from typing import Any, Final

from fastformer import checks
from fastformer.errors import RunError
from fastformer.training.answers_run import AnswerSettings, resume_answers, train_answers
from fastformer.training.digits_run import RunSettings, resume_digits, train_digits
from fastformer.training.observer import TrainingObserver
from fastformer.training.run_directory import RunDirectory

_KINDS: Final = {kind.kind: kind for kind in (RunSettings, AnswerSettings)}


def settings_of(run: RunDirectory) -> RunSettings | AnswerSettings:
    """Read the settings of a run of any kind.

    Raises:
        RunError: they are missing, unknown or not allowed.
    """
    kind = run.config.get("run", {}).get("kind", RunSettings.kind)
    try:
        checks.choice("kind", kind, tuple(_KINDS))
    except (TypeError, ValueError) as error:
        raise RunError(
            f"{run.path / 'config.toml'} does not hold the settings of a run: {error}; mend it or "
            "use another run"
        ) from error
    return _KINDS[kind].from_run(run)


def train_run(
    settings: RunSettings | AnswerSettings,
    directory: Path,
    observer: TrainingObserver,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train a new run. See `train_digits` and `train_answers`."""
    if isinstance(settings, AnswerSettings):
        return train_answers(settings, directory, observer, overwrite=overwrite)
    return train_digits(settings, directory, observer, overwrite=overwrite)


def resume_run(directory: Path, observer: TrainingObserver) -> dict[str, Any]:
    """Go on with a run of any kind. See `resume_digits` and `resume_answers`."""
    if isinstance(settings_of(RunDirectory.open(directory)), AnswerSettings):
        return resume_answers(directory, observer)
    return resume_digits(directory, observer)
