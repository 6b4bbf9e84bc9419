"""Compiled kernels on disk, of which a damaged one is compiled again and never loaded.

Numba's own files are loaded as they are found: a torn one ends the program, zeroed machine code is
run (numba#10434), and two processes that compile two types of one kernel at a time can give one of
them the code of the other. Here a file holds one compiled kernel, its checksum, and what it is of.
"""

import contextlib
import glob
import hashlib
import os
import pickle
import stat
import sys
import tempfile
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache
from numba.core.serialize import dumps

DIGEST_SIZE = hashlib.sha256().digest_size


def is_ours_alone(status: os.stat_result) -> bool:
    """Tell whether only we can write to a file or directory: it is ours, and no one else's."""
    if not hasattr(os, "getuid"):
        return True
    others_write = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return status.st_uid == os.getuid() and not others_write


def read_verified(path: Path) -> bytes | None:
    """Return what `write_verified` wrote; None where it is missing, damaged or not ours alone."""
    try:
        with path.open("rb") as file:
            content = file.read() if is_ours_alone(os.fstat(file.fileno())) else b""
    except OSError:
        return None
    digest, data = content[:DIGEST_SIZE], content[DIGEST_SIZE:]
    return data if data and hashlib.sha256(data).digest() == digest else None


def write_verified(path: Path, data: bytes) -> None:
    """Keep data with its checksum; a disk that refuses costs the next start its time, no more."""
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(hashlib.sha256(data).digest() + data)
        os.replace(temporary, path)
    except OSError as error:
        sys.stderr.write(f"fastformer: compiled kernels are not kept: {error}\n")
        with contextlib.suppress(OSError):
            os.unlink(temporary or "")


class _Files:
    """The compiled versions of one kernel, a file for each: what Numba's cache reads and writes."""

    def __init__(self, directory: str, stem: str, stamp: Any) -> None:
        self._directory, self._stem = Path(directory), stem
        self._version = (numba.__version__, stamp)

    def _path(self, key: Any) -> Path:
        name = hashlib.sha256(repr((self._version, key)).encode()).hexdigest()[:16]
        return self._directory / f"{self._stem}.{name}.nbc"

    def load(self, key: Any) -> Any:
        """Return the compiled kernel of a key, or None where it must be compiled."""
        pickled = read_verified(self._path(key))
        if pickled is None:
            return None
        version, saved_key, data = pickle.loads(pickled)
        return data if (version, saved_key) == (self._version, key) else None

    def save(self, key: Any, data: Any) -> None:
        """Keep a compiled kernel."""
        write_verified(self._path(key), dumps((self._version, key, data)))

    def flush(self) -> None:
        """Forget all compiled versions."""
        for path in self._directory.glob(f"{glob.escape(self._stem)}.*.nbc"):
            path.unlink(missing_ok=True)


class KernelCache(FunctionCache):
    """Numba's cache of a function, with files of our own."""

    def __init__(self, function: Any) -> None:
        """Find the directory, which is `numba.config.CACHE_DIR` at this time."""
        super().__init__(function)
        locator = self._impl.locator
        stem, stamp = self._impl.filename_base, locator.get_source_stamp()
        self._cache_file = _Files(locator.get_cache_path(), stem, stamp)
