"""The 20 tokens of the digit task. Digit k has id k + 2."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from fastformer import checks
from fastformer.errors import InvalidTypeError

DIGIT_TOKENS: Final[tuple[str, ...]] = (
    "[PAD]",
    "[EOS]",
    *"0123456789",
    "First",
    "Second",
    "Last",
    "Max",
    "Min",
    "(",
    ")",
    ",",
)
"""The token of each id, in the order of the ids."""

_IDS: Final[dict[str, int]] = {token: index for index, token in enumerate(DIGIT_TOKENS)}

PAD: Final[int] = _IDS["[PAD]"]
"""Id of the token that fills a padded sequence. Packed batches have none."""

EOS: Final[int] = _IDS["[EOS]"]
"""Id of the token that ends a generated sequence. The classifier never sees it."""


DIGITS: Final[tuple[str, ...]] = tuple("0123456789")


@dataclass(frozen=True)
class NamedTokens:
    """The tokens of a model that are looked at, by their ids.

    Attributes:
        digits: the ten digits, or none.    others: what else is looked at.
        others_are: what these are: "operations", or "tokens" of a person's own texts.
        names: token by id, of those that are listed with their norm: all of a small vocabulary.
    """

    digits: dict[str, int]
    others: dict[str, int]
    others_are: str
    names: dict[str, int]

    @property
    def mapped(self) -> dict[str, int]:
        """The digits and the others."""
        return {**self.digits, **self.others}

    @classmethod
    def of(cls, vocabulary: Sequence[str], operations: Sequence[str]) -> "NamedTokens":
        """Return the digits and some operations of a vocabulary that has both."""
        known = {token: number for number, token in enumerate(vocabulary)}
        return cls(
            {digit: known[digit] for digit in DIGITS},
            {name: known[name] for name in operations},
            "operations",
            known,
        )

    @classmethod
    def of_tokenizer(cls, tokenizer: "TokensById", most: int = 24) -> "NamedTokens":
        """Return the first tokens of a tokenizer, each with its name made unique."""
        shown: dict[str, int] = {}
        for number in range(min(most, tokenizer.vocab_size)):
            name = tokenizer.token(number)
            visible = name if name.strip() and name.isprintable() else repr(name)[1:-1]
            shown[visible if visible.strip() and visible not in shown else f"'{visible}'"] = number
        return cls({}, shown, "tokens", shown)


class TokensById(Protocol):
    """What has a token for each id."""

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""

    def token(self, number: int) -> str:
        """Return the token of an id."""


def encode(tokens: Iterable[str], vocabulary: tuple[str, ...] = DIGIT_TOKENS) -> list[int]:
    """Turn tokens into their ids.

    Args:
        tokens: tokens of the vocabulary, each spelt as it is there. A number of several digits is
            several tokens; free text goes through `parse_expression` first.
        vocabulary: the token of each id.

    Returns:
        One id per token, each from 0 to 19.

    Raises:
        ValueError: a token that is not in the vocabulary; the message names the nearest one.
        TypeError: a bare string, or an item that is not a string.
    """
    if isinstance(tokens, str):
        raise InvalidTypeError(
            f"tokens must be a list of tokens, got the string {tokens[:40]!r}; "
            "use parse_expression(text).tokens() for free text"
        )
    if not isinstance(tokens, Iterable):
        raise InvalidTypeError(f"tokens must be a list of tokens, got {tokens!r}")
    known = _IDS
    if vocabulary is not DIGIT_TOKENS:
        known = {token: index for index, token in enumerate(vocabulary)}
    return [_token_id(position, token, known) for position, token in enumerate(tokens)]


def decode(ids: Iterable[int], vocabulary: tuple[str, ...] = DIGIT_TOKENS) -> list[str]:
    """Turn ids into their tokens.

    Args:
        ids: ids from 0 to 19, as Python or NumPy integers.    vocabulary: the token of each id.

    Returns:
        One token per id.

    Raises:
        ValueError: an id that is not in the vocabulary.
        TypeError: a single number, or an item that is not an integer.
    """
    if not isinstance(ids, Iterable) or (isinstance(ids, np.ndarray) and ids.ndim != 1):
        raise InvalidTypeError(f"ids must be a list or a 1-D array of ids, got {ids!r}")
    last = len(vocabulary) - 1
    return [
        vocabulary[checks.integer(f"id at position {position}", value, 0, last)]
        for position, value in enumerate(ids)
    ]


def _token_id(position: int, token: str, known: dict[str, int]) -> int:
    """Return the id of the token at a position of the caller's list."""
    if not isinstance(token, str):
        raise InvalidTypeError(
            f"token at position {position} must be a string, got {token!r}; "
            "write a number as its decimal digits"
        )
    if token not in known:
        near = difflib.get_close_matches(token[:40].capitalize(), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {' '.join(known)}"
        checks.fail(f"unknown token {token[:40]!r} at position {position}; {hint}")
    return known[token]
