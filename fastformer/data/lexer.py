"""Free text cut into tokens, and messages that say where in it something is wrong."""

import difflib
import re
from collections.abc import Sequence
from typing import Final, NamedTuple, NoReturn

from fastformer import checks

MAX_NUMBER_DIGITS: Final[int] = 18
"""Digits of the largest number in an expression. 18 digits always fit in an int64."""


class Token(NamedTuple):
    """A piece of a text: its kind, and its first character, counted from 1.

    The kind is "word", "number" or "mark".
    """

    kind: str
    text: str
    character: int


# U+2212 is the minus sign that word processors write.
_PATTERN: Final[re.Pattern[str]] = re.compile(
    r"(?P<word>[^\W\d_]+)|(?P<number>[0-9]+)|(?P<mark>[(),+=])"
    r"|(?P<negative>[-\u2212]\s*[0-9]+)|(?P<unknown>\S)"
)


def scan(text: str, marks: str, remedy: str) -> list[Token]:
    """Cut a text into tokens.

    Args:
        text: anything.    marks: the marks that it may have, some of `(),+=`.
        remedy: what a message about anything else tells to do.

    Raises:
        ValueError: a piece that is no token, or a negative number.
    """
    tokens = []
    for match in _PATTERN.finditer(text):
        token = Token(str(match.lastgroup), match.group(), match.start() + 1)
        if token.kind == "negative":
            fail_at(token, "negative numbers are not allowed, got", "use numbers from 0 up")
        if token.kind == "unknown" or (token.kind == "mark" and token.text not in marks):
            fail_at(token, "unknown token", remedy)
        tokens.append(token)
    return tokens


def with_parentheses(tokens: list[Token]) -> list[Token]:
    """Return the tokens of `Max 5 3 9` with the parentheses that were left out; others as given."""
    plain = len(tokens) > 1 and (tokens[0].kind, tokens[1].kind) == ("word", "number")
    if not plain or any(token.text in ("(", ")") for token in tokens):
        return tokens
    end = tokens[-1].character + len(tokens[-1].text)
    return [
        tokens[0],
        Token("mark", "(", tokens[1].character),
        *tokens[1:],
        Token("mark", ")", end),
    ]


def read_number(token: Token) -> int:
    """Return the value of a number, which has a bounded count of digits."""
    if len(token.text) > MAX_NUMBER_DIGITS:
        digits = len(token.text)
        fail_at(token, f"a number of {digits} digits:", f"at most {MAX_NUMBER_DIGITS} are allowed")
    return int(token.text)


def read_name(token: Token, names: Sequence[str]) -> str:
    """Return which of some names a word is, in any case of letters."""
    known = {name.lower(): name for name in names}
    if token.text.lower() not in known:
        near = difflib.get_close_matches(shown(token.text).capitalize(), names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        fail_at(token, "unknown operation", f"known: {', '.join(names)}{hint}")
    return known[token.text.lower()]


def check_end(tokens: list[Token], end: int) -> None:
    """Raise where something follows the last parenthesis, whose place is before `end`."""
    if end < len(tokens):
        extra = tokens[end]
        if extra.text == ")":
            fail_at(extra, "unbalanced parentheses: nothing is open for the", "remove it")
        fail_at(extra, "trailing text after the closing ')':", "give one expression at a time")


def depth_of(tokens: list[Token]) -> int:
    """Return how many parentheses are open at most at one place."""
    deepest = depth = 0
    for token in tokens:
        depth += (token.text == "(") - (token.text == ")")
        deepest = max(deepest, depth)
    return deepest


def fail_at(token: Token, problem: str, remedy: str) -> NoReturn:
    """Raise with the offending token and where it is."""
    checks.fail(f"{problem} {shown(token.text)!r} at character {token.character}; {remedy}")


def shown(text: str) -> str:
    """Return a piece of the text short enough for a one-line message."""
    return text if len(text) <= 24 else f"{text[:21]}..."
