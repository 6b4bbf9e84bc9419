"""Expressions of the digit task, such as `Max ( 5 , 3 , 9 )`: value, tokens, answer and parser."""

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, NoReturn

from fastformer import checks
from fastformer.errors import InvalidTypeError

_ANSWERS: Final[dict[str, Callable[[tuple[int, ...]], int]]] = {
    "First": lambda arguments: arguments[0],
    "Second": lambda arguments: arguments[1],
    "Last": lambda arguments: arguments[-1],
    "Max": max,
    "Min": min,
}

OPERATIONS: Final[tuple[str, ...]] = tuple(_ANSWERS)
"""The names of the operations."""

MAX_NUMBER_DIGITS: Final[int] = 18
"""Digits of the largest number in an expression. 18 digits always fit in an int64."""

_MAX_NUMBER: Final[int] = 10**MAX_NUMBER_DIGITS - 1
_EXAMPLE: Final[str] = "'Max ( 5 , 3 , 9 )'"
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

    def answer(self) -> int:
        """Return the value of the expression."""
        return _ANSWERS[self.operation](self.arguments)

    def __str__(self) -> str:
        """Return the usual spelling, which `parse_expression` reads back."""
        return f"{self.operation} ( {' , '.join(map(str, self.arguments))} )"


def min_arguments(operation: str) -> int:
    """Return the smallest number of arguments for which an operation has an answer."""
    return 2 if operation == "Second" else 1


def parse_expression(text: str) -> Expression:
    """Read an expression from free text.

    The grammar is `operation ( number [,] number [,] ... )`. Upper and lower case are the same,
    spaces may be anywhere between the tokens, and a comma or a space separates two numbers.
    Numbers are whole and not negative; leading zeros mean nothing.

    Args:
        text: for instance `Max ( 5 3 9 )` or `max(5,3,9)`.

    Returns:
        The expression.

    Raises:
        ValueError: text that is not an expression. The message says what is wrong, at which
            character (counted from 1), and what to write instead.
        TypeError: `text` is not a string.
    """
    if not isinstance(text, str):
        raise InvalidTypeError(f"an expression must be a string, got {text!r}")
    tokens = _scan(text)
    if not tokens:
        checks.fail(f"the expression is empty; write for example {_EXAMPLE}")
    operation = _read_operation(tokens[0])
    if len(tokens) == 1:
        checks.fail(f"nothing follows {operation!r}; write for example {_EXAMPLE}")
    if tokens[1].text != "(":
        _fail_at(tokens[1], f"expected '(' after {operation!r}, got", f"write as in {_EXAMPLE}")
    numbers, after = _read_numbers(tokens, 2)
    if after < len(tokens):
        extra = tokens[after]
        if extra.text == ")":
            _fail_at(extra, "unbalanced parentheses: nothing is open for the", "remove it")
        _fail_at(extra, "trailing text after the closing ')':", "give one expression at a time")
    return Expression(operation, numbers)


class _Token(NamedTuple):
    """A piece of the text, its kind (a group of `_PATTERN`), and its first character from 1."""

    kind: str
    text: str
    character: int


# U+2212 is the minus sign that word processors write.
_PATTERN: Final[re.Pattern[str]] = re.compile(
    r"(?P<word>[^\W\d_]+)|(?P<number>[0-9]+)|(?P<mark>[(),])"
    r"|(?P<negative>[-\u2212]\s*[0-9]+)|(?P<unknown>\S)"
)


def _scan(text: str) -> list[_Token]:
    """Cut the text into tokens; raise at the first piece that no expression can have."""
    tokens = []
    for match in _PATTERN.finditer(text):
        token = _Token(str(match.lastgroup), match.group(), match.start() + 1)
        if token.kind == "negative":
            _fail_at(token, "negative numbers are not allowed, got", "use numbers from 0 up")
        if token.kind == "unknown":
            _fail_unknown(token)
        tokens.append(token)
    return tokens


def _read_operation(token: _Token) -> str:
    """Return the operation that a token names in any case of letters."""
    if token.kind != "word":
        _fail_at(
            token,
            "expected an operation, got",
            f"begin with one of {', '.join(OPERATIONS)}, for example {_EXAMPLE}",
        )
    if token.text.lower() not in _OPERATION_OF:
        near = difflib.get_close_matches(_shown(token.text).capitalize(), OPERATIONS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        _fail_at(token, "unknown operation", f"known: {', '.join(OPERATIONS)}{hint}")
    return _OPERATION_OF[token.text.lower()]


def _read_numbers(tokens: list[_Token], first: int) -> tuple[tuple[int, ...], int]:
    """Read numbers from index `first` to the closing parenthesis; return them and what is next."""
    numbers: list[int] = []
    previous = tokens[first - 1]
    for index, token in enumerate(tokens[first:], start=first):
        if token.kind == "number":
            numbers.append(_read_number(token))
        elif token.kind == "word":
            _fail_word(token)
        elif token.text == "(":
            _fail_at(token, "nested parentheses are not allowed, got", "one pair is enough")
        elif previous.text == ",":
            _fail_at(previous, "no number follows the", "add a number or remove the comma")
        elif token.text == ")":
            return tuple(numbers), index + 1
        elif not numbers:
            _fail_at(token, "no number comes before the", "add a number or remove the comma")
        previous = token
    _fail_at(tokens[first - 1], "unbalanced parentheses: no ')' closes the", "add ')' at the end")


def _read_number(token: _Token) -> int:
    """Return the value of a number, which has a bounded count of digits."""
    if len(token.text) > MAX_NUMBER_DIGITS:
        digits = len(token.text)
        _fail_at(token, f"a number of {digits} digits:", f"at most {MAX_NUMBER_DIGITS} are allowed")
    return int(token.text)


def _fail_word(token: _Token) -> NoReturn:
    """Raise for a word where a number belongs."""
    if token.text.lower() in _OPERATION_OF:
        _fail_at(token, "operations cannot be nested, got", "use numbers as arguments")
    _fail_unknown(token)


def _fail_unknown(token: _Token) -> NoReturn:
    """Raise for a piece of text that is no part of any expression."""
    _fail_at(token, "unknown token", f"use whole numbers, ',' and parentheses, as in {_EXAMPLE}")


def _fail_at(token: _Token, problem: str, remedy: str) -> NoReturn:
    """Raise with the offending token and where it is."""
    checks.fail(f"{problem} {_shown(token.text)!r} at character {token.character}; {remedy}")


def _shown(text: str) -> str:
    """Return a piece of the text short enough for a one-line message."""
    return text if len(text) <= 24 else f"{text[:21]}..."
