"""Runs of the digit task: settings, training, going on, the test."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fastformer import checks
from fastformer.batch import Ids, PackedBatch, pack
from fastformer.data.asked import Asked
from fastformer.data.digits import DigitExamples, DigitTask, Splits, generate, split
from fastformer.data.expressions import OPERATIONS
from fastformer.data.vocabulary import DIGIT_TOKENS
from fastformer.models.config import ModelConfig, TransformerConfig
from fastformer.models.transformer import Transformer
from fastformer.training.callbacks import TrainingCallbacks
from fastformer.training.checkpoint import Checkpoint
from fastformer.training.examples import Examples
from fastformer.training.loop import Trainer, load_weights
from fastformer.training.loss import CrossEntropyLoss
from fastformer.training.run_directory import RunDirectory
from fastformer.training.settings import Settings
from fastformer.training.steps import predict_classes
from fastformer.training.whole_run import go_on, train_new


@dataclass(frozen=True, kw_only=True)
class RunSettings(Settings):
    """The settings of a classifier's run on the digit task."""

    kind: ClassVar[str] = "digits"
    task_class: ClassVar[type[Any]] = DigitTask
    model_class: ClassVar[type[ModelConfig]] = TransformerConfig
    tokens: ClassVar[tuple[str, ...]] = DIGIT_TOKENS

    task: DigitTask
    model: TransformerConfig

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        if self.model.num_classes:
            checks.fail(
                f"num_classes must be 0 for the digit task, whose answers are token ids, got "
                f"{self.model.num_classes}"
            )
        if self.model.pooling == "none":
            checks.fail(
                "pooling must be 'first', 'mean' or 'last' for the digit task, which asks one "
                "answer of each expression, got 'none'"
            )

    @property
    def task_name(self) -> str:
        """What the task is called in a message."""
        return "the digit task"

    @property
    def longest(self) -> int:
        """Tokens of an expression."""
        return 2 * self.task.num_arguments + 2

    @property
    def longest_is(self) -> str:
        """What is so long."""
        return f"expressions of {self.task.num_arguments} arguments"

    @property
    def longest_remedy(self) -> str:
        """What to do about it."""
        return "raise max_seq_len or use fewer arguments"

    @property
    def operations(self) -> tuple[str, ...]:
        """The operations in the task's expressions."""
        return self.task.operations

    def splits(self) -> Splits:
        """Draw the examples, the same ones every time."""
        return split(generate(self.task, self.seed), self.task, self.seed)

    def first_examples(self, count: int) -> tuple[PackedBatch, Ids]:
        """Return the first of the training examples, with their targets."""
        train = self.splits().train
        return pack(train.inputs[:count]), train.targets[:count]

    def tests(self) -> list[Asked]:
        """Return the test inputs."""
        return [*self.splits().test.expressions]

    def trained_on(self, asked: Sequence[Asked]) -> int:
        """Return how many of some expressions are trained on."""
        trained = set(self.splits().train.expressions)
        return sum(one in trained for one in asked)

    def never_trained_on(self, asked: Sequence[Asked]) -> int:
        """Return how many of some expressions are not trained on."""
        return len(asked) - self.trained_on(asked)

    def new_model(self) -> Transformer:
        """Return the model with its initial weights."""
        return self.made(Transformer)


def _packed(examples: DigitExamples) -> Examples:
    return Examples(pack(examples.inputs), examples.targets)


class _DigitJob:
    """What a run on the digit task trains and tests."""

    def __init__(self, settings: RunSettings) -> None:
        """Draw the examples, and make the model."""
        self.settings = settings
        self.splits, self.model = settings.splits(), settings.new_model()

    @property
    def tests(self) -> PackedBatch:
        """The test inputs."""
        return pack(self.splits.test.inputs)

    def trainer(self, run: RunDirectory, callbacks: TrainingCallbacks) -> Trainer:
        """Return a trainer of the model, at the beginning."""
        settings = self.settings
        return Trainer(
            self.model,
            settings.training,
            _packed(self.splits.train),
            _packed(self.splits.validation),
            run,
            settings.seed,
            callbacks,
        )

    def description(self) -> str:
        """Say in a line what is trained."""
        settings, splits = self.settings, self.splits
        return (
            f"{self.model.num_parameters:,} parameters, {len(splits.train):,} training examples, "
            f"{len(splits.validation):,} validation and {len(splits.test):,} test inputs, "
            f"{settings.computed_with}, seed {settings.seed}"
        )

    def test(self, trainer: Trainer, best: Checkpoint) -> dict[str, Any]:
        """Return test_accuracy, test_loss, test_examples and per_operation of a checkpoint."""
        warning = trainer.tracker.overfitting_warning()
        if warning:
            trainer.callbacks.message(warning)
        load_weights(self.model, best)
        examples = self.splits.test
        packed = _packed(examples)
        logits = predict_classes(self.model, packed.inputs)
        loss = CrossEntropyLoss(backend=self.model.ops.name).forward(logits, packed.targets)
        right = logits.argmax(axis=1) == packed.targets
        operations = np.array([expression.operation for expression in examples.expressions])
        names = [name for name in OPERATIONS if name in operations]
        return {
            "test_accuracy": float(right.mean()),
            "test_loss": loss,
            "test_examples": len(examples),
            "per_operation": {name: float(right[operations == name].mean()) for name in names},
        }


def train_digits(
    settings: RunSettings,
    directory: Path,
    callbacks: TrainingCallbacks,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train a model on the digit task, and test it on inputs that it has never seen.

    Args:
        settings: what, and how.    directory: where the run is kept.
        callbacks: is told of each step and epoch.    overwrite: replace a run that is there.

    Returns:
        test_accuracy, test_loss, per_operation, test_examples, steps, epochs, seconds,
        examples_per_second, best_epoch, parameters, backend, seed, run.

    Raises:
        RunError: the directory is there and `overwrite` is False, it is being trained, removed or
            replaced by others, or cannot be written.
        ValueError: settings that cannot be met; then no file is made.
        TrainingInterrupted: a signal came; the run is saved.
    """
    return train_new(_DigitJob(settings), settings, directory, callbacks, overwrite)


def resume_digits(
    directory: Path, callbacks: TrainingCallbacks, epochs: int | None = None
) -> dict[str, Any]:
    """Go on with a run that was stopped; it ends with the bits of one that never was.

    One that was stopped before its first checkpoint starts from its beginning.

    Args:
        directory: of the run.    callbacks: is told of each step and epoch.
        epochs: train so many in all, in place of those that the run was to have, and keep that in
            its settings. The bits are those of a run that was to have them from its beginning,
            unless its schedule is "cosine", which then has another end.

    Returns:
        What `train_digits` returns. A run that has ended is not trained further: its result is
        returned as it is, or, where there is none that can be read, tested anew.

    Raises:
        RunError: there is no such run, it is damaged, has lost its checkpoints, has begun more
            epochs, or is being trained by others.
        TrainingInterrupted: a signal came; the run is saved.
    """
    return go_on(RunSettings, _DigitJob, directory, callbacks, epochs)
