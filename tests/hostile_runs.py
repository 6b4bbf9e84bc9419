"""Runs whose files hold what nobody meant: torn, with odd bytes, or well-formed with odd values."""

import json
import os
import random
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from fastformer.training.checkpoint import load_checkpoint, save_checkpoint

ODD_VALUES: tuple[Any, ...] = (
    *(-1, 0, 1, 2, 7, 10**9, 10**18, 2**64, 10**400, -(10**400), 0.5, -0.0, 1e300, 1e-320),
    *(float("nan"), float("inf"), -float("inf"), True, False, None, "", "x", "Max", "\x1b]0;x\x07"),
    *("\x9b31m\u202e\n", "9" * 400, "y" * 50_000, [], [1], ["\x1b[2J"], [[[]]], {}, {"a": {}}),
)
"""Of every kind that TOML and JSON have; TOML has no None."""

_NOT_FINITE = (float("inf"), -float("inf"))

PIECES = (b"", b"\0", b"\x1b[31m", b"\xff\xfe", b"\xef\xbb\xbf", b"\n", b"[" * 5000, b"{" * 5000)
PIECES += (
    b'"\\ud800"',
    b"a." * 3000,
    b"9" * 5000,
    b"0x" + b"f" * 6000,
    b"1e999",
    b"\r",
    b"=",
    b",",
)

TENSORS: tuple[Callable[[Any], Any], ...] = (
    lambda array: array * np.asarray(1e18, array.dtype),
    lambda array: np.full_like(array, np.nan),
    lambda array: np.full_like(array, np.finfo(array.dtype).max),
    lambda array: array * 0,
    lambda array: array[:1],
    lambda array: array[None],
    lambda array: array.astype(np.float64),
    lambda array: array.astype(np.int64),
    lambda array: np.zeros((), array.dtype),
    lambda array: np.zeros((0, 4), array.dtype),
)


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of each value within a value, from the outermost on."""
    if path:
        yield path
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(item, (*path, key))


def _swap(value: Any, choose: random.Random, odd: tuple[Any, ...]) -> None:
    """Replace, remove or add one value somewhere within a value."""
    *path, last = choose.choice(list(_leaves(value)))
    for key in path:
        value = value[key]
    kind = choose.randrange(8)
    if kind == 0:
        del value[last]
    elif kind == 1 and isinstance(value, dict):
        value[choose.choice(["\x1b[31m", "x\n", "seed", "z" * 3000])] = choose.choice(odd)
    else:
        value[last] = choose.choice(odd)


def spoil_bytes(file: Path, choose: random.Random) -> None:
    """Cut a file, or put other bytes into it."""
    data = file.read_bytes()
    place = choose.randrange(len(data) + 1)
    kind = choose.randrange(4)
    if kind == 0:
        data = data[:place]
    elif kind == 1:
        data = choose.choice(PIECES) + data
    else:
        data = data[:place] + choose.choice(PIECES) + data[place + choose.randrange(4) :]
    file.write_bytes(data)


def spoil_values(file: Path, choose: random.Random) -> None:
    """Put an odd value into a file that stays well-formed."""
    if file.suffix == ".toml":
        config = tomllib.loads(file.read_text())
        _swap(config, choose, tuple(odd for odd in ODD_VALUES if odd is not None))
        file.write_text(tomli_w.dumps(config))
    elif file.suffix == ".safetensors":
        checkpoint = load_checkpoint(file)
        metadata, tensors = checkpoint.metadata, dict(checkpoint.tensors)
        if choose.randrange(2):
            finite = tuple(odd for odd in ODD_VALUES if odd not in _NOT_FINITE and odd == odd)
            _swap(metadata, choose, finite)
        else:
            name = choose.choice(list(tensors))
            with np.errstate(all="ignore"):
                changed = choose.choice(TENSORS)(tensors[name])
            tensors[name] = changed
        save_checkpoint(file, tensors, metadata)
    else:
        lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
        place = choose.randrange(len(lines))
        value = json.loads(lines[place])
        _swap(value, choose, ODD_VALUES)
        file.write_text("\n".join([*lines[:place], json.dumps(value), *lines[place + 1 :], ""]))


def spoil_names(run: Path, choose: random.Random) -> None:
    """Put something else in the place of a file, or a file that is not expected."""
    place = run / choose.choice(
        ["embeddings/epoch-0000.safetensors", "embeddings/epoch-99999999999999999999.safetensors",
         "embeddings/epoch-0000099999.safetensors", "embeddings/epoch-999999999.safetensors",
         "checkpoints/step-99999999999999999999.safetensors", "checkpoints/best.safetensors",
         "checkpoints/step-00000099.safetensors", "metrics.jsonl", "result.json", "config.toml",
         "checkpoints", "embeddings"]
    )  # fmt: skip
    copy = run / "embeddings/epoch-0001.safetensors"
    data = copy.read_bytes()
    if place.exists():
        os.rename(place, run / "moved")
    kind = choose.randrange(5)
    if kind == 0:
        place.mkdir(parents=True)
    elif kind == 1:
        place.symlink_to(place)
    elif kind == 2:
        os.mkfifo(place)
    elif kind == 3:
        place.write_bytes(data)


def spoil(run: Path, seed: int) -> str:
    """Spoil one file of a run, by a seed, and return what was done."""
    choose = random.Random(seed)
    files = sorted(path for path in run.rglob("*") if path.is_file() and path.suffix != ".png")
    file = choose.choice(files)
    # The smaller a file is, the more of it can be understood wrongly.
    if choose.randrange(2):
        file = choose.choice([path for path in files if path.suffix != ".safetensors"])
    kind = choose.choice((spoil_bytes, spoil_values, spoil_values, spoil_names))
    kind(run if kind is spoil_names else file, choose)
    return f"{kind.__name__} {file.relative_to(run)}"
