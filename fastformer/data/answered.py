"""Questions with answers, of a person's own: texts of any kind, which a decoder learns to write.

A sequence is the question, a token that asks for the answer, the answer, and a token that ends it.
These two tokens come after those of the tokenizer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Final

from fastformer import checks
from fastformer.data.splitting import FEWEST, held_out, part_sizes
from fastformer.data.table_task import TableTask, column_field
from fastformer.data.tokenized import tokenizer_field
from fastformer.data.tokenizers import Tokenizer

QUESTION_COLUMNS: Final = ("question", "prompt", "input", "source")
ANSWER_COLUMNS: Final = ("answer", "completion", "output", "target")
MARKS: Final = ("[ANSWER]", "[END]")
"""What asks for an answer, and what ends it."""


@dataclass(frozen=True, kw_only=True)
class AnsweredTask(TableTask):
    """Questions of which each has one answer.

    Attributes:
        longest_answer: tokens of the longest answer, without the end.

    Raises:
        ValueError, TypeError: a value that is not allowed; the message names it.
    """

    column_names: ClassVar[tuple[str, str]] = ("question_column", "answer_column")
    known: ClassVar[tuple[Sequence[str], Sequence[str]]] = (QUESTION_COLUMNS, ANSWER_COLUMNS)

    tokenizer: str = tokenizer_field("characters")
    longest_answer: int = 1
    question_column: str = column_field("questions", QUESTION_COLUMNS, "first")
    answer_column: str = column_field("answers", ANSWER_COLUMNS, "second")

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        checks.integer("longest_answer", self.longest_answer, 1)


@dataclass(frozen=True)
class AnsweredText:
    """A question with its answer, as a model reads it. Equal ones are equal as dictionary keys.

    Attributes:
        text: the question, as it was written.    right: the answer; None where nobody has said it.
        tokenizer: of the model.
    """

    text: str
    right: str | None
    tokenizer: Tokenizer = field(compare=False, repr=False)

    @property
    def group(self) -> str:
        """Nothing: all are of one kind."""
        return ""

    @cached_property
    def question(self) -> tuple[int, ...]:
        """The ids of the question, with that which asks for the answer.

        Raises:
            ValueError: a character that the tokenizer has not.
        """
        return (*self.tokenizer.encode(self.text).tolist(), self.tokenizer.vocab_size)

    @cached_property
    def written(self) -> tuple[int, ...]:
        """The ids of the answer, with the end."""
        return (*self.tokenizer.encode(self.right or "").tolist(), self.tokenizer.vocab_size + 1)

    def ids(self) -> list[int]:
        """Return the ids of what the model reads before it answers."""
        return list(self.question)

    def tokens(self) -> list[str]:
        """Return the tokens of these ids."""
        return [token_of(self.tokenizer, number) for number in self.question]

    def answer(self) -> str | None:
        """Return the right answer."""
        return self.right

    def __str__(self) -> str:
        """Return the question."""
        return self.text


def token_of(tokenizer: Tokenizer, number: int) -> str:
    """Return the token of an id: the tokenizer's own, or one of `MARKS`."""
    after = number - tokenizer.vocab_size
    return MARKS[after] if after >= 0 else tokenizer.token(number)


def split_answered(
    texts: Sequence[AnsweredText], task: AnsweredTask, seed: int
) -> tuple[list[AnsweredText], list[AnsweredText], list[AnsweredText], list[str]]:
    """Return training, validation and test, and what a person should know of them.

    Every question is in one of the parts alone, whatever its answers are.
    """
    questions = list(dict.fromkeys(one.question for one in texts))
    if len(questions) < FEWEST:
        checks.fail(
            f"there must be at least {FEWEST} different questions, one each for training, "
            f"validation and test, got {len(questions)}"
        )
    sizes = [part_sizes(len(questions), task.validation_fraction, task.test_fraction)]
    apart = held_out(questions, [""] * len(questions), sizes, seed, "answered split")
    train = [one for one in texts if one.question not in apart]
    kept: dict[str, dict[tuple[int, ...], AnsweredText]] = {"validation": {}, "test": {}}
    for one in texts:
        if one.question in apart:
            kept[apart[one.question]].setdefault(one.question, one)
    notices = []
    repeats = len(texts) - len(questions)
    if repeats:
        notices.append(
            f"{repeats:,} of {len(texts):,} questions are there again; none is on two sides of the "
            "split"
        )
    return train, list(kept["validation"].values()), list(kept["test"].values()), notices
