"""Runs of the classifier, whatever its examples are: settings, training, the test."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from fastformer import checks
from fastformer.batch import Ids, PackedBatch, pack
from fastformer.data.asked import Asked
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
class ClassifierSettings(Settings):
    """The settings of a classifier's run."""

    model_class: ClassVar[type[ModelConfig]] = TransformerConfig
    groups_are: ClassVar[str] = "class"
    # On few examples, an early epoch may have as many right as a later one that is surer of them.
    best_by_loss: ClassVar[bool] = True

    model: TransformerConfig

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        if self.model.pooling == "none":
            checks.fail(
                f"pooling must be 'first', 'mean' or 'last' for {self.task_name}, which asks one "
                "answer of each input, got 'none'"
            )

    @property
    def labels(self) -> tuple[str, ...]:
        """The name of each class, by its number."""
        raise NotImplementedError

    def parts(self) -> Parts[Any]:
        """Return the examples, the same ones every time."""
        raise NotImplementedError

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {label: number for number, label in enumerate(self.labels)}

    def order_of_group(self, group: str) -> int:
        """Return where a group is listed."""
        return self._numbers[group]

    def packed(self, examples: Sequence[Asked]) -> Examples:
        """Return examples as a classifier reads them, with the number of each one's class."""
        targets = [self._numbers[str(one.answer())] for one in examples]
        return Examples(pack([one.ids() for one in examples]), np.array(targets, np.int64))

    def first_examples(self, count: int) -> tuple[PackedBatch, Ids]:
        """Return the first of the training examples, with their targets."""
        first = self.packed(self.parts().train[:count])
        return first.inputs, first.targets

    def class_weights(self, parts: Parts[Any]) -> npt.NDArray[np.float64] | None:
        """Return how often each class counts in the training loss; None for once."""
        return None

    def tests(self) -> list[Asked]:
        """Return the test inputs."""
        return [*self.parts().test]

    def trained_on(self, asked: Sequence[Asked]) -> int:
        """Return how many of some inputs are trained on."""
        trained = {tuple(one.ids()) for one in self.parts().train}
        return sum(tuple(one.ids()) in trained for one in asked)

    def never_trained_on(self, asked: Sequence[Asked]) -> int:
        """Return how many of some inputs are not trained on."""
        return len(asked) - self.trained_on(asked)

    def new_model(self) -> Transformer:
        """Return the model with its initial weights."""
        return self.made(Transformer)


def forget_untrained(model: Transformer, trained: PackedBatch) -> None:
    """Let the tokens of the vocabulary that are never trained on mean nothing: zeros, not noise.

    Among them is the token of all words that are not known.
    """
    weights = model.state_dict()
    others = np.delete(np.arange(model.config.vocab_size), np.unique(trained.tokens))
    weights["embedding.weight"][others] = 0
    model.load_state_dict(weights)


class ClassifierJob:
    """What a classifier's run trains and tests."""

    def __init__(self, settings: ClassifierSettings) -> None:
        """Read or draw the examples, and make the model."""
        self.settings = settings
        self.parts, self.model = settings.parts(), settings.new_model()

    @property
    def tests(self) -> PackedBatch:
        """The test inputs."""
        return pack([one.ids() for one in self.parts.test])

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
        """Return the scores of a checkpoint on the test inputs, of each group, too."""
        warning = trainer.tracker.overfitting_warning()
        if warning:
            trainer.callbacks.message(warning)
        load_weights(self.model, best)
        packed = self.settings.packed(self.parts.test)
        logits = predict_classes(self.model, packed.inputs)
        loss = CrossEntropyLoss(backend=self.model.ops.name).forward(logits, packed.targets)
        right = logits.argmax(axis=1) == packed.targets
        groups = np.array([one.group for one in self.parts.test])
        names = sorted(set(groups.tolist()), key=self.settings.order_of_group)
        return {
            "test_accuracy": float(right.mean()),
            "test_loss": loss,
            "test_examples": len(self.parts.test),
            f"per_{self.settings.groups_are}": {
                name: float(right[groups == name].mean()) for name in names
            },
        }
