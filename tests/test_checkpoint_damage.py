"""Damaged, foreign and hostile checkpoints: each is noticed and told, none does harm."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from fastformer.errors import CheckpointError
from fastformer.training.checkpoint import load_checkpoint, save_checkpoint

WEIGHT = np.array([[1.5, -2.0, 3.25], [0.0, -0.0, np.pi]], np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.fixture
def small(path: Path) -> bytes:
    tensors = {"w": np.array([1.5, -2.0], np.float32), "n": np.array([3])}
    save_checkpoint(path, tensors, {"step": 5, "config": {"a": 'é"\\'}})
    return path.read_bytes()


def header_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def with_header(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def signed(header: dict[str, Any], **fields: str) -> dict[str, Any]:
    """A header with changed metadata fields and the digest that fits them."""
    changed = header["__metadata__"] | fields
    names = ("format", "format_version", "metadata", "checksums")
    text = "\n".join(changed[name] for name in names)
    changed["digest"] = hashlib.sha256(text.encode()).hexdigest()
    return header | {"__metadata__": changed}


def test_every_flipped_bit_is_noticed(path: Path, small: bytes) -> None:
    damaged = bytearray(small)
    unnoticed = []
    for bit in range(8 * len(small)):
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            load_checkpoint(path)
            unnoticed.append(bit)
        except CheckpointError as error:
            assert str(path) in str(error)
        damaged[bit // 8] ^= 1 << bit % 8
    assert unnoticed == []
    assert damaged == small


def test_every_truncation_is_noticed(path: Path, small: bytes) -> None:
    for length in range(len(small)):
        path.write_bytes(small[:length])
        with pytest.raises(CheckpointError, match="truncated, damaged or not a safetensors file"):
            load_checkpoint(path)


def test_damage_that_safetensors_does_not_notice_is_noticed(path: Path) -> None:
    # The reason for the checksums, and the proof that the flips above reach tensor data.
    save_checkpoint(path, {"weight": WEIGHT, "step": np.array(500)}, {"step": 500})
    content = path.read_bytes()
    start = content.index(WEIGHT.tobytes())
    for damaged in (
        content[:start] + bytes(24) + content[start + 24 :],
        content[: start + 8] + content[start : start + 8] + content[start + 16 :],
    ):
        path.write_bytes(damaged)
        assert safetensors.numpy.load_file(path).keys() == {"weight", "step"}
        message = r"model\.safetensors is damaged: tensor 'weight' does not match its checksum"
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(path)


def test_a_changed_dtype_shape_or_name_is_noticed(path: Path) -> None:
    save_checkpoint(path, {"a": np.ones((2, 3)), "b": np.zeros((0, 2))}, {})
    header, data = header_of(path.read_bytes())
    a, b = header["a"], header["b"]
    for change, message in (
        ({"a": a | {"dtype": "I64"}}, "tensor 'a' does not match"),
        ({"a": a | {"dtype": "U64"}}, "tensor 'a' does not match"),
        ({"a": a | {"shape": [3, 2]}}, "tensor 'a' does not match"),
        ({"b": b | {"shape": [2, 0]}}, "tensor 'b' does not match"),
        ({"b": b | {"dtype": "F32"}}, "tensor 'b' does not match"),
        ({"c": b}, r"lacks tensors \[\] and has unknown tensors \['c'\]"),
    ):
        path.write_bytes(with_header(header | change, data))
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(path)
    del header["b"]
    path.write_bytes(with_header(header, data))
    with pytest.raises(CheckpointError, match=r"lacks tensors \['b'\]"):
        load_checkpoint(path)


def test_a_newer_version_is_refused_by_name(path: Path, small: bytes) -> None:
    header, data = header_of(small)
    path.write_bytes(with_header(signed(header, format_version="2"), data))
    with pytest.raises(CheckpointError, match="format version 2.*reads version 1; update"):
        load_checkpoint(path)
    for version in ("0", "-1", "1.0", "01", "", "²", "9" * 5000):
        path.write_bytes(with_header(signed(header, format_version=version), data))
        with pytest.raises(CheckpointError, match="is damaged: its format version"):
            load_checkpoint(path)


def test_files_of_others_are_refused(path: Path) -> None:
    safetensors.numpy.save_file({"w": np.ones(3)}, path)
    with pytest.raises(CheckpointError, match="not written by fastformer: its format is None"):
        load_checkpoint(path)
    safetensors.numpy.save_file({"w": np.ones(3)}, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match="not written by fastformer: its format is 'pt'"):
        load_checkpoint(path)
    bfloat16 = {"w": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}
    path.write_bytes(with_header(bfloat16, b"\0\0"))
    with pytest.raises(CheckpointError, match="not written by fastformer.*dtype 'BF16'"):
        load_checkpoint(path)
    path.write_bytes(b"\x80\x04K\x01.")  # a pickle
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_checkpoint(path)


def test_hostile_headers_are_a_clear_error(path: Path, small: bytes) -> None:
    header, data = header_of(small)
    empty = {"dtype": "F32", "data_offsets": [0, 0]}
    deep = "[" * 100_000
    for content in (
        with_header({"a": empty | {"shape": [0, 2**63]}}, b""),
        with_header({"a": empty | {"shape": [0, 2**62, 2]}}, b""),
        with_header({"a": empty | {"shape": [0] * 100}}, b""),
        with_header(signed(header, metadata=deep), data),
        with_header(signed(header, metadata='{"a": ' + "9" * 5000 + "}"), data),
        with_header(signed(header, metadata="[]"), data),
        with_header(signed(header, checksums="3"), data),
        with_header(signed(header, checksums='{"w": 1, "n": null}'), data),
        with_header(signed(header, more="field"), data),
        with_header({"__metadata__": None}, b""),
        (2**63).to_bytes(8, "little") + b"{}",
        (100_001).to_bytes(8, "little") + b"{" + deep.encode(),
        b"",
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            load_checkpoint(path)


def test_a_missing_file_or_a_directory_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"read checkpoint .*none: No such file"):
        load_checkpoint(tmp_path / "none")
    with pytest.raises(CheckpointError, match="Is a directory"):
        load_checkpoint(str(tmp_path))


_LOADING = False
_EVENTS: list[str] = []


def _listen(event: str, _: object) -> None:
    if _LOADING:
        _EVENTS.append(event)


def test_loading_executes_no_code_and_writes_nothing(path: Path, small: bytes) -> None:
    global _LOADING
    sys.addaudithook(_listen)  # cannot be taken away again, so it only listens while _LOADING
    damaged = small[:-1] + bytes([small[-1] ^ 1])
    for content in (small, damaged, small[:50]):
        path.write_bytes(content)
        _LOADING = True
        try:
            load_checkpoint(path)
        except CheckpointError:
            pass
        finally:
            _LOADING = False
    assert _EVENTS.count("open") >= 3  # the hook heard something
    assert set(_EVENTS) <= {"open"}
