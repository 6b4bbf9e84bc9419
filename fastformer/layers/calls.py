"""Calls of kernels that are made later, in order.

Kernels empty the caches of what Python needs, which then takes up to twenty times as long. So
where layers follow each other, Python does all that it has to do before the first kernel runs.
Where a layer says `calls`, that is where its kernels' calls are put; without it they are made at
once, as those of layers are that know nothing of it.
"""

from collections.abc import Callable
from typing import Any

from fastformer.parameters import Array

# Kernels, each with its arguments.
Calls = list[tuple[Callable[..., Any], tuple[Any, ...]]]


def call(calls: Calls | None, function: Callable[..., Any], *arguments: Any) -> None:
    """Call a kernel, or put the call behind those that are made later."""
    if calls is None:
        function(*arguments)
    else:
        calls.append((function, arguments))


def make(calls: Calls, result: Array) -> Array:
    """Make the calls, after which there are none, and return where their result is."""
    for function, arguments in calls:
        function(*arguments)
    calls.clear()
    return result
