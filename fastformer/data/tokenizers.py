"""Text as token ids: by characters, by bytes, or by parts of words that a text has taught (BPE).

A tokenizer is kept beside a run as `tokenizer.json`: for BPE the standard file of the `tokenizers`
library, for the others one that says which characters there are.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol

import numpy as np
import numpy.typing as npt

from fastformer import checks
from fastformer.batch import Ids
from fastformer.errors import InvalidTypeError, InvalidValueError

FILE: Final = "tokenizer.json"
KINDS: Final = ("characters", "bytes", "bpe")
_FORMAT: Final = "fastformer tokenizer"


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

    def decode(self, ids: npt.ArrayLike) -> str:
        """Return the text of ids."""

    def file(self) -> bytes:
        """Return the content of `tokenizer.json`."""


class CharacterTokenizer:
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
        self._order = np.argsort(self._codes, kind="stable")
        self._sorted = self._codes[self._order]

    @classmethod
    def of(cls, texts: Iterable[str]) -> "CharacterTokenizer":
        """Return the tokenizer of all characters of some texts."""
        return cls("".join(sorted(set[str]().union(*texts))))

    @property
    def vocab_size(self) -> int:
        """How many characters there are."""
        return len(self.characters)

    def encode(self, text: str) -> Ids:
        """Return an id for each character; see `Tokenizer`."""
        codes = np.frombuffer(_text(text).encode("utf-32-le", "surrogatepass"), np.uint32)
        places = np.searchsorted(self._sorted, codes)
        places[places == self._sorted.size] = 0
        unknown = self._sorted[places] != codes
        if unknown.any():
            place = int(unknown.argmax())
            raise InvalidValueError(
                f"the model has never seen the character {text[place]!r}, at place {place + 1} of "
                f"the text; it knows {self.vocab_size} characters: {self.characters!r:.200}"
            )
        return self._order[places].astype(np.int64)

    def decode(self, ids: npt.ArrayLike) -> str:
        """Return a character for each id."""
        chosen = checks.id_array("ids", ids)
        if chosen.size and chosen.max() >= self.vocab_size:
            raise InvalidValueError(f"ids must be below {self.vocab_size}, got {chosen.max()}")
        return self._codes[chosen].tobytes().decode("utf-32-le")

    def file(self) -> bytes:
        """Return the content of `tokenizer.json`."""
        return _json({"kind": self.kind, "characters": self.characters})


class ByteTokenizer:
    """The 256 bytes of UTF-8: any text has ids."""

    kind: ClassVar[str] = "bytes"
    vocab_size: int = 256

    def encode(self, text: str) -> Ids:
        """Return an id for each byte; see `Tokenizer`."""
        return np.frombuffer(_text(text).encode(), np.uint8).astype(np.int64)

    def decode(self, ids: npt.ArrayLike) -> str:
        """Return the text of bytes; what is no UTF-8 becomes U+FFFD."""
        chosen = checks.id_array("ids", ids)
        if chosen.size and chosen.max() >= self.vocab_size:
            raise InvalidValueError(f"ids must be below {self.vocab_size}, got {chosen.max()}")
        return chosen.astype(np.uint8).tobytes().decode(errors="replace")

    def file(self) -> bytes:
        """Return the content of `tokenizer.json`."""
        return _json({"kind": self.kind})


class BPETokenizer:
    """Byte-pair encoding, by the library `tokenizers` (extra `text`).

    Source: Sennrich et al. 2016, arXiv:1508.07909, on bytes as GPT-2 has it.
    """

    kind: ClassVar[str] = "bpe"

    def __init__(self, content: str) -> None:
        """Read the content of a `tokenizer.json` of the library, of any kind that it has.

        Raises:
            ValueError: the library is not installed, or it cannot read that.
        """
        try:
            self._tokenizer = _library().Tokenizer.from_str(content)
        except Exception as error:
            if isinstance(error, InvalidValueError):
                raise
            raise InvalidValueError(
                f"tokenizer.json is no file of the tokenizers library: {error}"
            ) from error

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "BPETokenizer":
        """Learn so many parts of words from texts.

        Raises:
            ValueError: the library is not installed, or fewer than the 256 bytes are asked for.
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
        return cls(tokenizer.to_str())

    @property
    def vocab_size(self) -> int:
        """How many ids there are, those of added tokens included."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, text: str) -> Ids:
        """Return the ids of a text; see `Tokenizer`."""
        found = self._tokenizer.encode(_text(text), add_special_tokens=False)
        return np.array(found.ids, np.int64)

    def decode(self, ids: npt.ArrayLike) -> str:
        """Return the text of ids."""
        chosen = checks.id_array("ids", ids)
        return str(self._tokenizer.decode(chosen.tolist(), skip_special_tokens=False))

    def file(self) -> bytes:
        """Return the content of `tokenizer.json`, which is the library's own."""
        return str(self._tokenizer.to_str(pretty=True)).encode()


def new_tokenizer(kind: str, texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """Return a tokenizer for texts.

    Args:
        kind: of KINDS.    vocab_size: of "bpe"; the others have what there is.
    """
    checks.choice("tokenizer", kind, KINDS)
    if kind == "characters":
        return CharacterTokenizer.of(texts)
    return ByteTokenizer() if kind == "bytes" else BPETokenizer.train(texts, vocab_size)


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
        kind = checks.choice("kind", found.get("kind"), KINDS[:2])
        return CharacterTokenizer(found["characters"]) if kind == KINDS[0] else ByteTokenizer()
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
        raise InvalidValueError(
            "BPE needs the library tokenizers: pip install 'fastformer[text]', or choose the "
            "tokenizer characters or bytes"
        ) from None
    return tokenizers
