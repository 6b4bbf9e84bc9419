"""Runs of the classifier on texts with labels of one's own."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fastformer import checks
from fastformer.batch import pack
from fastformer.data.example_files import Pair, digest_of, read_files
from fastformer.data.labelled import (
    KNOWN,
    LabelledTask,
    LabelledText,
    split_labelled,
)
from fastformer.data.text import chosen_tokenizer
from fastformer.data.tokenizers import Tokenizer
from fastformer.data.vocabulary import NamedTokens
from fastformer.errors import InvalidValueError
from fastformer.models.config import TransformerConfig
from fastformer.training.classifier_run import (
    ClassifierJob,
    ClassifierSettings,
    Parts,
    forget_untrained,
)


@dataclass(frozen=True, kw_only=True)
class LabelledSettings(ClassifierSettings):
    """The settings of a classifier's run on texts with labels."""

    kind: ClassVar[str] = "classify"
    task_class: ClassVar[type[Any]] = LabelledTask
    has_tokenizer: ClassVar[bool] = True

    task: LabelledTask
    tokenizer: Tokenizer

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        if self.model.num_classes != len(self.labels):
            checks.fail(
                f"num_classes must be {len(self.labels)}, one for each label, got "
                f"{self.model.num_classes}"
            )

    @property
    def task_name(self) -> str:
        """What the task is called in a message."""
        return f"the {self.tokenizer.kind} of these texts' tokenizer"

    @property
    def longest(self) -> int:
        """Longer texts are cut."""
        return 1

    @property
    def longest_is(self) -> str:
        """What is so long."""
        return "texts"

    @property
    def operations(self) -> tuple[str, ...]:
        """There are none."""
        return ()

    @property
    def named_tokens(self) -> NamedTokens:
        """The first tokens of the vocabulary: of words, the most frequent ones."""
        return NamedTokens.of_tokenizer(self.tokenizer)

    @property
    def labels(self) -> tuple[str, ...]:
        """The name of each class."""
        return self.task.labels

    def text(self, text: str, label: str | None = None) -> LabelledText:
        """Return a text as the model reads it.

        Raises:
            ValueError: it has no token, or a character that the tokenizer has not.
        """
        found = LabelledText(text, label, self.tokenizer, self.model.max_seq_len)
        if not found.ids():
            checks.fail(f"the text {text!r:.60} has no token: give a word at least")
        return found

    def texts(self, pairs: Sequence[Pair]) -> list[LabelledText]:
        """Return examples as the model reads them.

        Raises:
            ValueError: a text that cannot be read, or a label that training never saw; the message
                has the file and the line.
        """
        found = []
        for pair in pairs:
            if pair.second not in self._numbers:
                checks.fail(
                    f"{pair.place}: the label {pair.second!r:.60} is none that was trained on: "
                    f"{', '.join(self.labels)!s:.200}"
                )
            try:
                found.append(self.text(pair.first, pair.second))
            except InvalidValueError as error:
                raise InvalidValueError(f"{pair.place}: {error}") from error
        return found

    def parts(self) -> Parts[LabelledText]:
        """Read the examples, and split them: the same way every time.

        Raises:
            ValueError: the file has changed since the run began, or is gone.
        """
        pairs, _ = self.task.read()
        if digest_of(pairs) != self.task.digest:
            checks.fail(
                f"the examples of {', '.join(self.task.files)} have changed since the run began; "
                "put the old ones back, or start a new run"
            )
        train, validation, test, notices = split_labelled(self.texts(pairs), self.task, self.seed)
        return Parts(train, validation, test, tuple(notices))

    def read_file(self, file: str | Path) -> list[LabelledText]:
        """Return the examples of another file, with the same columns."""
        columns = self.task.text_column, self.task.label_column
        return self.texts(read_files([str(file)], columns, KNOWN)[0])

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
    options = asdict(task) | {"files": tuple(str(Path(file).absolute()) for file in files)}
    pairs, (text_column, label_column) = LabelledTask(**options).read()
    options |= {"text_column": text_column, "label_column": label_column}
    labels = tuple(sorted({pair.second for pair in pairs}))
    tokenizer = chosen_tokenizer(task.tokenizer, (pair.first for pair in pairs), task.vocab_size)
    task = LabelledTask(**options | {"digest": digest_of(pairs), "labels": labels})
    sizes = {**model, "vocab_size": tokenizer.vocab_size, "num_classes": len(labels)}
    settings = LabelledSettings(
        task=task, tokenizer=tokenizer, model=TransformerConfig(**sizes), **own
    )
    settings.parts()
    return settings
