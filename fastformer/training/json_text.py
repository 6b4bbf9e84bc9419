"""JSON as the files of a run use it: strict, in ASCII, with NumPy's scalars as plain numbers."""

import json
from typing import Any

import numpy as np

from fastformer.errors import InvalidTypeError, InvalidValueError


def json_text(what: str, value: object, indent: int | None = None) -> str:
    """Return a value as JSON text that every JSON reader takes.

    Args:
        what: the value's name in an error message.
        value: text, finite numbers, booleans, None, lists and objects of them.
        indent: spaces per level; None for one line.

    Raises:
        TypeError, ValueError: a value that JSON does not have.
    """
    try:
        return json.dumps(value, indent=indent, allow_nan=False, default=_plain_scalar)
    except TypeError as error:
        raise InvalidTypeError(f"{what} must consist of JSON values: {error}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidValueError(
            f"{what} must consist of JSON values with finite numbers: {error}"
        ) from error


def json_object(data: bytes | str) -> dict[str, Any] | None:
    """Return the JSON object in a text, or None if there is anything else in it."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _plain_scalar(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"got {type(value).__name__} {value!r}")
