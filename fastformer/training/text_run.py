"""Runs of the decoder on text of one's own: reading it, training on crops, the validation."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fastformer import checks
from fastformer.batch import Ids, PackedBatch
from fastformer.data.text import Crops, TextTask, read_texts, windows
from fastformer.data.tokenizers import Tokenizer
from fastformer.models.config import DecoderConfig, ModelConfig
from fastformer.models.decoder import TransformerDecoder
from fastformer.training.callbacks import TrainingCallbacks
from fastformer.training.checkpoint import Checkpoint
from fastformer.training.examples import Examples, numbered_batches
from fastformer.training.loop import Trainer, load_weights
from fastformer.training.loss import CrossEntropyLoss
from fastformer.training.run_directory import RunDirectory
from fastformer.training.settings import Settings
from fastformer.training.steps import evaluate

# Logits of all validation tokens are in memory at once: 128 MiB in float32.
MOST_LOGITS = 1 << 25


@dataclass(frozen=True, kw_only=True)
class TextSettings(Settings):
    """The settings of a decoder's run on text."""

    kind: ClassVar[str] = "text"
    task_class: ClassVar[type[Any]] = TextTask
    model_class: ClassVar[type[ModelConfig]] = DecoderConfig
    has_tokenizer: ClassVar[bool] = True

    task: TextTask
    model: DecoderConfig
    tokenizer: Tokenizer

    @property
    def task_name(self) -> str:
        """What the task is called in a message."""
        return f"the {self.tokenizer.kind} of this text's tokenizer"

    @property
    def longest(self) -> int:
        """Crops are as long as the model reads."""
        return self.model.max_seq_len

    @property
    def longest_is(self) -> str:
        """What is so long."""
        return "crops"

    @property
    def operations(self) -> tuple[str, ...]:
        """There are none."""
        return ()

    def tokens_of(self, texts: list[str]) -> Ids:
        """Return the tokens of all texts, end to end.

        Raises:
            ValueError: they are not the texts that the run began with, or too short.
        """
        if self.task.of_texts(texts).digest != self.task.digest:
            checks.fail(
                f"the text of {', '.join(self.task.files)} has changed since the run began; put "
                "the old text back, or start a new run"
            )
        tokens = np.concatenate([self.tokenizer.encode(text) for text in texts])
        length = self.model.max_seq_len
        shorter = min(self.first_unseen(tokens.size), tokens.size - self.first_unseen(tokens.size))
        if shorter < length + 2:
            checks.fail(
                f"the text has {tokens.size:,} tokens, of which {shorter:,} are too few for crops "
                f"of max_seq_len={length} and the token behind them; give more text, a lower "
                "max_seq_len, or another validation_share"
            )
        return tokens

    def first_unseen(self, count: int) -> int:
        """Return the first token, of so many, that is not trained on."""
        return count - round(count * self.task.validation_share)

    def new_model(self) -> TransformerDecoder:
        """Return the model with its initial weights."""
        return self.made(TransformerDecoder)


@dataclass(frozen=True)
class CropSource:
    """Random crops for each batch of a run."""

    crops: Crops

    @property
    def size(self) -> int:
        """How many crops an epoch has."""
        return self.crops.size

    def batches(
        self, seed: int, epoch: int, batch_size: int, start: int
    ) -> Iterator[tuple[PackedBatch, Ids]]:
        """Yield the batches of an epoch; see `fastformer.training.examples.Source`."""
        for number, count in numbered_batches(self.size, epoch, batch_size, start):
            yield self.crops.batch(seed, number, count)


class TextJob:
    """What a run on text trains and tests."""

    def __init__(self, settings: TextSettings) -> None:
        """Read the text, and make the model."""
        texts = read_texts([Path(file) for file in settings.task.files])
        tokens = settings.tokens_of(texts)
        self.settings, self.model = settings, settings.new_model()
        first, length = settings.first_unseen(tokens.size), settings.model.max_seq_len
        self.crops = Crops(tokens[:first], length, settings.task.crops)
        most = max(length, MOST_LOGITS // settings.vocab_size)
        self.validation = Examples(*windows(tokens[first:], length, most))
        # Of the text, for each token: what a loss per token is per byte.
        size = sum(len(text.encode()) for text in texts)
        self.bytes_per_token = size / tokens.size

    @property
    def tests(self) -> PackedBatch:
        """What is not trained on."""
        return self.validation.inputs

    def trainer(self, run: RunDirectory, callbacks: TrainingCallbacks) -> Trainer:
        """Return a trainer of the model, at the beginning."""
        settings = self.settings
        return Trainer(
            self.model,
            settings.training,
            CropSource(self.crops),
            self.validation,
            run,
            settings.seed,
            callbacks,
            best_by_loss=True,
        )

    def description(self) -> str:
        """Say in a line what is trained."""
        settings = self.settings
        return (
            f"text: {self.model.num_parameters:,} parameters, {self.crops.tokens.size:,} tokens "
            f"({settings.tokenizer.kind}, {settings.vocab_size:,} different), "
            f"{self.validation.inputs.num_tokens:,} for validation, {settings.computed_with}, "
            f"seed {settings.seed}"
        )

    def test(self, trainer: Trainer, best: Checkpoint) -> dict[str, Any]:
        """Return the scores of a checkpoint on what is not trained on.

        Its loss is in nats a token; bits_per_byte does not depend on the tokenizer.
        """
        load_weights(self.model, best)
        loss_fn = CrossEntropyLoss(backend=self.model.ops.name)
        scores = evaluate(self.model, self.validation.inputs, self.validation.targets, loss_fn)
        return {
            "validation_loss": scores.loss,
            "bits_per_byte": scores.loss / math.log(2) / self.bytes_per_token,
            "test_accuracy": scores.accuracy,
            "test_loss": scores.loss,
            "test_examples": self.validation.inputs.num_tokens,
        }


def new_text_settings(
    files: tuple[Path, ...], task: TextTask, model: dict[str, Any], **own: Any
) -> TextSettings:
    """Return the settings of a new run on text files.

    Args:
        files: UTF-8.    task: its options.    model: options of `DecoderConfig` by name, without
            the size of the vocabulary, which the text decides.    own: others of `TextSettings`.

    Raises:
        ValueError, TypeError: a file that cannot be read, or an option that is not allowed.
    """
    texts = read_texts(files)
    paths = tuple(str(Path(file).absolute()) for file in files)
    # Of a TextTask itself, whatever subclass a command line has made.
    given = {field.name: getattr(task, field.name) for field in fields(TextTask)}
    task = TextTask(**{**given, "files": paths}).of_texts(texts)
    tokenizer = task.new_tokenizer(texts)
    decoder = DecoderConfig(**{**model, "vocab_size": tokenizer.vocab_size})
    settings = TextSettings(task=task, model=decoder, tokenizer=tokenizer, **own)
    settings.tokens_of(texts)
    return settings
