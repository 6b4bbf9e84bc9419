"""Checks of what a person gives: options here, arrays below. The only place that raises on arrays.

Kernels do not check: an id out of range inside one is memory corruption. So every array and
every id passes here, in Python, before it reaches a kernel.

It is one long file, for it is one list, from which every floor takes what it needs.
"""

import dataclasses
import difflib
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from fastformer.errors import InvalidTypeError, InvalidValueError

ConfigT = TypeVar("ConfigT")

_LARGEST = int(np.finfo(np.float64).max)
_LARGEST_INTEGER = int(np.iinfo(np.uint64).max)
MOST_ELEMENTS = 1 << 40


def fail(message: str) -> NoReturn:
    """Raise an `InvalidValueError`."""
    raise InvalidValueError(message)


def boolean(name: str, value: object) -> bool:
    """Return `value` if it is True or False."""
    if not isinstance(value, bool):
        raise InvalidTypeError(f"{name} must be True or False, got {value!r}")
    return value


def integer(name: str, value: object, minimum: int, maximum: int | None = None) -> int:
    """Return `value` as an int in [minimum, maximum], and of at most 64 bits."""
    allowed = f">= {minimum}" if maximum is None else f"from {minimum} to {maximum}"
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise InvalidTypeError(f"{name} must be an integer {allowed}, got {value!r:.200}")
    if abs(int(value)) > _LARGEST_INTEGER:
        bits = int(value).bit_length()
        raise InvalidValueError(f"{name} must be an integer {allowed}, got one of {bits} bits")
    if value < minimum or (maximum is not None and value > maximum):
        raise InvalidValueError(f"{name} must be an integer {allowed}, got {value!r}")
    return int(value)


