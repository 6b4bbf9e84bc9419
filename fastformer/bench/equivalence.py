"""Equal first, fast second: a kernel is held to its NumPy twin before anything is timed.

The truth is the twin in float64. A float32 kernel may have twice the error of the float32 twin,
plus a few roundings. Errors are relative to the largest true value of an output.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fastformer.bench.spec import Case, Output, kernel_and_twin, realize
from fastformer.errors import FastformerError

ROUNDINGS = 8
Array = npt.NDArray[Any]


class NotEqualError(FastformerError):
    """A kernel that does not compute what its twin says; nothing is timed then."""


def _run(function: Callable[..., Any], case: Case, dtype: Any) -> dict[str, Array]:
    """Call on fresh arguments; return what is written or returned, by name."""
    given = case.given()
    arguments = realize(given, dtype)
    before = {name: _copy(value) for name, value in arguments.items()}
    result = function(*arguments.values())
    for name, value in arguments.items():
        changed = isinstance(value, np.ndarray) and not np.array_equal(
            value, before[name], equal_nan=value.dtype.kind == "f"
        )
        if changed and not isinstance(given[name], Output):
            raise NotEqualError(f"{case}: the input {name!r} was changed; nothing was timed")
    found = {name: arguments[name] for name, value in given.items() if isinstance(value, Output)}
    if result is not None:
        found["the result"] = np.asarray(result)
    return found


def _copy(value: Any) -> Any:
    return value.copy() if isinstance(value, np.ndarray) else value


def _errors(found: Array, truth: Array) -> Array:
    """Return each element's error, relative to the largest true value; NaN where one is NaN."""
    scale = float(np.max(np.abs(truth), initial=0.0)) or 1.0
    return np.abs(found.astype(np.float64) - truth) / scale


def check(case: Case, function: Callable[..., Any], name: str) -> None:
    """Hold a function with an op's signature to the op's twin.

    Args:
        case: the op and its inputs.    function: what is checked.    name: what to call it.

    Raises:
        NotEqualError: it writes something else, or changes an input. It says where.
    """
    _, twin = kernel_and_twin(case.op)
    truths = _run(twin, case, np.float64)
    twins = _run(twin, case, np.float32)
    try:
        found = _run(function, case, np.float32)
    except Exception as error:  # whatever a user's function raises, or its compiler
        raise NotEqualError(
            f"{name} cannot take the arguments of {case}: {type(error).__name__}: {error}; "
            "nothing was timed"
        ) from error
    for output, truth in truths.items():
        if output not in found:
            raise NotEqualError(f"{name}, {case}: it returns nothing; nothing was timed")
        if found[output].shape != truth.shape:
            raise NotEqualError(
                f"{name}, {case}: {output} must be of shape {truth.shape}, "
                f"got {found[output].shape}; nothing was timed"
            )
        errors = _errors(found[output], truth)
        limit = 2 * float(np.max(_errors(twins[output], truth), initial=0.0))
        limit += ROUNDINGS * float(np.finfo(np.float32).eps)
        # Not `errors > limit`: an error is NaN where a value is NaN that should not be.
        wrong = ~(errors <= limit)
        if wrong.any():
            _fail(case, name, output, found[output], truth, errors, wrong, limit)


def _fail(
    case: Case,
    name: str,
    output: str,
    found: Array,
    truth: Array,
    errors: Array,
    wrong: Array,
    limit: float,
) -> None:
    """Say where the largest error is, and how large."""
    worst = np.argmax(np.where(np.isnan(errors), np.inf, np.where(wrong, errors, -1.0)))
    place = [int(i) for i in np.unravel_index(worst, truth.shape)]
    at = f"{output}[{', '.join(map(str, place))}]" if place else output
    raise NotEqualError(
        f"{name} is not equal to the NumPy twin of {case}: {at} is "
        f"{found.reshape(-1)[worst]:.7g} and should be {truth.reshape(-1)[worst]:.7g}; error "
        f"{errors.reshape(-1)[worst]:.2g}, allowed {limit:.2g}, {int(wrong.sum()):,} of "
        f"{wrong.size:,} elements are wrong; nothing was timed"
    )
