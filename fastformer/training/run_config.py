"""`config.toml` of a run: tables of settings, and the mark that it is one of fastformer's."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import tomli_w

from fastformer.errors import InvalidTypeError, RunError
from fastformer.training.atomic_file import os_errors_as, read_file
from fastformer.training.finding import CONFIG, named_within

FORMAT: Final[str] = "fastformer"
FORMAT_VERSION: Final[int] = 1
MOST_BYTES: Final[int] = 1 << 20
"""Of a file of settings or of a result."""


def config_bytes(config: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Return the content of `config.toml` for these tables.

    Raises:
        TypeError: TOML does not have them.
    """
    for name, table in config.items():
        if name in ("format", "format_version") or not isinstance(table, Mapping):
            raise InvalidTypeError(f"config must map names to tables, got {name!r}: {table!r}")
    tables = {"format_version": FORMAT_VERSION, "format": FORMAT, **config}
    try:
        return tomli_w.dumps(tables).encode()
    except (TypeError, UnicodeEncodeError) as error:
        raise InvalidTypeError(f"config must consist of TOML values: {error}") from error


def read_config(path: Path) -> dict[str, dict[str, Any]]:
    """Return the tables of a run's `config.toml`, verified.

    Raises:
        RunError: there is none, or it is damaged or of a newer version of fastformer.
    """
    file = path / CONFIG
    data = read_if_there(file)
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
    model = config.get("model")
    if isinstance(model, dict) and "attention_bias" in model:  # of all projections, until 0.2
        model["qkv_bias"] = model["attention_output_bias"] = model.pop("attention_bias")
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


def read_if_there(file: Path) -> bytes | None:
    """Return the content of a file, or None if there is no such file.

    Raises:
        RunError: it could not be read.
    """
    with os_errors_as(RunError, f"read {file}"):
        try:
            return read_file(file, MOST_BYTES)
        except FileNotFoundError:
            return None
