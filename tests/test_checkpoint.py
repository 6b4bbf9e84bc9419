"""Checkpoints: what goes in comes out, and nothing damaged does."""

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fastformer.errors import CheckpointError
from fastformer.training.checkpoint import load_checkpoint, save_checkpoint

Tensors = dict[str, npt.NDArray[Any]]

TENSORS: Tensors = {
    "weight": np.array([[1.5, -2.0, 3.25], [0.0, -0.0, np.pi]], np.float32),
    "moment": np.array([1e-300, np.inf, np.nan]),
    "step": np.array(500, np.int64),
    "empty": np.zeros((0, 4), np.float32),
}
METADATA: dict[str, Any] = {"step": 500, "text": 'quotes " \\ é\n', "list": [1.5, None, True, {}]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def assert_same(loaded: Tensors, saved: Tensors) -> None:
    assert list(loaded) == list(saved)
    for name, array in saved.items():
        assert loaded[name].dtype == array.dtype
        assert loaded[name].shape == array.shape
        assert loaded[name].tobytes() == array.tobytes()  # every bit, NaN and -0.0 included


# Round trips


@pytest.mark.smoke
def test_what_is_saved_is_loaded(path: Path) -> None:
    save_checkpoint(path, TENSORS, METADATA)
    checkpoint = load_checkpoint(path)
    assert_same(checkpoint.tensors, TENSORS)
    assert checkpoint.metadata == METADATA
    assert checkpoint.path == path
    for array in checkpoint.tensors.values():
        assert array.flags.writeable
        assert array.flags.aligned
        assert array.dtype.isnative


SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
ARRAYS: st.SearchStrategy[npt.NDArray[Any]] = st.one_of(
    hnp.arrays(np.float32, SHAPES), hnp.arrays(np.float64, SHAPES), hnp.arrays(np.int64, SHAPES)
)
NAMES = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=12)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(
    tensors=st.dictionaries(NAMES.filter(lambda name: name != "__metadata__"), ARRAYS, max_size=4),
    metadata=st.dictionaries(st.text(), JSON_VALUES, max_size=4),
)
def test_any_tensors_and_metadata_come_back(
    tmp_path_factory: pytest.TempPathFactory, tensors: Tensors, metadata: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    save_checkpoint(path, tensors, metadata)
    checkpoint = load_checkpoint(path)
    assert_same(checkpoint.tensors, tensors)
    assert checkpoint.metadata == metadata
    other_tools = safetensors.numpy.load_file(path)
    assert_same({name: other_tools[name] for name in tensors}, tensors)


def test_any_layout_and_byte_order_is_saved_by_value(path: Path) -> None:
    base = np.arange(24, dtype=np.float64).reshape(4, 6)
    views: Tensors = {
        "transposed": base.T,
        "strided": base[::2, ::-3],
        "big_endian": base.astype(">f8"),
        "broadcast": np.broadcast_to(np.float32(2), (3, 2)),
    }
    save_checkpoint(path, views, {})
    for name, array in load_checkpoint(path).tensors.items():
        np.testing.assert_array_equal(array, views[name])
        assert array.flags.c_contiguous


def test_other_tools_read_the_file_and_its_metadata(path: Path) -> None:
    save_checkpoint(path, TENSORS, METADATA)
    with safetensors.safe_open(path, framework="np") as file:
        fields = file.metadata()
        assert sorted(file.keys()) == sorted(TENSORS)
        assert_same({name: file.get_tensor(name) for name in TENSORS}, TENSORS)
    assert fields["format"] == "fastformer"
    assert fields["format_version"] == "1"
    assert json.loads(fields["metadata"]) == METADATA
    weight = hashlib.sha256(b"F32:2,3:" + TENSORS["weight"].tobytes()).hexdigest()
    assert json.loads(fields["checksums"])["weight"] == weight


def test_the_format_does_not_drift(path: Path) -> None:
    tensors = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "step": np.array(7)}
    save_checkpoint(path, tensors, {"epoch": 3, "name": "é"})
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest == "55a51f51d04e24a5e049a611bb55de7bce6630023c5a02b3d468585faf07861a"


def test_equal_content_is_equal_bytes(path: Path) -> None:
    save_checkpoint(path, TENSORS, METADATA)
    first = path.read_bytes()
    for _ in range(5):
        save_checkpoint(path, TENSORS, METADATA)
        assert path.read_bytes() == first


def test_numpy_scalars_in_metadata_become_plain_numbers(path: Path) -> None:
    save_checkpoint(path, {}, {"a": np.float32(0.5), "b": [np.int64(3), np.bool_(True)]})
    assert load_checkpoint(path).metadata == {"a": 0.5, "b": [3, True]}


# Saving


@pytest.fixture
def old(path: Path) -> bytes:
    save_checkpoint(path, {"w": np.ones(5)}, {"step": 5})
    return path.read_bytes()


def assert_old_is_whole(path: Path, old: bytes) -> None:
    assert path.read_bytes() == old
    load_checkpoint(path)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_a_failed_save_leaves_the_old_checkpoint(
    path: Path, old: bytes, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        message = r"cannot write checkpoint .*model\.safetensors: No space left on device"
        with pytest.raises(CheckpointError, match=message):
            save_checkpoint(path, TENSORS, METADATA)
    assert_old_is_whole(path, old)


def test_a_save_that_runs_out_of_space_at_any_byte_leaves_the_old_checkpoint(
    path: Path, old: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_write = os.write
    for room in range(0, len(old), 97):
        left = room

        def write(descriptor: int, data: memoryview) -> int:
            nonlocal left
            if not left:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written = real_write(descriptor, data[:left])
            left -= written
            return written

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", write)
            with pytest.raises(CheckpointError, match="No space left"):
                save_checkpoint(path, TENSORS, METADATA)
        assert left == 0
        assert_old_is_whole(path, old)


def test_saving_needs_the_directory(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file or directory"):
        save_checkpoint(tmp_path / "none" / "model.safetensors", TENSORS, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"w": np.ones(2, np.float16)}, {}, "'w' must be float32, float64 or int64, got float16"),
        ({"w": np.array([{}])}, {}, "'w' must be float32, float64 or int64, got object"),
        ({"w": np.ones(2, bool)}, {}, "got bool"),
        ({"w": [1.0]}, {}, "'w' must be a NumPy array of float32.*, got list"),
        ({"__metadata__": np.ones(2)}, {}, "printable text other than '__metadata__'"),
        ({"": np.ones(2)}, {}, "printable text .* got ''"),
        ({"a\nb": np.ones(2)}, {}, "printable text"),
        ({"\ud800": np.ones(2)}, {}, "printable text"),
        ({1: np.ones(2)}, {}, "name must be text, got 1"),
        ({}, {"a": np.ones(2)}, "checkpoint metadata must consist of JSON values: got ndarray"),
        ({}, {"a": {1, 2}}, "checkpoint metadata must consist of JSON values: got set"),
        ({}, {"a": float("nan")}, "JSON values with finite numbers"),
    ],
)
def test_what_cannot_be_saved_is_refused_before_anything_is_written(
    path: Path, old: bytes, tensors: Any, metadata: Any, message: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        save_checkpoint(path, tensors, metadata)
    assert_old_is_whole(path, old)
