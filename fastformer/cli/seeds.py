"""`fastformer train --seeds`: several runs, as many at once as there are cores for."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastformer import launcher, writing
from fastformer import threads as thread_count
from fastformer.cli import console
from fastformer.cli.many_progress import ManyProgress

if TYPE_CHECKING:
    from fastformer.training.planned_run import Engine, Outcome
    from fastformer.training.runs import AnySettings


def train_several(
    settings: "AnySettings", count: int, directory: Path, overwrite: bool, threads: int | None
) -> dict[str, Any]:
    """Train with several seeds; see `train_seeds`.

    Args:
        threads: of each run; None for one. As many runs are trained at once as have so many.
    """
    from fastformer.analysis.seeds import train_seeds
    from fastformer.training.planned_run import train_quietly

    return _shown(
        count,
        lambda engine, told: train_seeds(
            train_quietly, settings, count, directory, overwrite, engine, told
        ),
        threads,
    )


def resume_several(directory: Path, epochs: int | None, threads: int | None) -> dict[str, Any]:
    """Go on with several seeds; see `resume_seeds` and `train_several`."""
    from fastformer.analysis.seeds import resume_seeds
    from fastformer.training.planned_run import resume_quietly, train_quietly
    from fastformer.training.seeds_record import SeedsRecord

    return _shown(
        SeedsRecord.read(directory).count,
        lambda engine, told: resume_seeds(
            train_quietly, resume_quietly, directory, epochs, engine, told
        ),
        threads,
    )


def _shown(
    count: int,
    work: "Callable[[Engine, Callable[[Outcome], None]], dict[str, Any]]",
    threads: int | None,
) -> dict[str, Any]:
    """Train several seeds and show how far that is."""
    from fastformer.training.engines import in_processes

    launcher.refuse_several()
    threads = threads or 1
    jobs = max(1, min(count, thread_count.available_threads() // threads))
    with ManyProgress(count, _described) as progress:
        return work(functools.partial(in_processes, jobs=jobs, threads=threads), progress.ended)


def _described(outcome: "Outcome") -> str:
    result = outcome.result or {}
    accuracy = writing.percent(result["test_accuracy"], 2)
    return f"test accuracy {accuracy}, {result['seconds']:.1f} s"


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
