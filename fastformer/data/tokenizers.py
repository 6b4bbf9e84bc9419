"""Text as token ids: by characters, bytes, words, or parts of words that a text has taught (BPE).

A run keeps its tokenizer in a file of its own, `tokenizer.json`: for BPE the standard file of the
`tokenizers` library, for the others one that says which characters or words there are.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol

import numpy as np
import numpy.typing as npt

from fastformer import checks
from fastformer.batch import Ids
from fastformer.errors import InvalidTypeError, InvalidValueError, MissingLibraryError

FILE: Final = "tokenizer.json"
KINDS: Final = ("characters", "bytes", "words", "bpe")
LEARNED: Final = ("words", "bpe")
"""Kinds whose number of ids is chosen; the others have what there is."""

UNKNOWN: Final = "[UNK]"
"""The token of words that a `WordTokenizer` does not know; no text has it as a word."""

_FORMAT: Final = "fastformer tokenizer"
_WORD: Final = re.compile(r"\w+|[^\w\s]")


class Tokenizer(Protocol):
    """Turns text into ids, and back."""

    kind: ClassVar[str]

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""

    def encode(self, text: str) -> Ids:
        """Return the ids of a text, (N,) int64.

        Raises:
            ValueError: a character that the tokenizer has not; the message names it and its place.
        """

    def encode_batch(self, texts: Sequence[str]) -> tuple[Ids, Ids]:
        """Return the ids of texts end to end, (N,), and how many each has, (len(texts),).

        Raises:
            ValueError: as of `encode`.
        """

    def decode(self, ids: npt.ArrayLike) -> str:
        """Return the text of ids."""

    def token(self, number: int) -> str:
        """Return the token of an id as a table or a picture shows it.

        Raises:
            ValueError, TypeError: there is no such id.
        """

    def file(self) -> bytes:
        """Return the content of `tokenizer.json`."""


class _Tokenizer:
    """What tokenizers have in common: two are equal if their files are."""

    @property
    def vocab_size(self) -> int:
        raise NotImplementedError

    def encode(self, text: str) -> Ids:
        raise NotImplementedError

    def encode_batch(self, texts: Sequence[str]) -> tuple[Ids, Ids]:
        """Return the ids of texts end to end, and how many each has; see `Tokenizer`."""
        found = [self.encode(text) for text in texts]
        counts = np.array([ids.size for ids in found], np.int64)
        return np.concatenate([np.zeros(0, np.int64), *found]), counts

    def file(self) -> bytes:
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Tokenizer) and self.file() == other.file()

    def __hash__(self) -> int:
        return hash(self.file())

    def _ids(self, ids: npt.ArrayLike) -> Ids:
        """Return ids as an array, if the tokenizer has all of them."""
        chosen = checks.id_array("ids", ids)
        if chosen.size and chosen.max() >= self.vocab_size:
            raise InvalidValueError(f"ids must be below {self.vocab_size}, got {chosen.max()}")
        return chosen

    def _id(self, number: int) -> int:
        return checks.integer("number", number, 0, self.vocab_size - 1)


class CharacterTokenizer(_Tokenizer):
    """An id for each character that a text has, in the order of their code points."""

    kind: ClassVar[str] = "characters"

    def __init__(self, characters: str) -> None:
        """Know these characters, in this order.

        Raises:
            TypeError, ValueError: no text, none, or one that is there twice.
        """
        if not isinstance(characters, str):
            raise InvalidTypeError(f"characters must be a string, got {characters!r:.60}")
        if not characters or len(set(characters)) < len(characters):
            raise InvalidValueError(
                f"characters must be at least one, each once, got {characters!r:.60}"
            )
        self.characters = characters
        self._codes = np.frombuffer(characters.encode("utf-32-le"), np.uint32)
        # Of each code point up to the highest, its id; -1 for what is not known.
        self._numbers = np.full(int(self._codes.max()) + 2, -1, np.int32)
        self._numbers[self._codes] = np.arange(self._codes.size)

    @classmethod
    def of(cls, texts: Iterable[str]) -> "CharacterTokenizer":
        """Return the tokenizer of all characters of some texts."""
        found = set[str]()
        for text in texts:
            found.update(_text(text))
        return cls("".join(sorted(found)))

    @property
    def vocab_size(self) -> int:
        """How many characters there are."""
        return len(self.characters)

    def encode(self, text: str) -> Ids:
        """Return an id for each character; see `Tokenizer`."""
        codes = np.frombuffer(_text(text).encode("utf-32-le", "surrogatepass"), np.uint32)
        ids = self._numbers[np.minimum(codes, self._numbers.size - 1)]
        unknown = ids < 0
        if unknown.any():
            place = int(unknown.argmax())
            raise InvalidValueError(
                f"the model has never seen the character {text[place]!r}, at place {place + 1} of "
                f"the text; it knows {self.vocab_size} characters: {self.characters!r:.200}"
            )
        return ids.astype(np.int64)

    def encode_batch(self, texts: Sequence[str]) -> tuple[Ids, Ids]:
        """Return the ids of texts end to end, and how many each has; see `Tokenizer`."""
        return self.encode("".join(texts)), np.array([len(text) for text in texts], np.int64)

    def decode(self, ids: npt.ArrayLike) -> str:
        """Return a character for each id."""
        return self._codes[self._ids(ids)].tobytes().decode("utf-32-le")

    def token(self, number: int) -> str:
        """Return the character of an id; see `Tokenizer`."""
        return self.characters[self._id(number)]

    def file(self) -> bytes:
        """Return the content of `tokenizer.json`."""
        return _json({"kind": self.kind, "characters": self.characters})


class ByteTokenizer(_Tokenizer):
    """The 256 bytes of UTF-8: any text has ids."""

    kind: ClassVar[str] = "bytes"

    @property
    def vocab_size(self) -> int:
        """How many bytes there are."""
        return 256

    def encode(self, text: str) -> Ids:
        """Return an id for each byte; see `Tokenizer`."""
        return np.frombuffer(_text(text).encode(), np.uint8).astype(np.int64)

    def decode(self, ids: npt.ArrayLike) -> str:
        """Return the text of bytes; what is no UTF-8 becomes U+FFFD."""
        return self._ids(ids).astype(np.uint8).tobytes().decode(errors="replace")

    def token(self, number: int) -> str:
        """Return the ASCII character of a byte, or the byte as <0xC3>; see `Tokenizer`."""
        character = chr(self._id(number))
        ascii_one = character.isascii() and character.isprintable()
        return character if ascii_one else f"<0x{number:02X}>"

    def file(self) -> bytes:
        """Return the content of `tokenizer.json`."""
        return _json({"kind": self.kind})


class WordTokenizer(_Tokenizer):
    """An id for each word and each sign between words; all words that are not known have id 0."""

    kind: ClassVar[str] = "words"

    def __init__(self, words: Sequence[str]) -> None:
        """Know these words, whose ids are 1, 2, ... in this order.

        Raises:
            TypeError, ValueError: no list of words, what is no single word, or one twice.
        """
        if isinstance(words, str) or not isinstance(words, Sequence):
            raise InvalidTypeError(f"words must be a list of words, got {words!r:.60}")
        for word in words:
            if not isinstance(word, str) or not _WORD.fullmatch(word):
                raise InvalidValueError(f"each of words must be one word or sign, got {word!r:.60}")
        self.words = tuple(words)
        self._numbers = {word: number for number, word in enumerate(self.words, 1)}
        if len(self._numbers) < len(self.words):
            double = Counter(self.words).most_common(1)[0][0]
            raise InvalidValueError(f"words must have each word once, got {double!r:.60} again")

    @classmethod
    def of(cls, texts: Iterable[str], vocab_size: int) -> "WordTokenizer":
        """Return the tokenizer of the most frequent words of some texts.

        Args:
            vocab_size: most ids, with that of unknown words, >= 2.
        """
        checks.integer("vocab_size", vocab_size, 2)
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(_WORD.findall(_text(text)))
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(ranked[: vocab_size - 1])

    @property
    def vocab_size(self) -> int:
        """How many ids there are, that of unknown words included."""
        return len(self.words) + 1

    def encode(self, text: str) -> Ids:
        """Return an id for each word and sign; space is none. See `Tokenizer`."""
        numbers = self._numbers
        return np.array([numbers.get(word, 0) for word in _WORD.findall(_text(text))], np.int64)

    def decode(self, ids: npt.ArrayLike) -> str:
        """Return the words of ids with a space between two: how they stood is not known."""
        return " ".join(map(self.token, self._ids(ids).tolist()))

    def token(self, number: int) -> str:
        """Return the word of an id; see `Tokenizer`."""
        return self.words[number - 1] if self._id(number) else UNKNOWN

    def file(self) -> bytes:
        """Return the content of `tokenizer.json`."""
        return _json({"kind": self.kind, "words": self.words})


class BPETokenizer(_Tokenizer):
    """Byte-pair encoding, by the library `tokenizers` (extra `text`).

    Source: Sennrich et al. 2016, arXiv:1508.07909, on bytes as GPT-2 has it.
    """

    kind: ClassVar[str] = "bpe"

    def __init__(self, content: str) -> None:
        """Read the content of a `tokenizer.json` of the library, of any kind that it has.

        Raises:
            ValueError: the library cannot read that.
            ImportError: it is not installed.
        """
        self._content, library = content, _library()
        try:
            self._tokenizer = library.Tokenizer.from_str(content)
        except Exception as error:
            raise InvalidValueError(
                f"tokenizer.json is no file of the tokenizers library: {error}"
            ) from error

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "BPETokenizer":
        """Learn so many parts of words from texts.

        Raises:
            ValueError: fewer than the 256 bytes are asked for.
            ImportError: the library is not installed.
        """
        checks.integer("vocab_size", vocab_size, 256)
        library = _library()
        tokenizer = library.Tokenizer(library.models.BPE())
        tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = library.decoders.ByteLevel()
        alphabet = library.pre_tokenizers.ByteLevel.alphabet()
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer.to_str(pretty=True))

    @property
    def vocab_size(self) -> int:
        """How many ids there are, those of added tokens included."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, text: str) -> Ids:
        """Return the ids of a text; see `Tokenizer`."""
        found = self._tokenizer.encode(_text(text), add_special_tokens=False)
        return np.array(found.ids, np.int64)

    def encode_batch(self, texts: Sequence[str]) -> tuple[Ids, Ids]:
        """Return the ids of texts end to end, and how many each has; see `Tokenizer`.

        The library encodes them on all cores.
        """
        found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ids = [one.ids for one in found]
        counts = np.array([len(one) for one in ids], np.int64)
        return np.fromiter(chain.from_iterable(ids), np.int64, int(counts.sum())), counts

    def decode(self, ids: npt.ArrayLike) -> str:
        """Return the text of ids."""
        return str(self._tokenizer.decode(self._ids(ids).tolist(), skip_special_tokens=False))

    def token(self, number: int) -> str:
        """Return the token of an id as the library writes it; see `Tokenizer`."""
        return str(self._tokenizer.id_to_token(self._id(number)))

    def file(self) -> bytes:
        """Return the content of `tokenizer.json`, which is the library's own."""
        return self._content.encode()


