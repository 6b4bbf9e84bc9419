"""The same training with several seeds: how much of a result is luck."""

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastformer import checks
from fastformer.errors import RunError


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
    train_one: Callable[[int, Path], dict[str, Any]],
    first_seed: int,
    count: int,
    directory: Path,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train with several seeds, one after the other, each into a run of its own.

    Args:
        train_one: (seed, directory of the run) -> the result of that run.
        first_seed: the others follow it: 42, 43, 44, ...
        count: how many, >= 1.
        directory: the runs are `seed-42` and so on in it.
        overwrite: whether runs may be there already.

    Returns:
        What `summarize_seeds` returns, and run, the directory.

    Raises:
        RunError: one of the runs is there already; then none is trained.
    """
    checks.integer("seeds", count, 1)
    checks.integer("seed", first_seed, 0)
    places = {seed: directory / f"seed-{seed}" for seed in range(first_seed, first_seed + count)}
    taken = [str(place) for place in places.values() if os.path.lexists(place)]
    if taken and not overwrite:
        raise RunError(
            f"run {taken[0]} is already there; choose another directory with --out, or replace "
            "its runs with --overwrite"
        )
    results = [train_one(seed, place) for seed, place in places.items()]
    return {**summarize_seeds(results), "run": str(directory)}


def summarize_seeds(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what several runs came to, as JSON values.

    Args:
        results: of the runs, each with test_accuracy, per_operation, steps, seconds,
            examples_per_second and seed.

    Returns:
        test_accuracy and per_operation, the means; examples_per_second, the mean; steps and
        seconds, the sums; seeds, the seeds; spread, mean, spread, minimum and maximum of the test
        accuracy; operation_spread, the same for each operation; runs, the results.
    """
    accuracy = spread_of([result["test_accuracy"] for result in results])
    names = list(dict.fromkeys(name for result in results for name in result["per_operation"]))
    operations = {
        name: spread_of([r["per_operation"][name] for r in results if name in r["per_operation"]])
        for name in names
    }
    return {
        "test_accuracy": accuracy.mean,
        "per_operation": {name: spread.mean for name, spread in operations.items()},
        "steps": sum(result["steps"] for result in results),
        "seconds": sum(result["seconds"] for result in results),
        "examples_per_second": statistics.fmean(r["examples_per_second"] for r in results),
        "seeds": [result["seed"] for result in results],
        "spread": asdict(accuracy),
        "operation_spread": {name: asdict(spread) for name, spread in operations.items()},
        "runs": list(results),
    }
