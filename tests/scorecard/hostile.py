"""Files with hostile contents, links and names, and what loads them, for the row on loading."""

import codecs
import contextlib
import datetime
import hashlib
import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import tomli_w
from runs import SIZES, Recorder, small_settings

from fastformer.analysis.loading import load_run
from fastformer.analysis.run_evaluation import read_expressions
from fastformer.data import parse_expression
from fastformer.kernels._cache import _Files
from fastformer.training.checkpoint import load_checkpoint, save_checkpoint
from fastformer.training.embedding_records import EmbeddingRecords
from fastformer.training.run_directory import RunDirectory
from fastformer.training.runs import settings_of, train_run
from tests.scorecard.files import mutated, small_checkpoint

Load = Callable[[], object]
Loads = Iterator[tuple[str, Load]]

MARKER = "marker"
PYTHON = "__import__('os').system('touch marker')"
# What YAML, JSON and TOML readers of others have taken for code.
WORDS = (PYTHON, "os.system", "!!python/object/apply:os.system [id]", "$(touch marker)", "../../x",
         "/etc/passwd", "__class__", "{0.__class__}", "file:///etc/passwd", "\x00", "")  # fmt: skip
OBJECTS = (
    {"py/object": "os.system"},
    {"__reduce__": ["os.system", ["touch marker"]]},
    {"_target_": "os.system"},
    {"$ref": "/etc/passwd"},
    {"__class__": "os.system"},
)
FOREIGN = 65534  # "nobody"


class Payload:
    """Makes a file where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        """Name the file."""
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        """Return the call that a pickle holds."""
        return open, (str(self.marker), "w")


def pickled(marker: Path, protocol: int = 4) -> bytes:
    """Return a pickle that makes a file."""
    return pickle.dumps(Payload(marker), protocol)


def object_array(marker: Path) -> bytes:
    """Return NumPy's file of an array of objects, which is a pickle."""
    file = io.BytesIO()
    np.save(file, np.array([Payload(marker)], object), allow_pickle=True)
    return file.getvalue()


def ran(place: Path) -> bool:
    """Tell whether a payload ran, and forget it."""
    marker = place / MARKER
    there = marker.exists()
    marker.unlink(missing_ok=True)
    return there


