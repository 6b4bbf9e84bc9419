"""Batches that make one step are one large batch, whatever they hold; and what is told of them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import SIZES, Recorder, one_thread

import fastformer as ff
from fastformer.training.config import TrainingConfig
from fastformer.training.examples import Examples
from fastformer.training.loop import Trainer
from fastformer.training.run_directory import RunDirectory

__all__ = ["one_thread"]  # a fixture that every test here uses


@dataclass
class InOrder:
    """Examples without a shuffle, with a target for each sequence or for each token."""

    inputs: ff.PackedBatch
    targets: np.ndarray

    @property
    def size(self) -> int:
        return self.inputs.num_sequences

    def batches(self, seed: int, epoch: int, batch_size: int, start: int) -> Iterator[Any]:
        per_token = self.targets.size == self.inputs.num_tokens
        bounds = self.inputs.offsets if per_token else np.arange(self.size + 1)
        for first in range(start * batch_size, self.size, batch_size):
            chosen = np.arange(first, min(self.size, first + batch_size))
            yield (
                self.inputs.select(chosen),
                self.targets[bounds[chosen[0]] : bounds[chosen[-1] + 1]],
            )


def accumulated(directory: Path, source: InOrder, **options: Any) -> Trainer:
    """Return a trainer of float64 twins that has made an epoch of such examples."""
    decodes = source.targets.size == source.inputs.num_tokens
    own: dict[str, Any] = {"seed": 1, "backend": "reference", "dtype": "float64"}
    sizes = {"vocab_size": 20, "max_seq_len": 32, **SIZES}
    model: Any = (
        ff.TransformerDecoder(ff.DecoderConfig(**sizes), **own)
        if decodes
        else ff.Transformer(ff.TransformerConfig(**sizes), **own)
    )
    config = TrainingConfig(epochs=1, optimizer="sgd", learning_rate=0.1, **options)
    run = RunDirectory.create(directory, {})
    validation = Examples(source.inputs, source.targets)
    trainer = Trainer(model, config, source, validation, run, 0, Recorder())
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("lengths", "ignored", "parts"),
    [
        ((6,) * 6, None, (4, 2)),  # a last batch that is short
        ((3, 30, 4, 28), 0, (1, 4)),  # unlike lengths
        ((3, 30, 4, 28), 33, (1, 4)),  # two of them ask nothing
        ((3, 30, 4, 28, 9), 36, (2, 3)),
    ],
)
def test_accumulated_batches_are_one_batch_whatever_they_hold(
    lengths: tuple[int, ...], ignored: int | None, parts: tuple[int, int], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    inputs = ff.pack([rng.integers(0, 20, length).tolist() for length in lengths])
    targets = rng.integers(0, 20, len(lengths) if ignored is None else inputs.num_tokens)
    targets[: ignored or 0] = -1
    source = InOrder(inputs, targets)
    whole = accumulated(tmp_path / "whole", source, batch_size=len(lengths))
    steps = accumulated(
        tmp_path / "parts", source, batch_size=parts[0], accumulation_steps=parts[1]
    )
    found, expected = (t.model.parameters().values for t in (steps, whole))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    told = [[loss for _, loss, _, _ in trainer.callbacks.steps] for trainer in (steps, whole)]  # type: ignore[attr-defined]
    assert told[0] == pytest.approx(told[1], rel=1e-9) and len(told[1]) == 1
    records = [trainer.run.read_metrics()[0] for trainer in (steps, whole)]
    assert records[1]["train_loss"] == pytest.approx(told[1][0], rel=1e-12)
    for name in ("train_loss", "train_accuracy", "validation_loss", "gradient_norm"):
        assert records[0][name] == pytest.approx(records[1][name], rel=1e-9)


def test_an_epochs_loss_is_that_of_all_its_targets(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    inputs = ff.pack([rng.integers(0, 20, length).tolist() for length in (3, 30, 4, 28)])
    targets = rng.integers(0, 20, inputs.num_tokens)
    targets[:20] = -1
    trainer = accumulated(tmp_path / "run", InOrder(inputs, targets), batch_size=1)
    losses = [loss for _, loss, _, _ in trainer.callbacks.steps]  # type: ignore[attr-defined]
    asked = [0, 13, 4, 28]
    (record,) = trainer.run.read_metrics()
    assert record["train_loss"] == pytest.approx(np.dot(losses, asked) / sum(asked), rel=1e-12)


def test_accuracies_of_nothing_asked_are_null(tmp_path: Path) -> None:
    source = InOrder(ff.pack([[1, 2], [3]]), np.full(3, -1))
    trainer = accumulated(tmp_path / "run", source, batch_size=2)
    (record,) = trainer.run.read_metrics()
    assert (record["train_accuracy"], record["validation_accuracy"]) == (None, None)
    assert record["train_loss"] == record["validation_loss"] == 0
    assert math.isnan(trainer.tracker.best_validation_accuracy)
    trainer.restore(trainer.run.latest())
