"""Files survive a failure of, or a kill at, every call to the operating system."""

import errno
import os
import secrets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastformer.errors import CheckpointError, RunError
from fastformer.training import atomic_file
from fastformer.training.atomic_file import (
    append_line,
    is_temporary,
    make_directory,
    os_errors_as,
    read_file,
    remove_temporary_files,
    write_atomically,
)
from fastformer.training.checkpoint import load_checkpoint

OLD, NEW = b"old content\n", b"new content, which is longer\n" * 3
CALLS = ("open", "write", "fsync", "close", "replace", "unlink")


class Killed(BaseException):
    """Stands for the end of the process: nothing can be done after it."""


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def count_calls(monkeypatch: pytest.MonkeyPatch, action: Callable[[], None]) -> list[str]:
    """The names of the operating-system calls of an action, in order."""
    made: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            made.append(name)
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, counted(name))
        action()
    return made


def fail_at(
    monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException, action: Callable[[], None]
) -> None:
    """Run an action whose call number `number` fails; after a kill, all later calls do too.

    A write takes half of its bytes before it fails. A close takes place and then fails.
    """
    made = 0

    def failing(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal made
            made += 1
            if made > number and isinstance(error, Killed):
                if name == "close":
                    real(*args)  # the operating system closes the files of a dead process
                raise error
            if made != number:
                return real(*args, **kwargs)
            if name == "write":
                real(args[0], args[1][: len(args[1]) // 2])
            if name == "close":
                real(*args)
            raise error

        return call

    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, failing(name))
        with pytest.raises(type(error)):
            action()


@pytest.mark.smoke
def test_write_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "file"
    for content in (OLD, NEW, b""):
        write_atomically(file, content)
        assert file.read_bytes() == content
        assert names(tmp_path) == ["file"]
    write_atomically(file, b"ab", memoryview(b"cde")[1:], b"", b"f")
    assert file.read_bytes() == b"abdef"


def test_write_follows_the_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = count_calls(monkeypatch, lambda: write_atomically(tmp_path / "file", OLD))
    assert made == ["open", "write", "fsync", "close", "replace", "open", "fsync", "close"]


def test_write_goes_on_where_the_system_takes_few_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real_write(fd, data[:7]))
    write_atomically(tmp_path / "file", NEW)
    append_line(tmp_path / "file", b"a line of some length")
    assert (tmp_path / "file").read_bytes() == NEW + b"a line of some length\n"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
def test_a_failure_of_any_call_leaves_the_old_file_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    file = tmp_path / "file"
    calls = count_calls(monkeypatch, lambda: write_atomically(file, OLD))
    replaced = calls.index("replace") + 1
    for number in range(1, len(calls) + 1):
        write_atomically(file, OLD)
        error = OSError(code, os.strerror(code))
        fail_at(monkeypatch, number, error, lambda: write_atomically(file, NEW))
        assert file.read_bytes() == (OLD if number <= replaced else NEW)
        assert names(tmp_path) == ["file"], calls[number - 1]


def test_an_interrupt_at_any_call_leaves_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    write_atomically(file, OLD)
    for number in range(1, 6):
        fail_at(monkeypatch, number, KeyboardInterrupt(), lambda: write_atomically(file, NEW))
        assert file.read_bytes() == OLD
        assert names(tmp_path) == ["file"]


def test_a_kill_at_any_call_leaves_the_old_file_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    calls = count_calls(monkeypatch, lambda: write_atomically(file, OLD))
    replaced = calls.index("replace") + 1
    litter = 0
    for number in range(1, len(calls) + 1):
        write_atomically(file, OLD)
        fail_at(monkeypatch, number, Killed(), lambda: write_atomically(file, NEW))
        assert file.read_bytes() == (OLD if number <= replaced else NEW)
        litter += len(names(tmp_path)) - 1
        remove_temporary_files(tmp_path)
        assert names(tmp_path) == ["file"]
    assert litter == replaced - 1  # the kills were real: all after the first open left something


def test_the_first_write_of_a_file_is_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    for number in range(1, 6):
        fail_at(monkeypatch, number, Killed(), lambda: write_atomically(file, NEW))
        assert not file.exists()


def test_write_never_follows_a_link_at_the_temporary_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(OLD)
    monkeypatch.setattr(secrets, "token_hex", lambda size: "0" * (2 * size))
    link = tmp_path / ".file.0000000000000000.tmp"
    assert is_temporary(link)
    link.symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "file", NEW)
    assert victim.read_bytes() == OLD
    assert link.is_symlink()  # what was there before is not ours to remove


def test_only_temporary_files_are_removed(tmp_path: Path) -> None:
    others = ["file", ".hidden", "a.tmp", ".a.tmp", ".a.0123456789abcdef.tmp.txt"]
    for name in [*others, ".a.0123456789abcdef.tmp", ".a.b.ffffffffffffffff.tmp"]:
        (tmp_path / name).touch()
    remove_temporary_files(tmp_path)
    assert names(tmp_path) == sorted(others)


def test_a_failed_append_keeps_all_earlier_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "log"
    calls = count_calls(monkeypatch, lambda: append_line(file, b"first"))
    assert calls == ["open", "write", "fsync", "close", "open", "fsync", "close"]
    for number in range(1, 5):
        for error in (OSError(errno.ENOSPC, "full"), Killed()):
            file.write_bytes(b"first\n")
            fail_at(monkeypatch, number, error, lambda: append_line(file, b"second line"))
            assert file.read_bytes().startswith(b"first\n")
            append_line(file, b"third")
            lines = file.read_bytes().splitlines()
            assert lines in ([b"first", b"third"], [b"first", b"second line", b"third"])


def test_make_directory_makes_all_and_syncs_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(atomic_file, "sync_directory", synced.append)
    make_directory(tmp_path / "a" / "b")
    make_directory(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    assert synced == [tmp_path, tmp_path / "a"]
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        make_directory(tmp_path / "file")
    with pytest.raises(OSError):
        make_directory(tmp_path / "file" / "c")


def test_errors_of_the_system_say_what_and_why() -> None:
    message = "cannot write x: No space left on device; check the path, its permissions and the"
    with pytest.raises(RunError, match=message) as caught, os_errors_as(RunError, "write x"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(KeyError), os_errors_as(RunError, "write x"):
        raise KeyError


def test_the_file_modules_import_neither_numba_nor_matplotlib() -> None:
    code = (
        "import sys\n"
        "import fastformer.training.run_directory, fastformer.training.schedules\n"
        "import fastformer.training.callbacks\n"
        "print([name for name in ('numba', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("kind", ["pipe", "link to a device"])
def test_what_has_no_end_is_not_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(OSError, match="it is a pipe or a device, not a file"):
        read_file(path)
    with pytest.raises(CheckpointError, match="file: it is a pipe or a device"):
        load_checkpoint(path)


def test_a_file_is_read_also_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content\n")
    (tmp_path / "link").symlink_to("file")
    assert read_file(tmp_path / "link") == b"content\n"
    with pytest.raises(IsADirectoryError):
        read_file(tmp_path)


def test_nothing_is_appended_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content\n")
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(OSError):
        append_line(tmp_path / "link", b"line")
    assert (tmp_path / "file").read_bytes() == b"content\n"
