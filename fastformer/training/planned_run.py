"""A run that several processes may come upon: whoever takes it brings it to its end, once."""

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from fastformer.errors import FastformerError, RunError
from fastformer.training.callbacks import TrainingCallbacks
from fastformer.training.loop import TrainingInterrupted
from fastformer.training.run_directory import RunDirectory
from fastformer.training.run_lock import BeingTrainedError
from fastformer.training.runs import AnySettings, resume_run, settings_of, train_run
from fastformer.training.whole_run import checked_result

State: TypeAlias = Literal["done", "failed", "pruned", "stopped", "elsewhere"]
Engine: TypeAlias = Callable[
    [Callable[["PlannedRun"], "Outcome"], Iterable["PlannedRun"]], Iterable["Outcome"]
]
"""What does work on planned runs, such as `map`, and gives what came of each as it is done."""
TrainOne: TypeAlias = Callable[[AnySettings, Path, bool], dict[str, Any]]
ResumeOne: TypeAlias = Callable[[Path, int], dict[str, Any]]

# For so long, a run that another process still trains is waited for: one whose parent was killed
# saves its run, and ends.
PATIENCE: Final[float] = 60.0
_SECONDS_BETWEEN_LOOKS: Final[float] = 0.2


class PrunedError(Exception):
    """Raised by callbacks between two epochs: the run is not worth any more time."""


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A run that is to be trained, or to go on, to its end.

    Attributes:
        place: its directory.    settings: its settings.
        anew: train it from its beginning, whatever is there.
        overwrite: a run of other settings that is there may be replaced.
    """

    place: Path
    settings: AnySettings
    anew: bool = False
    overwrite: bool = False

    def finish(self, train_one: TrainOne, resume_one: ResumeOne) -> dict[str, Any]:
        """Bring the run to its end, wherever it stands.

        Args:
            train_one: (settings, directory of a new run, overwrite) -> its result.
            resume_one: (directory of a run that was stopped, epochs that it is to have) -> its
                result, when it has come to its end.

        Raises:
            RunError: another run is there, or others train it. And what training raises.
        """
        place, settings = self.place, self.settings
        if self.anew or not os.path.lexists(place / "config.toml"):
            return train_one(settings, place, self.overwrite)
        found, epochs = settings_of(RunDirectory.open(place)), settings.training.epochs
        if found == settings:
            return result_of(place) or resume_one(place, epochs)
        if self.overwrite:  # of an older call, which this one was told to replace
            return train_one(settings, place, True)
        if found.with_epochs(epochs) != settings:
            raise RunError(
                f"run {place} has other settings than {place.parent} was begun with; remove it, or "
                "choose another directory with --out"
            )
        return resume_one(place, epochs)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a planned run.

    Attributes:
        place: its directory.
        state: "done"; "failed"; "pruned", given up between two epochs; "stopped" by a signal, and
            saved; "elsewhere", as another process trains it.
        result: of a run that is done.    error: what failed, for a person.
        signal: that stopped it, or 0.    notices: what training told, for a person.
    """

    place: Path
    state: State
    result: dict[str, Any] | None = None
    error: str = ""
    signal: int = 0
    notices: tuple[str, ...] = ()


def train_quietly(settings: AnySettings, place: Path, overwrite: bool) -> dict[str, Any]:
    """Train a new run; nobody is told of its steps. See `train_run`."""
    return train_run(settings, place, TrainingCallbacks(), overwrite)


def resume_quietly(place: Path, epochs: int) -> dict[str, Any]:
    """Go on with a run; nobody is told of its steps. See `resume_run`."""
    return resume_run(place, TrainingCallbacks(), epochs)


def outcome_of(
    planned: PlannedRun,
    train_one: TrainOne = train_quietly,
    resume_one: ResumeOne = resume_quietly,
    patience: float = PATIENCE,
) -> Outcome:
    """Bring a run to its end, and tell what became of it, also where that is no good end.

    Args:
        planned: the run.    train_one, resume_one: as of `PlannedRun.finish`.
        patience: seconds to wait for another process that trains it.
    """
    place, until = planned.place, time.monotonic() + patience
    told: tuple[str, ...] = ()
    while True:
        try:
            found = planned.finish(train_one, resume_one)
            return Outcome(place=place, state="done", result=found, notices=told)
        except BeingTrainedError as error:
            if time.monotonic() > until:
                return Outcome(place=place, state="elsewhere", error=str(error))
            told = (f"{place.name} waited for another process that still trained it",)
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        except TrainingInterrupted as stop:
            return Outcome(place=place, state="stopped", signal=stop.signal)
        except PrunedError:
            return Outcome(place=place, state="pruned", notices=told)
        except MemoryError as error:
            return Outcome(place=place, state="failed", error=f"out of memory: {error}")
        except FastformerError as error:
            return Outcome(place=place, state="failed", error=str(error), notices=told)
        except Exception as error:
            # What nobody foresaw must not take the other runs with it.
            what = f"{type(error).__name__}: {error}"
            return Outcome(place=place, state="failed", error=what, notices=told)


def result_of(place: Path) -> dict[str, Any] | None:
    """Return the result of a run that has ended, or None where there is none to be read."""
    try:
        return checked_result(RunDirectory.open(place).read_result())
    except RunError:
        return None


def best_record(place: Path) -> dict[str, Any] | None:
    """Return the record of a run's best epoch so far, or None where no epoch has ended."""
    try:
        records = RunDirectory.open(place).read_metrics(skip_damaged=True)
    except RunError:
        return None
    return next((record for record in reversed(records) if record.get("best") is True), None)
