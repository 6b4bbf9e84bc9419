"""Runs of the classifier, whatever its examples are: settings, training, the test."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fastformer import checks
from fastformer.batch import PackedBatch, pack
from fastformer.data.asked import Asked
from fastformer.models.config import ModelConfig, TransformerConfig
from fastformer.models.transformer import Transformer
from fastformer.training.examples import Examples
from fastformer.training.split_run import SplitJob, SplitSettings


@dataclass(frozen=True, kw_only=True)
class ClassifierSettings(SplitSettings):
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


class ClassifierJob(SplitJob):
    """What a classifier's run trains and tests."""

    settings: ClassifierSettings

    def group_scores(self, right: npt.NDArray[np.bool_]) -> dict[str, Any]:
        """Return the accuracy of each operation or class that is tested."""
        groups = np.array([one.group for one in self.parts.test])
        names = sorted(set(groups.tolist()), key=self.settings.order_of_group)
        shares = {name: float(right[groups == name].mean()) for name in names}
        return {f"per_{self.settings.groups_are}": shares}
