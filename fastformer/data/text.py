"""Text files as one row of token ids, of which training takes crops."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fastformer import checks
from fastformer.batch import Ids, PackedBatch
from fastformer.data.tokenizers import KINDS, LEARNED, Tokenizer, new_tokenizer, read_tokenizer
from fastformer.errors import InvalidValueError
from fastformer.random import generator

# Of a tokenizer that learns its tokens, where no other number is given.
VOCAB_SIZE = 8192


@dataclass(frozen=True, kw_only=True)
class TextTask:
    """What is read of text files, and how.

    Attributes:
        files: absolute paths, in the order in which their texts follow each other.
        digest: of the texts, so that a run does not go on with others; "" before they are read.
        vocab_size: 0 for VOCAB_SIZE, or for what a tokenizer has that learns nothing.

    Raises:
        ValueError, TypeError: a value that is not allowed; the message names it.
    """

    files: tuple[str, ...] = ()
    digest: str = ""
    tokenizer: str = field(
        default="characters",
        metadata={
            "help": "what is a token: characters (those that the text has), bytes, words, or bpe "
            "(parts of words that it learns, as GPT-2 does; needs fastformer[text]); or the path "
            "of a tokenizer.json, of a run or of the tokenizers library"
        },
    )
    vocab_size: int = field(
        default=0,
        metadata={"help": f"tokens that words and bpe learn at most; 0 for {VOCAB_SIZE:,}"},
    )
    crops: int = field(
        default=3000,
        metadata={"help": "random crops of the text, of max_seq_len tokens each, in an epoch"},
    )
    validation_share: float = field(
        default=0.1, metadata={"help": "share of the text, at its end, that is not trained on"}
    )

    def __post_init__(self) -> None:
        """Check every value."""
        for name in ("digest", "tokenizer"):
            checks.instance("TextTask", name, getattr(self, name), str)
        checks.integer("vocab_size", self.vocab_size, 0)
        if not all(isinstance(file, str) for file in self.files):
            checks.fail(f"files must be paths, got {self.files!r:.200}")
        checks.integer("crops", self.crops, 1)
        checks.number("validation_share", self.validation_share, above=0, below=1)

    def of_texts(self, texts: Sequence[str]) -> "TextTask":
        """Return the task with the digest of texts."""
        digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
        return replace(self, digest=digest)

    def new_tokenizer(self, texts: Iterable[str]) -> Tokenizer:
        """Return the tokenizer that texts decide, or that a file has.

        Raises:
            ValueError: no kind and no file, a file without a tokenizer, a size that is not allowed,
                or that the tokenizer has not, or a library that is not installed.
        """
        return chosen_tokenizer(self.tokenizer, texts, self.vocab_size)


def chosen_tokenizer(name: str, texts: Iterable[str], vocab_size: int = 0) -> Tokenizer:
    """Return the tokenizer that a user names.

    Args:
        name: a kind of `fastformer.data.tokenizers.KINDS`, or the path of a `tokenizer.json`.
        texts: what it learns from, where it learns; each in memory for itself.
        vocab_size: how many tokens it learns at most; 0 for VOCAB_SIZE. One that learns none must
            have as many, but for 0.

    Raises:
        ValueError: as of `TextTask.new_tokenizer`.
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


def read_texts(paths: Sequence[Path]) -> list[str]:
    """Return the texts of UTF-8 files.

    Raises:
        ValueError: none are given, or one is missing, empty, or not UTF-8; the message names the
            file, and the first byte that is wrong.
    """
    if not paths:
        raise InvalidValueError("give at least one text file")
    texts = []
    for path in paths:
        try:
            text = Path(path).read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InvalidValueError(
                f"{path} is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}; "
                "convert it, for instance with iconv -f latin1 -t utf-8"
            ) from error
        except OSError as error:
            raise InvalidValueError(f"cannot read {path}: {error.strerror}") from error
        if not text:
            raise InvalidValueError(f"{path} is empty")
        texts.append(text)
    return texts


@dataclass(frozen=True)
class Crops:
    """Random crops of a row of tokens: each token's target is the one behind it.

    Attributes:
        tokens: (N,) of any integer dtype.    length: T of a crop.    size: how many make an epoch.
    """

    tokens: np.ndarray
    length: int
    size: int

    def batch(self, seed: int, number: int, count: int) -> tuple[PackedBatch, Ids]:
        """Return so many crops and their targets, which depend on seed and number alone."""
        random = generator(seed, "crops", number)
        starts = random.integers(0, self.tokens.size - self.length, count)
        places = starts[:, None] + np.arange(self.length + 1)
        rows = self.tokens[places].astype(np.int64)
        return packed_rows(rows[:, :-1]), np.ascontiguousarray(rows[:, 1:]).ravel()


def packed_rows(rows: Ids) -> PackedBatch:
    """Return rows of one length, (B, T), as a batch."""
    offsets = np.arange(len(rows) + 1) * rows.shape[1]
    return PackedBatch(rows.ravel(), offsets)


def windows(tokens: np.ndarray, length: int, most: int) -> tuple[PackedBatch, Ids]:
    """Return a text end to end in sequences of `length`, with their targets.

    Args:
        most: tokens that are used at most, from the beginning on.
    """
    used = np.asarray(tokens[: most + 1], np.int64)
    count = used.size - 1
    offsets = np.append(np.arange(0, count, length), count)
    return PackedBatch(used[:-1], offsets), used[1:].copy()
