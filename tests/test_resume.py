"""A run that was stopped, wherever that was, ends with the bits of one that never was."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import Recorder, everything, one_thread, small_settings, tree, without_times

from fastformer.errors import CheckpointError, InvalidValueError, RunError
from fastformer.training.loop import Trainer, TrainingInterrupted
from fastformer.training.run_directory import RunDirectory
from fastformer.training.runs import resume_run, train_run

__all__ = ["one_thread"]  # a fixture that every test here uses

STEPS_PER_EPOCH = 10


class Crash(Exception):
    """Stands for the kill of the process: nothing is saved, nothing is said."""


class Stopper(Recorder):
    """Stops a run right after a step: by a signal, or by a crash that saves nothing."""

    def __init__(self, step: int, number: int | None) -> None:
        super().__init__()
        self.step, self.number = step, number

    def stepped(self, step: int, loss: float, learning_rate: float, examples: int) -> None:
        if step == self.step:
            if self.number is None:
                raise Crash
            os.kill(os.getpid(), self.number)


def stop_at(directory: Path, settings: Any, step: int, number: int | None) -> None:
    """Train, or go on, until a step, and stop there."""
    callbacks = Stopper(step, number)
    with pytest.raises(Crash if number is None else TrainingInterrupted):
        if directory.exists():
            resume_run(directory, callbacks)
        else:
            train_run(settings, directory, callbacks)
    assert callbacks.ends == 1


VARIANTS: dict[str, dict[str, Any]] = {
    "adam": {},
    "momentum, accumulation": {
        "optimizer": "sgd",
        "momentum": 0.9,
        "accumulation_steps": 3,
        "epochs": 5,
    },
    "adamw, cosine, clipping": {
        "optimizer": "adamw",
        "schedule": "cosine",
        "warmup_steps": 4,
        "clip_norm": 0.5,
        "weight_decay": 0.1,
    },
    "nesterov, penalty": {
        "optimizer": "sgd",
        "momentum": 0.9,
        "nesterov": True,
        "l2_penalty": 0.01,
    },
    "amsgrad": {"amsgrad": True},
    "dropout, accumulation": {"dropout": 0.2, "accumulation_steps": 2, "epochs": 5},
    "reference, dropout": {"backend": "reference", "dropout": 0.1},
    "early stopping": {"learning_rate": 1e-6, "patience": 2, "epochs": 5},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_stop_changes_no_bit(variant: str, tmp_path: Path) -> None:
    settings = small_settings(**VARIANTS[variant], checkpoint_every=3)
    unbroken = train_run(settings, tmp_path / "unbroken", Recorder())
    expected = everything(tmp_path / "unbroken")
    assert len(expected) == 6  # two step checkpoints and the best, so nothing is left out
    last = unbroken["steps"]
    assert last >= 8
    # A signal within the first epoch, a crash between checkpoints, a signal in the last step.
    for stops in (
        [(2, signal.SIGINT), (last - 1, None)],
        [(5, None), (last // 2 + 1, signal.SIGTERM), (last, signal.SIGINT)],
    ):
        run = tmp_path / f"stopped-{stops[0][0]}"
        for step, number in stops:
            stop_at(run, settings, step, number)
        callbacks = Recorder()
        result = resume_run(run, callbacks)
        assert callbacks.starts[0][1] <= last
        assert without_times(result) == without_times(unbroken)
        assert everything(run) == expected


@pytest.mark.smoke
def test_a_stop_between_epochs_changes_no_bit(tmp_path: Path) -> None:
    settings = small_settings()
    train_run(settings, tmp_path / "unbroken", Recorder())
    stop_at(tmp_path / "run", settings, STEPS_PER_EPOCH + 4, None)
    callbacks = Recorder()
    resume_run(tmp_path / "run", callbacks)
    assert callbacks.starts[0][1] == STEPS_PER_EPOCH
    assert [step for step, *_ in callbacks.steps] == list(range(11, 31))
    assert everything(tmp_path / "run") == everything(tmp_path / "unbroken")


def test_the_two_ways_to_stop_are_told(tmp_path: Path) -> None:
    run = tmp_path / "run"
    callbacks = Stopper(7, signal.SIGTERM)
    with pytest.raises(TrainingInterrupted, match="was stopped after step 7") as stopped:
        train_run(small_settings(), run, callbacks)
    assert stopped.value.signal == signal.SIGTERM
    assert (stopped.value.directory, stopped.value.step) == (run, 7)
    assert RunDirectory.open(run).latest().metadata["progress"]["step"] == 7


def crash_after(patch: pytest.MonkeyPatch, owner: type, name: str, call: int) -> None:
    """Let a method do its work, and then crash, the n-th time that it is called."""
    method: Callable[..., Any] = getattr(owner, name)
    calls = []

    def crashing(*arguments: Any, **options: Any) -> Any:
        result = method(*arguments, **options)
        calls.append(name)
        if len(calls) == call:
            raise Crash
        return result

    patch.setattr(owner, name, crashing)


@pytest.mark.parametrize("checkpoint_every", [0, 5])
@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (RunDirectory, "append_metrics", 2),  # the record is there, its checkpoint is not
        (RunDirectory, "save_best", 2),  # the best is there, its record is not
        (Trainer, "save", 3),
        (RunDirectory, "best", 1),  # all is trained, nothing is tested
    ],
)
def test_a_crash_between_two_files_changes_no_bit(
    owner: type,
    name: str,
    call: int,
    checkpoint_every: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = small_settings(checkpoint_every=checkpoint_every)
    train_run(settings, tmp_path / "unbroken", Recorder())
    with monkeypatch.context() as patch, pytest.raises(Crash):
        crash_after(patch, owner, name, call)
        train_run(settings, tmp_path / "run", Recorder())
    assert not (tmp_path / "run/result.json").exists()
    resume_run(tmp_path / "run", Recorder())
    assert everything(tmp_path / "run") == everything(tmp_path / "unbroken")


def test_a_damaged_newest_checkpoint_costs_steps_but_no_bit(tmp_path: Path) -> None:
    settings = small_settings()
    train_run(settings, tmp_path / "unbroken", Recorder())
    stop_at(tmp_path / "run", settings, 23, None)
    newest = tmp_path / "run/checkpoints/step-00000020.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    callbacks = Recorder()
    with pytest.warns(UserWarning, match="a checkpoint is skipped: .*step-00000020"):
        resume_run(tmp_path / "run", callbacks)
    assert callbacks.starts[0][1] == STEPS_PER_EPOCH
    assert everything(tmp_path / "run") == everything(tmp_path / "unbroken")


# Before the first checkpoint


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (Trainer, "prepare", 1),  # nothing is there but the settings
        (Recorder, "stepped", 4),
        (RunDirectory, "save_best", 1),
        (RunDirectory, "append_metrics", 1),  # the record of an epoch that has no checkpoint
    ],
)
def test_a_run_without_a_checkpoint_starts_from_its_beginning(
    owner: type, name: str, call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small_settings(backend="reference", epochs=2)
    train_run(settings, tmp_path / "unbroken", Recorder())
    with monkeypatch.context() as patch, pytest.raises(Crash):
        crash_after(patch, owner, name, call)
        train_run(settings, tmp_path / "run", Recorder())
    callbacks = Recorder()
    resume_run(tmp_path / "run", callbacks)
    assert "run has no checkpoint yet: it starts from its beginning" in callbacks.messages[0]
    assert callbacks.starts[0][1] == 0
    assert everything(tmp_path / "run") == everything(tmp_path / "unbroken")
    assert tree(tmp_path / "run").keys() == tree(tmp_path / "unbroken").keys()


@pytest.mark.parametrize("lost", ["checkpoints", "result too"])
def test_a_run_that_has_lost_its_checkpoints_is_left_as_it_is(lost: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_run(small_settings(backend="reference", epochs=2), run, Recorder())
    shutil.rmtree(run / "checkpoints")
    if lost == "result too":
        (run / "result.json").unlink()
    before = tree(run)
    with pytest.raises(CheckpointError, match="cannot go on: it has no checkpoint yet; train it"):
        resume_run(run, Recorder())
    assert tree(run) == before


# More epochs


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"schedule": "warmup", "warmup_steps": 25, "optimizer": "adamw"},
        {"dropout": 0.2, "accumulation_steps": 3, "optimizer": "sgd", "momentum": 0.9},
    ],
)
@pytest.mark.parametrize("at", [None, 13])
def test_more_epochs_have_the_bits_of_a_run_that_had_them_from_its_beginning(
    options: dict[str, Any], at: int | None, tmp_path: Path
) -> None:
    """Whether the run had ended or was stopped, and also where it is stopped after that."""
    long, short = (
        small_settings(backend="reference", examples=200, **options, epochs=epochs)
        for epochs in (5, 3)
    )
    at = at and at // options.get("accumulation_steps", 1)
    train_run(long, tmp_path / "long", Recorder())
    run = tmp_path / "run"
    if at is None:
        train_run(short, run, Recorder())
    else:
        stop_at(run, short, at, signal.SIGINT)
    callbacks = Stopper((at or 15) + 4, signal.SIGINT)
    last = (5 * 5, 5 * 2)["accumulation_steps" in options]
    if callbacks.step < last:
        with pytest.raises(TrainingInterrupted):
            resume_run(run, callbacks, epochs=5)
    result = resume_run(run, Recorder(), epochs=5)
    assert result["epochs"] == 5 and callbacks.messages == []
    assert everything(run) == everything(tmp_path / "long")
    assert resume_run(run, Recorder()) == result  # as a supervisor does it


def test_a_cosine_that_ends_elsewhere_is_told(tmp_path: Path) -> None:
    settings = small_settings(backend="reference", examples=200, epochs=2, schedule="cosine")
    run, callbacks = tmp_path / "run", Recorder()
    train_run(settings, run, Recorder())
    resume_run(run, callbacks, epochs=4)
    assert (
        "cosine of the learning rate ends with epoch 4 from now on, not 2" in callbacks.messages[0]
    )
    rates = [rate for _, _, rate, _ in callbacks.steps]
    assert len(rates) == 10 and 0 < rates[-1] < rates[0] < 0.01 / 2 * 1.01


def test_epochs_that_are_done_cannot_be_taken_back(tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = small_settings(backend="reference", examples=200, epochs=3)
    stop_at(run, settings, 7, signal.SIGINT)
    before = tree(run)
    with pytest.raises(RunError, match="has begun 2 epochs already; --epochs must be at least"):
        resume_run(run, Recorder(), epochs=1)
    with pytest.raises(InvalidValueError, match="epochs must be an integer >= 1, got 0"):
        resume_run(run, Recorder(), epochs=0)
    assert tree(run) == before
    assert resume_run(run, Recorder(), epochs=2)["epochs"] == 2


def test_a_run_without_patience_left_is_not_trained_on(tmp_path: Path) -> None:
    run, callbacks = tmp_path / "run", Recorder()
    settings = small_settings(
        backend="reference", examples=200, learning_rate=1e-9, patience=1, epochs=4
    )
    ended = train_run(settings, run, Recorder())
    assert ended["epochs"] == 2
    assert without_times(resume_run(run, callbacks, epochs=9)) == without_times(ended)
    assert "it had no better epoch in 1, its patience" in callbacks.messages[0]


def test_a_comparison_that_is_blind_would_be_noticed(tmp_path: Path) -> None:
    for seed in (1, 2):
        train_run(small_settings(seed=seed, epochs=1), tmp_path / str(seed), Recorder())
    one, two = everything(tmp_path / "1"), everything(tmp_path / "2")
    both = one.keys() & two.keys()
    assert {"config.toml", "metrics.jsonl", "result.json", "best.safetensors"} <= both
    assert all(one[name] != two[name] for name in both)
