"""Which examples are trained on, and which are kept apart: never the same input on two sides."""

from collections.abc import Hashable, Sequence
from typing import Final

from fastformer.random import generator

TRAIN: Final = "train"
VALIDATION: Final = "validation"
TEST: Final = "test"
FEWEST: Final[int] = 3
"""Distinct inputs of a group, below which all of them are trained on."""


def part_sizes(count: int, validation_fraction: float, test_fraction: float) -> tuple[int, int]:
    """Return how many of `count` distinct inputs validation and test get.

    With three or more, no part gets none; with fewer, all are trained on.
    """
    if count < FEWEST:
        return 0, 0
    validation = min(max(1, round(count * validation_fraction)), count - 2)
    return validation, min(max(1, round(count * test_fraction)), count - 1 - validation)


def held_out(
    inputs: Sequence[Hashable],
    groups: Sequence[Hashable],
    sizes: Sequence[tuple[int, int]],
    seed: int,
    stream: str,
) -> dict[Hashable, str]:
    """Return the inputs that are not trained on, each with its part, "validation" or "test".

    Args:
        inputs: distinct ones.    groups: that of each; every part has its share of each group.
        sizes: (validation, test) of each group, in the order in which groups first appear.
        seed, stream: the same ones give the same parts.
    """
    members: dict[Hashable, list[Hashable]] = {}
    for one, group in zip(inputs, groups, strict=True):
        members.setdefault(group, []).append(one)
    found: dict[Hashable, str] = {}
    for index, (own, (validation, test)) in enumerate(zip(members.values(), sizes, strict=True)):
        order = generator(seed, stream, index).permutation(len(own))
        for place in order[:validation]:
            found[own[place]] = VALIDATION
        for place in order[validation : validation + test]:
            found[own[place]] = TEST
    return found