def new_tokenizer(kind: str, texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Return a tokenizer for texts, of which one is in memory at a time.

    Args:
        kind: of KINDS.    texts: gone over once, or not at all for bytes.
        vocab_size: at most, of those of LEARNED; the others have what there is.
    """
    checks.choice("tokenizer", kind, KINDS)
    if kind == "characters":
        return CharacterTokenizer.of(texts)
    if kind == "words":
        return WordTokenizer.of(texts, vocab_size)
    return ByteTokenizer() if kind == "bytes" else BPETokenizer.train(texts, vocab_size)


def tokenizer_digest(content: bytes) -> str:
    """Return what tells one `tokenizer.json` from another: 16 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()[:16]


def read_tokenizer(path: Path, content: bytes) -> Tokenizer:
    """Return the tokenizer that a file holds.

    Raises:
        ValueError: it holds none; the message names the file.
    """
    try:
        found = json.loads(content)
        if not isinstance(found, dict):
            raise InvalidValueError("it is no JSON object")
        if found.get("format") != _FORMAT:
            return BPETokenizer(content.decode())
        kind = checks.choice("kind", found.get("kind"), KINDS[:-1])
        if kind == "characters":
            return CharacterTokenizer(found["characters"])
        return WordTokenizer(found["words"]) if kind == "words" else ByteTokenizer()
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        problem = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise InvalidValueError(f"{path} does not hold a tokenizer: {problem}") from error


def _text(text: Any) -> str:
    if not isinstance(text, str):
        raise InvalidTypeError(f"text must be a string, got {type(text).__name__}")
    return text


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps({"format": _FORMAT, **content}, ensure_ascii=False).encode()


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise MissingLibraryError(
            "BPE needs the library tokenizers: pip install 'fastformer[text]', or choose the "
            "tokenizer characters, bytes or words"
        ) from None
    return tokenizers
