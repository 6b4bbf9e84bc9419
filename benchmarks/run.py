"""A whole measurement of any suite: choose, measure, keep rows and pictures."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks import ranks_suite, scaling, step_suite, targets, text_suite
from benchmarks.systems import PEER_PACKAGES, PEERS, SYSTEMS, choose_systems
from fastformer import checks
from fastformer.bench import run
from fastformer.bench.environment import describe
from fastformer.bench.options import Options, Outcome
from fastformer.bench.processes import Report
from fastformer.errors import InvalidValueError

# Turns of whole processes, seconds for each case in each, and the systems, unless chosen.
_DEFAULTS: dict[str, tuple[int, float, tuple[str, ...]]] = {
    "kernels": (3, 0.05, tuple(SYSTEMS)),
    "steps": (5, 0.6, tuple(SYSTEMS)),
    "targets": (5, 0.6, ("numba", *PEERS)),
    "scaling": (3, 0.4, ("numba",)),
    "text": (3, 0.6, ("numba",)),
    "ranks": (3, 0.6, ("numba",)),
}


@dataclass(frozen=True, kw_only=True)
class Request(run.Request):
    """What the command line was given; None and () stand for the suite's own choice."""

    suite: Literal["kernels", "steps", "targets", "scaling", "text", "ranks"] = field(
        default="kernels",
        metadata=run.option_help(
            "single kernels, whole training steps, the project's targets, how cost grows, "
            "work on text, or processes that train together"
        ),
    )
    systems: tuple[str, ...] = field(
        default=(),
        metadata=run.option_help(
            f"some of {', '.join(SYSTEMS)} (numba-1: one thread; compile: torch.compile); "
            "without it, all that are installed"
        ),
    )
    repeats: int | None = field(
        default=None,
        metadata=run.option_help("turns of whole processes: 5 for steps and targets, else 3"),
    )


def measure(request: Request, report: Report) -> tuple[Outcome, dict[str, Any]]:
    """Run a suite.

    Returns:
        What was found, and the environment it was found in.

    Raises:
        FastformerError: a mistake in what was given, a kernel or a system that computes something
            else, or a process that failed.
    """
    checks.choice("suite", request.suite, tuple(_DEFAULTS))
    chosen = (request.only, request.kernel, *request.shapes)
    if request.suite != "kernels" and any(chosen):
        raise InvalidValueError(
            f"--only, --shapes, --kernel and --against choose among kernels; the suite "
            f"{request.suite!r} has none to choose from"
        )
    if request.suite in ("targets", "scaling", "text", "ranks") and request.systems:
        raise InvalidValueError(f"the suite {request.suite!r} has its own systems")
    repeats, seconds, usual = _DEFAULTS[request.suite]
    if request.kernel:
        usual = ("reference", "numba")
    systems, missing = choose_systems(request.systems or None, usual)
    options = run.read_request(
        request, report, systems=tuple(systems), repeats=repeats, seconds=seconds
    )
    for line in missing:
        report(line)
    environment = describe(options.threads, *PEER_PACKAGES)
    run.warn_if_busy(environment, report)
    return _suite(request.suite, options), environment


def _suite(name: str, options: Options) -> Outcome:
    """Measure one suite."""
    if name == "kernels":
        from fastformer.bench import kernel_suite  # it imports Numba, which others do without

        return kernel_suite.run(options, "benchmarks.kernel_jobs:time_kernels")
    suites = {
        "steps": step_suite.run, "targets": targets.run, "scaling": scaling.run,
        "text": text_suite.run, "ranks": ranks_suite.run,
    }  # fmt: skip
    return suites[name](options)


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
    from benchmarks import pictures

    if suite == "kernels":
        written: list[Path | None] = [*run.keep(outcome, environment, directory)]
    else:
        written = [run.keep_rows(suite, outcome, environment, directory)]
    if suite == "scaling":
        written.append(pictures.scaling_picture(outcome.rows, directory / "scaling.png"))
    elif suite != "ranks":
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
            f"{path} is not a file of rows that `--out` wrote: {error}"
        ) from error
    return lines[1:], environment
