"""Which tokens of an expression play which role: the operation, the largest number, the answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from fastformer.batch import Ids
from fastformer.data.answer_formats import Form
from fastformer.data.answers import ANSWER_TOKENS
from fastformer.data.asked import Asked
from fastformer.data.expressions import Expression
from fastformer.data.questions import Call, Question
from fastformer.data.vocabulary import encode

Flags = npt.NDArray[np.bool_]

TOKEN_ROLES: Final[tuple[str, ...]] = (
    "the operation",
    "the largest number",
    "the smallest number",
    "the first number",
    "the second number",
    "the last number",
    "the answer",
    "punctuation",
)
PART_ROLES: Final[tuple[str, ...]] = ("the end of a part", "the end of the answering part")
"""What only nested operations have: the `)` of an inner one, and of one whose value is the answer.
"""

RELATIVE_ROLES: Final[tuple[str, ...]] = ("the previous token", "the next token", "itself")
PLACE_ROLE: Final[str] = "the digits to be added"
"""What only sums have: the digits of the place that is written next, one in either number."""

FIXED: Final[str] = "a fixed position"
ROLES: Final[tuple[str, ...]] = (*TOKEN_ROLES, *PART_ROLES, *RELATIVE_ROLES, PLACE_ROLE, FIXED)
"""All that a head is looked at for."""


@dataclass(frozen=True)
class RoleSequence:
    """What a model reads of an expression, and the roles of its tokens.

    Attributes:
        tokens: T of them: the expression; for a decoder then the right answer but its last digit.
        ids: of the tokens.
        given: how many are the expression's; the answer begins after the last of these.
        flags: (len(TOKEN_ROLES) + len(PART_ROLES), T), which tokens play which role.
        adds: (T, 2), the positions of the digits to be added in each row; -1 for none.
    """

    tokens: list[str]
    ids: list[int]
    given: int
    flags: Flags
    adds: Ids


def number_spans(tokens: Sequence[str], digits: int | None = None) -> list[tuple[int, int, int]]:
    """Return (start, stop, value) of each number among tokens.

    Args:
        tokens: of an expression.    digits: of every number; None where a number is a run of any
            length.
    """
    spans, start = [], None
    for place, token in enumerate([*tokens, ""]):
        ends = not token.isdecimal() or (start is not None and place - start == digits)
        if start is not None and ends:
            spans.append((start, place, int("".join(tokens[start:place]))))
            start = None
        if token.isdecimal() and start is None:
            start = place
    return spans


def role_flags(tokens: Sequence[str], answer: int, digits: int | None = None) -> Flags:
    """Return (len(TOKEN_ROLES), T): which tokens play which role in an expression.

    Every digit of a number plays its role; equal numbers play it together.

    Args:
        tokens: of the expression.    answer: its value.    digits: as of `number_spans`.
    """
    spans = number_spans(tokens, digits)
    values = [value for _, _, value in spans]
    chosen: dict[str, list[tuple[int, int, int]]] = {
        "the largest number": [span for span in spans if span[2] == max(values)],
        "the smallest number": [span for span in spans if span[2] == min(values)],
        "the first number": spans[:1],
        "the second number": spans[1:2],
        "the last number": spans[-1:],
        "the answer": [span for span in spans if span[2] == answer],
    }
    flags = np.zeros((len(TOKEN_ROLES), len(tokens)), np.bool_)
    for role, numbers in chosen.items():
        for start, stop, _ in numbers:
            flags[TOKEN_ROLES.index(role), start:stop] = True
    for place, token in enumerate(tokens):
        flags[TOKEN_ROLES.index("the operation"), place] = token.isalpha() or token == "+"
        flags[TOKEN_ROLES.index("punctuation"), place] = token in ("(", ")", ",", "=")
    return flags


def role_sequence(asked: Asked) -> RoleSequence:
    """Return what a model reads, with the roles of its tokens: of a person's own texts, none."""
    tokens, ids = asked.tokens(), asked.ids()
    given = len(tokens)
    form: Form | None = None
    if isinstance(asked, Question):
        form = asked.form
        written = asked.answer_tokens()[:-2]
        tokens += written
        ids += encode(written, ANSWER_TOKENS)
    flags = np.zeros((len(TOKEN_ROLES) + len(PART_ROLES), len(tokens)), np.bool_)
    digits = 1 if form is not None and form.number_digits == 1 else None
    adds = np.full((len(tokens), 2), -1)
    if isinstance(asked, Expression | Question):
        flags[: len(TOKEN_ROLES), :given] = role_flags(tokens[:given], asked.answer(), digits)
    if isinstance(asked, Question) and asked.form.parts is not None:
        for place, value in _part_ends(tokens[:given], asked.call):
            flags[-2, place], flags[-1, place] = True, value == asked.answer()
    if form is not None and form.sums:
        plus, equals = tokens.index("+"), given - 1
        for place in range(min(len(tokens) - equals, form.number_digits)):
            adds[equals + place] = plus - 1 - place, equals - 1 - place
    return RoleSequence(tokens, ids, given, flags, adds)


def _part_ends(tokens: Sequence[str], call: Call) -> list[tuple[int, int]]:
    """Return (position, value) of the `)` of each inner operation."""
    values = [argument.answer() for argument in call.arguments if isinstance(argument, Call)]
    ends = [place for place, token in enumerate(tokens[:-1]) if token == ")"]
    return list(zip(ends, values, strict=True))
