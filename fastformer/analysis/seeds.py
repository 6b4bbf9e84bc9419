"""The same training with several seeds: how much of a result is luck."""

import contextlib
import functools
import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fastformer import checks
from fastformer.errors import RunError
from fastformer.training.atomic_file import make_directory, os_errors_as
from fastformer.training.loop import TrainingInterrupted
from fastformer.training.planned_run import (
    Engine,
    Outcome,
    PlannedRun,
    ResumeOne,
    TrainOne,
    outcome_of,
)
from fastformer.training.run_directory import RunDirectory
from fastformer.training.run_lock import TrainingLock
from fastformer.training.runs import AnySettings, settings_of
from fastformer.training.seeds_record import MOST_SEEDS, SeedsRecord, holds_seeds


@dataclass(frozen=True)
class Spread:
    """What several runs agree on.

    Attributes:
        mean: of the values.    spread: their standard deviation, with n - 1; 0 for one value.
        minimum, maximum: the extremes.
    """

    mean: float
    spread: float
    minimum: float
    maximum: float


def spread_of(values: Sequence[float]) -> Spread:
    """Return the mean and the spread of at least one value."""
    return Spread(
        mean=statistics.fmean(values),
        spread=statistics.stdev(values) if len(values) > 1 else 0.0,
        minimum=min(values),
        maximum=max(values),
    )


def train_seeds(
    train_one: TrainOne,
    settings: AnySettings,
    count: int,
    directory: Path,
    overwrite: bool = False,
    engine: Engine = map,
    told: Callable[[Outcome], None] = lambda _: None,
) -> dict[str, Any]:
    """Train with several seeds, each into a run of its own.

    Args:
        train_one: (settings, directory of the run, overwrite) -> the result of that run.
        settings: of the first run; the others have the seeds after its: 42, 43, 44, ...
        count: how many, >= 1.
        directory: the runs are `seed-42` and so on in it.
        overwrite: whether runs may be there already.
        engine: trains them, `map` one after the other.    told: of each run that has ended.

    Returns:
        What `summarize_seeds` returns, and run, the directory.

    Raises:
        RunError: one of the runs is there already, or the directory is a run itself; then none is
            trained. Or a run failed; the others are trained.
        TrainingInterrupted: a signal came; what was trained is saved.
    """
    checks.integer("seeds", count, 1, MOST_SEEDS)
    record = SeedsRecord(settings=settings, count=count, overwrite=overwrite)
    if os.path.lexists(directory / "config.toml"):
        raise RunError(
            f"{directory} is a run itself; choose another directory with --out for several seeds"
        )
    runs = record.runs(directory)
    taken = [str(place) for place in runs if os.path.lexists(place)]
    if taken and not overwrite:
        going_on = f", go on with --resume {directory}" if holds_seeds(directory) else ""
        raise RunError(
            f"run {taken[0]} is already there; choose another directory with --out{going_on}, or "
            "replace its runs with --overwrite"
        )
    with _held(directory) as check:
        record.write(directory)
        planned = [
            PlannedRun(place=place, settings=own, anew=True, overwrite=overwrite)
            for place, own in runs.items()
        ]
        work = functools.partial(outcome_of, train_one=train_one)
        results = _finish_all(work, planned, check, engine, told)
    return {**summarize_seeds(results), "run": str(directory)}


def resume_seeds(
    train_one: TrainOne,
    resume_one: ResumeOne,
    directory: Path,
    epochs: int | None = None,
    engine: Engine = map,
    told: Callable[[Outcome], None] = lambda _: None,
) -> dict[str, Any]:
    """Go on with several seeds: runs that have ended stay, and the others are trained to the end.

    Args:
        train_one, engine, told: as of `train_seeds`.
        resume_one: (directory of a run that was stopped, epochs that it is to have) -> its result,
            when it has come to its end.
        directory: as of `train_seeds`.
        epochs: train all runs to so many in all; None for as many as they were to have.

    Returns:
        What `train_seeds` returns.

    Raises:
        RunError: `seeds.json` is damaged, a run there has other settings, others train them, or a
            run failed.
        TrainingInterrupted: as of `train_seeds`.
    """
    with _held(directory) as check:
        record = SeedsRecord.read(directory)
        if epochs is not None and epochs != record.settings.training.epochs:
            record = _with_epochs(record, directory, epochs)
            record.write(directory)
        planned = [
            PlannedRun(place=place, settings=own, overwrite=record.overwrite)
            for place, own in record.runs(directory).items()
        ]
        work = functools.partial(outcome_of, train_one=train_one, resume_one=resume_one)
        results = _finish_all(work, planned, check, engine, told)
    return {**summarize_seeds(results), "run": str(directory)}


