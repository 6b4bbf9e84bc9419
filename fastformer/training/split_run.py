"""Runs whose examples are known before training, and split into three parts: settings, the job."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from fastformer.batch import Ids, PackedBatch
from fastformer.data.asked import Asked
from fastformer.training.callbacks import TrainingCallbacks
from fastformer.training.checkpoint import Checkpoint
from fastformer.training.examples import Examples
from fastformer.training.loop import Trainer, load_weights
from fastformer.training.loss import CrossEntropyLoss
from fastformer.training.run_directory import RunDirectory
from fastformer.training.settings import Settings
from fastformer.training.steps import predict_classes, wrong_sequences

AskedT = TypeVar("AskedT", bound=Asked)


@dataclass(frozen=True)
class Parts(Generic[AskedT]):
    """Examples of which no two parts share an input.

    Attributes:
        train: inputs repeat as often as they were drawn or written.
        validation, test: every input is there once.
        notices: sentences for a person about how the parts came about.
    """

    train: Sequence[AskedT]
    validation: Sequence[AskedT]
    test: Sequence[AskedT]
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SplitSettings(Settings):
    """The settings of a run whose examples are split.

    Attributes:
        whole_answers: whether an answer has several tokens, and is right if all of them are.
    """

    whole_answers: ClassVar[bool] = False

    @cached_property
    def parts(self) -> Parts[Any]:
        """The examples, the same ones every time."""
        return self.split_examples()

    def split_examples(self) -> Parts[Any]:
        """Read or draw the examples, and split them."""
        raise NotImplementedError

    def packed(self, examples: Sequence[Any]) -> Examples:
        """Return examples as the model learns them."""
        raise NotImplementedError

    def class_weights(self, parts: Parts[Any]) -> npt.NDArray[np.float64] | None:
        """Return how often each class counts in the training loss; None for once."""
        return None

    def first_examples(self, count: int) -> tuple[PackedBatch, Ids]:
        """Return the first of the training examples, with their targets."""
        first = self.packed(self.parts.train[:count])
        return first.inputs, first.targets

    def tests(self) -> list[Asked]:
        """Return the test inputs."""
        return [*self.parts.test]

    def trained_on(self, asked: Sequence[Asked]) -> int:
        """Return how many of some inputs are trained on."""
        trained = {tuple(one.ids()) for one in self.parts.train}
        return sum(tuple(one.ids()) in trained for one in asked)

    def never_trained_on(self, asked: Sequence[Asked]) -> int:
        """Return how many of some inputs are not trained on."""
        return len(asked) - self.trained_on(asked)


class SplitJob:
    """What a run whose examples are split trains and tests."""

    def __init__(self, settings: SplitSettings) -> None:
        """Read or draw the examples, and make the model."""
        self.settings = settings
        self.parts, self.model = settings.parts, settings.new_model()
        self.tested = settings.packed(self.parts.test)

    @property
    def tests(self) -> PackedBatch:
        """The test inputs."""
        return self.tested.inputs

    @property
    def batch(self) -> PackedBatch:
        """A batch of training examples: what ranks share must be enough for all."""
        settings = self.settings
        return settings.first_examples(settings.training.batch_size)[0]

    def trainer(self, run: RunDirectory, callbacks: TrainingCallbacks) -> Trainer:
        """Return a trainer of the model, at the beginning."""
        settings, parts = self.settings, self.parts
        for notice in parts.notices:
            callbacks.message(notice)
        return Trainer(
            self.model,
            settings.training,
            settings.packed(parts.train),
            settings.packed(parts.validation),
            run,
            settings.seed,
            callbacks,
            whole_answers=settings.whole_answers,
            best_by_loss=settings.best_by_loss,
            class_weights=settings.class_weights(parts),
        )

    def description(self) -> str:
        """Say in a line what is trained."""
        settings, parts = self.settings, self.parts
        return (
            f"{self.model.num_parameters:,} parameters, {len(parts.train):,} training examples, "
            f"{len(parts.validation):,} validation and {len(parts.test):,} test inputs, "
            f"{settings.computed_with}, seed {settings.seed}"
        )

    def test(self, trainer: Trainer, best: Checkpoint) -> dict[str, Any]:
        """Return the scores of a checkpoint on the test inputs, and those of each group."""
        warning = trainer.tracker.overfitting_warning()
        if warning:
            trainer.callbacks.message(warning)
        load_weights(self.model, best)
        inputs, targets = self.tested.inputs, self.tested.targets
        logits = predict_classes(self.model, inputs)
        right = ~wrong_sequences(inputs, logits, targets)
        return {
            "test_accuracy": float(right.mean()),
            "test_loss": CrossEntropyLoss(backend=self.model.ops.name).forward(logits, targets),
            "test_examples": int(right.size),
            **self.group_scores(right),
        }

    def group_scores(self, right: npt.NDArray[np.bool_]) -> dict[str, Any]:
        """Return the accuracy of each group of test inputs, where there are groups.

        Args:
            right: which of the test inputs are answered right.
        """
        return {}
