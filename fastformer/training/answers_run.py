"""Runs of the decoder on tasks with longer answers: presets, training, going on, the test."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fastformer.batch import Ids, PackedBatch
from fastformer.data.answers import (
    ANSWER_TOKENS,
    AnswerTask,
    Drawn,
    draw_training,
    draw_unseen,
)
from fastformer.data.forms import FORMS, Form
from fastformer.models.config import DecoderConfig, ModelConfig
from fastformer.models.decoder import TransformerDecoder
from fastformer.training.checkpoint import Checkpoint
from fastformer.training.loop import Trainer, load_weights
from fastformer.training.loss import CrossEntropyLoss
from fastformer.training.observer import TrainingObserver
from fastformer.training.run_directory import RunDirectory
from fastformer.training.settings import Settings
from fastformer.training.source import Examples
from fastformer.training.steps import predict_classes, wrong_sequences
from fastformer.training.whole_run import finished_result, train_to_the_end


@dataclass(frozen=True, kw_only=True)
class AnswerSettings(Settings):
    """The settings of a decoder's run on a task with longer answers."""

    kind: ClassVar[str] = "answers"
    task_class: ClassVar[type[Any]] = AnswerTask
    model_class: ClassVar[type[ModelConfig]] = DecoderConfig
    tokens: ClassVar[tuple[str, ...]] = ANSWER_TOKENS

    task: AnswerTask
    model: DecoderConfig

    @property
    def task_name(self) -> str:
        """What the task is called in a message."""
        return self.task.name

    @property
    def longest(self) -> int:
        """Tokens of the longest question and answer that the model reads."""
        return self.task.longest

    @property
    def longest_is(self) -> str:
        """What is so long."""
        return f"examples of {self.task.name}"

    @property
    def form(self) -> Form:
        """What the task asks, and how it writes that."""
        return FORMS[self.task.name]

    @property
    def operations(self) -> tuple[str, ...]:
        """The operations in the task's questions."""
        return self.form.all_operations

    def unseen(self, part: str) -> Drawn:
        """Draw the examples of the "validation" or the "test", the same ones every time."""
        count = {
            "validation": self.task.validation_examples,
            "test": self.task.test_examples,
        }[part]
        return draw_unseen(self.task, self.seed, part, count)

    def first_examples(self, count: int) -> tuple[PackedBatch, Ids]:
        """Return so many examples as training has them first, with their targets."""
        return draw_training(self.task, self.seed, 0, count).packed(hints=True)

    def new_model(self) -> TransformerDecoder:
        """Return the model with its initial weights."""
        return TransformerDecoder(
            self.model,
            seed=self.seed,
            backend=self.backend,
            dtype=self.dtype,
            precision=self.precision,
        )


@dataclass(frozen=True)
class AnswerStream:
    """Fresh examples for each batch of a run: none is drawn twice but by chance."""

    task: AnswerTask

    @property
    def size(self) -> int:
        """How many examples an epoch has."""
        return self.task.examples

    def batches(
        self, seed: int, epoch: int, batch_size: int, start: int
    ) -> Iterator[tuple[PackedBatch, Ids]]:
        """Yield the batches of an epoch; see `fastformer.training.source.Source`."""
        count = -(-self.size // batch_size)
        for batch in range(start, count):
            size = min(batch_size, self.size - batch * batch_size)
            drawn = draw_training(self.task, seed, epoch * count + batch, size)
            yield drawn.packed(hints=True)


def _trainer(settings: AnswerSettings, run: RunDirectory, observer: TrainingObserver) -> Trainer:
    task = settings.task
    return Trainer(
        settings.new_model(),
        settings.training,
        AnswerStream(task),
        Examples(*settings.unseen("validation").packed(hints=False)),
        run,
        settings.seed,
        observer,
    )


def train_answers(
    settings: AnswerSettings, directory: Path, observer: TrainingObserver, overwrite: bool = False
) -> dict[str, Any]:
    """Train a decoder on fresh examples, and test it on inputs that it has never seen.

    Args:
        settings: what, and how.    directory: where the run is kept.
        observer: is told of each step and epoch.    overwrite: replace a run that is there.

    Returns:
        test_accuracy (whole answers), test_loss, per_operation, test_examples, steps, epochs,
        seconds, examples_per_second, best_epoch, parameters, backend, seed, run.

    Raises:
        RunError: the directory is there and `overwrite` is False, or cannot be written.
        ValueError: settings that cannot be met; then no file is made.
        TrainingInterrupted: a signal came; the run is saved.
    """
    settings.unseen("test")
    run = RunDirectory.create(directory, settings.tables(), overwrite=overwrite)
    return _train_to_the_end(_trainer(settings, run, observer), settings)


def resume_answers(directory: Path, observer: TrainingObserver) -> dict[str, Any]:
    """Go on with a run that was stopped; it ends with the bits of one that never was.

    Returns:
        What `train_answers` returns. A run that has ended is not trained further: its result is
        returned as it is, or, where there is none that can be read, tested anew.

    Raises:
        RunError: there is no such run, it is damaged, or has no checkpoint yet.
        TrainingInterrupted: a signal came; the run is saved.
    """
    run = RunDirectory.open(directory)
    settings = AnswerSettings.from_run(run)
    checkpoint = run.latest()
    settings.check_sizes(checkpoint)
    trainer = _trainer(settings, run, observer)
    trainer.restore(checkpoint)
    return finished_result(trainer) or _train_to_the_end(trainer, settings)


def _train_to_the_end(trainer: Trainer, settings: AnswerSettings) -> dict[str, Any]:
    """Train what is left, test the best weights, and write the result."""
    task = settings.task
    description = (
        f"{task.name}: {trainer.model.num_parameters:,} parameters, fresh examples, "
        f"{task.validation_examples:,} validation and {task.test_examples:,} test inputs, "
        f"{settings.computed_with}, seed {settings.seed}"
    )
    return train_to_the_end(trainer, description, lambda best: _test_scores(settings, best))


def _test_scores(settings: AnswerSettings, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return test_accuracy, test_loss, test_examples and per_operation of a checkpoint.

    An answer is right where each of its tokens is the likeliest after the right ones before it,
    which is where greedy generation gives the whole answer.
    """
    model, task = settings.new_model(), settings.task
    load_weights(model, checkpoint)
    drawn = settings.unseen("test")
    inputs, targets = drawn.packed(hints=False)
    logits = predict_classes(model, inputs)
    right = ~wrong_sequences(inputs, logits, targets)
    sums = task.name == "addition"
    names = np.array(["+" if sums else ANSWER_TOKENS[row] for row in drawn.question[:, 0]])
    return {
        "test_accuracy": float(right.mean()),
        "test_loss": CrossEntropyLoss(backend=model.ops.name).forward(logits, targets),
        "test_examples": int(right.size),
        "per_operation": {
            str(name): float(right[names == name].mean()) for name in np.unique(names)
        },
    }
