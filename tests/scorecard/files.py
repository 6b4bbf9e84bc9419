"""The rows on files: every corruption is noticed, and hostile headers are a clear error."""

import multiprocessing
import os
import resource
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from fastformer.errors import CheckpointError, FastformerError
from fastformer.training.checkpoint import load_checkpoint, save_checkpoint
from fastformer.training.run_directory import RunDirectory
from tests.scorecard.rows import Finding, Row, Tier

# Where there is one, a file system in memory: forcing thousands of files to disk takes minutes.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

FUZZED: dict[Tier, int] = {"fast": 1_000_000, "nightly": 50_000_000}
PIECES = (b"{", b"}", b"[", b'"', b":", b"-1", b"1e999", b"null", b"\\u0000", b"9" * 30, b"\xff")
ROOM = 64 << 10  # kibibytes that fuzzing may add to the memory in use


def small_checkpoint(directory: Path) -> bytes:
    """Return the bytes of a checkpoint with two tensors."""
    path = directory / "small.safetensors"
    tensors = {"w": np.array([1.5, -2.0], np.float32), "n": np.array([3])}
    save_checkpoint(path, tensors, {"step": 5, "config": {"a": 1}})
    return path.read_bytes()


def noticed(load: Callable[[Path], object], path: Path, contents: Iterable[bytes]) -> list[bool]:
    """Tell of each content of a file whether loading it is an error for the user."""
    found = []
    for content in contents:
        path.write_bytes(content)
        try:
            load(path)
            found.append(False)
        except CheckpointError:
            found.append(True)
    return found


def flips(content: bytes) -> Iterable[bytes]:
    """Return the content with each of its bits flipped."""
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        yield bytes(damaged)


def measure_flips(tier: Tier) -> Finding:
    """C3: flip every bit. Planted: the safetensors package, which has no checksums, is blind."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        content = small_checkpoint(Path(name))
        path = Path(name) / "flipped.safetensors"
        found = noticed(load_checkpoint, path, flips(content))
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        safetensors.numpy.load_file(path)  # takes the damage as it is
        blind = noticed(safetensors.numpy.load_file, path, [path.read_bytes()])
    return Finding(sum(found), len(found), blind.count(False), 1)


def measure_truncations(tier: Tier) -> Finding:
    """C4: every truncation is an error, and the run goes on from the checkpoint before it."""
    import warnings

    held, cases = 0, 0
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        run = RunDirectory.create(Path(name) / "run", {})
        for step in (1, 2):
            newest = run.save_step(step, {"w": np.full(2, step, np.float32)}, {"step": step})
        whole = newest.read_bytes()
        for length in range(len(whole)):
            newest.write_bytes(whole[:length])
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                step = run.latest().metadata["step"]
            held += step == 1 and len(told) == 1 and noticed_one(newest)
            cases += 1
        newest.write_bytes(whole)
        planted = run.latest().metadata["step"] == 2  # a whole file is not taken for a torn one
    return Finding(held, cases, int(planted), 1)


def noticed_one(path: Path) -> bool:
    """Tell whether loading a file is an error for the user."""
    return noticed(load_checkpoint, path, [path.read_bytes()])[0]


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Return a checkpoint with a few changes in its header, some of them of JSON's own signs."""
    changed = bytearray(content)
    end = 8 + int.from_bytes(content[:8], "little")
    kinds, places = rng.integers(0, 4, 3), rng.integers(0, end, 3)
    for kind, place in zip(kinds.tolist(), places.tolist(), strict=True):
        if kind == 0:
            changed[place] ^= 1 << place % 8
        elif kind == 1:
            changed[place:place] = PIECES[place % len(PIECES)]
        elif kind == 2:
            del changed[place : place + 1 + place % 7]
        else:
            changed[place : place + 1] = PIECES[place % len(PIECES)]
    if kinds[0] > 1:  # a length that fits lets the reader get to the header
        changed[:8] = (end - 8 + len(changed) - len(content)).to_bytes(8, "little")
    return bytes(changed)


def fuzz(task: tuple[int, int]) -> tuple[int, int]:
    """Load mutated checkpoints; return how many were a clear error or loaded, and memory's growth.

    Anything but an error of fastformer's own ends the count of this process.
    """
    from fastformer.training.checkpoint import _decode

    seed, count = task
    rng, path, held = np.random.default_rng(seed), Path("fuzzed.safetensors"), 0
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        content = small_checkpoint(Path(name))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(count):
        try:
            _decode(mutated(content, rng), path)
        except FastformerError:
            pass
        except Exception:
            continue
        held += 1
    return held, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before


def measure_fuzz(tier: Tier, count: int | None = None) -> Finding:
    """C5: fuzzed headers on two processes. Planted: a decoder with an error of its own."""
    cases = count or FUZZED[tier]
    parts = [(seed, cases // 40) for seed in range(40)]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.map(fuzz, parts, chunksize=1)
    held, growth = sum(one for one, _ in found), max(growth for _, growth in found)
    if growth > ROOM:
        held = 0
    return Finding(held, 40 * (cases // 40), planted_crash(), 1, f"+{growth / 1024:.0f} MB")


def planted_crash() -> int:
    """Tell whether `fuzz` counts an error that is not fastformer's own."""
    from unittest import mock

    with mock.patch("fastformer.training.checkpoint._decode", side_effect=KeyError):
        return int(fuzz((0, 10))[0] == 0)


def measure_interoperability(tier: Tier) -> Finding:
    """C8: either reads what the other writes. Planted: one bit that differs."""
    rng, held, cases = np.random.default_rng(8), 0, 100
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        path = Path(name) / "model.safetensors"
        for _ in range(cases):
            tensors = random_tensors(rng)
            save_checkpoint(path, tensors, {})
            with safetensors.safe_open(path, "numpy") as file:
                metadata = file.metadata()
            found = safetensors.numpy.load_file(path)
            held += same(tensors, found)
            # Written anew by the package, with the checksums: it is a checkpoint still.
            safetensors.numpy.save_file(found, path, metadata)
            held += same(tensors, load_checkpoint(path).tensors)
        other = {name: array.copy() for name, array in tensors.items()}
        next(iter(other.values())).view(np.uint8).reshape(-1)[0] ^= 1
        planted = not same(tensors, other)
    return Finding(held, 2 * cases, int(planted), 1)


def random_tensors(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return a few arrays of random names, dtypes, shapes and bits, NaN among them."""
    tensors = {}
    for number in range(int(rng.integers(1, 8))):
        shape = tuple(rng.integers(1, 6, int(rng.integers(1, 4))).tolist())
        dtype = (np.float32, np.float64, np.int64)[int(rng.integers(3))]
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        tensors[f"layer.{number}"] = np.frombuffer(rng.bytes(size), dtype).reshape(shape).copy()
    return tensors


def same(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> bool:
    """Tell whether two sets of tensors are equal in every bit."""
    return one.keys() == two.keys() and all(
        (one[name].dtype, one[name].shape, one[name].tobytes())
        == (two[name].dtype, two[name].shape, two[name].tobytes())
        for name in one
    )


ROWS = (
    Row("C3", "every flipped bit of a checkpoint is noticed", "all bits", measure_flips),
    Row(
        "C4",
        "a truncated checkpoint is an error, and the one before it is taken with a warning",
        "every length",
        measure_truncations,
    ),
    Row("C5", "hostile headers are a clear error", "1 M headers, nightly 50 M", measure_fuzz),
    Row(
        "C8",
        "the official safetensors package reads ours, and what it writes is read: the same bytes",
        "100 random models, both ways",
        measure_interoperability,
    ),
)
