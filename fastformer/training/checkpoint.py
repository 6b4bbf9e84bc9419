"""Checkpoints: plain safetensors files in which every damaged bit is noticed.

Any tool that reads safetensors reads them. Their `__metadata__` holds, as text:

- `format`: "fastformer"; `format_version`: "1".
- `metadata`: a JSON object, whatever the writer wants to keep besides tensors.
- `checksums`: a JSON object from each tensor's name to the SHA-256 of its dtype, shape and bytes:
  for a float32 array of shape (2, 3), of the text `F32:2,3:` and then its 24 bytes.
- `digest`: the SHA-256 of the four above, joined by line ends.

The same tensors and metadata give the same bytes. Reading never executes code.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from fastformer.errors import CheckpointError, InvalidTypeError, InvalidValueError
from fastformer.training.atomic_file import os_errors_as, read_file, write_atomically
from fastformer.training.json_text import json_object, json_text

FORMAT = "fastformer"
FORMAT_VERSION = 1

_DTYPE_CODES = {np.dtype("<f4"): "F32", np.dtype("<f8"): "F64", np.dtype("<i8"): "I64"}
_DTYPE_NAMES = "float32, float64 or int64"
_RESERVED_NAME = "__metadata__"
_HEADER_FIELDS = ("format", "format_version", "metadata", "checksums")
_REMEDY = "use an earlier checkpoint or an undamaged copy"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds. Its tensors are writable and its own.

    Attributes:
        tensors: name to array (float32, float64 or int64), in the order in which they were saved.
        metadata: the JSON object that was saved with them.
        path: the file that it was read from.
    """

    tensors: dict[str, npt.NDArray[Any]]
    metadata: dict[str, Any]
    path: Path


def save_checkpoint(
    path: str | Path, tensors: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, Any]
) -> None:
    """Write a checkpoint; the file that was there is replaced when the new one is safe on disk.

    Args:
        path: the file; its directory must exist.
        tensors: name to array. Names are printable text; arrays are float32, float64 or int64, of
            any shape and layout. Values are not judged: NaN is written as it is.
        metadata: JSON values: text, finite numbers, booleans, None, lists and objects of them.

    Raises:
        TypeError, ValueError: a name, dtype or metadata value that is not allowed.
        CheckpointError: the file could not be written; an earlier one is still there.
    """
    path = Path(path)
    header, data = _encode(tensors, metadata)
    with os_errors_as(CheckpointError, f"write checkpoint {path}"):
        write_atomically(path, header, data)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint and verify every bit of it.

    Args:
        path: a file that `save_checkpoint` wrote.

    Returns:
        Its tensors and metadata, exactly as they were saved.

    Raises:
        CheckpointError: the file is missing, truncated, damaged, of a newer version of fastformer,
            or not a checkpoint of fastformer. The message names the file, and the tensor if it is
            one tensor that is damaged.
    """
    path = Path(path)
    with os_errors_as(CheckpointError, f"read checkpoint {path}"):
        content = read_file(path)
    return _decode(content, path)


def _encode(
    tensors: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, Any]
) -> tuple[bytes, memoryview]:
    """Return the two parts of the file: the header with its length, and the tensors' bytes."""
    arrays = {name: _checked_tensor(name, array) for name, array in tensors.items()}
    checksums = {name: _checksum(array) for name, array in arrays.items()}
    fields = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "metadata": json_text("checkpoint metadata", dict(metadata)),
        "checksums": json_text("checksums", checksums),
    }
    content = safetensors.numpy.save(arrays, {**fields, "digest": _digest(fields)})
    header, data_start = _read_header(content)
    # The package writes these keys in a random order; sorted, equal content is equal bytes.
    header[_RESERVED_NAME] = dict(sorted(header[_RESERVED_NAME].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, memoryview(content)[data_start:]


def _checked_tensor(name: object, array: object) -> npt.NDArray[Any]:
    """Return a tensor as a little-endian C-contiguous array if it can be saved."""
    if not isinstance(name, str):
        raise InvalidTypeError(f"a tensor's name must be text, got {name!r}")
    if not name or not name.isprintable() or name == _RESERVED_NAME:
        raise InvalidValueError(
            f"a tensor's name must be printable text other than {_RESERVED_NAME!r}, got {name!r}"
        )
    if not isinstance(array, np.ndarray):
        raise InvalidTypeError(
            f"tensor {name!r} must be a NumPy array of {_DTYPE_NAMES}, got {type(array).__name__}"
        )
    dtype = array.dtype.newbyteorder("<")
    if dtype not in _DTYPE_CODES:
        raise InvalidTypeError(f"tensor {name!r} must be {_DTYPE_NAMES}, got {array.dtype}")
    return np.asarray(array, dtype=dtype, order="C")


def _checksum(array: npt.NDArray[Any]) -> str:
    shape = ",".join(map(str, array.shape))
    checksum = hashlib.sha256(f"{_DTYPE_CODES[array.dtype]}:{shape}:".encode())
    checksum.update(array.data)
    return checksum.hexdigest()


def _digest(fields: Mapping[str, str]) -> str:
    text = "\n".join(fields[name] for name in _HEADER_FIELDS)
    return hashlib.sha256(text.encode()).hexdigest()


def _read_header(content: bytes) -> tuple[dict[str, Any], int]:
    """Return the header of a valid safetensors file, and where the tensors' bytes begin."""
    data_start = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:data_start]), data_start


