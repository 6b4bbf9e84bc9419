"""The training loop: steps, schedules, accumulation, early stopping, divergence."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import SIZES, Recorder, one_thread

import fastformer as ff
from fastformer.data import DigitTask, generate
from fastformer.data.batches import batch_order
from fastformer.errors import CheckpointError, InvalidTypeError, InvalidValueError
from fastformer.training import loop
from fastformer.training.checkpoint import load_checkpoint, save_checkpoint
from fastformer.training.config import TrainingConfig
from fastformer.training.examples import Examples
from fastformer.training.loop import Trainer, TrainingDivergedError
from fastformer.training.run_directory import RunDirectory
from fastformer.training.schedules import learning_rate_at
from fastformer.training.steps import Scores, step_gradients

__all__ = ["one_thread"]  # a fixture that every test here uses

BATCHES = 4


def digits(count: int, seed: int) -> Examples:
    drawn = generate(DigitTask(examples=count), seed)
    return Examples(ff.pack(drawn.inputs), drawn.targets)


def make_trainer(
    directory: Path,
    *,
    examples: int = 32 * BATCHES,
    dtype: str = "float32",
    model: dict[str, Any] | None = None,
    **options: Any,
) -> Trainer:
    """Return a trainer of a small model, in a run of its own, with a recorder."""
    config = ff.TransformerConfig(vocab_size=20, **{**SIZES, **(model or {})})
    return Trainer(
        ff.Transformer(config, seed=1, dtype=dtype),
        TrainingConfig(**{"epochs": 2, **options}),
        digits(examples, 1),
        digits(40, 2),
        RunDirectory.create(directory, {}),
        seed=1,
        callbacks=Recorder(),
    )


def script_validation(monkeypatch: pytest.MonkeyPatch, *accuracies: float) -> None:
    """Let the epochs have these validation accuracies."""
    scores: Iterator[Scores] = iter([Scores(1.0, accuracy) for accuracy in accuracies])
    monkeypatch.setattr(loop, "evaluate", lambda *_, **__: next(scores))


def weights(trainer: Trainer) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in trainer.model.state_dict().items()}


def saved_weights(path: Path) -> dict[str, bytes]:
    tensors = load_checkpoint(path).tensors
    return {n: array.tobytes() for n, array in tensors.items() if not n.startswith("optimizer.")}


@pytest.mark.smoke
def test_the_loop_is_plain_steps_in_the_order_of_the_epoch(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", learning_rate=0.01, examples=100)
    trainer.train()
    other = make_trainer(tmp_path / "other", learning_rate=0.01, examples=100)
    optimizer, losses, right = ff.Adam(other.model.parameters(), lr=0.01), [], []
    for epoch in range(2):
        order = batch_order(100, 1, epoch)
        for first in range(0, 100, 32):
            chosen = order[first : first + 32]
            batch = other.train_examples.inputs.select(chosen)
            targets = other.train_examples.targets[chosen]
            loss_fn = ff.CrossEntropyLoss()
            scores = ff.train_step(other.model, batch, targets, loss_fn, optimizer)
            losses.append(scores.loss * chosen.size)
            right.append(scores.accuracy * chosen.size)
    assert weights(trainer) == weights(other)
    record = trainer.run.read_metrics()[1]
    # Each example counts once, also in the last batch, which is smaller.
    assert record["train_loss"] == pytest.approx(sum(losses[4:]) / 100, rel=1e-12)
    assert record["train_accuracy"] == pytest.approx(sum(right[4:]) / 100, rel=1e-12)
    validation = ff.evaluate(
        trainer.model,
        trainer.validation_examples.inputs,
        trainer.validation_examples.targets,
        ff.CrossEntropyLoss(),
    )
    assert (record["validation_loss"], record["validation_accuracy"]) == validation


def test_label_smoothing_is_for_training_alone(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", learning_rate=0.01, label_smoothing=0.2, epochs=1)
    other = make_trainer(tmp_path / "other", learning_rate=0.01)
    trainer.train()
    optimizer, losses = ff.Adam(other.model.parameters(), lr=0.01), []
    loss_fn, order = ff.CrossEntropyLoss(label_smoothing=0.2), batch_order(32 * BATCHES, 1, 0)
    for first in range(0, 32 * BATCHES, 32):
        chosen = order[first : first + 32]
        batch = other.train_examples.inputs.select(chosen)
        targets = other.train_examples.targets[chosen]
        losses.append(ff.train_step(other.model, batch, targets, loss_fn, optimizer).loss)
    assert weights(trainer) == weights(other)
    (record,) = trainer.run.read_metrics()
    assert record["train_loss"] == pytest.approx(np.mean(losses), rel=1e-12)
    validation = (trainer.validation_examples.inputs, trainer.validation_examples.targets)
    plain = ff.evaluate(trainer.model, *validation, ff.CrossEntropyLoss()).loss
    assert record["validation_loss"] == plain
    assert ff.evaluate(trainer.model, *validation, loss_fn).loss != pytest.approx(plain, rel=1e-3)


@pytest.mark.parametrize(
    ("smoothing", "error", "message"),
    [
        (1.0, InvalidValueError, "label_smoothing must be a finite number >= 0 and < 1, got 1.0"),
        (-0.1, InvalidValueError, "label_smoothing must be .*got -0.1"),
        (True, InvalidTypeError, "label_smoothing must be .*got True"),
    ],
)
def test_a_smoothing_that_leaves_nothing_of_the_targets_is_refused(
    smoothing: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        TrainingConfig(label_smoothing=smoothing)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"l2_penalty": -1}, InvalidValueError, "^l2_penalty must be .* >= 0, got -1$"),
        ({"amsgrad": 1}, InvalidTypeError, "^amsgrad must be True or False, got 1$"),
        ({"nesterov": "yes"}, InvalidTypeError, "^nesterov must be True or False, got 'yes'$"),
        ({"nesterov": True}, InvalidValueError, "nesterov is for sgd .* got optimizer adam and"),
        (
            {"nesterov": True, "optimizer": "sgd"},
            InvalidValueError,
            "a momentum > 0, got optimizer sgd and momentum 0.0",
        ),
        (
            {"amsgrad": True, "optimizer": "sgd"},
            InvalidValueError,
            "amsgrad is for adam and adamw, got optimizer sgd",
        ),
        (
            {"l2_penalty": 0.1, "optimizer": "adamw"},
            InvalidValueError,
            "l2_penalty is for adam and sgd; adamw has weight_decay",
        ),
    ],
)
def test_settings_that_an_optimizer_has_not_are_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        TrainingConfig(**options)


def test_settings_are_those_of_the_optimizer() -> None:
    model = ff.Transformer(ff.TransformerConfig(vocab_size=20, **SIZES))

    def made(**options: Any) -> Any:
        return loop.make_optimizer(model, TrainingConfig(**options))

    sgd = made(optimizer="sgd", momentum=0.9, nesterov=True, l2_penalty=0.2)
    assert (type(sgd), sgd.nesterov, sgd.weight_decay) == (ff.SGD, True, 0.2)
    # The decay of AdamW, which is not 0 unless it is set, is not that of the others.
    assert (made(optimizer="sgd").weight_decay, made().weight_decay) == (0, 0)
    adam = made(amsgrad=True, l2_penalty=0.3)
    assert (type(adam), adam.amsgrad, adam.weight_decay) == (ff.Adam, True, 0.3)
    adamw = made(optimizer="adamw", amsgrad=True, weight_decay=0.4)
    assert (type(adamw), adamw.amsgrad, adamw.weight_decay) == (ff.AdamW, True, 0.4)


def test_what_is_told_and_logged(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", schedule="cosine", warmup_steps=3, clip_norm=0.1)
    assert (trainer.steps_per_epoch, trainer.total_steps) == (BATCHES, 2 * BATCHES)
    trainer.train()
    callbacks: Any = trainer.callbacks
    rates = [
        learning_rate_at(
            step,
            schedule="cosine",
            learning_rate=1e-3,
            min_learning_rate=0.0,
            warmup_steps=3,
            total_steps=8,
        )
        for step in range(8)
    ]
    assert [step for step, *_ in callbacks.steps] == list(range(1, 9))
    assert [rate for _, _, rate, _ in callbacks.steps] == rates
    assert {examples for *_, examples in callbacks.steps} == {32}
    records = trainer.run.read_metrics()
    assert records == callbacks.records
    assert [record["epoch"] for record in records] == [1, 2]
    assert [record["step"] for record in records] == [4, 8]
    assert [record["learning_rate"] for record in records] == [rates[3], rates[7]]
    for record in records:
        assert set(record) == {
            *("epoch", "step", "train_loss", "train_accuracy", "validation_loss"),
            *("validation_accuracy", "learning_rate", "gradient_norm", "seconds"),
            *("examples_per_second", "tokens_per_second", "best"),
        }
        assert record["gradient_norm"] > 0.1  # the norm before it was clipped
        assert record["examples_per_second"] == pytest.approx(32 * BATCHES / record["seconds"])
    assert trainer.ended


def test_clipping_bounds_each_step(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path / "run",
        optimizer="sgd",
        learning_rate=1.0,
        clip_norm=0.01,
        dtype="float64",
        epochs=1,
        examples=32,
    )
    before = trainer.model.parameters().values.copy()
    trainer.train()
    moved = trainer.model.parameters().values - before
    assert float(np.sqrt((moved**2).sum())) == pytest.approx(0.01, rel=1e-9)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_accumulated_batches_are_one_batch(optimizer: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"optimizer": optimizer, "dtype": "float64", "learning_rate": 0.01}
    whole = make_trainer(tmp_path / "whole", batch_size=32, **options)
    halves = make_trainer(tmp_path / "halves", batch_size=16, accumulation_steps=2, **options)
    assert halves.total_steps == whole.total_steps == 8
    whole.train()
    halves.train()
    for name, array in whole.model.grad_dict().items():
        other = halves.model.grad_dict()[name]
        np.testing.assert_allclose(other, array, rtol=1e-9, atol=1e-12, err_msg=name)
    for name, array in whole.model.state_dict().items():
        other = halves.model.state_dict()[name]
        np.testing.assert_allclose(other, array, rtol=1e-9, atol=1e-10, err_msg=name)
    for one, two in zip(whole.run.read_metrics(), halves.run.read_metrics(), strict=True):
        for field in ("step", "train_loss", "train_accuracy", "gradient_norm"):
            assert two[field] == pytest.approx(one[field], rel=1e-9)


def test_a_last_group_that_is_not_full_is_a_step_of_its_own(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", accumulation_steps=3, epochs=1)
    assert trainer.total_steps == 2
    trainer.train()
    assert [examples for *_, examples in trainer.callbacks.steps] == [96, 32]  # type: ignore


def test_training_stops_early_and_the_best_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script_validation(monkeypatch, 0.1, 0.5, 0.5, 0.4, 0.9)
    trainer = make_trainer(tmp_path / "run", epochs=5, patience=2)
    best = []

    def keep_best(record: dict[str, Any]) -> None:
        if record["best"]:
            best.append(weights(trainer))

    monkeypatch.setattr(trainer.callbacks, "epoch_finished", keep_best)
    trainer.train()
    assert (trainer.progress.epoch, trainer.tracker.best_epoch, len(best)) == (4, 2, 2)
    assert trainer.progress.stopped_early and trainer.ended
    checkpoints = tmp_path / "run/checkpoints"
    assert saved_weights(checkpoints / "best.safetensors") == best[-1] != weights(trainer)
    newest = checkpoints / f"step-{trainer.progress.step:08d}.safetensors"
    assert saved_weights(newest) == weights(trainer)
    trainer.train()  # nothing is left to do
    assert trainer.progress.epoch == 4


@pytest.mark.parametrize("patience", [0, 3])
def test_training_goes_on_while_there_is_patience(
    patience: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script_validation(monkeypatch, 0.5, 0.4, 0.4, 0.6, 0.6, 0.6)
    trainer = make_trainer(tmp_path / "run", epochs=6, patience=patience)
    trainer.train()
    assert (trainer.progress.epoch, trainer.tracker.best_epoch) == (6, 4)


def test_dropout_is_active_in_training_only(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", model={"dropout": 0.2})
    plain = make_trainer(tmp_path / "plain")
    trainer.train()
    plain.train()
    assert trainer.model.dropout_counter.forwards == 2 * BATCHES
    assert weights(trainer) != weights(plain)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_divergence_is_an_error_that_names_a_tensor(optimizer: str, tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path / "run", optimizer=optimizer, learning_rate=1e30, checkpoint_every=1
    )
    with pytest.raises(
        TrainingDivergedError, match="diverged at step 2: .* the gradient of embedding.weight is"
    ) as diverged:
        trainer.train()
    assert "lower learning_rate" in str(diverged.value)
    assert isinstance(diverged.value, ArithmeticError)
    # The step that failed left no trace, in memory or on disk.
    assert trainer.progress.step == trainer.optimizer.steps == 1
    assert all(math.isfinite(value) for value in trainer.model.parameters().values)
    saved = trainer.run.latest()
    assert saved.metadata["progress"]["step"] == 1
    assert saved_weights(saved.path) == weights(trainer)


def test_divergence_in_the_last_step_of_an_epoch_is_seen_in_validation(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", learning_rate=1e30, examples=32)
    with pytest.raises(TrainingDivergedError, match="epoch 1: the validation loss is nan; the fi"):
        trainer.train()
    assert trainer.run.read_metrics() == []
    assert not (tmp_path / "run/checkpoints").exists()


def test_a_loss_that_is_not_finite_is_seen_where_gradients_are_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path / "run")

    def infinite(*arguments: Any, **options: Any) -> tuple[float, Any]:
        return math.inf, step_gradients(*arguments, **options)[1]

    monkeypatch.setattr(loop, "step_gradients", infinite)
    before = weights(trainer)
    with pytest.raises(TrainingDivergedError, match="the loss is inf, and the loss is not finite"):
        trainer.train()
    assert weights(trainer) == before


def other_checkpoint(path: Path, trainer: Trainer, **changes: Any) -> Any:
    """Save what the trainer would, with some entries of tensors or metadata changed."""
    tensors = trainer.model.state_dict()
    for name, array in trainer.optimizer.state_dict().items():
        tensors[f"optimizer.{name}"] = array
    metadata = trainer._metadata()
    for name, value in changes.items():
        kept = metadata if name in metadata else tensors
        if value is None:
            del kept[name]
        else:
            kept[name] = value
    save_checkpoint(path, tensors, metadata)
    return load_checkpoint(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output.bias": None}, r"does not fit the model: .* missing \['output.bias'\]"),
        ({"output.bias": np.zeros(21)}, r"does not fit the model: .*output.bias.* \(21,\)"),
        ({"output.bias": np.zeros(20, np.int64)}, "does not fit the model: .*floats, got int64"),
        ({"optimizer.exp_avg.output.bias": None}, "does not fit this training run: .*exp_avg"),
        ({"optimizer_steps": None}, "does not fit this training run: 'optimizer_steps'"),
        ({"optimizer_steps": -3}, "does not fit this training run: steps must be"),
        ({"progress": {"epochs": 3}}, "does not fit this training run: .*epochs"),
        ({"tracker": {"history": []}}, "does not fit this training run: MetricsTracker"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    trainer = make_trainer(tmp_path / "run")
    before = weights(trainer)
    checkpoint = other_checkpoint(tmp_path / "other.safetensors", trainer, **changes)
    with pytest.raises(CheckpointError, match=message):
        make_trainer(tmp_path / "second").restore(checkpoint)
    assert weights(trainer) == before
    make_trainer(tmp_path / "third").restore(
        other_checkpoint(tmp_path / "good.safetensors", trainer)
    )