def number(
    name: str,
    value: object,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> float:
    """Return `value` as a finite float within the bounds that are given."""
    if type(value) is float and math.isfinite(value) and above is below is at_most is None:
        if at_least is None or value >= at_least:  # what is asked in each step
            return value
    bounds = [("> ", above), (">= ", at_least), ("< ", below), ("<= ", at_most)]
    allowed = " and ".join(f"{sign}{bound:g}" for sign, bound in bounds if bound is not None)
    wanted = f"{name} must be a finite number {allowed}".rstrip()
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise InvalidTypeError(f"{wanted}, got {value!r}")
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise InvalidValueError(f"{wanted}, got an integer of {value.bit_length()} bits")
    if (
        not math.isfinite(value)
        or (above is not None and value <= above)
        or (at_least is not None and value < at_least)
        or (below is not None and value >= below)
        or (at_most is not None and value > at_most)
    ):
        raise InvalidValueError(f"{wanted}, got {value!r}")
    return float(value)


def table_size(owner: str, **sizes: int) -> None:
    """Raise unless an array of these sizes has at most MOST_ELEMENTS elements."""
    if math.prod(int(size) for size in sizes.values()) > MOST_ELEMENTS:
        given = ", ".join(f"{name}={size}" for name, size in sizes.items())
        raise InvalidValueError(
            f"{owner}: {' x '.join(sizes)} must be at most {MOST_ELEMENTS} elements, got {given}"
        )


def nearest_divisor(number: int, wanted: int) -> int:
    """Return the divisor of a number that is nearest to another one, in bounded time.

    Of two that are as near, it is the smaller one. Divisors between a million and the number by a
    million are not looked for.
    """
    small = [d for d in range(1, min(math.isqrt(number), 1_000_000) + 1) if number % d == 0]
    return min(sorted({*small, *(number // d for d in small)}), key=lambda d: abs(d - wanted))


def kv_heads(num_heads: int, num_kv_heads: int) -> int:
    """Return the number of heads of keys and values: as many as there are where it is 0.

    Raises:
        TypeError, ValueError: it is no such number, or does not divide the number of heads.
    """
    found = integer("num_kv_heads", num_kv_heads, 0) or num_heads
    if num_heads % found:
        near = nearest_divisor(num_heads, found)
        fail(
            f"num_kv_heads must divide num_heads, got num_kv_heads={found} and {num_heads=}; "
            f"the nearest that does is {near}"
        )
    return found


def head_size(embed_dim: int, num_heads: int, given: int) -> int:
    """Return the size of a head: what is given, or where that is 0, embed_dim / num_heads.

    Raises:
        TypeError, ValueError: it is no such number, or 0 where num_heads does not divide embed_dim.
    """
    size = integer("head_size", given, 0)
    if not size and embed_dim % num_heads:
        near = nearest_divisor(embed_dim, num_heads)
        fail(
            f"num_heads must divide embed_dim, got {num_heads=} and {embed_dim=}; the nearest "
            f"that does is {near}; or give heads a head_size of their own"
        )
    return size or embed_dim // num_heads


def even_head_size(embed_dim: int, num_heads: int, given: int) -> int:
    """Return the head size, which rotary positions need to be even; see `head_size`."""
    size = head_size(embed_dim, num_heads, given)
    if given and size % 2:
        fail(f"positions='rotary' turns pairs of columns, so head_size must be even, got {size}")
    if size % 2:
        near = 0 if embed_dim % 2 else nearest_divisor(embed_dim // 2, num_heads)
        advice = f"num_heads={near}, or " if near else ""
        fail(
            f"positions='rotary' turns pairs of columns, so embed_dim / num_heads must be even, "
            f"got embed_dim={embed_dim} and num_heads={num_heads}; take {advice}an embed_dim that "
            f"is a multiple of {2 * num_heads}"
        )
    return size


def choice(name: str, value: object, allowed: Collection[str]) -> str:
    """Return `value` if it is one of the allowed words; name the nearest one if it is not."""
    if isinstance(value, str) and value in allowed:
        return value
    lowered = {word.lower(): word for word in allowed}
    near = difflib.get_close_matches(str(value).lower(), list(lowered), n=1)
    hint = f"; did you mean {lowered[near[0]]!r}?" if near else ""
    words = ", ".join(repr(word) for word in allowed)
    error = InvalidValueError if isinstance(value, str) else InvalidTypeError
    raise error(f"{name} must be one of {words}, got {value!r}{hint}")


def known_keys(owner: str, given: Mapping[str, Any], allowed: Collection[str]) -> None:
    """Raise if a mapping has a key that is not allowed, naming the nearest one that is."""
    for key in given:
        if key not in allowed:
            near = difflib.get_close_matches(str(key), list(allowed), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(allowed))}"
            raise InvalidValueError(f"{owner} has no setting {key!r}; {hint}")


def from_settings(config_class: type[ConfigT], settings: Mapping[str, Any]) -> ConfigT:
    """Build a config dataclass from a mapping, for instance a table of `config.toml`.

    Lists become tuples, for TOML has no tuples. Unknown keys are an error that names the
    nearest known one.
    """
    fields = [field.name for field in dataclasses.fields(config_class)]  # type: ignore[arg-type]
    known_keys(config_class.__name__, settings, fields)
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    return config_class(**values)


def id_array(name: str, ids: Any) -> npt.NDArray[np.int64]:
    """Return ids as a new (N,) int64 array.

    Raises:
        TypeError: not integers, or not one-dimensional.
        ValueError: a negative id; the message tells the first and its place.
    """
    try:
        array = np.asarray(ids)
    except ValueError:
        raise InvalidTypeError(
            f"{name} must be one-dimensional integers, got {ids!r:.60}"
        ) from None
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise InvalidTypeError(
            f"{name} must be one-dimensional integers, got shape {array.shape} {array.dtype}"
        )
    if array.dtype.kind == "u" and array.size and array.max() > np.iinfo(np.int64).max:
        raise InvalidValueError(f"{name} must fit into int64, got {array.max()}")
    result = np.array(array, dtype=np.int64, order="C")
    if result.size and result.min() < 0:
        index = int(np.argmax(result < 0))
        raise InvalidValueError(f"{name} must be >= 0, got {result[index]} at index {index}")
    return result


def matrix(owner: str, name: str, x: Any, rows: int | None, columns: int, dtype: Any) -> None:
    """Raise unless x is a C-contiguous (rows, columns) array of the dtype."""
    if (
        type(x) is np.ndarray
        and x.ndim == 2
        and x.shape[1] == columns
        and (rows is None or x.shape[0] == rows)
        and x.dtype == dtype
        and x.flags.carray  # C-contiguous, aligned, writable
    ):
        return
    fits = isinstance(x, np.ndarray) and x.ndim == 2 and x.shape[1] == columns
    fits = fits and (rows is None or x.shape[0] == rows)
    _refuse(owner, name, x, fits, f"({'N' if rows is None else rows}, {columns})", dtype)


def same_shape(owner: str, name: str, x: Any, shape: tuple[int, ...], dtype: Any) -> None:
    """Raise unless x is a C-contiguous, writable array of a shape and dtype."""
    usual = type(x) is np.ndarray and x.shape == shape and x.ndim and x.dtype == dtype
    if usual and x.flags.carray:
        return
    if shape == () and isinstance(x, np.ndarray) and x.dtype == dtype:
        raise InvalidValueError(f"{owner}: {name} must have at least one axis, got shape ()")
    _refuse(owner, name, x, isinstance(x, np.ndarray) and x.shape == shape, str(shape), dtype)


def _refuse(owner: str, name: str, x: Any, fits: bool, shape: str, dtype: Any) -> NoReturn:
    wanted = f"{shape} {np.dtype(dtype)}"
    if not isinstance(x, np.ndarray):
        raise InvalidTypeError(f"{owner}: {name} must be an array {wanted}, got {x!r:.60}")
    if x.dtype != dtype:
        raise InvalidTypeError(
            f"{owner}: {name} must be {wanted}, got {x.shape} {x.dtype}; convert it with "
            f"{name}.astype(np.{np.dtype(dtype)}), or make the layer with dtype={str(x.dtype)!r}"
        )
    if not fits:
        raise InvalidValueError(f"{owner}: {name} must be {wanted}, got {x.shape} {x.dtype}")
    kind = "another layout" if type(x) is np.ndarray else f"a {type(x).__name__}"
    raise InvalidValueError(
        f"{owner}: {name} must be a C-contiguous, writable {wanted} array, got {kind}; "
        f"use np.array({name}, order='C')"
    )


def apart(
    owner: str, name: str, written: npt.NDArray[Any], **read: npt.NDArray[Any] | None
) -> None:
    """Raise where an array that is written shares memory with one that is still read."""
    for other, array in read.items():
        if array is not None and np.may_share_memory(written, array):
            raise InvalidValueError(
                f"{owner}: {name} must not share memory with {other}, for one is written while the "
                f"other is read; use {name}.copy()"
            )


def one_of(owner: str, name: str, value: Any, allowed: Mapping[str, int]) -> None:
    """Raise unless a value is one of some named numbers."""
    if type(value) is not int or value not in allowed.values():
        words = ", ".join(f"{word} ({number})" for word, number in allowed.items())
        error = InvalidValueError if type(value) is int else InvalidTypeError
        raise error(f"{owner}: {name} must be one of {words}, got {value!r:.60}")


def indices(name: str, given: Any, count: int) -> npt.NDArray[np.int64]:
    """Return (any,) indices from 0 to count - 1, at least one, as a new int64 array.

    Raises:
        TypeError: not integers, or not one-dimensional.
        ValueError: none, or one that is negative or too large.
    """
    if type(given) is np.ndarray and given.dtype == np.int64 and given.ndim == 1 and given.size:
        array = np.array(given)
        if array.view(np.uint64).max() < count:  # a negative one is a large one
            return array
    array = np.asarray(given)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise InvalidTypeError(
            f"{name} must be one-dimensional integers, got shape {array.shape} {array.dtype}"
        )
    if not array.size or array.min() < 0 or array.max() >= count:
        raise InvalidValueError(
            f"{name} must be numbers from 0 to {count - 1}, at least one, got "
            f"{array.tolist()[:8] if array.size else 'none'}"
        )
    return array.astype(np.int64)


def finite_result(what: str, computed: npt.NDArray[Any]) -> None:
    """Raise unless what a model computed are finite numbers.

    Args:
        what: their name, in the plural.    computed: of any shape.
    """
    if not np.isfinite(computed).all():
        fail(
            f"the {what} of this model are not finite numbers: its weights are damaged or too "
            "large; use another checkpoint, or train the model anew with a lower learning rate"
        )


def chosen_rows(owner: str, rows: Any, offsets: npt.NDArray[np.int64]) -> None:
    """Raise unless rows are (B,) int64, each a row of its own sequence."""
    wanted = f"({offsets.size - 1},) int64, one row of each sequence"
    if not isinstance(rows, np.ndarray) or rows.dtype != np.int64:
        given = rows.dtype if isinstance(rows, np.ndarray) else type(rows).__name__
        raise InvalidTypeError(f"{owner}: rows must be {wanted}, got {given}")
    same_shape(owner, "rows", rows, (offsets.size - 1,), np.int64)
    outside = (rows < offsets[:-1]) | (rows >= offsets[1:])
    if outside.any():
        b = int(np.argmax(outside))
        raise InvalidValueError(
            f"{owner}: rows must be {wanted}; sequence {b} has rows {offsets[b]} to "
            f"{offsets[b + 1] - 1}, got {rows[b]}"
        )


def names(name: str, given: Any) -> tuple[str, ...]:
    """Return a list or array of different names as a tuple.

    Raises:
        TypeError: no list of strings.    ValueError: none, or one that is there twice.
    """
    if isinstance(given, str) or not isinstance(given, Sequence | np.ndarray):
        raise InvalidTypeError(f"{name} must be a list of strings, got {given!r:.60}")
    seen: set[str] = set()
    for index, one in enumerate(given):
        if not isinstance(one, str):
            raise InvalidTypeError(
                f"{name} must be a list of strings, got {one!r:.60} at index {index}"
            )
        if one in seen:
            raise InvalidValueError(f"{name} must be different, got {one!r:.60} twice")
        seen.add(one)
    if not seen:
        raise InvalidValueError(f"{name} must be at least one string, got none")
    return tuple(map(str, given))


def _new_array(given: Any) -> npt.NDArray[Any]:
    """Return a new array of what is given, of objects where it is lists of several lengths."""
    try:
        return np.array(given)
    except ValueError:
        return np.array(given, object)


def class_weights(name: str, given: Any) -> npt.NDArray[np.float64]:
    """Return (V,) numbers >= 0 as a new float64 array that is read-only.

    Raises:
        TypeError: not numbers.    ValueError: another shape, or one < 0 or too large for float32.
    """
    array = _new_array(given)
    if array.dtype.kind not in "fiu":
        raise InvalidTypeError(f"{name} must be a list or array (V,) of numbers, got {given!r:.60}")
    if array.ndim != 1 or not array.size:
        raise InvalidValueError(f"{name} must be (V,), a number for each class, got {array.shape}")
    outside = ~((array >= 0) & (array <= np.finfo(np.float32).max))
    if outside.any():
        index = int(np.argmax(outside))
        raise InvalidValueError(
            f"{name} must be finite numbers >= 0, got {array[index]} for class {index}"
        )
    weights = array.astype(np.float64)
    weights.flags.writeable = False
    return weights


def numbers(name: str, given: Any, count: int, dtype: Any) -> npt.NDArray[Any]:
    """Return so many finite numbers as a new array of a dtype.

    Raises:
        TypeError: not numbers.    ValueError: another shape, or one that is not finite.
    """
    array = _new_array(given)
    if array.dtype.kind not in "fiu":
        raise InvalidTypeError(f"{name} must be ({count},) numbers, got {given!r:.60}")
    if array.shape != (count,):
        raise InvalidValueError(f"{name} must be ({count},) numbers, got {array.shape}")
    if not np.isfinite(array).all():
        raise InvalidValueError(f"{name} must be finite, got {array[~np.isfinite(array)][0]}")
    return array.astype(dtype)


def target_array(owner: str, targets: Any, rows: int | None = None) -> npt.NDArray[np.int64]:
    """Return targets, a list or array of integers, as a new (rows,) int64 array.

    Raises:
        TypeError: not integers.    ValueError: another shape, or one that int64 has not.
    """
    shape = f"({'N' if rows is None else rows},)"
    try:
        array = np.asarray(targets)
    except ValueError:
        array = np.array(targets, object)
    if array.size and array.dtype.kind not in "iu":
        given = f"{targets!r:.60}" if array.dtype.kind == "O" else array.dtype
        raise InvalidTypeError(
            f"{owner}: targets must be an integer array or list {shape}, got {given}"
        )
    if array.ndim != 1 or rows not in (None, array.size):
        raise InvalidValueError(
            f"{owner}: targets must be {shape}, one for each row of logits, got {array.shape}"
        )
    ids = np.array(array, np.int64)
    if array.dtype.kind == "u" and (ids < 0).any():
        raise InvalidValueError(f"{owner}: targets must fit into int64, got {array.max()}")
    return ids


def target_ids(
    owner: str, targets: Any, rows: int, classes: int, ignored: int
) -> tuple[npt.NDArray[np.int64], int]:
    """Return targets as a new (rows,) int64 array, and how many are not to be ignored.

    A copy: kernels write by these ids, so nobody may change them after the check.

    Raises:
        TypeError: not integers.
        ValueError: another number of them, or one that is neither below `classes` nor `ignored`.
    """
    ids = target_array(owner, targets, rows)
    # Seen as unsigned, a negative id is a large one: the usual case takes one look, by the method
    # that reads the least code into caches which kernels have emptied.
    if rows:
        unsigned = ids.view(np.uint64)
        if unsigned[unsigned.argmax()] < classes:
            return ids, rows
    counted = ids != ignored
    outside = counted & ((ids < 0) | (ids >= classes))
    if outside.any():
        index = int(np.argmax(outside))
        raise InvalidValueError(
            f"{owner}: targets must be from 0 to {classes - 1}, or {ignored} to be ignored, "
            f"got {ids[index]} at index {index}"
        )
    return ids, int(np.count_nonzero(counted))


def instance(owner: str, name: str, value: Any, *kinds: type) -> None:
    """Raise unless a value is of one of some classes."""
    if not isinstance(value, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise InvalidTypeError(
            f"{owner}: {name} must be a {wanted}, got {type(value).__name__}: {value!r:.60}"
        )


def fitting_arrays(
    owner: str, name: str, owned: Mapping[str, npt.NDArray[Any]], given: Any
) -> dict[str, npt.NDArray[Any]]:
    """Return given arrays by name, in the dtype of the owned ones; raise unless all of them fit.

    Args:
        owner: whose they are, such as "Transformer".    name: what they are: "weights" or "state".
        owned: name to the array that is to be replaced.    given: name to array.

    Raises:
        TypeError: not a mapping, or an array that is not of floats.
        ValueError: a name that is missing or unknown, another shape, or a value that is not finite.
    """
    if not isinstance(given, Mapping):
        raise InvalidTypeError(
            f"{owner}: {name} must be a mapping of name to array, got {type(given).__name__}"
        )
    missing, unknown = sorted(owned.keys() - given.keys()), sorted(map(str, given.keys() - owned))
    if missing or unknown:
        raise InvalidValueError(
            f"{name} must fit this {owner}: "
            f"missing {missing[:4] or 'none'}, unknown {unknown[:4] or 'none'}"
        )
    arrays: dict[str, npt.NDArray[Any]] = {}
    for key, own in owned.items():
        array = np.asarray(given[key])
        if array.dtype.kind != "f":
            raise InvalidTypeError(f"{name}: {key!r} must be floats, got {array.dtype}")
        if array.shape != own.shape:
            raise InvalidValueError(f"{name}: {key!r} must be {own.shape}, got {array.shape}")
        with np.errstate(over="ignore"):
            arrays[key] = array.astype(own.dtype)
        finite = np.isfinite(arrays[key])
        if not finite.all():
            index = tuple(int(i) for i in np.argwhere(~finite)[0])
            raise InvalidValueError(
                f"{name}: {key!r} must be finite everywhere in {own.dtype}, got {array[index]} at "
                f"index {index}"
            )
    return arrays
