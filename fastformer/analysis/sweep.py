"""What the runs of a sweep came to: which settings each had, and how good it is."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fastformer import writing
from fastformer.errors import RunError
from fastformer.training.finding import runs_within
from fastformer.training.json_text import finite, number_in
from fastformer.training.planned_run import best_record, result_of
from fastformer.training.run_directory import RunDirectory
from fastformer.training.runs import settings_of
from fastformer.training.sweep_file import Sweep, Values
from fastformer.training.whole_run import seconds_of

PICTURE: Final[str] = "sweep.png"
LOSS, ACCURACY = "validation_loss", "validation_accuracy"
_ORDER: Final = ("done", "pruned", "unfinished", "failed", "waiting")


@dataclass(frozen=True, kw_only=True)
class SweepRun:
    """A run of a sweep.

    Attributes:
        place: its directory.    changed: its settings that differ from the other runs'.
        state: "done", "pruned", "failed", "unfinished", or "waiting", which was not begun.
        value: validation accuracy or loss of its best epoch; NaN where there is none.
        loss: validation loss of that epoch, which decides among equals.
        seconds: of training.    test_accuracy: of a run that is done; else NaN.
        error: of a run that failed.
    """

    place: Path
    changed: Values
    state: str
    value: float
    loss: float
    seconds: float
    test_accuracy: float
    error: str = ""


def run_name(number: int) -> str:
    """Return the name of a run's directory.

    Args:
        number: from 0.
    """
    return f"run-{number + 1:03d}"


def measure_in(directory: Path) -> str:
    """Return what the runs in a directory are compared by, as their records name it."""
    for run in runs_within(directory):
        try:
            return LOSS if settings_of(RunDirectory.open(run)).best_by_loss else ACCURACY
        except RunError:
            continue
    return ACCURACY


def sweep_runs(
    directory: Path, sweep: Sweep, measure: str, errors: Mapping[Path, str]
) -> list[SweepRun]:
    """Return the runs of a sweep, the best first.

    Args:
        directory: of the sweep.    measure: `LOSS` or `ACCURACY`.
        errors: what is known to have failed, by the directory of the run.
    """
    found = []
    states = _trials(directory, sweep, measure) if sweep.search else _points(sweep)
    for number, (changed, told, error) in enumerate(states):
        place = directory / run_name(number)
        result, record = result_of(place), best_record(place) or {}
        error = errors.get(place, error)
        if error or told == "failed":
            state = "failed"
        elif result is not None:
            state = "done"
        elif (place / "config.toml").exists():
            state = told or "unfinished"
        else:
            state = "waiting"
        found.append(
            SweepRun(
                place=place,
                changed=changed,
                state=state,
                value=number_in(record.get(measure)),
                loss=number_in(record.get(LOSS)),
                seconds=result["seconds"] if result else _seconds(place),
                test_accuracy=result["test_accuracy"] if result else math.nan,
                error=error,
            )
        )
    return sorted(found, key=lambda run: _rank(run, measure))


def _points(sweep: Sweep) -> Iterator[tuple[Values, str, str]]:
    """Yield the settings of each run of a grid; what became of it is in its directory."""
    for point in sweep.points():
        yield point, "", ""


def _trials(directory: Path, sweep: Sweep, measure: str) -> Iterator[tuple[Values, str, str]]:
    """Yield the settings of each trial of a search, its state, and its error."""
    from fastformer.training.study import ERROR, chosen, open_study

    assert sweep.search is not None
    names = {"PRUNED": "pruned", "FAIL": "failed"}
    trials = open_study(directory, sweep.search, measure).get_trials(deepcopy=False)
    for trial in trials[: sweep.search.trials]:
        state = names.get(trial.state.name, "")
        yield chosen(trial.params, sweep.search), state, trial.user_attrs.get(ERROR, "")


def _seconds(place: Path) -> float:
    """Return the time of the epochs of a run that has no result."""
    try:
        return seconds_of(RunDirectory.open(place).read_metrics(skip_damaged=True))
    except RunError:
        return 0.0


def _rank(run: SweepRun, measure: str) -> tuple[int, float, float, str]:
    """Return what runs are sorted by."""
    value = run.value if measure == LOSS else -run.value
    return (
        _ORDER.index(run.state),
        value if math.isfinite(value) else math.inf,
        run.loss if math.isfinite(run.loss) else math.inf,
        run.place.name,
    )


def value_text(value: float, measure: str) -> str:
    """Write what runs are compared by."""
    if not math.isfinite(value):
        return "-"
    return writing.loss(value) if measure == LOSS else writing.percent(value, 2)


def sweep_as_json(
    directory: Path, sweep: Sweep, measure: str, runs: list[SweepRun], picture: Path
) -> dict[str, Any]:
    """Return what a sweep came to as JSON values.

    Returns:
        sweep, the directory; task; measure; runs, the best first, each with run, settings, state,
        value, seconds, test_accuracy and error; best, the first of them, or None where none is
        done; command, its command line as words; picture.
    """
    best = runs[0] if runs and runs[0].state == "done" else None
    listed = [
        {
            "run": str(run.place),
            "settings": run.changed,
            "state": run.state,
            "value": run.value,
            "seconds": run.seconds,
            "test_accuracy": run.test_accuracy,
            "error": run.error or None,
        }
        for run in runs
    ]
    return {
        "sweep": str(directory),
        "task": sweep.task,
        "measure": measure,
        "runs": finite(listed),
        "best": finite(listed[0]) if best else None,
        "command": ["fastformer", "train", *sweep.words(best.changed)] if best else None,
        "picture": str(picture),
    }
