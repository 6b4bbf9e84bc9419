"""A whole measurement: choose, measure, keep rows and pictures."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fastformer import checks
from fastformer.bench import kernel_suite, scaling, step_suite, targets
from fastformer.bench.cases import parse_shape, resolve_op, resolve_ops
from fastformer.bench.environment import (
    PEERS,
    SYSTEMS,
    choose_systems,
    describe,
    thread_count,
)
from fastformer.bench.options import Options, Outcome
from fastformer.bench.processes import Report, run_worker
from fastformer.bench.workloads import WORKLOADS
from fastformer.errors import InvalidValueError
from fastformer.training.json_text import finite

SUITES = {
    "kernels": kernel_suite.run,
    "steps": step_suite.run,
    "targets": targets.run,
    "scaling": scaling.run,
}
# Turns of whole processes, seconds for each case in each, and the systems, unless chosen.
_DEFAULTS: dict[str, tuple[int, float, tuple[str, ...]]] = {
    "kernels": (3, 0.05, tuple(SYSTEMS)),
    "steps": (5, 0.6, tuple(SYSTEMS)),
    "targets": (5, 0.6, ("numba", *PEERS)),
    "scaling": (3, 0.4, ("numba",)),
}


# The share of the machine that other programs use, from which on times mean little.
BUSY = 0.25


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the command line was given; None and () stand for the suite's own choice."""

    suite: Literal["kernels", "steps", "targets", "scaling"] = field(
        default="kernels",
        metadata=_help(
            "single kernels, whole training steps, the project's targets, or how cost grows"
        ),
    )
    only: str | None = field(
        default=None,
        metadata=_help("a kernel file such as layernorm, or one op such as layernorm_backward"),
    )
    shapes: tuple[str, ...] = field(
        default=(),
        metadata=_help("in place of the table's, such as 512x384; the axes are those of the op"),
    )
    systems: tuple[str, ...] = field(
        default=(),
        metadata=_help(
            f"some of {', '.join(SYSTEMS)} (numba-1: one thread; compile: torch.compile); "
            "without it, all that are installed"
        ),
    )
    repeats: int | None = field(
        default=None,
        metadata=_help("turns of whole processes: 3 for kernels and scaling, else 5"),
    )
    seconds: float | None = field(
        default=None, metadata=_help("measured for each case in each process")
    )
    threads: int | None = field(
        default=None,
        metadata=_help("of every system; without it, as many as machine or container allow"),
    )
    kernel: str | None = field(
        default=None,
        metadata=_help("a kernel of your own, my_module:my_layernorm, to be timed beside ours"),
    )
    against: str | None = field(
        default=None, metadata=_help("the op that it replaces, such as layernorm_forward")
    )


def read_request(request: Request, report: Report) -> Options:
    """Check what was given, and fill in the rest.

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
    chosen = (request.only, request.kernel, *request.shapes)
    if request.suite != "kernels" and any(chosen):
        raise InvalidValueError(
            f"--only, --shapes, --kernel and --against choose among kernels; the suite "
            f"{request.suite!r} has none to choose from"
        )
    repeats, seconds, systems = _DEFAULTS[request.suite]
    if request.kernel and not request.systems:
        systems = ("reference", "numba")
    if request.suite in ("targets", "scaling") and request.systems:
        raise InvalidValueError(f"the suite {request.suite!r} has its own systems")
    measured, missing = choose_systems(request.systems or None, systems)
    for line in missing:
        report(line)
    return Options(
        threads=thread_count(request.threads),
        repeats=checks.integer(
            "repeats", repeats if request.repeats is None else request.repeats, 1
        ),
        seconds=checks.number(
            "seconds", seconds if request.seconds is None else request.seconds, above=0
        ),
        systems=tuple(measured),
        report=report,
        ops=None if request.only is None else resolve_ops(request.only),
        shapes=tuple(parse_shape(text) for text in request.shapes),
        kernel=request.kernel,
        against=None if request.against is None else resolve_op(request.against),
    )


def measure(request: Request, report: Report) -> tuple[Outcome, dict[str, Any]]:
    """Run a suite.

    Returns:
        What was found, and the environment it was found in.

    Raises:
        FastformerError: a mistake in what was given, a kernel that is not equal to its twin, or
            a process that failed.
    """
    checks.choice("suite", request.suite, tuple(SUITES))
    options = read_request(request, report)
    environment = describe(options.threads)
    if environment["busy"] > BUSY:
        report(
            f"warning: other programs use {environment['busy']:.0%} of this machine; parallel "
            "regions then wait for milliseconds, and times mean little"
        )
    return SUITES[request.suite](options), environment


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
    return run_worker(
        "numba", {"kind": "profile", "workload": workload, "seconds": seconds}, threads
    )


def keep(
    suite: str, outcome: Outcome, environment: Mapping[str, Any], directory: Path
) -> list[Path]:
    """Write the rows as JSON lines, and the pictures.

    Args:
        suite: its name.    outcome: what it found.    environment: where.
        directory: made if it is not there; a suite's own files in it are replaced.

    Returns:
        The files.
    """
    from fastformer.bench import pictures

    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{suite}.jsonl"
    lines = [{"suite": "environment", **environment, "machine": outcome.machine}, *outcome.rows]
    path.write_text("".join(f"{json.dumps(finite(line))}\n" for line in lines), encoding="utf-8")
    written: list[Path | None] = [path]
    if suite == "kernels":
        written.append(pictures.roofline(outcome.rows, outcome.machine, directory / "roofline.png"))
    if suite == "scaling":
        written.append(pictures.scaling_picture(outcome.rows, directory / "scaling.png"))
    else:
        written.append(pictures.ratio_bars(outcome.rows, directory / f"{suite}-ratios.png"))
    return [path for path in written if path is not None]


def read_rows(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Read what `keep` wrote.

    Returns:
        The rows, and the environment they were measured in.

    Raises:
        ValueError: not such a file.
    """
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        environment = lines[0]
        if environment["suite"] != "environment":
            raise KeyError("environment")
    except (OSError, ValueError, IndexError, KeyError, TypeError) as error:
        raise InvalidValueError(
            f"{path} is not a file of rows that `fastformer bench --out` wrote: {error}"
        ) from error
    return lines[1:], environment
