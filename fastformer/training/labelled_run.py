"""Runs of the classifier on texts with labels of one's own."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fastformer import checks
from fastformer.batch import pack
from fastformer.data.labelled import LabelledTask, LabelledText, split_labelled
from fastformer.models.config import TransformerConfig
from fastformer.models.transformer import Transformer
from fastformer.training.classifier_run import (
    ClassifierJob,
    ClassifierSettings,
    forget_untrained,
)
from fastformer.training.split_run import Parts
from fastformer.training.table_run import TableSettings, read_table


@dataclass(frozen=True, kw_only=True)
class LabelledSettings(TableSettings, ClassifierSettings):
    """The settings of a classifier's run on texts with labels."""

    kind: ClassVar[str] = "classify"
    task_class: ClassVar[type[Any]] = LabelledTask
    split = staticmethod(split_labelled)

    task: LabelledTask
    model: TransformerConfig

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        if self.model.num_classes != len(self.labels):
            checks.fail(
                f"num_classes must be {len(self.labels)}, one for each label, got "
                f"{self.model.num_classes}"
            )

    @property
    def labels(self) -> tuple[str, ...]:
        """The name of each class."""
        return self.task.labels

    def text(self, text: str, right: str | None = None) -> LabelledText:
        """Return a text as the model reads it; see `TableSettings`."""
        if right is not None and right not in self._numbers:
            checks.fail(
                f"the label {right!r:.60} is none that was trained on: "
                f"{', '.join(self.labels)!s:.200}"
            )
        found = LabelledText(text, right, self.tokenizer, self.model.max_seq_len)
        if not found.ids():
            checks.fail(f"the text {text!r:.60} has no token: give a word at least")
        return found

    def class_weights(self, parts: Parts[Any]) -> npt.NDArray[np.float64] | None:
        """Return weights by which all labels count alike, with the mean 1; None for once each."""
        if not self.task.balance:
            return None
        counts = Counter(one.label for one in parts.train)
        return np.array(
            [len(parts.train) / (len(counts) * max(1, counts[label])) for label in self.labels]
        )


class LabelledJob(ClassifierJob):
    """What a run on texts with labels trains and tests."""

    def __init__(self, settings: LabelledSettings) -> None:
        """Read the examples, and make the model."""
        super().__init__(settings)
        assert isinstance(self.model, Transformer)
        forget_untrained(self.model, pack([one.ids() for one in self.parts.train]))


def new_labelled_settings(
    files: Sequence[Path], task: LabelledTask, model: dict[str, Any], **own: Any
) -> LabelledSettings:
    """Return the settings of a new run on files of texts with labels.

    Args:
        files: .csv or .jsonl.    task: its options.    model: options of `TransformerConfig` by
            name; the texts decide the size of the vocabulary, and the labels the number of classes.
        own: others of `LabelledSettings`.

    Raises:
        ValueError, TypeError: a file that cannot be read, or an option that is not allowed.
    """
    pairs, tokenizer, options = read_table(files, task, LabelledTask, both=False)
    labels = tuple(sorted({pair.second for pair in pairs}))
    sizes = {**model, "vocab_size": tokenizer.vocab_size, "num_classes": len(labels)}
    settings = LabelledSettings(
        task=LabelledTask(**{**options, "labels": labels}),
        tokenizer=tokenizer,
        model=TransformerConfig(**sizes),
        **own,
    )
    _ = settings.parts  # what cannot be split is refused before a run begins
    return settings
