"""UTF-8 files of any size, read in pieces of a few megabytes, so that memory stays flat.

A piece is known by the byte that it begins at: reading goes on anywhere with the same pieces.
"""

import functools
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Final

from fastformer.errors import InvalidValueError

PIECE: Final = 1 << 22
"""Bytes that are read at once."""

PART: Final = 1 << 14
"""Characters that a tokenizer is given at once, of which several threads may have some each."""

MARK: Final = b"\xef\xbb\xbf"  # that some editors put before UTF-8
# Between two lines, neither of them empty: no tokenizer's words go on across it.
_LINE_END: Final = re.compile(r"(?:(?<=\S\n)|(?<=\S\r\n))(?=\S)")
# A word of BPE has the space before it.
_SPACE_END: Final = re.compile(r"(?<=\S)(?=\s)")
_TAILS: Final = 1 << 10, 1 << 16  # where they are looked for, at the end of a text


def check_files(paths: Sequence[Path]) -> int:
    """Return how many bytes files have together.

    Raises:
        ValueError: none are given, or one is missing or empty; the message names it.
    """
    if not paths:
        raise InvalidValueError("give at least one text file")
    total = 0
    for path in paths:
        with _opened(path) as file:
            found = len(file.read(len(MARK) + 1).removeprefix(MARK))
            if not found:
                raise InvalidValueError(f"{path} is empty")
            total += file.seek(0, 2)
    return total


def files_digest(paths: Sequence[Path]) -> str:
    """Return what tells the content of files from any other: 16 hexadecimal digits.

    Raises:
        ValueError: one cannot be read; the message names it.
    """
    digests = [file_digest(path) for path in paths]
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, which is read once in a process while it does not change.

    Raises:
        ValueError: it cannot be read; the message names it.
    """
    with _opened(path):  # for its message
        return _digest(path, signature(path))


@functools.lru_cache(maxsize=1024)
def _digest(path: Path, signature: tuple[int, ...]) -> str:
    with _opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def signature(path: Path) -> tuple[int, ...]:
    """Return what changes when a file does: its size, its time, and its number."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino


def text_pieces(path: Path, start: int = 0, separator: str = "") -> Iterator[tuple[str, int]]:
    """Yield the text of a file in pieces, each with the byte behind it.

    Args:
        path: a UTF-8 file.    start: the byte to begin at: 0, or one that was yielded.
        separator: pieces end behind the last of these that is in them; where there is none, or for
            "", behind a line, or else behind a word.

    Raises:
        ValueError: the file cannot be read, or is not UTF-8; the message names the first byte that
            is wrong, counted over the file.
    """
    with _opened(path) as file:
        while True:
            file.seek(start)
            data = file.read(PIECE)
            if not data:
                return
            is_last = len(data) < PIECE
            before = len(MARK) if start == 0 and data.startswith(MARK) else 0
            text = decoded(path, data[before:], start + before, is_last)
            if not is_last:
                text = text[: cut(text, separator)]
            start += before + len(text.encode())
            if text:
                yield text, start


def cut(text: str, separator: str = "") -> int:
    """Return where to cut a text in two whose tokens are those of the whole, wherever possible.

    Args:
        text: not empty.    separator: as of `text_pieces`.
    """
    end = len(text)
    if separator:
        found = text.rfind(separator)
        if found >= 0:
            return found + len(separator)
        end = max(1, end - len(separator) + 1)  # one may have begun
    for pattern in (_LINE_END, _SPACE_END):
        for tail in _TAILS:
            places = [found.start() for found in pattern.finditer(text, max(0, end - tail), end)]
            if places and places[-1]:
                return places[-1]
    return end


def parts(text: str, size: int) -> list[str]:
    """Return a text in parts of at most about so many characters, cut as `cut` does."""
    found, begin = [], 0
    while len(text) - begin > size:
        end = begin + cut(text[begin : begin + size])
        found.append(text[begin:end])
        begin = end
    return [*found, text[begin:]]


def _opened(path: Path) -> BufferedReader:
    """Open a file to read. It is read several times, which a pipe cannot be."""
    try:
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise InvalidValueError(f"{path} is a pipe or a device; write the text to a file first")
        return open(path, "rb")
    except OSError as error:
        raise InvalidValueError(f"cannot read {path}: {error.strerror}") from error


def decoded(path: Path, data: bytes, start: int = 0, is_last: bool = True) -> str:
    """Return the text of bytes of a file; unless they are its last, a character may be cut.

    Args:
        start: where in the file they are.

    Raises:
        ValueError: they are not UTF-8; the message names the first byte that is wrong.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        if not is_last and error.reason == "unexpected end of data":
            return data[: error.start].decode()
        raise InvalidValueError(
            f"{path} is not UTF-8: byte {start + error.start:,} is {data[error.start]:#04x}; "
            "convert it, for instance with iconv -f latin1 -t utf-8"
        ) from error
