"""JSON as the files of a run use it: strict, in ASCII, with NumPy's scalars as plain numbers."""

import json
import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from fastformer.errors import InvalidTypeError, InvalidValueError

LARGEST: Final[float] = 1e100


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


def finite(value: Any) -> Any:
    """Return a value that JSON can hold: None for what is not finite, lists for tuples."""
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def number_in(value: object) -> float:
    """Return the number that a file holds in some place as a float; NaN for anything else.

    What is beyond 1e100 was not measured, and could not be drawn: it is NaN, too; and 0 is what is
    below 1e-100.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
        return math.nan
    return float(value) if abs(value) * LARGEST >= 1 else 0.0


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
