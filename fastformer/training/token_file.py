"""The tokens of text files, made once, in a file that every run on these texts reads.

It is in the user's cache directory, as compiled kernels are: FASTFORMER_CACHE_DIR names another.
Several runs on one text share it. A run that finds none makes it, piece after piece, so that a text
may be larger than memory; one that was stopped goes on from the last whole piece. What nobody has
used for 30 days is removed.

    tokens/KEY/tokens.bin           the ids, uint16 or uint32
    tokens/KEY/documents.bin        (D, 2) uint64: where each document starts, and a hash of it
    tokens/KEY/tokens.json          how many, of what, and checksums; written last
    tokens/KEY.partial/             the same, while it is made, and progress.json
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt
import platformdirs

from fastformer import checks
from fastformer.batch import Ids
from fastformer.data import text_files
from fastformer.data.text import TextTask
from fastformer.data.tokenizers import Tokenizer, tokenizer_digest
from fastformer.errors import InvalidValueError
from fastformer.kernels._cache import is_ours_alone
from fastformer.training.atomic_file import (
    make_directory,
    os_errors_as,
    read_file,
    sync_directory,
    write_atomically,
)
from fastformer.training.json_text import json_object

FORMAT_VERSION: Final = 1
KEPT_SECONDS: Final = 30 * 86_400

_TOKENS, _DOCUMENTS, _ABOUT = "tokens.bin", "documents.bin", "tokens.json"
_PROGRESS, _PARTIAL = "progress.json", ".partial"
_KEY: Final = re.compile(r"[0-9a-f]{32}(\.partial)?")
_SECONDS_BETWEEN_SAVES: Final = 1.0

Told = Callable[[int, int], None]
"""Is told of how many bytes of how many are read."""


@dataclass(frozen=True)
class TokenFile:
    """All tokens of text files, end to end, on disk.

    Attributes:
        tokens: (N,) uint16 or uint32, mapped into memory, read-only.
        documents: (D, 2) uint64: where each document starts, and a hash of its tokens; D is 0 for a
            text that is not cut into documents.
        text_bytes: how many bytes of UTF-8 the tokens are.
        digest: of all of it: the same for the same tokens.
    """

    tokens: npt.NDArray[Any]
    documents: npt.NDArray[np.uint64]
    text_bytes: int
    digest: str


def cache_directory() -> Path:
    """Return where token files are kept.

    Where the home directory is read-only, it is the system's directory for temporary files.

    Raises:
        ValueError: others could write there.
    """
    chosen = os.environ.get("FASTFORMER_CACHE_DIR")
    if chosen:
        return Path(chosen) / "tokens"
    usual = Path(platformdirs.user_cache_dir("fastformer", appauthor=False))
    with suppress(OSError):
        make_directory(usual)
        if os.access(usual, os.W_OK):
            return usual / "tokens"
    temporary = Path(tempfile.gettempdir()) / f"fastformer-{os.getuid()}"
    temporary.mkdir(mode=0o700, exist_ok=True)
    if not is_ours_alone(temporary.stat()):
        checks.fail(f"others may write to {temporary}; name another with FASTFORMER_CACHE_DIR")
    return temporary / "tokens"


def open_tokens(
    task: TextTask, tokenizer: Tokenizer, told: Told = lambda done, of: None
) -> TokenFile:
    """Return the tokens of a task's files; they are made where they are not there yet.

    A file that is damaged is made anew.

    Args:
        task: with files, and with their digest.    tokenizer: what makes tokens of them.
        told: is told of how many bytes of how many are read, about once a second.

    Raises:
        ValueError: a file that cannot be read, is empty, not UTF-8, has a character that the
            tokenizer has not, or changes meanwhile; nothing is kept then. Or the cache cannot be
            written.
    """
    from filelock import FileLock  # few commands lock anything

    place = cache_directory() / _key(task, tokenizer)
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    doing = f"keep tokens in {place.parent} (FASTFORMER_CACHE_DIR names another place)"
    with os_errors_as(InvalidValueError, doing):
        make_directory(place.parent)
        with FileLock(place.with_suffix(".lock"), thread_local=False):
            found = _read(place, dtype)
            if found is None:
                _Making(task, tokenizer, dtype, place).to_end(told)
                found = _read(place, dtype)
                _forget_old(place.parent)
        if found is None:
            raise InvalidValueError(f"{place} is damaged as soon as it is written; check the disk")
        os.utime(place)
    return found


def _key(task: TextTask, tokenizer: Tokenizer) -> str:
    """Return a name that no other text, tokenizer or way to cut has."""
    parts = [FORMAT_VERSION, text_files.PIECE, text_files.PART, task.digest]
    parts += [tokenizer_digest(tokenizer.file()), task.documents, task.separator]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _read(place: Path, dtype: np.dtype[Any]) -> TokenFile | None:
    """Return what is in a directory; None where it is not there, or damaged."""
    try:
        about = json_object(read_file(place / _ABOUT)) or {}
        digests = [text_files.file_digest(place / name)[:16] for name in (_TOKENS, _DOCUMENTS)]
    except (FileNotFoundError, InvalidValueError):
        return None
    text_bytes = about.get("text_bytes")
    known = about.get("dtype") == dtype.name and about.get("digests") == digests
    if not known or type(text_bytes) is not int or not (place / _TOKENS).stat().st_size:
        return None
    documents: Any = np.zeros(0, np.uint64)
    if (place / _DOCUMENTS).stat().st_size:
        documents = np.memmap(place / _DOCUMENTS, np.uint64, "r")
    return TokenFile(
        # As an array, for a memmap's slices cost twice as much.
        tokens=np.asarray(np.memmap(place / _TOKENS, dtype, "r")),
        documents=np.asarray(documents).reshape(-1, 2),
        text_bytes=text_bytes,
        digest="-".join(digests),
    )


def _forget_old(cache: Path) -> None:
    """Remove what nobody has used for long. Whoever reads it still has it until they end."""
    for entry in cache.iterdir():
        if _KEY.fullmatch(entry.name) and time.time() - entry.stat().st_mtime > KEPT_SECONDS:
            shutil.rmtree(entry, ignore_errors=True)
            entry.with_name(entry.name[:32] + ".lock").unlink(missing_ok=True)


@dataclass
class _Progress:
    """How far a token file is.

    Attributes:
        file, offset: which file is read, and from which byte on.
        tokens, documents, text_bytes: how much is written.
        begun: where the document starts that is not over yet; -1 where all are.
    """

    file: int = 0
    offset: int = 0
    tokens: int = 0
    documents: int = 0
    text_bytes: int = 0
    begun: int = -1


class _Making:
    """A token file that is made, from its beginning or from where it was stopped."""

    def __init__(
        self, task: TextTask, tokenizer: Tokenizer, dtype: np.dtype[Any], place: Path
    ) -> None:
        """Say what is made, and where."""
        self.task, self.tokenizer, self.dtype, self.place = task, tokenizer, dtype, place
        self.partial = place.with_name(place.name + _PARTIAL)
        self.paths = [Path(file) for file in task.files]
        self.end = tokenizer.encode(task.ending).astype(dtype) if task.ending else None
        self.progress = _Progress()

    def to_end(self, told: Told) -> None:
        """Make what is left, and give it its place."""
        total = text_files.check_files(self.paths)
        before = [text_files.signature(path) for path in self.paths]
        if text_files.files_digest(self.paths) != self.task.digest:
            checks.fail(changed(self.task))
        self.partial.mkdir(exist_ok=True)
        try:
            self.progress = self._stopped_at()
            with self._opened(_TOKENS) as tokens, self._opened(_DOCUMENTS) as documents:
                self._write_all(tokens, documents, told, total)
            if [text_files.signature(path) for path in self.paths] != before:
                checks.fail(changed(self.task))
        except InvalidValueError:
            shutil.rmtree(self.partial, ignore_errors=True)
            raise
        names = _TOKENS, _DOCUMENTS
        about = {
            "format": "fastformer tokens",
            "format_version": FORMAT_VERSION,
            "dtype": self.dtype.name,
            **asdict(self.progress),
            "files": self.task.files,
            "digest": self.task.digest,
            "tokenizer_digest": tokenizer_digest(self.tokenizer.file()),
            "digests": [text_files.file_digest(self.partial / name)[:16] for name in names],
        }
        write_atomically(self.partial / _ABOUT, json.dumps(about, indent=2).encode())
        (self.partial / _PROGRESS).unlink(missing_ok=True)
        shutil.rmtree(self.place, ignore_errors=True)  # a damaged one
        os.replace(self.partial, self.place)
        sync_directory(self.place.parent)

    def _stopped_at(self) -> _Progress:
        """Return where an earlier process was stopped; the beginning where there was none."""
        try:
            found = json_object(read_file(self.partial / _PROGRESS, 1 << 16))
            progress = checks.from_settings(_Progress, found or {})
            sizes = progress.tokens * self.dtype.itemsize, progress.documents * 16
            there = [(self.partial / name).stat().st_size for name in (_TOKENS, _DOCUMENTS)]
        except (FileNotFoundError, TypeError, ValueError):
            return _Progress()
        return progress if sizes[0] <= there[0] and sizes[1] <= there[1] else _Progress()

    def _opened(self, name: str) -> BinaryIO:
        """Open a file to write behind what is known to be whole."""
        whole = self.progress.tokens * self.dtype.itemsize
        size = whole if name == _TOKENS else self.progress.documents * 16
        file = open(self.partial / name, "r+b" if size else "w+b")
        file.truncate(size)
        file.seek(size)
        return file

    def _write_all(self, tokens: BinaryIO, documents: BinaryIO, told: Told, total: int) -> None:
        progress, saved = self.progress, time.monotonic()
        sizes = [path.stat().st_size for path in self.paths]
        for number in range(progress.file, len(self.paths)):
            path, separator = self.paths[number], self.task.separator_between
            for text, behind in text_files.text_pieces(path, progress.offset, separator):
                is_last = behind == sizes[number]
                try:
                    self._write_piece(text, is_last, tokens, documents)
                except InvalidValueError as error:
                    raise InvalidValueError(
                        f"{path}, in the part that begins at byte {progress.offset:,}: {error}"
                    ) from error
                progress.offset = behind
                if is_last:
                    progress.file, progress.offset = number + 1, 0
                if time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
                    told(sum(sizes[:number]) + behind, total)
                    self._save(tokens, documents)
                    saved = time.monotonic()
        told(total, total)
        self._save(tokens, documents)

    def _save(self, *files: BinaryIO) -> None:
        """Let a process that goes on begin here."""
        for file in files:
            file.flush()
            os.fsync(file.fileno())
        write_atomically(self.partial / _PROGRESS, json.dumps(asdict(self.progress)).encode())

    def _write_piece(self, text: str, is_last: bool, tokens: BinaryIO, documents: BinaryIO) -> None:
        """Append a piece's tokens, and the documents that end in it."""
        progress, task = self.progress, self.task
        texts, are_over = [text], False
        if task.separator_between:
            texts, are_over = text.split(task.separator_between), True
        over = np.full(len(texts), are_over)
        over[-1] = is_last and task.documents != "none"
        # An empty document is none, but where it is the end of one that began in another piece.
        kept = np.array([bool(one) for one in texts])
        kept[0] |= progress.begun >= 0
        texts, over = [one for one, keep in zip(texts, kept, strict=True) if keep], over[kept]
        if not texts:
            return
        pieces = [text_files.parts(one, text_files.PART) for one in texts]
        ids, counts = self.tokenizer.encode_batch(list(chain.from_iterable(pieces)))
        owners = np.repeat(np.arange(len(texts)), list(map(len, pieces)))
        lengths = np.bincount(owners, counts, len(texts)).astype(np.int64)
        ids = ids.astype(self.dtype)
        progress.text_bytes += len("".join(texts).encode())
        if self.end is not None:
            ids = np.insert(
                ids,
                np.repeat(np.cumsum(lengths)[over], self.end.size),
                np.tile(self.end, int(over.sum())),
            )
            lengths[over] += self.end.size
            progress.text_bytes += int(over.sum()) * len(task.ending.encode())
        tokens.write(ids.tobytes())
        if task.documents != "none":
            self._write_documents(ids, lengths, over, tokens, documents)
        progress.tokens += ids.size

    def _write_documents(
        self, ids: Ids, lengths: Ids, over: npt.NDArray[np.bool_], tokens: BinaryIO, out: BinaryIO
    ) -> None:
        """Append where each document that ends here starts, and a hash of its tokens."""
        progress, size = self.progress, self.dtype.itemsize
        data = memoryview(ids.tobytes())
        ends = np.cumsum(lengths)
        starts = ends - lengths
        found = []
        first, begun = starts[over] + progress.tokens, hashlib.blake2b(digest_size=8)
        if progress.begun >= 0 and first.size:
            tokens.flush()
            tokens.seek(progress.begun * size)
            while (left := (progress.tokens * size) - tokens.tell()) > 0:
                begun.update(tokens.read(min(left, text_files.PIECE)))
            tokens.seek(0, 2)
            first[0], progress.begun = progress.begun, -1
        for start, end in zip(starts[over].tolist(), ends[over].tolist(), strict=True):
            begun.update(data[start * size : end * size])
            found.append(begun.digest())
            begun = hashlib.blake2b(digest_size=8)
        rows = np.empty((len(found), 2), np.uint64)
        rows[:, 0], rows[:, 1] = first, np.frombuffer(b"".join(found), np.uint64)
        out.write(rows.tobytes())
        progress.documents += len(found)
        if not over[-1] and progress.begun < 0:
            progress.begun = progress.tokens + int(starts[-1])


def changed(task: TextTask) -> str:
    """Say that a text is not what it was."""
    return (
        f"the text of {', '.join(task.files)} has changed since the run began; put the old text "
        "back, or start a new run"
    )
