"""Several seeds in one call: what is trained, and what the runs agree on."""

from pathlib import Path
from typing import Any

import pytest

from fastformer.analysis.seeds import Spread, spread_of, summarize_seeds, train_seeds


def result(seed: int, accuracy: float, **operations: float) -> dict[str, Any]:
    return {
        "seed": seed,
        "test_accuracy": accuracy,
        "per_operation": operations,
        "steps": 10,
        "seconds": 0.5,
        "examples_per_second": 100.0 * seed,
        "run": f"seed-{seed}",
    }


def test_mean_and_spread_are_those_of_the_textbook() -> None:
    found = spread_of([0.9, 1.0, 0.8, 0.9])
    assert found.mean == pytest.approx(0.9)
    assert found.spread == pytest.approx((0.02 / 3) ** 0.5)
    assert (found.minimum, found.maximum) == (0.8, 1.0)
    assert spread_of([0.7]) == Spread(0.7, 0.0, 0.7, 0.7)


def test_a_summary_has_means_sums_and_every_run() -> None:
    runs = [result(1, 0.9, Max=0.8, Min=1.0), result(2, 1.0, Max=1.0)]
    found = summarize_seeds(runs)
    assert found["test_accuracy"] == pytest.approx(0.95)
    assert found["per_operation"] == pytest.approx({"Max": 0.9, "Min": 1.0})
    assert (found["steps"], found["seconds"], found["examples_per_second"]) == (20, 1.0, 150.0)
    assert found["seeds"] == [1, 2] and found["runs"] == runs
    assert found["spread"]["spread"] == pytest.approx(0.005**0.5)
    assert found["operation_spread"]["Max"]["minimum"] == 0.8


def test_each_seed_has_a_run_of_its_own(tmp_path: Path) -> None:
    trained = []

    def train_one(seed: int, directory: Path) -> dict[str, Any]:
        trained.append((seed, directory))
        return result(seed, 1.0, Max=1.0)

    found = train_seeds(train_one, 42, 3, tmp_path / "all")
    assert trained == [(seed, tmp_path / f"all/seed-{seed}") for seed in (42, 43, 44)]
    assert found["run"] == str(tmp_path / "all") and found["seeds"] == [42, 43, 44]


def test_nothing_is_trained_where_one_run_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "seed-44").mkdir()
    trained: list[int] = []

    def train_one(seed: int, directory: Path) -> dict[str, Any]:
        trained.append(seed)
        return result(seed, 1.0)

    with pytest.raises(ValueError, match="seed-44 is already there.*--overwrite"):
        train_seeds(train_one, 42, 3, tmp_path)
    assert trained == []
    train_seeds(train_one, 42, 3, tmp_path, overwrite=True)
    assert trained == [42, 43, 44]


@pytest.mark.parametrize("count", [0, -1, 2.0, True])
def test_the_number_of_seeds_is_checked(count: Any, tmp_path: Path) -> None:
    with pytest.raises((ValueError, TypeError), match="seeds must be an integer >= 1"):
        train_seeds(lambda seed, directory: {}, 1, count, tmp_path)
