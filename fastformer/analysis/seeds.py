"""The same training with several seeds: how much of a result is luck."""

import contextlib
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from fastformer import checks
from fastformer.errors import RunError
from fastformer.training.atomic_file import make_directory, os_errors_as
from fastformer.training.run_directory import RunDirectory
from fastformer.training.run_lock import TrainingLock
from fastformer.training.runs import AnySettings, settings_of
from fastformer.training.seeds_record import MOST_SEEDS, SeedsRecord, holds_seeds
from fastformer.training.whole_run import checked_result

TrainOne: TypeAlias = Callable[[AnySettings, Path, bool], dict[str, Any]]


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
) -> dict[str, Any]:
    """Train with several seeds, one after the other, each into a run of its own.

    Args:
        train_one: (settings, directory of the run, overwrite) -> the result of that run.
        settings: of the first run; the others have the seeds after its: 42, 43, 44, ...
        count: how many, >= 1.
        directory: the runs are `seed-42` and so on in it.
        overwrite: whether runs may be there already.

    Returns:
        What `summarize_seeds` returns, and run, the directory.

    Raises:
        RunError: one of the runs is there already, or the directory is a run itself; then none is
            trained.
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
        results = []
        for place, own in runs.items():
            check()
            results.append(train_one(own, place, overwrite))
    return {**summarize_seeds(results), "run": str(directory)}


def resume_seeds(
    train_one: TrainOne,
    resume_one: Callable[[Path, int], dict[str, Any]],
    directory: Path,
    epochs: int | None = None,
) -> dict[str, Any]:
    """Go on with several seeds: runs that have ended stay, and the others are trained to the end.

    Args:
        train_one: as of `train_seeds`.
        resume_one: (directory of a run that was stopped, epochs that it is to have) -> its result,
            when it has come to its end.
        directory: as of `train_seeds`.
        epochs: train all runs to so many in all; None for as many as they were to have.

    Returns:
        What `train_seeds` returns.

    Raises:
        RunError: `seeds.json` is damaged, a run there has other settings, or others train them.
    """
    with _held(directory) as check:
        record = SeedsRecord.read(directory)
        if epochs is not None and epochs != record.settings.training.epochs:
            record = _with_epochs(record, directory, epochs)
            record.write(directory)
        results = []
        for place, settings in record.runs(directory).items():
            check()
            results.append(_resume_one(train_one, resume_one, record, place, settings))
    return {**summarize_seeds(results), "run": str(directory)}


def _resume_one(
    train_one: TrainOne,
    resume_one: Callable[[Path, int], dict[str, Any]],
    record: SeedsRecord,
    place: Path,
    settings: AnySettings,
) -> dict[str, Any]:
    """Come to the end of one of several seeds' runs, wherever it stands."""
    if not os.path.lexists(place / "config.toml"):
        return train_one(settings, place, record.overwrite)
    found, epochs = settings_of(RunDirectory.open(place)), settings.training.epochs
    if found == settings:
        return _result_of(place) or resume_one(place, epochs)
    if record.overwrite:  # of an older call, which this one was told to replace
        return train_one(settings, place, True)
    if found.with_epochs(epochs) != settings:
        raise RunError(
            f"run {place} has other settings than {place.parent} was begun with; remove it, or "
            "choose another directory with --out"
        )
    return resume_one(place, epochs)


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


def _result_of(place: Path) -> dict[str, Any] | None:
    """Return the result of a run that has ended, or None where there is none to be read."""
    try:
        return checked_result(RunDirectory.open(place).read_result())
    except RunError:
        return None


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
