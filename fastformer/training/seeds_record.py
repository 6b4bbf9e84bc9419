"""What `train --seeds` was asked for, kept beside its runs, so that it can go on: `seeds.json`.

Where the runs have a tokenizer, it is beside that file as well.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from fastformer import checks
from fastformer.errors import RunError
from fastformer.training.atomic_file import (
    make_directory,
    os_errors_as,
    read_file,
    write_atomically,
)
from fastformer.training.json_text import json_object, json_text
from fastformer.training.runs import AnySettings, settings_from

_NAME: Final[str] = "seeds.json"
_FORMAT: Final[str] = "fastformer seeds"
_FORMAT_VERSION: Final[int] = 1
_MOST_BYTES: Final[int] = 1 << 20

MOST_SEEDS: Final[int] = 10_000


@dataclass(frozen=True, kw_only=True)
class SeedsRecord:
    """What was asked for.

    Attributes:
        settings: of the first run; the others have the seeds after its.
        count: how many seeds, >= 1.
        overwrite: whether older runs in the directory are to be replaced.
    """

    settings: AnySettings
    count: int
    overwrite: bool

    def runs(self, directory: Path) -> dict[Path, AnySettings]:
        """Return the settings of each run by its directory, in order.

        Raises:
            RunError: one of the directories is a link, which could lead elsewhere.
        """
        first = self.settings.seed
        runs = {
            directory / f"seed-{seed}": replace(self.settings, seed=seed)
            for seed in range(first, first + self.count)
        }
        for place in runs:
            if place.is_symlink():
                raise RunError(
                    f"{place} is a symbolic link, which could lead elsewhere: nothing is written "
                    "or removed there. Put a directory in its place"
                )
        return runs

    def write(self, directory: Path) -> None:
        """Write `seeds.json`, and what it needs; the directory is made. Older files are replaced.

        Raises:
            RunError: the operating system refused.
        """
        value = {
            "format": _FORMAT,
            "format_version": _FORMAT_VERSION,
            "seeds": self.count,
            "overwrite": self.overwrite,
            "settings": self.settings.tables(),
        }
        with os_errors_as(RunError, f"write {directory / _NAME}"):
            make_directory(directory)
            for name, content in self.settings.files().items():
                self._write_file(directory / name, content)
            text = json_text("a record of seeds", value, indent=2) + "\n"
            write_atomically(directory / _NAME, text.encode())

    def _write_file(self, path: Path, content: bytes) -> None:
        if not self.overwrite and path.is_file() and read_file(path) != content:
            raise RunError(
                f"{path} is there already, with another content; choose another directory with "
                "--out, or replace it with --overwrite"
            )
        write_atomically(path, content)

    @classmethod
    def read(cls, directory: Path) -> "SeedsRecord":
        """Read what `write` wrote.

        Raises:
            RunError: there is none, or it is damaged.
        """
        file = directory / _NAME
        with os_errors_as(RunError, f"read {file}"):
            value = json_object(read_file(file, _MOST_BYTES)) or {}
        try:
            checks.choice("format", value["format"], (_FORMAT,))
            checks.integer("format_version", value["format_version"], 1, _FORMAT_VERSION)
            return cls(
                settings=settings_from(value["settings"], directory),
                count=checks.integer("seeds", value["seeds"], 1, MOST_SEEDS),
                overwrite=checks.boolean("overwrite", value["overwrite"]),
            )
        except RunError:  # of another file, which its message names
            raise
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            problem = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise RunError(
                f"{file} is damaged: {problem}; go on with single runs: fastformer train --resume "
                f"{directory}/seed-..."
            ) from error


def holds_seeds(directory: Path) -> bool:
    """Tell whether a directory is one of several seeds' runs."""
    return (directory / _NAME).is_file()
