"""Runs of the decoder on questions with answers of one's own."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fastformer import checks
from fastformer.batch import pack
from fastformer.data.answered import MARKS, AnsweredTask, AnsweredText, split_answered
from fastformer.models.config import DecoderConfig, ModelConfig
from fastformer.models.decoder import TransformerDecoder
from fastformer.training.examples import Examples
from fastformer.training.table_run import TableSettings, read_table


@dataclass(frozen=True, kw_only=True)
class AnsweredSettings(TableSettings):
    """The settings of a decoder's run on questions with answers."""

    kind: ClassVar[str] = "answered"
    task_class: ClassVar[type[Any]] = AnsweredTask
    model_class: ClassVar[type[ModelConfig]] = DecoderConfig
    whole_answers: ClassVar[bool] = True
    split = staticmethod(split_answered)

    task: AnsweredTask
    model: DecoderConfig

    @property
    def vocab_size(self) -> int:
        """How many token ids there are: the tokenizer's, and two more."""
        return self.tokenizer.vocab_size + len(MARKS)

    @property
    def task_name(self) -> str:
        """What the task is called in a message."""
        return f"the {self.tokenizer.kind} of these texts' tokenizer and {' and '.join(MARKS)}"

    def text(self, text: str, right: str | None = None) -> AnsweredText:
        """Return a question as the model reads it; see `TableSettings`."""
        found = AnsweredText(text, right, self.tokenizer)
        length = len(found.question) + (self.task.longest_answer if right is None else 0)
        if right is not None:
            length += len(found.written) - 1
        most = self.model.max_seq_len
        if length > most:
            checks.fail(
                f"the question with its answer has {length:,} tokens, which is {length - most:,} "
                f"more than the model reads (max_seq_len={most}); shorten it, or raise max_seq_len"
            )
        return found

    def packed(self, examples: Sequence[AnsweredText]) -> Examples:
        """Return examples as a decoder learns them: answers alone are asked for."""
        inputs = pack([[*one.question, *one.written[:-1]] for one in examples])
        targets = [[-1] * (len(one.question) - 1) + list(one.written) for one in examples]
        return Examples(inputs, np.concatenate(targets).astype(np.int64))

    def new_model(self) -> TransformerDecoder:
        """Return the model with its initial weights."""
        return self.made(TransformerDecoder)


def new_answered_settings(
    files: Sequence[Path], task: AnsweredTask, model: dict[str, Any], **own: Any
) -> AnsweredSettings:
    """Return the settings of a new run on files of questions with answers.

    Args:
        files: .csv or .jsonl.    task: its options.    model: options of `DecoderConfig` by name,
            without the size of the vocabulary, which the texts decide.
        own: others of `AnsweredSettings`.

    Raises:
        ValueError, TypeError: a file that cannot be read, or an option that is not allowed.
    """
    pairs, tokenizer, options = read_table(files, task, AnsweredTask, both=True)
    longest = max(max(1, tokenizer.encode(pair.second).size) for pair in pairs)
    sizes = {**model, "vocab_size": tokenizer.vocab_size + len(MARKS)}
    settings = AnsweredSettings(
        task=AnsweredTask(**{**options, "longest_answer": longest}),
        tokenizer=tokenizer,
        model=DecoderConfig(**sizes),
        **own,
    )
    _ = settings.parts  # what cannot be split is refused before a run begins
    return settings
