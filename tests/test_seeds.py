"""Several seeds in one call: what is trained, and what the runs agree on."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import small_settings

from fastformer.analysis.seeds import (
    Spread,
    resume_seeds,
    spread_of,
    summarize_seeds,
    train_seeds,
)
from fastformer.errors import RunError
from fastformer.training.digits_run import RunSettings
from fastformer.training.run_directory import RunDirectory
from fastformer.training.seeds_record import holds_seeds
from fastformer.training.whole_run import RESULT_NAMES


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


def settings(seed: int = 42) -> RunSettings:
    return small_settings(seed=seed)


class Trained:
    """Stands for training: notes what it is asked, and leaves what a run of that kind leaves."""

    def __init__(self, stop_at: int | None = None, with_checkpoint: bool = True) -> None:
        self.calls: list[tuple[str, int, bool]] = []
        self.epochs: list[int] = []
        self.stop_at, self.with_checkpoint = stop_at, with_checkpoint

    def train(self, own: Any, place: Path, overwrite: bool) -> dict[str, Any]:
        self.calls.append(("train", own.seed, overwrite))
        run = RunDirectory.create(place, own.tables(), overwrite=overwrite)
        if own.seed == self.stop_at:
            if self.with_checkpoint:
                run.save_step(1, {"x": np.zeros(1, np.float32)}, {})
            raise KeyboardInterrupt
        return self._end(run, own.seed)

    def resume(self, place: Path, epochs: int) -> dict[str, Any]:
        run = RunDirectory.open(place)
        self.calls.append(("resume", run.config["run"]["seed"], False))
        self.epochs.append(epochs)
        own = settings(run.config["run"]["seed"]).with_epochs(epochs)
        if run.config["training"]["epochs"] != epochs:
            run.change_config(own.tables())
        return self._end(run, run.config["run"]["seed"])

    def _end(self, run: RunDirectory, seed: int) -> dict[str, Any]:
        run.save_step(2, {"x": np.zeros(1, np.float32)}, {})
        found = (
            dict.fromkeys(RESULT_NAMES - {"per_class"}, 1)
            | {"backend": "numba", "run": "x"}
            | result(seed, 1.0, Max=1.0)
        )
        run.write_result(found)
        return found


def test_each_seed_has_a_run_of_its_own(tmp_path: Path) -> None:
    trained = Trained()
    found = train_seeds(trained.train, settings(), 3, tmp_path / "all")
    assert trained.calls == [("train", seed, False) for seed in (42, 43, 44)]
    assert sorted(path.name for path in (tmp_path / "all").glob("seed-*")) == [
        *("seed-42", "seed-43", "seed-44")
    ]
    assert found["run"] == str(tmp_path / "all") and found["seeds"] == [42, 43, 44]


def test_nothing_is_trained_where_one_run_is_in_the_way(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "seed-44", settings().tables())
    trained = Trained()
    with pytest.raises(ValueError, match="seed-44 is already there; choose another.*--overwrite"):
        train_seeds(trained.train, settings(), 3, tmp_path)
    assert trained.calls == [] and not holds_seeds(tmp_path)
    train_seeds(trained.train, settings(), 3, tmp_path, overwrite=True)
    assert trained.calls == [("train", seed, True) for seed in (42, 43, 44)]
    with pytest.raises(ValueError, match=f"go on with --resume {tmp_path}"):
        train_seeds(trained.train, settings(), 3, tmp_path)
    with pytest.raises(ValueError, match="is a run itself"):
        train_seeds(trained.train, settings(), 3, tmp_path / "seed-44")


@pytest.mark.parametrize("with_checkpoint", [True, False])
def test_stopped_seeds_go_on_with_what_is_left(with_checkpoint: bool, tmp_path: Path) -> None:
    first = Trained(stop_at=43, with_checkpoint=with_checkpoint)
    with pytest.raises(KeyboardInterrupt):
        train_seeds(first.train, settings(), 3, tmp_path)
    second = Trained()
    found = resume_seeds(second.train, second.resume, tmp_path)
    assert second.calls == [("resume", 43, False), ("train", 44, False)]
    assert found["seeds"] == [42, 43, 44]
    third = Trained()
    assert resume_seeds(third.train, third.resume, tmp_path) == found
    assert third.calls == []
    (tmp_path / "seed-42/result.json").write_text("{")
    resume_seeds(third.train, third.resume, tmp_path)
    assert third.calls == [("resume", 42, False)]


def test_finished_seeds_take_more_epochs(tmp_path: Path) -> None:
    train_seeds(Trained().train, settings(), 2, tmp_path)
    more = Trained()
    resume_seeds(more.train, more.resume, tmp_path, 7)
    assert more.calls == [("resume", 42, False), ("resume", 43, False)] and more.epochs == [7, 7]
    again = Trained()
    resume_seeds(again.train, again.resume, tmp_path)  # as a supervisor does it
    resume_seeds(again.train, again.resume, tmp_path, 7)
    assert again.calls == []


def test_more_epochs_that_were_stopped_half_way_go_on(tmp_path: Path) -> None:
    train_seeds(Trained().train, settings(), 3, tmp_path)
    first = Trained()

    def stop_at_43(place: Path, epochs: int) -> dict[str, Any]:
        if place.name == "seed-43":
            raise KeyboardInterrupt
        return first.resume(place, epochs)

    with pytest.raises(KeyboardInterrupt):
        resume_seeds(first.train, stop_at_43, tmp_path, 7)
    second = Trained()
    resume_seeds(second.train, second.resume, tmp_path)
    assert second.calls == [("resume", 43, False), ("resume", 44, False)]
    assert second.epochs == [7, 7]


def test_older_runs_are_replaced_before_seeds_take_more_epochs(tmp_path: Path) -> None:
    train_seeds(Trained().train, settings(), 2, tmp_path)
    stopped = Trained(stop_at=42)
    with pytest.raises(KeyboardInterrupt):
        train_seeds(stopped.train, settings().with_epochs(5), 2, tmp_path, overwrite=True)
    trained = Trained()
    with pytest.raises(RunError, match="seed-43 is still to be replaced; go on without --epochs"):
        resume_seeds(trained.train, trained.resume, tmp_path, 7)
    assert trained.calls == []


def test_older_runs_that_were_to_be_replaced_still_are(tmp_path: Path) -> None:
    older = dataclasses.replace(settings(), dtype="float64")
    train_seeds(Trained().train, older, 3, tmp_path)
    stopped = Trained(stop_at=43)
    with pytest.raises(KeyboardInterrupt):
        train_seeds(stopped.train, settings(), 3, tmp_path, overwrite=True)
    trained = Trained()
    resume_seeds(trained.train, trained.resume, tmp_path)
    assert trained.calls == [("resume", 43, False), ("train", 44, True)]


def test_a_run_of_other_settings_is_not_replaced_by_itself(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_seeds(Trained(stop_at=42).train, settings(), 2, tmp_path)
    RunDirectory.create(tmp_path / "seed-43", settings(seed=1).tables())
    trained = Trained()
    with pytest.raises(RunError, match="seed-43 has other settings than"):
        resume_seeds(trained.train, trained.resume, tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"seeds": 2', '"seeds": 0', "seeds must be an integer from 1 to 10000, got 0"),
        ('"seeds": 2', '"seads": 2', "'seeds' is missing"),
        ('"epochs": 3', '"epochs": 0', "epochs must be an integer >= 1, got 0"),
        ('"format": "fastformer seeds"', '"format": "x"', "format must be one of"),
        ('"format_version": 1', '"format_version": 2', "format_version must be an integer from 1"),
        ("{", "", "'format' is missing"),
    ],
)
def test_a_damaged_record_is_told(old: str, new: str, message: str, tmp_path: Path) -> None:
    train_seeds(Trained().train, settings(), 2, tmp_path)
    file = tmp_path / "seeds.json"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    trained = Trained()
    with pytest.raises(RunError, match=f"seeds.json is damaged: .*{re.escape(message)}"):
        resume_seeds(trained.train, trained.resume, tmp_path)


@pytest.mark.parametrize("count", [0, -1, 2.0, True, 10**12])
def test_the_number_of_seeds_is_checked(count: Any, tmp_path: Path) -> None:
    with pytest.raises((ValueError, TypeError), match="seeds must be an integer from 1 to 10000"):
        train_seeds(Trained().train, settings(), count, tmp_path)