def _finish_all(
    work: Callable[[PlannedRun], Outcome],
    planned: Iterable[PlannedRun],
    check: Callable[[], None],
    engine: Engine,
    told: Callable[[Outcome], None],
) -> list[dict[str, Any]]:
    """Bring all runs to their ends, and return their results in the order of their seeds.

    Args:
        work: brings one to its end.    check: raises where no other run may begin.
    """

    outcomes: list[Outcome] = []
    stopped: list[Outcome] = []

    def checked() -> Iterator[PlannedRun]:
        for each in planned:
            check()
            if stopped:
                return
            yield each

    for outcome in engine(work, checked()):
        (stopped if outcome.state == "stopped" else outcomes).append(outcome)
        told(outcome)
    if stopped:
        raise TrainingInterrupted(stopped[0].place.parent, 0, stopped[0].signal)
    wrong = [outcome for outcome in outcomes if outcome.result is None]
    if wrong:
        raise RunError(
            f"{len(wrong)} of {len(outcomes)} runs failed: {wrong[0].place}: {wrong[0].error}"
        )
    results = [outcome.result for outcome in outcomes if outcome.result is not None]
    return sorted(results, key=lambda result: int(result["seed"]))


def _with_epochs(record: SeedsRecord, directory: Path, epochs: int) -> SeedsRecord:
    """Return a record with another number of epochs for all runs, of which none is to be replaced.

    Raises:
        RunError: some still are.
    """
    runs = record.runs(directory).items()
    there = ((place, own) for place, own in runs if os.path.lexists(place / "config.toml"))
    for place, own in there:
        if record.overwrite and settings_of(RunDirectory.open(place)) != own:
            raise RunError(f"run {place} is still to be replaced; go on without --epochs first")
    return replace(record, settings=record.settings.with_epochs(epochs), overwrite=False)


@contextlib.contextmanager
def _held(directory: Path) -> Iterator[Callable[[], None]]:
    """Be the one that trains the seeds of a directory, which is made if it is not there.

    Yields:
        What raises RunError where the directory is not the one that it was.
    """
    with os_errors_as(RunError, f"make {directory}"):
        make_directory(directory)
    lock = TrainingLock(directory)
    with lock.held():
        yield lock.check


def summarize_seeds(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what several runs came to, as JSON values.

    Args:
        results: of the runs, each with test_accuracy, steps, seconds, examples_per_second, seed,
            and per_operation or per_class, if its kind has them.

    Returns:
        test_accuracy, and per_operation or per_class, the means; examples_per_second, the mean;
        steps and seconds, the sums; seeds, the seeds; spread, mean, spread, minimum and maximum of
        the test accuracy; operation_spread or class_spread, the same for each of these; runs, the
        results.
    """
    accuracy = spread_of([result["test_accuracy"] for result in results])
    found: dict[str, Any] = {"test_accuracy": accuracy.mean}
    for groups in ("operation", "class"):
        shares = [result[f"per_{groups}"] for result in results if f"per_{groups}" in result]
        names = list(dict.fromkeys(name for share in shares for name in share))
        spreads = {name: spread_of([s[name] for s in shares if name in s]) for name in names}
        if spreads:
            found[f"per_{groups}"] = {name: spread.mean for name, spread in spreads.items()}
            found[f"{groups}_spread"] = {name: asdict(spread) for name, spread in spreads.items()}
    return {
        **found,
        "steps": sum(result["steps"] for result in results),
        "seconds": sum(result["seconds"] for result in results),
        "examples_per_second": statistics.fmean(r["examples_per_second"] for r in results),
        "seeds": [result["seed"] for result in results],
        "spread": asdict(accuracy),
        "runs": list(results),
    }
