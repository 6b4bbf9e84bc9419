"""What each of the decoder's tasks asks, and how it writes questions and answers in tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fastformer.data.answers import ADDEND_DIGITS, ANSWER_TOKENS
from fastformer.data.expressions import OPERATIONS
from fastformer.data.vocabulary import EOS

PLUS: Final[str] = "+"
_END: Final[str] = ANSWER_TOKENS[EOS]
PART_ARGUMENTS: Final[tuple[int, int]] = (2, 3)


@dataclass(frozen=True)
class Form:
    """What a task asks, and how it writes that.

    Attributes:
        task: its name.    example: one of its questions.
        operations: the outermost one is one of these.
        arguments: the smallest and the largest number of its arguments.
        number_digits: digits of the largest number.
        parts: how many arguments must be operations themselves; None where none may.
        separator: the token between arguments, or nothing.
        padded: whether numbers have zeros in front, so that all are of one width.
        answer_digits: digits of the largest answer.    units_first: in the answer.
    """

    task: str
    example: str
    operations: tuple[str, ...]
    arguments: tuple[int, int]
    number_digits: int = 1
    parts: int | None = None
    separator: str = ""
    padded: bool = False
    answer_digits: int = 1
    units_first: bool = False

    @property
    def depth(self) -> int:
        """How deep its questions nest."""
        return 1 if self.parts is None else 2

    @property
    def sums(self) -> bool:
        """Whether its questions are `a + b`."""
        return self.operations == (PLUS,)

    @property
    def all_operations(self) -> tuple[str, ...]:
        """Every operation that may be in a question."""
        inner = OPERATIONS if self.parts is not None else ()
        return tuple(dict.fromkeys([*self.operations, *inner]))

    def answer_tokens(self, value: int) -> list[str]:
        """Return what a model should write, with the token that ends it."""
        digits = f"{value:0{self.answer_digits if self.padded else 1}d}"
        return [*(reversed(digits) if self.units_first else digits), _END]

    def read_answer(self, tokens: Sequence[str], ended: bool = True) -> str:
        """Return the number that a model wrote, or its tokens as they are where it is none.

        Args:
            tokens: without the one that ends.    ended: whether that one came.
        """
        digits = "".join(reversed(tokens) if self.units_first else tokens)
        if ended and digits.isdecimal() and [*tokens, _END] == self.answer_tokens(int(digits)):
            return str(int(digits))
        return " ".join([*tokens, _END if ended else "..."])


FORMS: Final[dict[str, Form]] = {
    form.task: form
    for form in (
        *(
            Form(
                task=f"{name}-digits",
                example=example,
                operations=OPERATIONS,
                arguments=(3, 3),
                number_digits=digits,
                separator=",",
                padded=True,
                answer_digits=digits,
            )
            for name, digits, example in (
                ("double", 2, "Max ( 5 , 37 , 9 )"),
                ("three", 3, "Max ( 5 , 370 , 99 )"),
            )
        ),
        Form(
            task="long-lists", example="Max ( 5 3 9 1 7 )", operations=OPERATIONS, arguments=(5, 10)
        ),
        Form(
            task="nested",
            example="Max ( First ( 2 8 ) 5 )",
            operations=OPERATIONS,
            arguments=PART_ARGUMENTS,
            parts=1,
        ),
        Form(
            task="arithmetic",
            example="Add ( Max ( 3 7 ) Min ( 2 9 ) )",
            operations=("Add",),
            arguments=(2, 2),
            parts=2,
            answer_digits=2,
            units_first=True,
        ),
        Form(
            task="addition",
            example="12 + 345",
            operations=(PLUS,),
            arguments=(2, 2),
            number_digits=ADDEND_DIGITS,
            padded=True,
            answer_digits=ADDEND_DIGITS + 1,
            units_first=True,
        ),
    )
}
"""The form of each of `ANSWER_TASKS`."""
