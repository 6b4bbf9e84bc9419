"""The embedding table after each epoch of a run, for pictures of how it came about.

One small file for each epoch, `embeddings/epoch-0003.safetensors`, in the format of checkpoints;
epoch 0 is the table before training. They are records only: training never reads them.
"""

import os
import re
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fastformer.errors import CheckpointError, RunError
from fastformer.training.atomic_file import make_directory, os_errors_as, remove_temporary_files
from fastformer.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fastformer.training.json_text import LARGEST

MOST_NUMBERS: Final[int] = 1 << 20
"""Larger tables are not recorded: a file for each epoch would fill the disk."""

_DIRECTORY = "embeddings"
_TABLE = "embedding.weight"
_NAME = re.compile(r"epoch-([0-9]{4}|[1-9][0-9]{4,8})\.safetensors")


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

    def read(self, epoch: int, shape: tuple[int, int]) -> npt.NDArray[Any]:
        """Return the table after an epoch.

        Args:
            epoch: 0 before training.    shape: (V, C), of the run's model.

        Raises:
            CheckpointError: it is missing or damaged, or no table of that shape.
        """
        checkpoint = load_checkpoint(self.file(epoch))
        if checkpoint.tensors.keys() != {_TABLE}:
            raise CheckpointError(
                f"{checkpoint.path} does not hold one embedding table; remove that file"
            )
        return embedding_table(checkpoint, shape)

    def missing(self, most: int = 10) -> list[str]:
        """Return the files of the first epochs that have none, though later ones have.

        Args:
            most: how many files at most; then what is missing beyond them is left out.
        """
        found: list[str] = []
        for earlier, later in pairwise([-1, *self.epochs()]):
            stop = min(later, earlier + 1 + most - len(found))
            found += [str(self.file(epoch)) for epoch in range(earlier + 1, stop)]
        return found

    def read_all(self, shape: tuple[int, int]) -> dict[int, npt.NDArray[Any]]:
        """Return every table by its epoch, in order.

        Args:
            shape: (V, C), of the run's model.

        Raises:
            RunError: there is none, or one is damaged.
        """
        epochs = self.epochs()
        if not epochs:
            raise RunError(
                f"run {self.run} lacks the records of its embeddings, {self.directory}/"
                "epoch-*.safetensors: it was trained without them; train it anew to have them"
            )
        return {epoch: self.read(epoch, shape) for epoch in epochs}

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


def embedding_table(checkpoint: Checkpoint, shape: tuple[int, int]) -> npt.NDArray[Any]:
    """Return the embedding table of a checkpoint.

    Args:
        checkpoint: of a run, or one of its records.    shape: (V, C), of the run's model.

    Raises:
        CheckpointError: it has none of that shape, or not all of it are numbers up to 1e100, whose
            squares can be added.
    """
    table = checkpoint.tensors.get(_TABLE)
    if table is None or table.shape != shape or table.dtype.kind != "f":
        given = "none" if table is None else f"{table.shape} {table.dtype}"
        raise CheckpointError(
            f"checkpoint {checkpoint.path} does not fit the model: it has no {_TABLE} of shape "
            f"{shape}, but {given}"
        )
    if not (np.abs(table, dtype=np.float64) <= LARGEST).all():
        raise CheckpointError(
            f"checkpoint {checkpoint.path} is of no use: {_TABLE} has values that are not finite, "
            f"or beyond {LARGEST:g}; train the run anew"
        )
    return table
