"""A run that begins with another run's weights."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from runs import SIZES, Recorder, everything, one_thread, small_settings, tree, weights_digest

from fastformer.cli import main
from fastformer.data import DigitTask
from fastformer.errors import RunError
from fastformer.models.config import DecoderConfig, TransformerConfig
from fastformer.training.answers_run import AnswerSettings
from fastformer.training.config import TrainingConfig
from fastformer.training.digits_run import RunSettings
from fastformer.training.loop import Trainer
from fastformer.training.run_directory import RunDirectory
from fastformer.training.runs import resume_run, train_run

__all__ = ["one_thread"]  # a fixture that every test here uses


class Crash(Exception):
    """Stands for the kill of the process."""


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "first"
    train_run(small_settings(backend="reference", examples=200, epochs=2), run, Recorder())
    return run


def settings_from(first: Path, model: dict[str, Any] | None = None, **options: Any) -> RunSettings:
    return RunSettings(
        task=DigitTask(examples=options.pop("examples", 200)),
        model=TransformerConfig(vocab_size=20, **{**SIZES, **(model or {})}),
        training=TrainingConfig(epochs=2, learning_rate=0.01),
        backend="reference",
        start_from=str(first),
        **options,
    )


def stop_before_the_first_step(patch: pytest.MonkeyPatch) -> None:
    def crash(*_: Any) -> None:
        raise Crash

    patch.setattr(Trainer, "_train_epoch", crash)


def test_a_run_begins_with_the_best_weights_of_another(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, callbacks = tmp_path / "run", Recorder()
    with monkeypatch.context() as patch, pytest.raises(Crash):
        stop_before_the_first_step(patch)
        train_run(settings_from(first), run, callbacks)
    begun = run / "checkpoints/step-00000000.safetensors"
    assert weights_digest(begun) == weights_digest(first / "checkpoints/best.safetensors")
    assert RunDirectory.open(run).latest().metadata["optimizer_steps"] == 0
    assert callbacks.messages == [
        f"beginning with the weights of {first}/checkpoints/best.safetensors"
    ]


@pytest.mark.parametrize("after", ["the settings", "the first weights", "an epoch"])
def test_it_goes_on_to_the_same_bits_also_when_the_other_run_is_gone(
    after: str, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(first, tmp_path / "copy"))
    train_run(settings_from(copy), tmp_path / "unbroken", Recorder())

    def crash(*_: Any) -> None:
        raise Crash

    with monkeypatch.context() as patch, pytest.raises(Crash):
        if after == "the first weights":
            stop_before_the_first_step(patch)
        else:
            owner: Any = Trainer if after == "the settings" else Recorder
            patch.setattr(owner, "save" if owner is Trainer else "epoch_finished", crash)
        train_run(settings_from(copy), tmp_path / "run", Recorder())
    if after != "the settings":
        shutil.rmtree(copy)
    resume_run(tmp_path / "run", Recorder())
    assert everything(tmp_path / "run") == everything(tmp_path / "unbroken")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"embed_dim": 8},
            r"cannot begin from .*first: its model has embed_dim 16 \(here 8\); give",
        ),
        (
            {"num_layers": 2, "ffn_dim": 8},
            r"its model has num_layers 1 \(here 2\), ffn_dim 32 \(here 8\)",
        ),
    ],
)
def test_weights_of_other_sizes_are_refused_before_anything_is_made(
    model: dict[str, Any], message: str, first: Path, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=message):
        train_run(settings_from(first, model), tmp_path / "run", Recorder())
    assert not list(tmp_path.iterdir())


def test_another_kind_of_model_is_refused(first: Path, tmp_path: Path) -> None:
    settings = AnswerSettings(
        task=AnswerSettings.task_class(name="addition"),
        model=DecoderConfig(vocab_size=23, **SIZES),
        training=TrainingConfig(),
        start_from=str(first),
    )
    with pytest.raises(RunError, match="it is a run of kind 'digits', and this one of kind 'answ"):
        train_run(settings, tmp_path / "run", Recorder())
    for wrong, message in ((tmp_path / "none", "does not exist"), (tmp_path, "is not a run")):
        with pytest.raises(RunError, match=message):
            train_run(settings_from(wrong), tmp_path / "run", Recorder())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": {"num_heads": 4}}, "their model had num_heads 2 (here 4): they may mean little"),
        ({"seed": 7}, "which may be test examples here: the test may look too good"),
        ({"examples": 250}, "which may be test examples here"),
        ({"model": {"dropout": 0.1}}, None),
    ],
)
def test_what_may_mislead_is_told(
    options: dict[str, Any], message: str | None, first: Path, tmp_path: Path
) -> None:
    callbacks = Recorder()
    train_run(settings_from(first, **options), tmp_path / "run", callbacks)
    assert len(callbacks.messages) == (1 if message is None else 2)
    assert message is None or message in callbacks.messages[1]


def test_on_the_command_line_the_model_is_that_of_the_other_run(
    first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, run = tree(first), tmp_path / "run"
    words = f"train --from {first} --examples 200 --epochs 1 --backend reference --json".split()
    assert main([*words, "--out", str(run)]) == 0
    assert f"beginning with the weights of {first}" in capsys.readouterr().err
    assert RunDirectory.open(run).config["model"] == RunDirectory.open(first).config["model"]
    assert RunDirectory.open(run).config["run"]["start_from"] == str(first)
    assert main([*words, "--out", str(tmp_path / "other"), "--embed-dim", "8"]) == 2
    assert "its model has embed_dim 16 (here 8)" in capsys.readouterr().err
    assert main(["train", "--resume", str(run), "--from", str(first)]) == 2
    assert "--resume goes on with the run's own settings" in capsys.readouterr().err
    assert tree(first) == before and not (tmp_path / "other").exists()


def test_on_the_command_line_a_run_takes_more_epochs(
    first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(shutil.copytree(first, tmp_path / "run"))
    assert main(["train", "--resume", run, "--epochs", "3", "--json"]) == 0
    assert '"epochs": 3' in capsys.readouterr().out
    # An option that is another's default is still an option.
    assert main(["train", "--resume", run, "--epochs", "4", "--batch-size", "32"]) == 2
    assert "leave out every other option but --epochs" in capsys.readouterr().err
    assert main(["train", "--resume", run, "--epochs", "2"]) == 2
    assert "has begun 3 epochs already" in capsys.readouterr().err
