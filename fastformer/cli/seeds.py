"""`fastformer train --seeds`: several runs one after the other, and what they agree on."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastformer import writing
from fastformer.cli import console

if TYPE_CHECKING:
    from fastformer.training.runs import AnySettings

    pass


def train_several(
    settings: "AnySettings", count: int, directory: Path, overwrite: bool
) -> dict[str, Any]:
    """Train with several seeds, each with a progress of its own.

    Args, returns, raises: as `train_seeds`.
    """
    from fastformer.analysis.seeds import train_seeds

    return train_seeds(_train_one, settings, count, directory, overwrite)


def resume_several(directory: Path, epochs: int | None) -> dict[str, Any]:
    """Go on with several seeds; see `resume_seeds`."""
    from fastformer.analysis.seeds import resume_seeds

    return resume_seeds(_train_one, _resume_one, directory, epochs)


def _train_one(settings: "AnySettings", place: Path, overwrite: bool) -> dict[str, Any]:
    from fastformer.cli import progress
    from fastformer.training.runs import train_run

    console.notice(f"seed {settings.seed}, run {place}")
    with progress.callbacks() as callbacks:
        return train_run(settings, place, callbacks, overwrite=overwrite)


def _resume_one(place: Path, epochs: int) -> dict[str, Any]:
    from fastformer.cli import progress
    from fastformer.training.runs import resume_run

    console.notice(f"going on with run {place}")
    with progress.callbacks() as callbacks:
        return resume_run(place, callbacks, epochs)


def show_seeds(result: dict[str, Any]) -> None:
    """Write the results of several seeds for a person.

    Args:
        result: of `train_seeds`.
    """
    console.line()
    console.line(f"{'seed':>10}  {'accuracy':>9}  {'seconds':>7}  run")
    for run in result["runs"]:
        accuracy = console.percent(run["test_accuracy"], 2)
        console.line(f"{run['seed']:>10}  {accuracy:>9}  {run['seconds']:>7.1f}  {run['run']}")
    console.line()
    for which in ("operation", "class"):
        if f"per_{which}" in result:
            notes = {name: _range(part) for name, part in result[f"{which}_spread"].items()}
            console.per_group(result[f"per_{which}"], notes, which)
            console.line()
    spread = result["spread"]
    console.facts(
        [
            (
                "test accuracy",
                f"{writing.percent(spread['mean'], 2)} in the mean of "
                f"{len(result['seeds'])} seeds, each on inputs that it never saw",
            ),
            ("spread", f"{spread['spread'] * 100:.2f} points (standard deviation)"),
            ("range", _range(spread)),
            ("time", f"{result['steps']:,} steps in {result['seconds']:.1f} s"),
            ("runs", result["run"]),
        ]
    )


def _range(spread: dict[str, float]) -> str:
    """Write the smallest and the largest of several accuracies."""
    return " to ".join(writing.percent(spread[end], 2) for end in ("minimum", "maximum"))
