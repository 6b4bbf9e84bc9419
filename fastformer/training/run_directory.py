"""A run directory: everything that a training run leaves behind, in one place.

    config.toml                             what was asked for; its presence makes it a run
    tokenizer.json                          what turns text into tokens, where the run has that
    metrics.jsonl                           one JSON object per line, appended as training goes on
    checkpoints/step-00000500.safetensors   the newest two, to go on from
    checkpoints/best.safetensors            the best by validation
    result.json                             what came out, once training is finished
    curves.png, report.html                 drawn by fastformer plot and fastformer report
    training.lock                           while it is trained

One trainer at a time writes to it; any number may read. It writes into the run itself alone: its
parts are no links to elsewhere.

It is one long file, for the order of what is written is one, and holds after a kill anywhere.
"""

import contextlib
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy.typing as npt

from fastformer import checks
from fastformer.data.tokenizers import FILE as TOKENIZER
from fastformer.errors import CheckpointError, FastformerError, RunError
from fastformer.training.atomic_file import (
    is_temporary,
    make_directory,
    os_errors_as,
    remove_temporary_files,
    sync_directory,
    write_atomically,
)
from fastformer.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fastformer.training.finding import CONFIG
from fastformer.training.json_text import json_object, json_text
from fastformer.training.metrics import MetricsLog
from fastformer.training.run_config import config_bytes, read_config, read_if_there
from fastformer.training.run_lock import TrainingLock
from fastformer.training.run_place import is_replaceable

CHECKPOINTS_KEPT = 2

CURVES, REPORT = "curves.png", "report.html"
_METRICS = "metrics.jsonl"
_RESULT = "result.json"
_CHECKPOINTS, _BEST = "checkpoints", "best.safetensors"
_PARTS = (_CHECKPOINTS, "embeddings")  # directories of a run
_STEP_NAME = re.compile(r"step-([0-9]{8,18})\.safetensors")


