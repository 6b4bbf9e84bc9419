"""Text as tokens, and what training takes of them: random crops, or whole documents."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastformer import checks
from fastformer.batch import Ids, PackedBatch, pack_text
from fastformer.data.text_files import PART, parts, text_pieces
from fastformer.data.tokenized import TokenizedTask
from fastformer.data.tokenizers import Tokenizer
from fastformer.random import generator

Marks = npt.NDArray[np.bool_]

# What a text is cut into.
DOCUMENTS = ("none", "lines", "files", "separated")


@dataclass(frozen=True, kw_only=True)
class TextTask(TokenizedTask):
    """What is read of text files, and how.

    Attributes:
        tokens_digest: of the files' tokens; "" before they are made.

    Raises:
        ValueError, TypeError: a value that is not allowed; the message names it.
    """

    tokens_digest: str = ""
    documents: str = field(
        default="none",
        metadata={
            "help": "what the text is cut into: none (batches are random crops of all of it), or "
            "documents, of which batches have whole ones: lines, files, or what is separated by "
            "--separator"
        },
    )
    separator: str = field(
        default="",
        metadata={
            "help": "text between two documents, as <|endoftext|>, by which the model learns where "
            "one ends; for files, it is put behind each"
        },
    )
    crops: int = field(
        default=3000,
        metadata={
            "help": "where there are no documents: random crops of the text, of max_seq_len tokens "
            "each, in an epoch"
        },
    )
    validation_share: float = field(
        default=0.1,
        metadata={
            "help": "share of the text, at its end, or of the documents, drawn by the seed, that "
            "is not trained on"
        },
    )

    sample_tokens: int = field(
        default=64,
        metadata={
            "help": "how much of what the model writes is shown after each epoch; 0 for none"
        },
    )

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        for name in ("tokens_digest", "separator"):
            checks.instance("TextTask", name, getattr(self, name), str)
        checks.integer("crops", self.crops, 1)
        checks.integer("sample_tokens", self.sample_tokens, 0, 1 << 20)
        checks.number("validation_share", self.validation_share, above=0, below=1)
        checks.choice("documents", self.documents, DOCUMENTS)
        if self.documents == "separated" and not self.separator:
            checks.fail("documents='separated' needs the separator; or take lines, or files")
        if self.documents in ("none", "lines") and self.separator:
            checks.fail(
                f"separator is for documents='separated', or 'files', got {self.separator!r:.60} "
                f"with documents={self.documents!r}"
            )

    @property
    def separator_between(self) -> str:
        """What separates documents within a file; "" for nothing."""
        return "" if self.documents == "files" else self.ending

    @property
    def ending(self) -> str:
        """What each document ends with, so that a model learns to end; "" for nothing."""
        return "\n" if self.documents == "lines" else self.separator

    def new_tokenizer(self) -> Tokenizer:
        """Return the tokenizer that the files' texts decide, or that a file of its own has.

        Raises:
            ValueError: as of `chosen_tokenizer`, and of `text_pieces`.
        """
        return self.tokenizer_of(self._learned_from())

    def _learned_from(self) -> Iterator[str]:
        """Yield all text in small parts: the tokenizers library has some hundreds at a time."""
        yield self.ending
        for file in self.files:
            for text, _ in text_pieces(Path(file)):
                yield from parts(text, PART)


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


def drawn_for_validation(documents: npt.NDArray[np.uint64], seed: int, share: float) -> Marks:
    """Return which documents are not trained on, (D,): those that are the same, all or none.

    Args:
        documents: (D, 2), of which the second is a hash.    seed: draws them.
        share: of the documents, about.
    """
    factor = np.uint64(2 * int(generator(seed, "validation documents").integers(1 << 62)) + 1)
    drawn = documents[:, 1] * factor
    count = min(max(1, round(share * drawn.size)), drawn.size - 1)
    chosen: Marks = drawn < np.partition(drawn, count)[count]
    return chosen


def windows(tokens: np.ndarray, length: int, most: int) -> tuple[PackedBatch, Ids]:
    """Return a text end to end in sequences of `length`, with their targets.

    Args:
        most: tokens that are used at most, from the beginning on.
    """
    return pack_text(np.asarray(tokens[: most + 1], np.int64), length)


@dataclass(frozen=True)
class Documents:
    """Documents in a row of tokens, each a sequence; of a long one, as many as it needs.

    What ends a document also comes before the next, so that a model learns how one begins.

    Attributes:
        tokens: (N,) of any integer dtype.
        starts, ends: (D,) int64: document d is tokens[starts[d]:ends[d]].
        ending: (E,) int64, the tokens that each ends with; E may be 0.
        length: most tokens of a sequence.
    """

    tokens: np.ndarray
    starts: Ids
    ends: Ids
    ending: Ids
    length: int

    @cached_property
    def _inputs(self) -> Ids:
        """How many tokens of each document are read, (D,): all but its last."""
        inputs: Ids = np.maximum(self.ends - self.starts + self.ending.size - 1, 0)
        return inputs

    @cached_property
    def _first(self) -> Ids:
        """The number of each document's first sequence, and of all of them, (D + 1,)."""
        counts = -(-self._inputs // self.length)
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])

    @property
    def size(self) -> int:
        """How many sequences they are."""
        return int(self._first[-1])

    @cached_property
    def lengths(self) -> Ids:
        """How many tokens each sequence has, (size,)."""
        documents, begins = self._places(np.arange(self.size))
        lengths: Ids = np.minimum(self._inputs[documents] - begins, self.length)
        return lengths

    def _places(self, sequences: Ids) -> tuple[Ids, Ids]:
        """Return of sequences their documents, and how many tokens of these come before."""
        documents = np.searchsorted(self._first, sequences, side="right") - 1
        return documents, (sequences - self._first[documents]) * self.length

    def batch(self, sequences: Ids) -> tuple[PackedBatch, Ids]:
        """Return some of the sequences, and the targets of their tokens; -1 where none is asked."""
        documents, begins = self._places(sequences)
        counts = np.minimum(self._inputs[documents] - begins, self.length)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        # Of each token, its place in the document with the ending before it.
        places = np.arange(offsets[-1]) + np.repeat(begins - offsets[:-1], counts)
        starts = np.repeat(self.starts[documents] - self.ending.size, counts)
        targets = self._at(starts, places + 1)
        targets[places + 1 < self.ending.size] = -1
        return PackedBatch(self._at(starts, places), offsets), targets

    def _at(self, starts: Ids, places: Ids) -> Ids:
        found: Ids = self.tokens[np.maximum(starts + places, 0)].astype(np.int64)
        before = places < self.ending.size
        found[before] = self.ending[places[before]]
        return found
