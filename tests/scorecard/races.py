"""Races: the turns of every `prange`, in plain Python, in many orders that must give one result."""

import importlib
import random
import sys
from types import FunctionType
from typing import Any

import numpy as np
from twins import Out

from fastformer.backend import OPS, get_backend
from fastformer.kernels import _compile
from tests.scorecard import planted_kernels
from tests.scorecard.kernel_calls import DRAWS
from tests.scorecard.memory_child import arguments_of

# What is one task for the compiled kernels is cut into many here.
SMALL_TASKS = {
    "_blocks": {"TASK_SIZE": 1 << 9}, "_rows": {"TASK_ELEMENTS": 16},
    "attention": {"TASK_SIZE": 8}, "activation": {"CHUNK": 32}, "adam": {"CHUNK": 32},
    "dropout": {"CHUNK": 32}, "gradient": {"CHUNK": 32, "SCALAR_BLOCK": 32}, "sgd": {"CHUNK": 32},
    "moving_average": {"CHUNK": 32},
}  # fmt: skip


class Order:
    """Shuffles the turns of each loop, and remembers the loops and how many turns they had."""

    def __init__(self) -> None:
        """Begin without a loop."""
        self.random, self.turns = random.Random(0), 0
        self.most: dict[str, int] = {}

    def shuffle(self, turns: list[int]) -> None:
        """Put the turns of the loop that asks into another order."""
        loop = sys._getframe(2).f_code
        name = f"{loop.co_filename.rpartition('/')[2]}:{loop.co_name}"
        self.most[name] = max(self.most.get(name, 0), len(turns))
        self.turns = len(turns)
        self.random.shuffle(turns)


def results(function: Any, given: tuple[Any, ...]) -> list[bytes]:
    """Call a kernel on fresh arguments; return the bytes of all its arrays and of its result."""
    arguments = arguments_of(given, np.float32, lambda slot, values: np.array(values))
    found = function(*arguments)
    arrays = [a for a in arguments if isinstance(a, np.ndarray)]
    return [a.tobytes() for a in (*arrays, np.asarray(0 if found is None else found))]


def patterns(function: Any, given: tuple[Any, ...], order: Order, shuffles: int) -> int:
    """Return how many different results the orders give."""
    found = set()
    for seed in range(shuffles):
        order.random.seed(seed)
        found.add(tuple(results(function, given)))
    return len(found)


def all_loops() -> set[str]:
    """Return the names of all functions of the kernels that have a `prange`."""
    return {
        f"{stem}.py:{name}"
        for stem in OPS
        for name, value in vars(importlib.import_module(f"fastformer.kernels.{stem}")).items()
        if isinstance(value, FunctionType)
        and value.__module__ == f"fastformer.kernels.{stem}"
        and "prange" in value.__code__.co_names
    }


def shuffled(cases: int, shuffles: int) -> dict[str, Any]:
    """Run each kernel on so many cases of at least three turns, in so many orders each."""
    if _compile.BUILD != "python":
        raise RuntimeError("set FASTFORMER_BUILD=python: compiled loops keep their order")
    for stem, constants in SMALL_TASKS.items():
        vars(importlib.import_module(f"fastformer.kernels.{stem}")).update(constants)
    order, ops, failures, held = Order(), get_backend("numba"), [], 0
    vars(_compile)["ORDER"] = order
    for name, draw in DRAWS.items():
        function, done, number = getattr(ops, name), 0, 0
        while done < cases and number < 100 * cases:
            given = draw(np.random.default_rng((11, number)))
            number += 1
            order.turns = 0
            results(function, given)
            if order.turns < 3:
                continue
            done += 1
            count = patterns(function, given, order, shuffles)
            held += count == 1
            failures += [f"{name}, case {number}: {count} results"] if count > 1 else []
    seen = {loop for loop, turns in order.most.items() if turns > 2}
    failures += [f"{loop} never had three turns" for loop in sorted(all_loops() - seen)]
    x, out = np.random.default_rng(0).standard_normal((2, 50))
    races = [
        patterns(getattr(planted_kernels, name), (x, Out(out.shape, out)), order, shuffles) > 1
        for name in planted_kernels.RACES
    ]
    races.append(patterns(planted_kernels.clean, (x, Out(out.shape, out)), order, shuffles) == 1)
    return {
        **{"held": held - len(all_loops() - seen), "cases": len(DRAWS) * cases},
        **{"loops": len(all_loops()), "plants": len(races), "planted": sum(races)},
        "failures": failures,
    }
