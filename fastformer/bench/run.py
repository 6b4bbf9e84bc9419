"""A whole measurement: choose, measure, keep rows and a picture."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastformer import checks
from fastformer.bench.environment import SYSTEMS, describe, thread_count
from fastformer.bench.options import Options, Outcome, parse_shape, resolve_op, resolve_ops
from fastformer.bench.processes import Report, run_worker
from fastformer.bench.workloads import WORKLOADS
from fastformer.errors import InvalidValueError
from fastformer.training.json_text import finite

# The share of the machine that other programs use, from which on times mean little.
BUSY = 0.25


def option_help(text: str) -> dict[str, str]:
    """Return the metadata of a field that is an option of a command."""
    return {"help": text}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the command line was given; None and () stand for the suite's own choice."""

    only: str | None = field(
        default=None,
        metadata=option_help("a kernel file such as layernorm, or one op such as matmul_nt"),
    )
    shapes: tuple[str, ...] = field(
        default=(),
        metadata=option_help(
            "in place of the table's, such as 512x384; the axes are those of the op"
        ),
    )
    systems: tuple[str, ...] = field(
        default=(),
        metadata=option_help(
            f"some of {', '.join(SYSTEMS)} (numba-1: one thread); without it, all"
        ),
    )
    repeats: int | None = field(
        default=None, metadata=option_help("turns of whole processes; without it, 3")
    )
    seconds: float | None = field(
        default=None, metadata=option_help("measured for each case in each process")
    )
    threads: int | None = field(
        default=None,
        metadata=option_help("of every system; without it, as many as machine or container allow"),
    )
    kernel: str | None = field(
        default=None,
        metadata=option_help(
            "a kernel of your own, my_module:my_layernorm, to be timed beside ours"
        ),
    )
    against: str | None = field(
        default=None, metadata=option_help("the op that it replaces, such as layernorm_forward")
    )


def read_request(
    request: Request, report: Report, *, systems: tuple[str, ...], repeats: int, seconds: float
) -> Options:
    """Check what was given, and fill in the rest.

    Args:
        request: what was given.    report: is told what is going on.
        systems: which to measure.    repeats, seconds: unless given.

    Raises:
        ValueError: a value that is not allowed; the message names it.
    """
    if (request.kernel is None) != (request.against is None):
        raise InvalidValueError(
            "--kernel and --against go together: --kernel my_module:my_layernorm "
            "--against layernorm_forward"
        )
    if request.kernel and request.only:
        raise InvalidValueError("--kernel is measured on the cases of --against; leave out --only")
    return Options(
        threads=thread_count(request.threads),
        repeats=checks.integer(
            "repeats", repeats if request.repeats is None else request.repeats, 1
        ),
        seconds=checks.number(
            "seconds", seconds if request.seconds is None else request.seconds, above=0
        ),
        systems=systems,
        report=report,
        ops=None if request.only is None else resolve_ops(request.only),
        shapes=tuple(parse_shape(text) for text in request.shapes),
        kernel=request.kernel,
        against=None if request.against is None else resolve_op(request.against),
    )


def warn_if_busy(environment: Mapping[str, Any], report: Report) -> None:
    """Say where other programs use so much of the machine that times mean little."""
    if environment["busy"] > BUSY:
        report(
            f"warning: other programs use {environment['busy']:.0%} of this machine; parallel "
            "regions then wait for milliseconds, and times mean little"
        )


def measure(request: Request, report: Report) -> tuple[Outcome, dict[str, Any]]:
    """Measure kernels.

    Returns:
        What was found, and the environment it was found in.

    Raises:
        FastformerError: a mistake in what was given, a kernel that is not equal to its twin, or
            a process that failed.
    """
    for system in request.systems:
        checks.choice("each of systems", system, tuple(SYSTEMS))
    usual = ("reference", "numba") if request.kernel else tuple(SYSTEMS)
    options = read_request(
        request, report, systems=request.systems or usual, repeats=3, seconds=0.05
    )
    environment = describe(options.threads)
    warn_if_busy(environment, report)
    from fastformer.bench import kernel_suite  # it imports Numba, which `--help` can do without

    return kernel_suite.run(options), environment


def profile(workload: str, request: Request, report: Report) -> dict[str, Any]:
    """Find where a training step's time goes.

    Args:
        workload: P1, P2, P4 or P5.    request: of which threads and seconds count.
        report: is told what is going on.

    Raises:
        ValueError: an unknown workload, or a number that is not allowed.
    """
    checks.choice("profile", workload, tuple(WORKLOADS))
    seconds = 1.0 if request.seconds is None else request.seconds
    checks.number("seconds", seconds, above=0)
    threads = thread_count(request.threads)
    report(f"a step of {WORKLOADS[workload].title}, with a clock around each kernel")
    task = "fastformer.bench.profile:profile_step"
    return run_worker("numba", {"task": task, "workload": workload, "seconds": seconds}, threads)


def keep_rows(
    suite: str, outcome: Outcome, environment: Mapping[str, Any], directory: Path
) -> Path:
    """Write the rows as JSON lines.

    Args:
        suite: its name.    outcome: what it found.    environment: where.
        directory: made if it is not there; the suite's own file in it is replaced.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{suite}.jsonl"
    lines = [{"suite": "environment", **environment, "machine": outcome.machine}, *outcome.rows]
    path.write_text("".join(f"{json.dumps(finite(line))}\n" for line in lines), encoding="utf-8")
    return path


def keep(outcome: Outcome, environment: Mapping[str, Any], directory: Path) -> list[Path]:
    """Write the rows of kernels, and the roofline that they are below; return the files."""
    from fastformer.bench.roofline import roofline

    path = keep_rows("kernels", outcome, environment, directory)
    return [path, roofline(outcome.rows, outcome.machine, directory / "roofline.png")]