def _zipped(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


def contents(marker: Path) -> dict[str, bytes]:
    """Return files that other loaders run, or follow, by what they are."""
    found = {f"pickle {protocol}": pickled(marker, protocol) for protocol in range(6)}
    array = object_array(marker)
    found |= {
        "array of objects": array, "arrays of objects": _zipped("weight.npy", array),
        "PyTorch's file": _zipped("archive/data.pkl", pickled(marker, 2)),
        "Python": PYTHON.encode(), "shebang": b"#!/bin/sh\ntouch marker\n",
        "YAML": b"!!python/object/apply:os.system ['touch marker']\n",
        "XML": b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;</x>',
        "empty": b"", "zeros": bytes(4096), "ELF": b"\x7fELF" + bytes(100),
        "deep": b"[" * 100_000, "long number": b"9" * 100_000,
    }  # fmt: skip
    found |= {f"JSON {one}": json.dumps({"step": 1, **one}).encode() + b"\n" for one in OBJECTS}
    return found | {f"word {word!r}": word.encode() for word in WORDS}


def _readers(run: Path) -> dict[str, list[Load]]:
    """Return what loads each file of a run."""
    records, shape = EmbeddingRecords(run), (20, SIZES["embed_dim"])
    return {
        "checkpoints/best.safetensors": [lambda: load_run(run)],
        "checkpoints/step-00000010.safetensors": [lambda: RunDirectory.open(run).latest()],
        "config.toml": [lambda: settings_of(RunDirectory.open(run)), lambda: load_run(run)],
        "metrics.jsonl": [lambda: RunDirectory.open(run).read_metrics(skip_damaged=True)],
        "result.json": [lambda: RunDirectory.open(run).read_result()],
        "embeddings/epoch-0001.safetensors": [lambda: records.read_all(shape)],
        "questions.txt": [lambda: read_expressions(run / "questions.txt", load_run(run))],
    }


@contextlib.contextmanager
def _replaced(file: Path, make: Callable[[Path], object]) -> Iterator[None]:
    """Have something else in a file's place."""
    kept = file.with_name(file.name + ".kept")
    file.rename(kept)
    make(file)
    yield
    if file.is_dir() and not file.is_symlink():
        file.rmdir()
    else:
        file.unlink()
    kept.rename(file)


def _whole_files(run: Path, outside: Path, marker: Path) -> Loads:
    """Put each content, and each kind of link, in the place of each file."""
    links: dict[str, Callable[[Path], object]] = {
        f"a link to {target}": lambda file, target=target: file.symlink_to(target)
        for target in (
            outside,
            "/dev/zero",
            "/proc/self/mem",
            "nowhere",
            run,
            "../../../etc/passwd",
        )
    }
    links |= {"a link to itself": lambda file: file.symlink_to(file), "a pipe": os.mkfifo,
              "a directory": Path.mkdir}  # fmt: skip
    for name, readers in _readers(run).items():
        makers: dict[str, Callable[[Path], object]] = {
            label: lambda file, content=content: file.write_bytes(content)
            for label, content in contents(marker).items()
        }
        # A person may well give a pipe of questions.
        chosen = makers if name == "questions.txt" else makers | links
        for label, make in chosen.items():
            with _replaced(run / name, make):
                for read in readers:
                    yield f"{name}: {label}", read


def _settings(run: Path) -> Loads:
    """Put odd values into each setting, and odd settings into each table."""
    odd = [*WORDS[:8], 2**62, -1, 0, 1.5, float("nan"), float("inf"), True, [], [PYTHON], {},
           {"__class__": "os.system"}, datetime.datetime(2000, 1, 1), datetime.time(1)]  # fmt: skip
    tables = RunDirectory.open(run).config
    head = {"format_version": 1, "format": "fastformer"}
    for table, settings in tables.items():
        for name in [*settings, "__class__", "import", "../x"]:
            for value in odd:
                changed = {**head, **tables, table: {**settings, name: value}}
                with _replaced(
                    run / "config.toml",
                    lambda file, changed=changed: file.write_bytes(tomli_w.dumps(changed).encode()),
                ):
                    yield (
                        f"{table}.{name} = {value!r:.40}",
                        lambda: settings_of(RunDirectory.open(run)),
                    )


def _signed(run: Path) -> Loads:
    """Put odd metadata and names of tensors into checkpoints whose checksums are right."""
    path = run / "checkpoints" / "best.safetensors"
    good = load_checkpoint(path)
    spoilt: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    for value in (*OBJECTS, *WORDS):
        for name in good.metadata:
            spoilt[f"{name} = {value!r:.40}"] = good.tensors, good.metadata | {name: value}
    for name in (word for word in WORDS if word.isprintable() and word):
        spoilt[f"a tensor named {name}"] = good.tensors | {name: np.ones(2)}, good.metadata
    for label, (tensors, metadata) in spoilt.items():
        with _replaced(
            path, lambda file, t=tensors, m=metadata: save_checkpoint(file, t, m)
        ):  # fmt: skip
            yield f"a signed checkpoint, {label}", lambda: load_run(run)


def _names(run: Path) -> Loads:
    """Put files with odd names beside the checkpoints."""
    latest = run / "checkpoints" / "step-00000010.safetensors"
    for name in (
        "step-$(touch marker).safetensors",
        "step-99999999.safetensors\n",
        "step-00000011.safetensors.pkl",
        "step-00000099.safetensors",
        "; touch marker",
        "__init__.py",
        "sitecustomize.py",
    ):
        odd = latest.with_name(name)
        shutil.copy(latest, odd) if name.startswith("step") else odd.write_text(PYTHON)
        yield f"a file named {name!r}", lambda: RunDirectory.open(run).latest()
        odd.unlink()


def cache_file(place: Path, content: bytes) -> tuple[Path, Load]:
    """Write the file of a compiled kernel; return it, and what loads it."""
    files = _Files(str(place), "planted", (1.0, 2))
    path = files._path("key")
    path.write_bytes(content)
    return path, lambda: files.load("key")


def cache_content(marker: Path) -> bytes:
    """Return such a file with a payload and the checksum of it, as its owner could write it."""
    data = pickled(marker)
    return hashlib.sha256(data).digest() + data


def cache_cases(place: Path, marker: Path) -> Loads:
    """Damage the file of a compiled kernel, or let others write or own it."""
    good = cache_content(marker)
    for byte in range(len(good)):
        damaged = good[:byte] + bytes([good[byte] ^ 1]) + good[byte + 1 :]
        for how, content in (("flipped", damaged), ("truncated", good[:byte])):
            path, load = cache_file(place, content)
            yield f"a compiled kernel, {how} at {byte}", load
    for mode in (0o666, 0o660, 0o620, 0o602, 0o777):
        path, load = cache_file(place, good)
        path.chmod(mode)
        yield f"a compiled kernel of mode {mode:o}", load
        path.unlink()
    if os.getuid() == 0:
        path, load = cache_file(place, good)
        os.chown(path, FOREIGN, FOREIGN)
        yield "a compiled kernel of another user", load
        kept = path.rename(path.with_suffix(".other"))
        path.symlink_to(kept)
        yield "a link to a compiled kernel of another user", load
        path.unlink()
        kept.unlink()
    other = bytearray(pickled(marker))
    path, load = cache_file(place, hashlib.sha256(b"other").digest() + bytes(other))
    yield "a compiled kernel with another's checksum", load


def _fuzzed(place: Path, cases: int) -> Loads:
    """Change a small checkpoint here and there."""
    content, rng = small_checkpoint(place), np.random.default_rng(6)
    path = place / "fuzzed.safetensors"
    for number in range(cases):
        path.write_bytes(mutated(content, rng))
        yield f"fuzzed checkpoint {number}", lambda: load_checkpoint(path)


def _good(run: Path, place: Path) -> Loads:
    """Load what is as it should be; the first time, modules are imported."""
    official = place / "official.safetensors"
    safetensors.numpy.save_file({"w": np.ones(3)}, official)
    for _ in range(2):
        for name, readers in _readers(run).items():
            for read in readers:
                yield f"{name}, undamaged", read
    yield "a file of the official package", lambda: load_checkpoint(official)


@contextlib.contextmanager
def loads(place: Path, cases: int) -> Iterator[Loads]:
    """Make a run and what is beside it; yield (what it is, what loads it) for each case.

    Args:
        place: an empty directory.    cases: how many checkpoints are fuzzed.
    """
    run, outside, small = place / "run", place / "outside", place / "small"
    train_run(small_settings(epochs=1), run, Recorder())
    outside.write_bytes(pickled(place / MARKER))
    small.mkdir(mode=0o700)
    (run / "questions.txt").write_text("Max ( 5 3 9 )\n")
    for readers in _readers(run).values():
        for read in readers:
            read()
    # JSON looks for these by itself.
    for encoding in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "utf-16", "utf-32"):
        codecs.lookup(encoding)

    def everything() -> Loads:
        yield from _good(run, place)
        yield from _whole_files(run, outside, place / MARKER)
        yield from _settings(run)
        yield from _signed(run)
        yield from _names(run)
        yield from cache_cases(small, place / MARKER)
        for word in (*WORDS, *(f"Max ( {word} )" for word in WORDS)):
            yield f"the question {word!r}", lambda word=word: parse_expression(word)
        yield from _fuzzed(small, cases)

    yield everything()
