"""A search: Optuna chooses the settings of each run, and gives up those that promise little.

All that is known is in `study.journal`, which several processes and machines share. What a setting
is drawn with depends on the number of the trial, and on the trials before it, alone. So a search
that was stopped goes on with the trials that it would have had.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fastformer.errors import FastformerError, MissingLibraryError
from fastformer.random import generator
from fastformer.training.callbacks import TrainingCallbacks
from fastformer.training.json_text import number_in
from fastformer.training.planned_run import (
    Outcome,
    PlannedRun,
    PrunedError,
    best_record,
    outcome_of,
)
from fastformer.training.run_directory import RunDirectory
from fastformer.training.runs import AnySettings, resume_run, train_run
from fastformer.training.sweep_file import Range, Search, Values, value_text

if TYPE_CHECKING:
    import optuna

JOURNAL: Final[str] = "study.journal"
ERROR: Final[str] = "error"
"""What a trial that failed says of it, among its attributes."""

_NAME: Final[str] = "sweep"
# A run that another machine trains is left to it after so many seconds.
_PATIENCE: Final[float] = 15.0


def open_study(directory: Path, search: Search, measure: str) -> "optuna.Study":
    """Open the study in a sweep's directory; it is made if it is not there.

    Args:
        directory: of the sweep.    search: what is asked for.
        measure: "validation_loss", which is to be small, or "validation_accuracy".

    Raises:
        ImportError: Optuna is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise MissingLibraryError(
            "a search needs Optuna: pip install 'fastformer[sweep]'"
        ) from error
    from filelock import FileLock
    from optuna.storages.journal import JournalFileBackend

    class Lock:
        """The system takes this lock back from a process that is killed; Optuna's own stays."""

        def __init__(self, file: Path) -> None:
            self._lock = FileLock(file)

        def acquire(self) -> bool:
            self._lock.acquire()
            return True

        def release(self) -> None:
            self._lock.release()

    class Sampler(optuna.samplers.BaseSampler):
        """Draws each setting by a sampler of its own, whose seed is named by its place."""

        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            return {}

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
            return {}

        def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
            own = int(generator(search.seed, name, trial.number).integers(1 << 31))
            kinds: dict[str, Callable[..., optuna.samplers.BaseSampler]] = {
                "random": optuna.samplers.RandomSampler,
                "tpe": optuna.samplers.TPESampler,
            }
            drawn = kinds[search.sampler](seed=own)
            return drawn.sample_independent(study, trial, name, distribution)

    pruners: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
        "none": optuna.pruners.NopPruner,
        "median": optuna.pruners.MedianPruner,
        "halving": optuna.pruners.SuccessiveHalvingPruner,
        "hyperband": optuna.pruners.HyperbandPruner,
    }
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file = directory / JOURNAL
    lock: Any = Lock(file.with_suffix(".lock"))
    backend = JournalFileBackend(str(file), lock_obj=lock)
    return optuna.create_study(
        storage=optuna.storages.JournalStorage(backend),
        study_name=_NAME,
        sampler=Sampler(),
        pruner=pruners[search.pruner](),
        direction="minimize" if measure == "validation_loss" else "maximize",
        load_if_exists=True,
    )


@dataclass(frozen=True, kw_only=True)
class TrialRun:
    """A trial of a study, which a process brings to its end.

    Attributes:
        directory, search, measure: as of `open_study`.    trial: its number in the storage.
        place: directory of its run.    changed: the settings that were chosen for it.
        settings: all settings of the run, or None where they do not go together.
        error: what is wrong then.
    """

    directory: Path
    search: Search
    measure: str
    trial: int
    place: Path
    changed: Values
    settings: AnySettings | None
    error: str = ""


