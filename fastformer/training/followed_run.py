"""The directory of a run as those processes see it that leave the writing to the first one."""

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from fastformer.parameters import Array
from fastformer.training.ranks import all_ranks
from fastformer.training.run_directory import RunDirectory


class FollowedRun(RunDirectory):
    """A run that another process writes: here it is read, and nothing is written."""

    @contextlib.contextmanager
    def held(self) -> Iterator["RunDirectory"]:
        """Leave the lock to the process that writes."""
        yield self

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Leave the lock to the process that writes."""
        yield

    def change_config(self, config: Mapping[str, Mapping[str, Any]]) -> None:
        """Write nothing."""

    def begin_anew(self) -> None:
        """Remove nothing."""

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Write nothing."""

    def go_on_from(self, step: int) -> None:
        """Remove nothing."""

    def save_step(
        self, step: int, tensors: Mapping[str, Array], metadata: Mapping[str, Any]
    ) -> Path:
        """Write nothing, and remove nothing."""
        return self._save("", tensors, metadata)

    def _save(self, name: str, tensors: Mapping[str, Array], metadata: Mapping[str, Any]) -> Path:
        """Write nothing."""
        return self._checkpoints / name

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write nothing."""


@contextlib.contextmanager
def run_of_all_ranks(
    directory: Path, held: AbstractContextManager[RunDirectory]
) -> Iterator[RunDirectory]:
    """Let the first process hold a run's directory, which the others then read.

    Args:
        directory: of the run.    held: what the first one enters.
    """
    ranks, entered = all_ranks(), list[RunDirectory]()
    with contextlib.ExitStack() as block:
        ranks.first(lambda: entered.append(block.enter_context(held)))
        yield entered[0] if entered else FollowedRun.open(directory)
