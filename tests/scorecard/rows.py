"""What a row of the scorecard is, and how its measurement is counted."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

Tier = Literal["fast", "nightly"]


@dataclass(frozen=True)
class Finding:
    """What a measurement of a row found.

    Attributes:
        held: how many cases kept the promise.    cases: how many there were.
        planted: how many planted faults were noticed, of `plants`; a check that finds none of
            them proves nothing.
        number: the measured number where the promise is one, for instance "geomean 0.61".
        failures: a line about each of the first few cases that did not hold.
    """

    held: int
    cases: int
    planted: int
    plants: int
    number: str = ""
    failures: tuple[str, ...] = ()

    @property
    def reached(self) -> bool:
        """Whether every case held and every planted fault was noticed, and there were some."""
        return self.held == self.cases > 0 and self.planted == self.plants > 0


@dataclass(frozen=True)
class Row:
    """One promise.

    Attributes:
        name: such as "B4".    promise: in a few words.    target: what must be reached.
        measure: takes the tier, "fast" or "nightly", which decides how many cases there are.
        alone: whether it uses several threads, which other rows beside it would stall.
    """

    name: str
    promise: str
    target: str
    measure: Callable[[Tier], Finding]
    alone: bool = False


@dataclass(frozen=True)
class Measured:
    """A row with what was found, how long it took, and what CPUs took, all processes together."""

    row: Row
    finding: Finding
    seconds: float
    cpu_seconds: float


def measure(row: Row, tier: Tier) -> Measured:
    """Measure a row."""
    started, before = time.perf_counter(), os.times()
    finding = row.measure(tier)
    seconds, after = time.perf_counter() - started, os.times()
    # User and system time, of this process and of those that it made.
    return Measured(row, finding, seconds, sum(after[:4]) - sum(before[:4]))


Case = TypeVar("Case")


class Outcome(Protocol):
    """What came of a case."""

    @property
    def problems(self) -> Sequence[str]:
        """What is wrong, if anything."""


def failures_of(outcomes: Iterable[tuple[str, Outcome]]) -> tuple[str, ...]:
    """Return a line for each outcome, given with what its case is called, that has a problem."""
    return tuple(
        f"{name}: {'; '.join(outcome.problems)}" for name, outcome in outcomes if outcome.problems
    )


def shows(pool: Executor, act: Callable[[Case], Outcome], cases: Sequence[Case]) -> bool:
    """Tell whether any case has a problem; they are tried two at a time, until one has."""
    pairs = (cases[first : first + 2] for first in range(0, len(cases), 2))
    return any(outcome.problems for pair in pairs for outcome in list(pool.map(act, pair)))