def trial_runs(
    directory: Path,
    search: Search,
    measure: str,
    place_of: Callable[[int], Path],
    settings_of: Callable[[Values], AnySettings],
) -> Iterator[TrialRun]:
    """Yield the trials that were begun and not ended, then new ones until there are enough.

    Args:
        directory, search, measure: as of `open_study`.
        place_of: number of a trial, from 0 -> directory of its run.
        settings_of: settings that were chosen -> all settings of the run.
    """
    study = open_study(directory, search, measure)
    import optuna

    def run(trial: optuna.Trial) -> TrialRun:
        changed, found, error = _choose(trial, search), None, ""
        try:
            found = settings_of(changed)
        except FastformerError as wrong:
            error = str(wrong)
        return TrialRun(
            directory=directory,
            search=search,
            measure=measure,
            trial=trial._trial_id,
            place=place_of(trial.number),
            changed=changed,
            settings=found,
            error=error,
        )

    begun = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
    for each in begun:
        yield run(optuna.Trial(study, each._trial_id))
    while len(study.get_trials(deepcopy=False)) < search.trials:
        trial = study.ask()
        if trial.number >= search.trials:  # another machine was quicker
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return
        yield run(trial)


def _choose(trial: "optuna.Trial", search: Search) -> Values:
    """Return the settings of a trial. What it has already, it keeps."""
    found: Values = {}
    for name, one in search.space.items():
        if not isinstance(one, Range):
            names = [value_text(v) if isinstance(v, list) else v for v in one.examples]
            picked: Any = trial.suggest_categorical(name, names)
            found[name] = one.examples[names.index(picked)]
        elif isinstance(one.low, int) and isinstance(one.high, int):
            found[name] = trial.suggest_int(name, one.low, one.high, log=one.log)
        else:
            found[name] = trial.suggest_float(name, one.low, one.high, log=one.log)
    return found


def chosen(params: dict[str, Any], search: Search) -> Values:
    """Return the settings that the parameters of a trial in a study stand for."""
    found: Values = {}
    for name, one in search.space.items():
        if name not in params:  # it was killed before that was drawn
            continue
        found[name] = params[name]
        for value in one.examples:
            if isinstance(value, list) and value_text(value) == params[name]:
                found[name] = value
    return found


class _Reporter(TrainingCallbacks):
    """Tells a trial the value of each epoch, and ends a run that promises little."""

    def __init__(self, trial: "optuna.Trial", run: TrialRun) -> None:
        self._trial, self._run = trial, run
        frozen = trial.study.get_trials(deepcopy=False)[trial.number]
        self._reported = set(frozen.intermediate_values)

    def catch_up(self) -> None:
        """Report what was not, as the process was killed in between."""
        records = RunDirectory.open(self._run.place).read_metrics(skip_damaged=True)
        for record in records:
            self._report(record)
        if records:
            self._end_if_pruned()

    def epoch_finished(self, record: dict[str, Any]) -> None:
        """Report the epoch.

        Raises:
            PrunedError: it is not worth another one.
        """
        self._report(record)
        self._end_if_pruned()

    def _report(self, record: dict[str, Any]) -> None:
        value = number_in(record.get(self._run.measure))
        if record["epoch"] not in self._reported and value == value:
            self._trial.report(value, record["epoch"])
            self._reported.add(record["epoch"])

    def _end_if_pruned(self) -> None:
        if self._reported and self._trial.should_prune():
            raise PrunedError


def finish_trial(run: TrialRun) -> Outcome:
    """Bring a trial to its end, and tell the study."""
    import optuna

    states = optuna.trial.TrialState
    study = open_study(run.directory, run.search, run.measure)
    trial = optuna.Trial(study, run.trial)
    told = _Reporter(trial, run)

    def resume_one(place: Path, epochs: int) -> dict[str, Any]:
        told.catch_up()
        return resume_run(place, told, epochs)

    if run.settings is None:
        outcome = Outcome(place=run.place, state="failed", error=run.error)
    else:
        outcome = outcome_of(
            PlannedRun(place=run.place, settings=run.settings),
            lambda settings, place, overwrite: train_run(settings, place, told, overwrite),
            resume_one,
            _PATIENCE,
        )
    if outcome.state == "done":
        value = number_in((best_record(run.place) or {}).get(run.measure))
        study.tell(trial, value, skip_if_finished=True)  # one that is NaN, it takes as a failure
    elif outcome.state == "pruned":
        study.tell(trial, state=states.PRUNED, skip_if_finished=True)
    elif outcome.state == "failed":
        trial.set_user_attr(ERROR, outcome.error)
        study.tell(trial, state=states.FAIL, skip_if_finished=True)
    return outcome
