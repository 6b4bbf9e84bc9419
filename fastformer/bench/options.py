"""What a person may choose for any suite of measurements."""

from dataclasses import dataclass
from typing import Any

from fastformer.bench.processes import Report, run_worker

MACHINE_SECONDS = 0.1
Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """The choices.

    Attributes:
        threads: of every system but the single-threaded one.
        repeats: turns of whole processes.    seconds: measured for each case in each process.
        systems: which to measure.    ops: names of ops, or None for all.
        shapes: in place of the table's.
        kernel, against: the user's own kernel, module:function, and the op that it replaces.
        report: is told what is going on, line by line.
    """

    threads: int
    repeats: int
    seconds: float
    systems: tuple[str, ...]
    report: Report
    ops: tuple[str, ...] | None = None
    shapes: tuple[tuple[int, ...], ...] = ()
    kernel: str | None = None
    against: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What a suite found.

    Attributes:
        rows: one for each measured thing.    machine: the machine's measured limits, or {}.
    """

    rows: list[Row]
    machine: dict[str, Any]


def measured_machine(options: Options) -> dict[str, Any]:
    """Return the machine's limits, measured in a process of its own."""
    options.report("measuring the machine")
    job = {"kind": "machine", "seconds": min(MACHINE_SECONDS, 5 * options.seconds)}
    return run_worker("numba", job, options.threads)
