"""One run, one trainer: a lock that the system takes back from a process however it ends."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fastformer.errors import RunError
from fastformer.training.atomic_file import os_errors_as

LOCK_FILE: Final[str] = "training.lock"
"""In a directory that is trained in; one that a kill left behind locks nothing."""


class BeingTrainedError(RunError):
    """A directory in which another process trains."""


class TrainingLock:
    """The right to train in a directory, which one trainer has at a time, in any process.

    Attributes:
        directory: which one.
    """

    def __init__(self, directory: Path) -> None:
        """Name the directory; nothing is locked."""
        self.directory = directory
        self._descriptor: int | None = None  # of the directory, while it is held

    @property
    def is_held(self) -> bool:
        """Whether this object has the lock."""
        return self._descriptor is not None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Have the lock within a `with` block; in a block within that, it is there already.

        Raises:
            BeingTrainedError: another trainer has it.
            RunError: the operating system refused.
        """
        if self.is_held:
            yield
            return
        from filelock import FileLock, Timeout  # few commands lock anything

        # Not by threads: two trainers in two threads are two trainers.
        lock = FileLock(self.directory / LOCK_FILE, thread_local=False)
        with os_errors_as(RunError, f"lock {self.directory}"):
            # Open, so that no other directory gets its number in the file system.
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            self._descriptor = os.open(self.directory, flags)
            try:
                lock.acquire(blocking=False)
                self.check()
            except BaseException as error:
                lock.release()
                self._close()
                if isinstance(error, Timeout):
                    raise BeingTrainedError(
                        f"{self.directory} is being trained by another process; wait until that "
                        "one ends or stop it, or choose another directory with --out"
                    ) from None
                raise
        try:
            yield
        finally:
            # While it is locked, so that it is nobody else's; and in the directory that is held,
            # wherever that is by now.
            with contextlib.suppress(OSError):
                os.unlink(LOCK_FILE, dir_fd=self._descriptor)
            lock.release()
            self._close()

    def check(self) -> None:
        """Raise unless the path still leads to the directory that is held.

        Raises:
            RunError: it was removed, renamed or replaced.
        """
        assert self._descriptor is not None
        try:
            found = os.path.samestat(os.stat(self.directory), os.fstat(self._descriptor))
        except OSError:
            found = False
        if not found:
            raise RunError(
                f"{self.directory} is gone: it was removed, renamed or replaced while it was "
                "trained, and nothing was saved since. Where it was renamed, go on with "
                "fastformer train --resume and its new name"
            )

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
