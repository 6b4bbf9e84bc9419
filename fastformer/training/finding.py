"""Which runs are in a directory: those of several seeds, or of a project."""

from pathlib import Path
from typing import Final

from fastformer.errors import RunError
from fastformer.training.atomic_file import os_errors_as

CONFIG: Final[str] = "config.toml"
"""The file whose presence makes a directory a run."""

_NAMED: Final[int] = 3


def runs_within(directory: Path) -> list[Path]:
    """Return the runs in a directory, seed-9 before seed-10.

    Raises:
        RunError: the operating system refused.
    """
    with os_errors_as(RunError, f"list {directory}"):
        found = [entry for entry in directory.iterdir() if (entry / CONFIG).is_file()]
    return sorted(found, key=lambda run: (len(run.name), run.name))


def named_within(directory: Path) -> str:
    """Say which runs are in a directory that is none itself; nothing where there are none."""
    names = [str(run) for run in runs_within(directory)]
    if not names:
        return ""
    more = f" and {len(names) - _NAMED} more" * (len(names) > _NAMED)
    return f", but runs are in it; give one of them: {', '.join(names[:_NAMED])}{more}"
