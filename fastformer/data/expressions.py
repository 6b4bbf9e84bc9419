"""Expressions of the digit task, such as `Max ( 5 , 3 , 9 )`: value, tokens, answer and parser."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from fastformer import checks
from fastformer.data.lexer import (
    MAX_NUMBER_DIGITS,
    Token,
    check_end,
    depth_of,
    fail_at,
    read_name,
    read_number,
    scan,
    with_parentheses,
)
from fastformer.data.vocabulary import encode
from fastformer.errors import InvalidTypeError

_ANSWERS: Final[dict[str, Callable[[Sequence[int]], int]]] = {
    "First": lambda arguments: arguments[0],
    "Second": lambda arguments: arguments[1],
    "Last": lambda arguments: arguments[-1],
    "Max": max,
    "Min": min,
}

OPERATIONS: Final[tuple[str, ...]] = tuple(_ANSWERS)
"""The names of the operations."""

_MAX_NUMBER: Final[int] = 10**MAX_NUMBER_DIGITS - 1
_EXAMPLE: Final[str] = "'Max ( 5 , 3 , 9 )'"
_REMEDY: Final[str] = f"use whole numbers, ',' and parentheses, as in {_EXAMPLE}"
_OPERATION_OF: Final[dict[str, str]] = {name.lower(): name for name in OPERATIONS}


@dataclass(frozen=True)
class Expression:
    """An operation on a list of numbers. Equal expressions are equal as dictionary keys.

    Args:
        operation: one of `OPERATIONS`.
        arguments: one or more integers from 0 to 10^18 - 1; `Second` needs two or more.

    Raises:
        ValueError, TypeError: a value that is not allowed; the message names it.
    """

    operation: str
    arguments: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check both fields, and turn NumPy integers into Python's."""
        checks.choice("operation", self.operation, OPERATIONS)
        if not isinstance(self.arguments, tuple | list):
            raise InvalidTypeError(
                f"arguments of {self.operation} must be a tuple of integers, got {self.arguments!r}"
            )
        arguments = tuple(
            checks.integer(f"argument {place} of {self.operation}", value, 0, _MAX_NUMBER)
            for place, value in enumerate(self.arguments, start=1)
        )
        minimum = min_arguments(self.operation)
        if len(arguments) < minimum:
            checks.fail(
                f"wrong number of arguments: {self.operation} needs at least {minimum}, "
                f"got {len(arguments)}; write for example {_EXAMPLE}"
            )
        object.__setattr__(self, "arguments", arguments)

    def tokens(self) -> list[str]:
        """Return the tokens that a model reads: numbers as digits, with commas between them."""
        inner = [token for number in self.arguments for token in (*str(number), ",")]
        return [self.operation, "(", *inner[:-1], ")"]

    def ids(self) -> list[int]:
        """Return the ids of these tokens in the digit task's vocabulary."""
        return encode(self.tokens())

    @property
    def group(self) -> str:
        """The operation: answers are counted by it."""
        return self.operation

    def answer(self) -> int:
        """Return the value of the expression."""
        return value_of(self.operation, self.arguments)

    def __str__(self) -> str:
        """Return the usual spelling, which `parse_expression` reads back."""
        return f"{self.operation} ( {' , '.join(map(str, self.arguments))} )"


def value_of(operation: str, values: Sequence[int]) -> int:
    """Return the value of an operation on enough numbers."""
    return _ANSWERS[operation](values)


def min_arguments(operation: str) -> int:
    """Return the smallest number of arguments for which an operation has an answer."""
    return 2 if operation == "Second" else 1


def parse_expression(text: str) -> Expression:
    """Read an expression from free text.

    The grammar is `operation ( number [,] number [,] ... )`. Upper and lower case are the same,
    spaces may be anywhere between the tokens, and a comma or a space separates two numbers. Both
    parentheses may be left out. Numbers are whole and not negative; leading zeros mean nothing.

    Args:
        text: for instance `Max ( 5 3 9 )`, `max(5,3,9)` or `max 5 3 9`.

    Returns:
        The expression.

    Raises:
        ValueError: text that is not an expression. The message says what is wrong, at which
            character (counted from 1), and what to write instead.
        TypeError: `text` is not a string.
    """
    if not isinstance(text, str):
        raise InvalidTypeError(f"an expression must be a string, got {text!r}")
    tokens = with_parentheses(scan(text, "(),", _REMEDY))
    if not tokens:
        checks.fail(f"the expression is empty; write for example {_EXAMPLE}")
    operation = _read_operation(tokens[0])
    if len(tokens) == 1:
        checks.fail(f"nothing follows {operation!r}; write for example {_EXAMPLE}")
    if tokens[1].text != "(":
        fail_at(tokens[1], f"expected '(' after {operation!r}, got", f"write as in {_EXAMPLE}")
    numbers, after = _read_numbers(tokens, 2)
    check_end(tokens, after)
    return Expression(operation, numbers)


def _read_operation(token: Token) -> str:
    """Return the operation that a token names in any case of letters."""
    if token.kind != "word":
        fail_at(
            token,
            "expected an operation, got",
            f"begin with one of {', '.join(OPERATIONS)}, for example {_EXAMPLE}",
        )
    return read_name(token, OPERATIONS)


def _read_numbers(tokens: list[Token], first: int) -> tuple[tuple[int, ...], int]:
    """Read numbers from index `first` to the closing parenthesis; return them and what is next."""
    numbers: list[int] = []
    previous = tokens[first - 1]
    for index, token in enumerate(tokens[first:], start=first):
        if token.kind == "number":
            numbers.append(read_number(token))
        elif token.kind == "word":
            _fail_word(token, tokens)
        elif token.text == "(":
            fail_at(token, "nested parentheses are not allowed, got", "one pair is enough")
        elif previous.text == ",":
            fail_at(previous, "no number follows the", "add a number or remove the comma")
        elif token.text == ")":
            return tuple(numbers), index + 1
        elif not numbers:
            fail_at(token, "no number comes before the", "add a number or remove the comma")
        previous = token
    fail_at(tokens[first - 1], "unbalanced parentheses: no ')' closes the", "add ')' at the end")


def _fail_word(token: Token, tokens: list[Token]) -> NoReturn:
    """Raise for a word where a number belongs."""
    if token.text.lower() in _OPERATION_OF:
        depth = depth_of(tokens)
        remedy = "use numbers as arguments"
        if depth > 1:
            remedy += f"; this nests {depth} deep, which is {depth - 1} more than the 1 allowed"
        fail_at(token, "operations cannot be nested, got", remedy)
    fail_at(token, "unknown token", _REMEDY)
