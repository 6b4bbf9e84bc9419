"""Where a new run may go."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from fastformer.errors import RunError
from fastformer.training.atomic_file import is_temporary, make_directory, os_errors_as
from fastformer.training.run_config import read_config
from fastformer.training.run_lock import LOCK_FILE


@contextlib.contextmanager
def next_free_run(parent: str | Path, stem: str) -> Iterator[Path]:
    """Make the first of parent/stem-1, parent/stem-2, ... that does not exist, empty, for a run.

    So nobody else takes that name. Where it is still empty after the `with` block, it is removed,
    and so is `parent` where it was made.

    Args:
        parent: where runs are kept; made if it is not there.
        stem: what the run is called, for instance "digits".

    Raises:
        RunError: the operating system refused.
    """
    parent, number = Path(parent), 1
    is_new = not os.path.lexists(parent)
    with os_errors_as(RunError, f"make a run in {parent}"):
        while True:
            make_directory(parent)
            path = parent / f"{stem}-{number}"
            try:
                path.mkdir()
                break
            except FileExistsError:
                number += 1
            except FileNotFoundError:  # another one that had made the parent has just given up
                continue
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):  # they are not empty
            path.rmdir()
            if is_new:
                parent.rmdir()


def _is_occupied(path: Path, files: Mapping[str, bytes]) -> bool:
    """Tell whether a directory has anything but what a process killed in `create` left.

    A file that is as it will be again is no loss.
    """
    if not path.is_dir():
        raise RunError(f"{path} exists and is not a directory; choose another with --out")
    return any(
        not (
            is_temporary(entry)
            or entry.name == LOCK_FILE
            or (entry.is_file() and files.get(entry.name) == entry.read_bytes())
        )
        for entry in path.iterdir()
    )


def is_replaceable(
    path: Path, overwrite: bool, files: Mapping[str, bytes] = MappingProxyType({})
) -> bool:
    """Tell whether a path has a run, to be replaced; raise if it must not take a new one.

    Args:
        files: names and contents of what the new one holds besides `config.toml`.
    """
    if not os.path.lexists(path) or not _is_occupied(path, files):
        return False
    try:
        read_config(path)
    except RunError as error:
        raise RunError(
            f"{path} is not empty, and not a run that --overwrite could replace ({error}); "
            "choose another directory with --out"
        ) from error
    if not overwrite:
        raise RunError(
            f"run {path} is already there; choose another directory with --out, or replace that "
            "run with --overwrite"
        )
    return True
