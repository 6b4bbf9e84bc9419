"""The first three steps of the tour: what is drawn, what is kept apart, and a batch."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Final, Protocol

from fastformer.batch import Ids, PackedBatch
from fastformer.data.answers import ANSWER_TOKENS, Drawn, draw_training, kept_apart
from fastformer.data.asked import Asked
from fastformer.data.digits import Splits
from fastformer.data.lengths import length_statistics
from fastformer.data.questions import questions_of
from fastformer.training.answers_run import AnswerSettings
from fastformer.training.digits_run import RunSettings
from fastformer.writing import percent

_SAMPLES: Final[int] = 3
_BAR_CELLS: Final[int] = 50
_LOOKED_AT: Final[int] = 1_000
Write = Callable[[str], None]


class TourData(Protocol):
    """The examples of a run, to be shown."""

    @property
    def examples(self) -> int:
        """How many an epoch has."""

    @property
    def first_test(self) -> Asked:
        """A test input."""

    def draw(self, write: Write) -> None:
        """Step 1: how often each operation comes, how long inputs are, some of them with ids."""

    def split(self, write: Write) -> None:
        """Step 2: the sizes of the parts, and that they share no input."""

    def batch(self, write: Write) -> None:
        """Step 3: the arrays of a batch, some rows, and what padding would have cost."""


def tour_data(settings: RunSettings | AnswerSettings) -> TourData:
    """Return the examples of a run."""
    if isinstance(settings, AnswerSettings):
        return AnswerTourData(settings)
    return DigitTourData(settings)


class DigitTourData:
    """The examples of the digit task, which are drawn once and split."""

    def __init__(self, settings: RunSettings) -> None:
        """Draw them.

        Args:
            settings: of the run.
        """
        self.settings = settings
        self.splits: Splits = settings.splits()

    @property
    def examples(self) -> int:
        """How many an epoch has."""
        return len(self.splits.train)

    @property
    def first_test(self) -> Asked:
        """A test input."""
        return self.splits.test.expressions[0]

    def draw(self, write: Write) -> None:
        """Step 1; see `TourData`."""
        task, train = self.settings.task, self.splits.train
        write(
            f"{task.examples:,} examples are drawn of {task.num_inputs:,} that exist: "
            f"{task.num_arguments} numbers from {task.min_value} to {task.max_value}."
        )
        _show_operations(train.expressions, task.operations, write)
        parts = (train, self.splits.validation, self.splits.test)
        _show_lengths([ids for part in parts for ids in part.inputs], write)
        for expression, inputs in zip(train.expressions[:_SAMPLES], train.inputs, strict=False):
            ids = " ".join(map(str, inputs))
            write(f"  {expression} = {expression.answer()}   ids {ids}")

    def split(self, write: Write) -> None:
        """Step 2; see `TourData`."""
        splits = self.splits
        train = set(splits.train.expressions)
        shared = len(train & {*splits.validation.expressions, *splits.test.expressions})
        _show_parts(
            f"{len(splits.train):,} examples, {len(train):,} of them different",
            len(splits.validation),
            len(splits.test),
            f"{shared} inputs of validation and test are also in training",
            write,
        )

    def batch(self, write: Write) -> None:
        """Step 3; see `TourData`."""
        size = min(self.settings.training.batch_size, len(self.splits.train))
        batch, targets = self.settings.first_examples(size)
        _show_batch(batch, targets, self.settings.model.max_seq_len, write)


class AnswerTourData:
    """The examples of a decoder's task, which are drawn as training goes on."""

    def __init__(self, settings: AnswerSettings) -> None:
        """Draw nothing yet.

        Args:
            settings: of the run.
        """
        self.settings = settings

    @cached_property
    def drawn(self) -> Drawn:
        """Some examples of the first ones."""
        return draw_training(self.settings.task, self.settings.seed, 0, _LOOKED_AT)

    @property
    def examples(self) -> int:
        """How many an epoch has."""
        return self.settings.task.examples

    @cached_property
    def first_test(self) -> Asked:
        """A test input."""
        return questions_of(self.settings.unseen("test"), self.settings.form)[0]

    def draw(self, write: Write) -> None:
        """Step 1; see `TourData`."""
        form, drawn = self.settings.form, self.drawn
        questions = questions_of(drawn, form)
        write(
            f"{self.examples:,} examples are drawn for each epoch, fresh ones. Of the first "
            f"{len(questions):,}:"
        )
        _show_operations(questions, form.operations, write)
        _show_lengths([row[row >= 0].tolist() for row in drawn.question], write)
        for question, ids, answer in zip(
            questions[:_SAMPLES], drawn.question, drawn.answer, strict=False
        ):
            read = " ".join(map(str, ids[ids >= 0]))
            written = " ".join(map(str, answer[answer >= 0]))
            write(f"  {question} = {question.answer()}   ids {read}   answer {written}")
        if form.units_first:
            write("Answers are written with their units first, for that is how carries go.")
        if (drawn.hints >= 0).any():
            write("In training, each ) within a question is also asked for the value before it.")

    def split(self, write: Write) -> None:
        """Step 2; see `TourData`."""
        task = self.settings.task
        kept = kept_apart([row[row >= 0].tolist() for row in self.drawn.question])
        _show_parts(
            "fresh examples, but two inputs in 16 are never drawn: by a hash of their tokens",
            task.validation_examples,
            task.test_examples,
            f"{kept.sum()} of the first {len(kept):,} examples to train on are such inputs",
            write,
        )

    def batch(self, write: Write) -> None:
        """Step 3; see `TourData`."""
        settings = self.settings
        size = min(settings.training.batch_size, self.examples)
        batch, targets = settings.first_examples(size)
        _show_batch(batch, targets, settings.model.max_seq_len, write)
        write("A target is what comes after its token; -1 is where nothing is asked.")
        names = " ".join(f"{token}={index}" for index, token in enumerate(ANSWER_TOKENS))
        write(f"The tokens and their ids: {names}")