def _decode(content: bytes, path: Path) -> Checkpoint:
    """Verify a file's content and return what it holds."""
    try:
        arrays = safetensors.numpy.load(content)
        header, _ = _read_header(content)
    except KeyError as error:
        raise CheckpointError(
            f"checkpoint {path} was not written by fastformer: it has a tensor of dtype {error}, "
            f"not {_DTYPE_NAMES}; give a checkpoint of a fastformer run"
        ) from error
    except (safetensors.SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {path} is truncated, damaged or not a safetensors file ({error}); "
            f"{_REMEDY}"
        ) from error
    metadata, checksums = _verified_fields(header.get(_RESERVED_NAME) or {}, path)
    if arrays.keys() != checksums.keys():
        missing = sorted(checksums.keys() - arrays.keys())
        unknown = sorted(arrays.keys() - checksums.keys())
        _fail(path, f"is damaged: it lacks tensors {missing} and has unknown tensors {unknown}")
    for name, array in arrays.items():
        if array.dtype not in _DTYPE_CODES or _checksum(array) != checksums[name]:
            _fail(path, f"is damaged: tensor {name!r} does not match its checksum")
    tensors = {name: arrays[name] for name in checksums}
    return Checkpoint(tensors=tensors, metadata=metadata, path=path)


def _verified_fields(
    fields: Mapping[str, str], path: Path
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the saved metadata and the tensors' checksums, once their digest is right."""
    if fields.get("format") != FORMAT:
        raise CheckpointError(
            f"checkpoint {path} was not written by fastformer: its format is "
            f"{fields.get('format')!r}, not {FORMAT!r}; give a checkpoint of a fastformer run"
        )
    version = fields.get("format_version", "")
    if version != str(FORMAT_VERSION):
        if version.isascii() and version.isdigit() and len(version) < 10 and int(version) > 1:
            raise CheckpointError(
                f"checkpoint {path} has format version {version}, this fastformer reads version "
                f"{FORMAT_VERSION}; update fastformer"
            )
        _fail(path, f"is damaged: its format version is {version!r}")
    if fields.keys() != {*_HEADER_FIELDS, "digest"} or fields["digest"] != _digest(fields):
        _fail(path, "is damaged: its metadata does not match its digest")
    metadata, checksums = json_object(fields["metadata"]), json_object(fields["checksums"])
    if metadata is None or checksums is None:
        _fail(path, "is damaged: its metadata is not a JSON object")
    return metadata, checksums


def _fail(path: Path, problem: str) -> NoReturn:
    raise CheckpointError(f"checkpoint {path} {problem}; {_REMEDY}")
