"""A run directory: everything that a training run leaves behind, in one place.

    config.toml                             what was asked for; its presence makes it a run
    metrics.jsonl                           one JSON object per line, appended as training goes on
    checkpoints/step-00000500.safetensors   the newest two, to go on from
    checkpoints/best.safetensors            the best by validation
    result.json                             what came out, once training is finished
    curves.png, report.html                 drawn by fastformer plot and fastformer report

One process at a time writes to it; any number may read.
"""

import contextlib
import os
import re
import tomllib
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import tomli_w

from fastformer import checks
from fastformer.errors import CheckpointError, InvalidTypeError, RunError
from fastformer.training.atomic_file import (
    is_temporary,
    make_directory,
    os_errors_as,
    read_file,
    remove_temporary_files,
    sync_directory,
    write_atomically,
)
from fastformer.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fastformer.training.finding import CONFIG, named_within
from fastformer.training.json_text import json_object, json_text
from fastformer.training.metrics import MetricsLog

FORMAT = "fastformer"
FORMAT_VERSION = 1
CHECKPOINTS_KEPT = 2

CURVES, REPORT = "curves.png", "report.html"
_METRICS = "metrics.jsonl"
_RESULT = "result.json"
_CHECKPOINTS, _BEST = "checkpoints", "best.safetensors"
_STEP_NAME = re.compile(r"step-([0-9]{8,18})\.safetensors")
_MOST_BYTES = {CONFIG: 1 << 20, _RESULT: 1 << 20}


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

    @classmethod
    def create(
        cls, path: str | Path, config: Mapping[str, Mapping[str, Any]], overwrite: bool = False
    ) -> "RunDirectory":
        """Make a new run.

        Args:
            path: its directory; made if it is not there, with those above it.
            config: the tables of `config.toml`: name to settings. None is not a TOML value.
            overwrite: replace a run that is there. Only files of fastformer are removed; others
                in that directory stay.

        Raises:
            RunError: the path holds a run and `overwrite` is False, or it holds something else:
                then nothing is changed. Or the operating system refused.
            TypeError: a config that TOML cannot hold. Nothing is changed.
        """
        path = Path(path)
        content = _config_bytes(config)
        with os_errors_as(RunError, f"create run {path}"):
            if not os.path.lexists(path):
                make_directory(path.parent)
                path.mkdir()
                sync_directory(path.parent)
            elif is_replaceable(path, overwrite):
                _remove_run_files(path)
            # Last, so that an overwrite that is interrupted leaves a run to overwrite again.
            write_atomically(path / CONFIG, content)
        return cls.open(path)

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
        return cls(path, _read_config(path))

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Append a record to `metrics.jsonl` and force it to disk. See `MetricsLog.append`."""
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
        self._metrics.drop_after(step)
        saved = self._step_checkpoints()
        with os_errors_as(RunError, f"remove leftovers of run {self.path}"):
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
        return self._save(_BEST, tensors, metadata)

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
        with os_errors_as(RunError, f"write the result of run {self.path}"):
            write_atomically(self.path / _RESULT, text.encode())

    def read_result(self) -> dict[str, Any]:
        """Return what `write_result` wrote.

        Raises:
            RunError: there is no result yet, or it is damaged.
        """
        file = self.path / _RESULT
        data = _read_if_there(file)
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
        with os_errors_as(RunError, f"make {self._checkpoints}"):
            make_directory(self._checkpoints)
        save_checkpoint(self._checkpoints / name, tensors, metadata)
        return self._checkpoints / name

    def _step_checkpoints(self) -> dict[int, Path]:
        """The files to go on from, by step."""
        with os_errors_as(RunError, f"list {self._checkpoints}"):
            names = os.listdir(self._checkpoints) if self._checkpoints.is_dir() else []
        matches = [match for match in map(_STEP_NAME.fullmatch, names) if match]
        return {int(match[1]): self._checkpoints / match[0] for match in matches}


def _kept(saved: Iterable[int], step: int) -> list[int]:
    """Return the steps whose checkpoints stay when training is at a step: the newest up to it."""
    return sorted(other for other in saved if other <= step)[-CHECKPOINTS_KEPT:]


def next_free_run(parent: str | Path, stem: str) -> Path:
    """Return the first of parent/stem-1, parent/stem-2, ... that does not exist.

    Args:
        parent: where runs are kept; it need not exist.
        stem: what the run is called, for instance "digits".
    """
    number = 1
    while os.path.lexists(path := Path(parent) / f"{stem}-{number}"):
        number += 1
    return path


def _read_if_there(file: Path) -> bytes | None:
    """The content of a file, or None if there is no such file."""
    with os_errors_as(RunError, f"read {file}"):
        try:
            return read_file(file, _MOST_BYTES[file.name])
        except FileNotFoundError:
            return None


def _config_bytes(config: Mapping[str, Mapping[str, Any]]) -> bytes:
    """The content of `config.toml`."""
    for name, table in config.items():
        if name in ("format", "format_version") or not isinstance(table, Mapping):
            raise InvalidTypeError(f"config must map names to tables, got {name!r}: {table!r}")
    tables = {"format_version": FORMAT_VERSION, "format": FORMAT, **config}
    try:
        return tomli_w.dumps(tables).encode()
    except (TypeError, UnicodeEncodeError) as error:
        raise InvalidTypeError(f"config must consist of TOML values: {error}") from error


def _read_config(path: Path) -> dict[str, dict[str, Any]]:
    """The tables of a run's `config.toml`, verified."""
    file = path / CONFIG
    data = _read_if_there(file)
    if data is None:
        raise RunError(f"{path} is not a run of fastformer: it has no {CONFIG}{named_within(path)}")
    try:
        config = tomllib.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise RunError(f"{file} is damaged: {error}; mend it or use another run") from error
    version = config.pop("format_version", None)
    if config.pop("format", None) != FORMAT or type(version) is not int or version < 1:
        raise RunError(
            f"{file} is not of a run of fastformer: it must begin with format_version = "
            f'{FORMAT_VERSION} and format = "{FORMAT}"'
        )
    if version > FORMAT_VERSION:
        raise RunError(
            f"run {path} has format version {version}, this fastformer reads version "
            f"{FORMAT_VERSION}; update fastformer"
        )
    for name, table in config.items():
        if not isinstance(table, dict):
            raise RunError(
                f"{file} is damaged: {name!r} is not a table; mend it or use another run"
            )
    return config


def _is_occupied(path: Path) -> bool:
    """Tell whether a directory has anything but what a process killed in `create` left."""
    if not path.is_dir():
        raise RunError(f"{path} exists and is not a directory; choose another with --out")
    return any(not is_temporary(entry) for entry in path.iterdir())


def is_replaceable(path: Path, overwrite: bool) -> bool:
    """Tell whether a path has a run, to be replaced; raise if it must not take a new one."""
    if not os.path.lexists(path) or not _is_occupied(path):
        return False
    try:
        _read_config(path)
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


def _remove_run_files(path: Path) -> None:
    """Remove a run's files, all but `config.toml`. Files of others stay."""
    checkpoints = path / _CHECKPOINTS
    if checkpoints.is_dir():
        for entry in checkpoints.iterdir():
            if entry.name == _BEST or _STEP_NAME.fullmatch(entry.name) or is_temporary(entry):
                entry.unlink()
        with contextlib.suppress(OSError):  # it stays if files of others are in it
            checkpoints.rmdir()
    for name in (_RESULT, _METRICS, CURVES, REPORT):
        (path / name).unlink(missing_ok=True)
    remove_temporary_files(path)
    sync_directory(path)
