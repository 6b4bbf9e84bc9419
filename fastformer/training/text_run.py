"""Runs of the decoder on text of one's own: reading it, training on crops, the validation."""

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fastformer import checks
from fastformer.batch import Ids, PackedBatch
from fastformer.data.text import Crops, Documents, TextTask, drawn_for_validation, windows
from fastformer.data.text_files import check_files, files_digest
from fastformer.errors import InvalidValueError
from fastformer.generation import generate
from fastformer.models.config import DecoderConfig, ModelConfig
from fastformer.models.decoder import TransformerDecoder
from fastformer.training.callbacks import TrainingCallbacks
from fastformer.training.checkpoint import Checkpoint
from fastformer.training.examples import DocumentExamples, Examples, Source, numbered_batches
from fastformer.training.loop import Trainer, load_weights
from fastformer.training.loss import CrossEntropyLoss
from fastformer.training.run_directory import RunDirectory
from fastformer.training.settings import TokenizedSettings
from fastformer.training.steps import MOST_LOGITS, evaluate
from fastformer.training.token_file import TokenFile, changed, open_tokens

# Of a large vocabulary; of a small one, as many as have their logits in memory at once.
VALIDATION_TOKENS = 1 << 15
SAMPLE_TEMPERATURE = 0.8


@dataclass(frozen=True, kw_only=True)
class TextSettings(TokenizedSettings):
    """The settings of a decoder's run on text."""

    kind: ClassVar[str] = "text"
    task_class: ClassVar[type[Any]] = TextTask
    model_class: ClassVar[type[ModelConfig]] = DecoderConfig
    best_by_loss: ClassVar[bool] = True

    task: TextTask
    model: DecoderConfig

    @property
    def longest(self) -> int:
        """Crops are as long as the model reads."""
        return self.model.max_seq_len

    @property
    def longest_is(self) -> str:
        """What is so long."""
        return "crops"

    def split(self, found: TokenFile) -> tuple[Source, Examples]:
        """Return what is trained on, and what is not.

        Raises:
            ValueError: there are too few tokens, or documents, for both.
        """
        most = max(self.model.max_seq_len, VALIDATION_TOKENS, MOST_LOGITS // self.vocab_size)
        if self.task.documents == "none":
            return self._split_tokens(found.tokens, most)
        return self._split_documents(found, most)

    def _split_tokens(self, tokens: np.ndarray, most: int) -> tuple[Source, Examples]:
        count, length = tokens.size, self.model.max_seq_len
        first = count - round(count * self.task.validation_share)
        shorter = min(first, count - first)
        if shorter < length + 2:
            checks.fail(
                f"the text has {count:,} tokens, and {shorter:,} of them are kept apart by "
                f"validation_share={self.task.validation_share}: training and validation need "
                f"{length + 2} tokens each, a crop of max_seq_len={length} and two behind it; give "
                "more text, or a lower max_seq_len"
            )
        crops = Crops(tokens[:first], length, self.task.crops)
        return CropSource(crops), Examples(*windows(tokens[first:], length, most))

    def _split_documents(self, found: TokenFile, most: int) -> tuple[Source, Examples]:
        count = len(found.documents)
        starts = found.documents[:, 0].astype(np.int64)
        ends = np.append(starts[1:], found.tokens.size)
        ending, length = self.tokenizer.encode(self.task.ending), self.model.max_seq_len
        unseen = np.zeros(count, bool)
        if count > 1:
            share = self.task.validation_share
            unseen = drawn_for_validation(found.documents, self.seed, share)
        train, test = (
            Documents(found.tokens, starts[chosen], ends[chosen], ending, length)
            for chosen in (~unseen, unseen)
        )
        if not (train.size and test.size):
            checks.fail(
                f"the text has {count:,} documents ({self.task.documents}): too few different ones "
                "to train on some and to test on others; cut it otherwise with --documents, or "
                "give more text"
            )
        tested = max(1, int(np.searchsorted(np.cumsum(test.lengths), most, side="right")))
        return DocumentExamples(train), Examples(*test.batch(np.arange(tested)))

    @property
    def usual_prompt(self) -> str:
        """What a model goes on with where no prompt is given: "" is the beginning of a document."""
        if self.tokenizer.encode(self.task.ending).size:
            return ""
        for mark in "\n ":
            with suppress(InvalidValueError):  # of characters that the text has not
                if self.tokenizer.encode(mark).size:
                    return mark
        # The most frequent word: 0 is the unknown one.
        return self.tokenizer.decode([min(1, self.vocab_size - 1)])

    def prompt_tokens(self, prompt: str) -> list[int]:
        """Return a prompt's tokens, behind those that were before each document in training.

        Raises:
            ValueError: there are none, or a character that the tokenizer has not.
        """
        ids = [*self.tokenizer.encode(self.task.ending), *self.tokenizer.encode(prompt)]
        if not ids:
            checks.fail("the prompt is empty: give at least one character")
        return [int(token) for token in ids]

    def stop(self, text: str) -> list[list[int]] | None:
        """Return a text before which generation stops, as tokens; None where it has none."""
        ids = self.tokenizer.encode(text).tolist()
        return [ids] if ids else None

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

    def __init__(self, settings: TextSettings, callbacks: TrainingCallbacks) -> None:
        """Open the text's tokens, and make the model."""
        found = _tokens_of(settings, callbacks)
        self.settings, self.num_tokens = settings, found.tokens.size
        self.source, self.validation = settings.split(found)
        self.model = settings.new_model()
        # Of the text, for each token: what a loss per token is per byte.
        self.bytes_per_token = found.text_bytes / found.tokens.size

    @property
    def tests(self) -> PackedBatch:
        """What is not trained on."""
        return self.validation.inputs

    @property
    def batch(self) -> PackedBatch:
        """A batch of training examples: what ranks share must be enough for all."""
        settings = self.settings
        return next(self.source.batches(settings.seed, 0, settings.training.batch_size, 0))[0]

    def trainer(self, run: RunDirectory, callbacks: TrainingCallbacks) -> Trainer:
        """Return a trainer of the model, at the beginning."""
        settings, source = self.settings, self.source
        tokens = float(settings.model.max_seq_len)
        if isinstance(source, DocumentExamples):
            tokens = float(source.lengths.mean())
        callbacks.text(tokens, self.bytes_per_token)
        return Trainer(
            self.model,
            settings.training,
            self.source,
            self.validation,
            run,
            settings.seed,
            callbacks,
            best_by_loss=settings.best_by_loss,
            after_epoch=lambda: self._show_sample(callbacks),
        )

    def _show_sample(self, callbacks: TrainingCallbacks) -> None:
        """Let a person see what the model writes by now; training's bits do not depend on it."""
        settings, count = self.settings, self.settings.task.sample_tokens
        if not count:
            return
        prompt = settings.usual_prompt
        (found,) = generate(
            self.model,
            [settings.prompt_tokens(prompt)],
            max_new_tokens=count,
            temperature=SAMPLE_TEMPERATURE,
            stop=settings.stop(settings.task.ending),
            seed=settings.seed,
        )
        callbacks.message(f"sample: {prompt.lstrip()}{settings.tokenizer.decode(found.tokens)}")

    def description(self) -> str:
        """Say in a line what is trained."""
        settings, cut = self.settings, ""
        if isinstance(self.source, DocumentExamples):
            cut = f"{self.source.size:,} sequences of documents ({settings.task.documents}), "
        return (
            f"text: {self.model.num_parameters:,} parameters, {self.num_tokens:,} tokens "
            f"({settings.tokenizer.kind}, {settings.vocab_size:,} different), {cut}"
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


def _tokens_of(settings: TextSettings, callbacks: TrainingCallbacks) -> TokenFile:
    """Return the tokens that a run began with.

    Raises:
        ValueError: they are others by now, or their texts are.
    """
    task = settings.task
    if files_digest([Path(file) for file in task.files]) != task.digest:
        checks.fail(changed(task))
    found = open_tokens(task, settings.tokenizer, callbacks.reading)
    if found.digest != task.tokens_digest:
        checks.fail(
            "the run's tokenizer makes other tokens of its text than when the run began; use the "
            "version of the tokenizers library that it began with, or start a new run"
        )
    return found


def new_text_settings(
    files: tuple[Path, ...],
    task: TextTask,
    model: dict[str, Any],
    callbacks: TrainingCallbacks | None = None,
    **own: Any,
) -> TextSettings:
    """Return the settings of a new run on text files, whose tokens are made.

    Args:
        files: UTF-8.    task: its options.    model: options of `DecoderConfig` by name, without
            the size of the vocabulary, which the text decides.    callbacks: are told of what is
            read.    own: others of `TextSettings`.

    Raises:
        ValueError, TypeError: a file that cannot be read, or an option that is not allowed.
    """
    check_files(files)
    paths = tuple(str(Path(file).absolute()) for file in files)
    # Of a TextTask itself, whatever subclass a command line has made.
    given = {field.name: getattr(task, field.name) for field in fields(TextTask)}
    task = TextTask(**{**given, "files": paths, "digest": files_digest(files)})
    tokenizer = task.new_tokenizer()
    decoder = DecoderConfig(**{**model, "vocab_size": tokenizer.vocab_size})
    settings = TextSettings(task=task, model=decoder, tokenizer=tokenizer, **own)
    tokens = open_tokens(task, tokenizer, (callbacks or TrainingCallbacks()).reading)
    settings.split(tokens)
    return replace(settings, task=replace(task, tokens_digest=tokens.digest))
