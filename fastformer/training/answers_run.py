"""Runs of the decoder on tasks with longer answers: presets, training, going on, the test."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fastformer.batch import Ids, PackedBatch
from fastformer.data.answer_formats import FORMS, Form
from fastformer.data.answers import (
    ANSWER_TOKENS,
    AnswerTask,
    Drawn,
    draw_training,
    draw_unseen,
    kept_apart,
)
from fastformer.data.asked import Asked
from fastformer.data.questions import questions_of
from fastformer.models.config import DecoderConfig, ModelConfig
from fastformer.models.decoder import TransformerDecoder
from fastformer.training.callbacks import TrainingCallbacks
from fastformer.training.checkpoint import Checkpoint
from fastformer.training.examples import Examples, numbered_batches
from fastformer.training.loop import Trainer, load_weights
from fastformer.training.loss import CrossEntropyLoss
from fastformer.training.run_directory import RunDirectory
from fastformer.training.settings import Settings
from fastformer.training.steps import predict_classes, wrong_sequences


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

    def tests(self) -> list[Asked]:
        """Return the test inputs."""
        return [*questions_of(self.unseen("test"), self.form)]

    def trained_on(self, asked: Sequence[Asked]) -> None:
        """Return that it is not known: examples are drawn fresh, and no list of them is kept."""

    def never_trained_on(self, asked: Sequence[Asked]) -> int:
        """Return of how many of some questions it is certain that training never draws them."""
        return int(kept_apart([one.ids() for one in asked]).sum())

    def new_model(self) -> TransformerDecoder:
        """Return the model with its initial weights."""
        return self.made(TransformerDecoder)


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
        """Yield the batches of an epoch; see `fastformer.training.examples.Source`."""
        for number, count in numbered_batches(self.size, epoch, batch_size, start):
            yield draw_training(self.task, seed, number, count).packed(hints=True)


class AnswerJob:
    """What a run on a task with longer answers trains and tests."""

    def __init__(self, settings: AnswerSettings) -> None:
        """Draw the unseen examples, and make the model."""
        self.settings, self.model = settings, settings.new_model()
        self.validation = Examples(*settings.unseen("validation").packed(hints=False))
        self.drawn = settings.unseen("test")

    @property
    def tests(self) -> PackedBatch:
        """The test inputs."""
        return self.drawn.packed(hints=False)[0]

    @property
    def batch(self) -> PackedBatch:
        """A batch of training examples: what ranks share must be enough for all."""
        settings = self.settings
        return settings.first_examples(settings.training.batch_size)[0]

    def trainer(self, run: RunDirectory, callbacks: TrainingCallbacks) -> Trainer:
        """Return a trainer of the model, at the beginning."""
        settings = self.settings
        return Trainer(
            self.model,
            settings.training,
            AnswerStream(settings.task),
            self.validation,
            run,
            settings.seed,
            callbacks,
            whole_answers=True,
        )

    def description(self) -> str:
        """Say in a line what is trained."""
        settings, task = self.settings, self.settings.task
        return (
            f"{task.name}: {self.model.num_parameters:,} parameters, fresh examples, "
            f"{task.validation_examples:,} validation and {task.test_examples:,} test inputs, "
            f"{settings.computed_with}, seed {settings.seed}"
        )

    def test(self, trainer: Trainer, best: Checkpoint) -> dict[str, Any]:
        """Return test_accuracy, test_loss, test_examples and per_operation of a checkpoint.

        An answer is right where each of its tokens is the likeliest after the right ones before
        it, which is where greedy generation gives the whole answer.
        """
        load_weights(self.model, best)
        inputs, targets = self.drawn.packed(hints=False)
        logits = predict_classes(self.model, inputs)
        right = ~wrong_sequences(inputs, logits, targets)
        sums = self.settings.task.name == "addition"
        first = self.drawn.question[:, 0]
        names = np.array(["+" if sums else ANSWER_TOKENS[row] for row in first])
        return {
            "test_accuracy": float(right.mean()),
            "test_loss": CrossEntropyLoss(backend=self.model.ops.name).forward(logits, targets),
            "test_examples": int(right.size),
            "per_operation": {
                str(name): float(right[names == name].mean()) for name in np.unique(names)
            },
        }
