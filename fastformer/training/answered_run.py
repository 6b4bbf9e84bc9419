"""Runs of the decoder on questions with answers of one's own."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fastformer import checks
from fastformer.batch import Ids, PackedBatch, pack
from fastformer.data.answered import (
    KNOWN,
    MARKS,
    AnsweredTask,
    AnsweredText,
    split_answered,
)
from fastformer.data.asked import Asked
from fastformer.data.example_files import Pair, digest_of, read_files
from fastformer.data.text import chosen_tokenizer
from fastformer.data.tokenizers import Tokenizer
from fastformer.data.vocabulary import NamedTokens
from fastformer.errors import InvalidValueError
from fastformer.models.config import DecoderConfig, ModelConfig
from fastformer.models.decoder import TransformerDecoder
from fastformer.training.callbacks import TrainingCallbacks
from fastformer.training.checkpoint import Checkpoint
from fastformer.training.classifier_run import Parts
from fastformer.training.examples import Examples
from fastformer.training.loop import Trainer, load_weights
from fastformer.training.loss import CrossEntropyLoss
from fastformer.training.run_directory import RunDirectory
from fastformer.training.settings import Settings
from fastformer.training.steps import predict_classes, wrong_sequences


@dataclass(frozen=True, kw_only=True)
class AnsweredSettings(Settings):
    """The settings of a decoder's run on questions with answers."""

    kind: ClassVar[str] = "answered"
    task_class: ClassVar[type[Any]] = AnsweredTask
    model_class: ClassVar[type[ModelConfig]] = DecoderConfig
    has_tokenizer: ClassVar[bool] = True

    task: AnsweredTask
    model: DecoderConfig
    tokenizer: Tokenizer

    @property
    def vocab_size(self) -> int:
        """How many token ids there are: the tokenizer's, and two more."""
        return self.tokenizer.vocab_size + len(MARKS)

    @property
    def task_name(self) -> str:
        """What the task is called in a message."""
        return f"the {self.tokenizer.kind} of these texts' tokenizer and {' and '.join(MARKS)}"

    @property
    def longest(self) -> int:
        """Examples are measured one by one, where their lines can be named."""
        return 1

    @property
    def longest_is(self) -> str:
        """What is so long."""
        return "examples"

    @property
    def operations(self) -> tuple[str, ...]:
        """There are none."""
        return ()

    @property
    def named_tokens(self) -> NamedTokens:
        """The first tokens of the vocabulary."""
        return NamedTokens.of_tokenizer(self.tokenizer)

    def text(self, text: str, right: str | None = None) -> AnsweredText:
        """Return a question as the model reads it.

        Raises:
            ValueError: a character that the tokenizer has not, or more tokens than the model reads.
        """
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

    def texts(self, pairs: Sequence[Pair]) -> list[AnsweredText]:
        """Return examples as the model reads them.

        Raises:
            ValueError: as of `text`; the message has the file and the line.
        """
        found = []
        for pair in pairs:
            try:
                found.append(self.text(pair.first, pair.second))
            except InvalidValueError as error:
                raise InvalidValueError(f"{pair.place}: {error}") from error
        return found

    def parts(self) -> Parts[AnsweredText]:
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
        train, validation, test, notices = split_answered(self.texts(pairs), self.task, self.seed)
        return Parts(train, validation, test, tuple(notices))

    def packed(self, examples: Sequence[AnsweredText]) -> Examples:
        """Return examples as a decoder learns them: answers alone are asked for."""
        inputs = pack([[*one.question, *one.written[:-1]] for one in examples])
        targets = [[-1] * (len(one.question) - 1) + list(one.written) for one in examples]
        return Examples(inputs, np.concatenate(targets).astype(np.int64))

    def read_file(self, file: str | Path) -> list[AnsweredText]:
        """Return the examples of another file, with the same columns."""
        columns = self.task.question_column, self.task.answer_column
        return self.texts(read_files([str(file)], columns, KNOWN)[0])

    def first_examples(self, count: int) -> tuple[PackedBatch, Ids]:
        """Return the first of the training examples, with their targets."""
        first = self.packed(self.parts().train[:count])
        return first.inputs, first.targets

    def tests(self) -> list[Asked]:
        """Return the test inputs."""
        return [*self.parts().test]

    def trained_on(self, asked: Sequence[Asked]) -> int:
        """Return how many of some questions are trained on."""
        trained = {one.question for one in self.parts().train}
        return sum(tuple(one.ids()) in trained for one in asked)

    def never_trained_on(self, asked: Sequence[Asked]) -> int:
        """Return how many of some questions are not trained on."""
        return len(asked) - self.trained_on(asked)

    def new_model(self) -> TransformerDecoder:
        """Return the model with its initial weights."""
        return self.made(TransformerDecoder)


class AnsweredJob:
    """What a run on questions with answers trains and tests."""

    def __init__(self, settings: AnsweredSettings) -> None:
        """Read the examples, and make the model."""
        self.settings = settings
        self.parts, self.model = settings.parts(), settings.new_model()
        self.tested = settings.packed(self.parts.test)

    @property
    def tests(self) -> PackedBatch:
        """The test inputs."""
        return self.tested.inputs

    def trainer(self, run: RunDirectory, callbacks: TrainingCallbacks) -> Trainer:
        """Return a trainer of the model, at the beginning."""
        settings = self.settings
        for notice in self.parts.notices:
            callbacks.message(notice)
        return Trainer(
            self.model,
            settings.training,
            settings.packed(self.parts.train),
            settings.packed(self.parts.validation),
            run,
            settings.seed,
            callbacks,
            whole_answers=True,
        )

    def description(self) -> str:
        """Say in a line what is trained."""
        settings, parts = self.settings, self.parts
        return (
            f"{self.model.num_parameters:,} parameters, {len(parts.train):,} training examples, "
            f"{len(parts.validation):,} validation and {len(parts.test):,} test questions, "
            f"{settings.computed_with}, seed {settings.seed}"
        )

    def test(self, trainer: Trainer, best: Checkpoint) -> dict[str, Any]:
        """Return test_accuracy, of whole answers, test_loss and test_examples of a checkpoint."""
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
        }


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
    options = asdict(task) | {"files": tuple(str(Path(file).absolute()) for file in files)}
    pairs, (question_column, answer_column) = AnsweredTask(**options).read()
    texts = [text for pair in pairs for text in (pair.first, pair.second)]
    tokenizer = chosen_tokenizer(task.tokenizer, texts, task.vocab_size)
    options |= {
        "digest": digest_of(pairs),
        "question_column": question_column,
        "answer_column": answer_column,
        "longest_answer": max(max(1, tokenizer.encode(pair.second).size) for pair in pairs),
    }
    sizes = {**model, "vocab_size": tokenizer.vocab_size + len(MARKS)}
    settings = AnsweredSettings(
        task=AnsweredTask(**options), tokenizer=tokenizer, model=DecoderConfig(**sizes), **own
    )
    settings.parts()
    return settings
