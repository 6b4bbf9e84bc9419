"""What a person may choose for any suite of measurements."""

import difflib
from dataclasses import dataclass
from typing import Any

from fastformer.backend import OPS
from fastformer.bench.processes import Report, run_worker
from fastformer.errors import InvalidValueError

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
    job = {
        "task": "fastformer.bench.machine:measure",
        "seconds": min(MACHINE_SECONDS, 5 * options.seconds),
    }
    return run_worker("numba", job, options.threads)


def resolve_ops(name: str) -> tuple[str, ...]:
    """Return the ops that a name stands for: an op, or a file of kernels and all its ops.

    Raises:
        ValueError: neither; the message names the nearest.
    """
    every = [op for ops in OPS.values() for op in ops]
    # A file may have the name of one of its ops: then it is the file that is meant.
    if name in OPS:
        return OPS[name]
    if name in every:
        return (name,)
    known = [*OPS, *every]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"kernel files: {', '.join(OPS)}"
    raise InvalidValueError(f"there is no op or kernel file {name!r}; {hint}")


def resolve_op(name: str) -> str:
    """Return the one op that a name stands for; a file with a forward op stands for that.

    Raises:
        ValueError: unknown, or a file whose ops are all alike; the message names them.
    """
    ops = resolve_ops(name)
    if name in ops:
        return name
    if f"{name}_forward" in ops:
        return f"{name}_forward"
    if len(ops) == 1:
        return ops[0]
    raise InvalidValueError(f"{name!r} stands for several ops; say which: {', '.join(ops)}")


def parse_shape(text: str) -> tuple[int, ...]:
    """Read for instance `512x384`.

    Raises:
        ValueError: not whole numbers >= 1 with an x between them.
    """
    parts = text.lower().split("x")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InvalidValueError(
            f"a shape is whole numbers >= 1 with an x between them, such as 512x384, got {text!r}"
        )
    return tuple(int(part) for part in parts)
