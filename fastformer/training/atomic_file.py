"""Writing files so that a kill, a full disk or a power cut never leaves half of one; reading them.

A file is written beside its place under a name of its own, forced to disk, and renamed. A reader
sees the old file or the new one. After a failed fsync the temporary file is dropped and never
tried again: the kernel may have marked its lost pages as clean (Rebello et al. 2020, "Can
applications recover from fsync failures?").
"""

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from fastformer.errors import FastformerError

_TEMPORARY_NAME = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")


def write_atomically(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file, replacing the one that is there only when the new one is safe on disk.

    Args:
        path: the file; its directory must exist.
        parts: the content, written one after the other.

    Raises:
        OSError: it could not be written. The old file is as it was, or, if only the last fsync
            of the directory failed, the new one is complete. No temporary file is left.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    # O_EXCL also refuses to follow a symbolic link that waits under that name.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            for part in parts:
                _write_all(descriptor, part)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_directory(path.parent)


def read_file(path: Path, most: int | None = None) -> bytes:
    """Return the content of a file, and of nothing else: a pipe or a device may have no end.

    Args:
        path: the file.    most: bytes that it may have; None for any number.

    Raises:
        OSError: it could not be read, is not a regular file, or is too large.
    """
    with open(path, "rb", opener=_open_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is a pipe or a device, not a file")
        if most is not None and status.st_size > most:
            raise OSError(
                errno.EFBIG, f"it has {status.st_size:,} bytes, and at most {most:,} are read"
            )
        return file.read()


def _open_without_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe that nobody writes to would wait for ever otherwise."""
    return os.open(path, flags | os.O_NONBLOCK)


def append_line(path: Path, line: bytes) -> None:
    """Append one line to a file and force it to disk; make the file if there is none.

    A last line without its line end, left by a kill or a full disk, is cut off first, so that
    it cannot run into the new one.

    Args:
        path: the file; its directory must exist.
        line: the line, without its line end.

    Raises:
        OSError: it could not be written. All earlier lines are as they were.
    """
    # O_NOFOLLOW: a link in a run from elsewhere must not lead to a file outside of it.
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            os.ftruncate(descriptor, os.pread(descriptor, size, 0).rfind(b"\n") + 1)
        _write_all(descriptor, line + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if size == 0:
        sync_directory(path.parent)


def make_directory(path: Path) -> None:
    """Make a directory and the missing ones above it, each of them safe on disk.

    Raises:
        OSError: it could not be made, or something that is no directory is in its place.
    """
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(exist_ok=True)
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Force a directory to disk: the names in it, so that a rename or removal lasts.

    Raises:
        OSError: the directory cannot be opened or forced to disk.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_temporary(path: Path) -> bool:
    """Tell whether a file has the name of a temporary file of `write_atomically`."""
    return _TEMPORARY_NAME.fullmatch(path.name) is not None


def remove_temporary_files(directory: Path) -> None:
    """Remove what killed processes left in a directory. Call it only where nobody else writes.

    Raises:
        OSError: the directory cannot be listed, or a file in it cannot be removed.
    """
    for path in directory.iterdir():
        if is_temporary(path):
            path.unlink()


@contextlib.contextmanager
def os_errors_as(error_class: type[FastformerError], action: str) -> Iterator[None]:
    """Turn an operating-system error within a `with` block into an error for the user.

    So is a path that cannot be given to the system: one with a NUL, or with half of a character.

    Args:
        error_class: what is raised instead of the `OSError`.
        action: what could not be done, for instance "write checkpoint runs/a/best.safetensors".
    """
    try:
        yield
    except OSError as error:
        raise error_class(
            f"cannot {action}: {error.strerror or error}; check the path, its permissions and the "
            "free space"
        ) from error
    except ValueError as error:
        if isinstance(error, FastformerError):
            raise
        raise error_class(f"cannot {action}: {error}; check the path") from error


def _write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all bytes; the operating system may take fewer at a time."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