def _show_operations(asked: Sequence[Asked], names: Sequence[str], write: Write) -> None:
    """Write how often each operation comes."""
    counts = Counter(one.group for one in asked)
    for name in names:
        count, share = counts[name], counts[name] / counts.total()
        cells = round(share * _BAR_CELLS)
        write(f"  {name:<8} {'█' * cells:<{_BAR_CELLS}} {count:>7,} to train on")


def _show_lengths(inputs: Sequence[Sequence[int]], write: Write) -> None:
    """Write how long inputs are."""
    lengths = length_statistics(inputs)
    write(
        f"Inputs have {lengths.shortest} to {lengths.longest} tokens, {lengths.mean:.2f} in "
        f"the mean (standard deviation {lengths.deviation:.2f})."
    )


def _show_parts(training: str, validation: int, test: int, shared: str, write: Write) -> None:
    """Write what is in each part."""
    for name, text in (
        ("training", training),
        ("validation", f"{validation:,} inputs: which epoch is the best?"),
        ("test", f"{test:,} inputs: how good is it, once, at the end"),
        ("shared", shared),
    ):
        write(f"  {name:<11} {text}")


def _show_batch(batch: PackedBatch, targets: Ids, limit: int, write: Write) -> None:
    """Write the arrays of a batch, some of its rows, and what padding would have cost."""
    write(
        f"tokens {batch.tokens.shape}, all sequences end to end; offsets {batch.offsets.shape},"
        f" where each begins; targets {targets.shape}."
    )
    each = len(targets) == batch.num_tokens and batch.num_tokens > batch.num_sequences
    for place in range(min(_SAMPLES, batch.num_sequences)):
        start, stop = batch.offsets[place], batch.offsets[place + 1]
        row = " ".join(map(str, batch.tokens[start:stop]))
        asked = targets[start:stop] if each else targets[place : place + 1]
        name = "targets" if each else "target"
        write(f"  tokens {start} to {stop - 1}: {row}   {name} {' '.join(map(str, asked))}")
    offsets = batch.offsets.tolist()
    ids = [batch.tokens[a:b].tolist() for a, b in zip(offsets, offsets[1:], strict=False)]
    waste = [length_statistics(ids, padded_to).waste for padded_to in (None, limit)]
    write(
        f"Nothing is padded. Padding to the longest would waste {percent(waste[0], 0)} of the "
        f"work, to max_seq_len {limit}, {percent(waste[1], 0)}."
    )
