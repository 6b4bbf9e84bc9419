"""The embedding table after each epoch of a run, for pictures of how it came about.

One small file for each epoch, `embeddings/epoch-0003.safetensors`, in the format of checkpoints;
epoch 0 is the table before training. They are records only: training never reads them.
"""

import os
import re
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt

from fastformer.errors import CheckpointError, RunError
from fastformer.training.atomic_file import make_directory, os_errors_as, remove_temporary_files
from fastformer.training.checkpoint import load_checkpoint, save_checkpoint

MOST_NUMBERS: Final[int] = 1 << 20
"""Larger tables are not recorded: a file for each epoch would fill the disk."""

_DIRECTORY = "embeddings"
_TABLE = "embedding.weight"
_NAME = re.compile(r"epoch-([0-9]{4,})\.safetensors")


class EmbeddingRecords:
    """The embedding tables that a run keeps.

    Attributes:
        run: the run's directory.    directory: where the tables are.
    """

    def __init__(self, run: Path) -> None:
        """Name the directory; nothing is read or written."""
        self.run = run
        self.directory = run / _DIRECTORY

    def save(self, epoch: int, table: npt.NDArray[Any]) -> None:
        """Keep the table after an epoch, in place of an earlier one; a large one is left out.

        Args:
            epoch: 0 before training.    table: (V, C), float32 or float64.

        Raises:
            RunError: the file could not be written.
        """
        if table.size > MOST_NUMBERS:
            return
        with os_errors_as(RunError, f"make {self.directory}"):
            make_directory(self.directory)
        save_checkpoint(self.file(epoch), {_TABLE: table}, {"epoch": epoch})

    def file(self, epoch: int) -> Path:
        """Return where the table after an epoch is, or would be."""
        return self.directory / f"epoch-{epoch:04d}.safetensors"

    def epochs(self) -> list[int]:
        """Return the epochs whose tables are there, in order."""
        with os_errors_as(RunError, f"list {self.directory}"):
            names = os.listdir(self.directory) if self.directory.is_dir() else []
        return sorted(int(match[1]) for match in map(_NAME.fullmatch, names) if match)

    def read(self, epoch: int) -> npt.NDArray[Any]:
        """Return the table (V, C) after an epoch.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        checkpoint = load_checkpoint(self.file(epoch))
        if checkpoint.tensors.keys() != {_TABLE}:
            raise CheckpointError(
                f"{checkpoint.path} does not hold one embedding table; remove that file"
            )
        return checkpoint.tensors[_TABLE]

    def read_all(self) -> dict[int, npt.NDArray[Any]]:
        """Return every table by its epoch, in order.

        Raises:
            RunError: there is none, or one is damaged.
        """
        epochs = self.epochs()
        if not epochs:
            raise RunError(
                f"run {self.run} lacks the records of its embeddings, {self.directory}/"
                "epoch-*.safetensors: it was trained without them; train it anew to have them"
            )
        return {epoch: self.read(epoch) for epoch in epochs}

    def drop_after(self, epoch: int) -> None:
        """Remove the tables of later epochs, and what a killed process left.

        Args:
            epoch: the one that training goes on from; -1 to remove all.

        Raises:
            RunError: one could not be removed.
        """
        with os_errors_as(RunError, f"remove embeddings of run {self.run}"):
            for later in self.epochs():
                if later > epoch:
                    self.file(later).unlink()
            if self.directory.is_dir():
                remove_temporary_files(self.directory)
