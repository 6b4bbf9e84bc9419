"""Tasks on files of a person's own, whose texts a tokenizer reads."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fastformer import checks
from fastformer.data.tokenizers import KINDS, LEARNED, Tokenizer, new_tokenizer, read_tokenizer
from fastformer.errors import InvalidValueError

VOCAB_SIZE: Final = 8192
"""Tokens of a tokenizer that learns them, where no other number is given."""


def tokenizer_field(default: str) -> Any:
    """Return the field of a task that names its tokenizer."""
    text = (
        "what is a token: words (those that are not known are one token), characters (those that "
        "the text has), bytes, or bpe (parts of words that it learns, as GPT-2 does; needs "
        "fastformer[text]); or the path of a tokenizer.json, of a run or of the tokenizers library"
    )
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class TokenizedTask:
    """What tasks on files have in common.

    Attributes:
        files: absolute paths, in the order in which they are read.
        digest: of what is in them, so that a run does not go on with something else; "" before
            they are read.
        vocab_size: 0 for VOCAB_SIZE, or for what a tokenizer has that learns nothing.

    Raises:
        ValueError, TypeError: a value that is not allowed; the message names it.
    """

    files: tuple[str, ...] = ()
    digest: str = ""
    tokenizer: str = tokenizer_field("characters")
    vocab_size: int = field(
        default=0,
        metadata={"help": f"tokens that words and bpe learn at most; 0 for {VOCAB_SIZE:,}"},
    )

    def __post_init__(self) -> None:
        """Check every value."""
        for name in ("digest", "tokenizer"):
            checks.instance(type(self).__name__, name, getattr(self, name), str)
        checks.integer("vocab_size", self.vocab_size, 0)
        if not all(isinstance(file, str) for file in self.files):
            checks.fail(f"files must be paths, got {self.files!r:.200}")

    def tokenizer_of(self, texts: Iterable[str]) -> Tokenizer:
        """Return the tokenizer of some texts; see `chosen_tokenizer`."""
        return chosen_tokenizer(self.tokenizer, texts, self.vocab_size)


def chosen_tokenizer(name: str, texts: Iterable[str], vocab_size: int = 0) -> Tokenizer:
    """Return the tokenizer that a user names.

    Args:
        name: a kind of `fastformer.data.tokenizers.KINDS`, or the path of a `tokenizer.json`.
        texts: what it learns from, where it learns; each in memory for itself.
        vocab_size: how many tokens it learns at most; 0 for VOCAB_SIZE. One that learns none must
            have as many, but for 0.

    Raises:
        ValueError: no kind and no file, a file without a tokenizer, a size that is not allowed, or
            that the tokenizer has not.
        ImportError: BPE's library is not installed.
    """
    if name in LEARNED:
        return new_tokenizer(name, texts, vocab_size or VOCAB_SIZE)
    if name in KINDS:
        found = new_tokenizer(name, texts, 0)
    else:
        path = Path(name)
        if not path.is_file():
            try:
                checks.choice("tokenizer", name, KINDS)
            except InvalidValueError as error:
                raise InvalidValueError(f"{error}; or the path of a tokenizer.json") from None
        try:
            found = read_tokenizer(path, path.read_bytes())
        except OSError as error:
            raise InvalidValueError(f"cannot read {path}: {error.strerror}") from error
    if vocab_size not in (0, found.vocab_size):
        checks.fail(
            f"vocab_size must be {found.vocab_size}, which the tokenizer {name} has, or be left "
            f"out, got {vocab_size}; {' and '.join(LEARNED)} learn as many as are asked for"
        )
    return found