class RunDirectory:
    """A run on disk. Make one with `create`, read or go on with one by `open`.

    Attributes:
        path: the directory.
        config: the tables of `config.toml`, as TOML has them (tuples are lists).
    """

    def __init__(self, path: Path, config: dict[str, dict[str, Any]]) -> None:
        """Use `create` or `open` instead: they see to what is on disk."""
        self.path = path
        self.config = config
        self._metrics = MetricsLog(path / _METRICS)
        self._checkpoints = path / _CHECKPOINTS
        self._lock = TrainingLock(path)

    @classmethod
    def create(
        cls,
        path: str | Path,
        config: Mapping[str, Mapping[str, Any]],
        overwrite: bool = False,
        files: Mapping[str, bytes] = MappingProxyType({}),
    ) -> "RunDirectory":
        """Make a new run.

        Args:
            path: its directory; made if it is not there, with those above it.
            config: the tables of `config.toml`: name to settings. None is not a TOML value.
            overwrite: replace a run that is there. Only files of fastformer are removed; others
                in that directory stay.
            files: names and contents of what else it holds from its beginning on.

        Raises:
            RunError: the path holds a run and `overwrite` is False, or it holds something else:
                then nothing is changed. Or the operating system refused.
            TypeError: a config that TOML cannot hold. Nothing is changed.
        """
        with cls.new(path, config, overwrite, files) as run:
            return run

    @classmethod
    @contextlib.contextmanager
    def new(
        cls,
        path: str | Path,
        config: Mapping[str, Mapping[str, Any]],
        overwrite: bool = False,
        files: Mapping[str, bytes] = MappingProxyType({}),
    ) -> Iterator["RunDirectory"]:
        """Make a new run, and be the one that trains it within a `with` block.

        Args, raises: as of `create` and `held`.
        """
        path = Path(path)
        content = config_bytes(config)
        with contextlib.ExitStack() as block:
            with os_errors_as(RunError, f"create run {path}"):
                is_replaceable(path, overwrite, files)
                make_directory(path.parent)
                if not os.path.lexists(path):
                    with contextlib.suppress(FileExistsError):
                        path.mkdir()
                        sync_directory(path.parent)
                run = cls(path, {})
                block.enter_context(run._lock.held())
                if is_replaceable(path, overwrite, files):
                    run._refuse_links()
                    run._remove_files()
                    (path / TOKENIZER).unlink(missing_ok=True)
                for name, data in files.items():
                    write_atomically(path / name, data)
                # Last, so that an overwrite that is interrupted leaves a run to overwrite again.
                write_atomically(path / CONFIG, content)
                run.config = read_config(path)
            yield run

    @classmethod
    def open(cls, path: str | Path) -> "RunDirectory":
        """Open a run that is there. Changes nothing on disk.

        Raises:
            RunError: there is none, or its config is damaged or of a newer version of fastformer.
        """
        path = Path(path)
        with os_errors_as(RunError, f"open run {path}"):
            if not path.is_dir():
                problem = "is not a directory" if path.exists() else "does not exist"
                raise RunError(f"run {path} {problem}; give the directory of a run")
        return cls(path, read_config(path))

    @contextlib.contextmanager
    def held(self) -> Iterator["RunDirectory"]:
        """Be the one that trains this run within a `with` block; its config is read anew.

        Raises:
            RunError: another trainer is at it, or the operating system refused.
        """
        if self._lock.is_held:
            yield self
            return
        with self._lock.held():
            self.config = read_config(self.path)
            yield self

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """See to it, in a `with` block that writes, that it is to this run, where nobody else does.

        Raises:
            RunError: another trainer is at it; it was removed, renamed or replaced; or a part of it
                is a link, which could lead out of it.
        """
        with self._lock.held():
            self._check_place()
            try:
                yield
            except (OSError, FastformerError):
                self._check_place()  # what is wrong then says more
                raise
            self._check_place()

    def change_config(self, config: Mapping[str, Mapping[str, Any]]) -> None:
        """Replace the settings of a run that goes on with others; it has no result then.

        Raises:
            RunError, TypeError: as of `create`.
        """
        content = config_bytes(config)
        with self.writing(), os_errors_as(RunError, f"write {self.path / CONFIG}"):
            (self.path / _RESULT).unlink(missing_ok=True)
            write_atomically(self.path / CONFIG, content)
            self.config = read_config(self.path)

    def begin_anew(self) -> None:
        """Remove all that training left, and a picture or a report of it.

        Raises:
            RunError: the operating system refused.
        """
        with self.writing(), os_errors_as(RunError, f"begin run {self.path} anew"):
            self._remove_files()

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Append a record to `metrics.jsonl` and force it to disk. See `MetricsLog.append`."""
        with self.writing():
            self._metrics.append(record)

    def read_metrics(self, skip_damaged: bool = False) -> list[dict[str, Any]]:
        """Return all records of `metrics.jsonl`, oldest first. See `MetricsLog.read`."""
        return self._metrics.read(skip_damaged)

    def go_on_from(self, step: int) -> None:
        """Drop the records of steps after the one that training goes on from.

        Also removes what a killed process left in the run: temporary files, and checkpoints that a
        newer one has made too many.

        Args:
            step: the last step whose records stay, >= 0.

        Raises:
            RunError: the metrics are damaged, or could not be written; then all are still there.
        """
        with self.writing(), os_errors_as(RunError, f"remove leftovers of run {self.path}"):
            self._metrics.drop_after(step)
            saved = self._step_checkpoints()
            remove_temporary_files(self.path)
            if self._checkpoints.is_dir():
                remove_temporary_files(self._checkpoints)
            for other in sorted(saved.keys() - _kept(saved, step)):
                if other <= step:
                    saved[other].unlink()

    def save_step(
        self, step: int, tensors: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, Any]
    ) -> Path:
        """Save a checkpoint to go on from, then remove all others but the one before it.

        Checkpoints of later steps are removed too: where there are any, training has gone back to
        an earlier one, and what they hold was given up.

        Args:
            step: optimizer steps done so far, >= 0.
            tensors, metadata: see `save_checkpoint`.

        Returns:
            The file.

        Raises:
            TypeError, ValueError: tensors or metadata that cannot be saved.
            RunError: the file could not be written, and earlier ones are still there; or an old
                one could not be removed, and the new one is there.
        """
        checks.integer("step", step, 0)
        with self.writing():
            path = self._save(f"step-{step:08d}.safetensors", tensors, metadata)
            saved = self._step_checkpoints()
            with os_errors_as(RunError, f"remove old checkpoints of run {self.path}"):
                for other in saved.keys() - _kept(saved, step):
                    saved[other].unlink()
        return path

    def save_best(
        self, tensors: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, Any]
    ) -> Path:
        """Save the best checkpoint so far, in place of the earlier one.

        Args, returns and errors are those of `save_step`. Nothing is removed.
        """
        with self.writing():
            return self._save(_BEST, tensors, metadata)

    @property
    def is_before_first_checkpoint(self) -> bool:
        """Whether training has not come to its first checkpoint: nothing is lost by a new start."""
        # The first epoch's record is written just before its checkpoint.
        return not (
            self._step_checkpoints()
            or os.path.lexists(self.path / _RESULT)
            or len(self._metrics.read(skip_damaged=True)) > 1
        )

    def latest(self) -> Checkpoint:
        """Return the newest checkpoint that verifies. A damaged one is skipped with a warning.

        Raises:
            CheckpointError: there is none.
        """
        saved = self._step_checkpoints()
        for step in sorted(saved, reverse=True):
            try:
                return load_checkpoint(saved[step])
            except CheckpointError as error:
                warnings.warn(f"a checkpoint is skipped: {error}", stacklevel=2)
        problem = "none of its checkpoints can be read" if saved else "it has no checkpoint yet"
        raise CheckpointError(
            f"run {self.path} cannot go on: {problem}; train it anew with --overwrite"
        )

    def best(self) -> Checkpoint:
        """Return the best checkpoint.

        Raises:
            CheckpointError: there is none yet, or it is damaged.
        """
        path = self._checkpoints / _BEST
        if not os.path.lexists(path):
            raise CheckpointError(
                f"run {self.path} has no best checkpoint yet ({path} does not exist); "
                f"go on with fastformer train --resume {self.path}"
            )
        return load_checkpoint(path)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write `result.json`.

        Args:
            result: JSON values with finite numbers.

        Raises:
            TypeError, ValueError: a value that JSON does not have.
            RunError: the file could not be written; an earlier one is still there.
        """
        text = json_text("a result", dict(result), indent=2) + "\n"
        with self.writing(), os_errors_as(RunError, f"write the result of run {self.path}"):
            write_atomically(self.path / _RESULT, text.encode())

    def read_result(self) -> dict[str, Any]:
        """Return what `write_result` wrote.

        Raises:
            RunError: there is no result yet, or it is damaged.
        """
        file = self.path / _RESULT
        data = read_if_there(file)
        if data is None:
            raise RunError(
                f"run {self.path} has no result yet: training is not finished; "
                f"go on with fastformer train --resume {self.path}"
            )
        result = json_object(data)
        if result is None:
            raise RunError(f"{file} is damaged: it is not a JSON object; evaluate the run anew")
        return result

    def _save(
        self, name: str, tensors: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, Any]
    ) -> Path:
        if not self._checkpoints.is_dir():
            with os_errors_as(RunError, f"make {self._checkpoints}"):
                self._checkpoints.mkdir()
                sync_directory(self.path)
        save_checkpoint(self._checkpoints / name, tensors, metadata)
        return self._checkpoints / name

    def _check_place(self) -> None:
        """Raise unless this is still the run that is held, all in one place."""
        self._lock.check()
        if not os.path.lexists(self.path / CONFIG):
            raise RunError(
                f"{self.path / CONFIG} was removed: without it this is no run to go on with; put "
                "it back, or train anew"
            )
        self._refuse_links()

    def _refuse_links(self) -> None:
        for name in _PARTS:
            if (self.path / name).is_symlink():
                raise RunError(
                    f"{self.path / name} is a symbolic link, which could lead out of the run: "
                    "nothing is written or removed there. Put a directory in its place"
                )

    def _remove_files(self) -> None:
        """Remove what training left, not what the run began with. Files of others stay."""
        if self._checkpoints.is_dir():
            for entry in self._checkpoints.iterdir():
                if entry.name == _BEST or _STEP_NAME.fullmatch(entry.name) or is_temporary(entry):
                    entry.unlink()
            with contextlib.suppress(OSError):  # it stays if files of others are in it
                self._checkpoints.rmdir()
        for name in (_RESULT, _METRICS, CURVES, REPORT):
            (self.path / name).unlink(missing_ok=True)
        remove_temporary_files(self.path)
        sync_directory(self.path)

    def _step_checkpoints(self) -> dict[int, Path]:
        """The files to go on from, by step."""
        with os_errors_as(RunError, f"list {self._checkpoints}"):
            names = os.listdir(self._checkpoints) if self._checkpoints.is_dir() else []
        matches = [match for match in map(_STEP_NAME.fullmatch, names) if match]
        return {int(match[1]): self._checkpoints / match[0] for match in matches}


def _kept(saved: Iterable[int], step: int) -> list[int]:
    """Return the steps whose checkpoints stay when training is at a step: the newest up to it."""
    return sorted(other for other in saved if other <= step)[-CHECKPOINTS_KEPT:]
