"""`fastformer bench`: what kernels and training steps cost, beside other systems."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from fastformer.bench import run, tables
from fastformer.bench.options import Outcome
from fastformer.cli import console

_SWITCH = Parameter(negative=(), show_default=False)


def bench(
    *,
    request: Annotated[
        run.Request | None, Parameter(name="*", consume_multiple=True, show_default=False)
    ] = None,
    profile: str | None = None,
    out: Path | None = None,
    markdown: Annotated[bool, _SWITCH] = False,
    json: Annotated[bool, _SWITCH] = False,
) -> None:
    """Measure kernels or whole training steps. What is not equal to its NumPy twin is not timed.

    Every system runs in processes of its own, which alternate. Times are medians; ratios are
    given with the lowest and the highest of the turns.

    Args:
        profile: P1, P2, P4 or P5: show where this training step's time goes, and nothing else.
        out: directory for the rows (JSON lines) and pictures (PNG).
        markdown: write the table as markdown.
        json: write one JSON object, the last line of standard output.
    """
    request = request or run.Request()
    if profile is not None:
        _profile(profile, request, json)
        return
    outcome, environment = run.measure(request, console.notice)
    files = run.keep(request.suite, outcome, environment, out) if out is not None else []
    for path in files:
        console.notice(f"wrote {path}")
    if json:
        found = {
            "suite": request.suite,
            "environment": environment,
            "machine": outcome.machine,
            "rows": outcome.rows,
            "files": [str(path) for path in files],
        }
        console.json_line(found)
    elif markdown:
        console.line(tables.markdown_table(request.suite, outcome.rows, environment))
    else:
        _show(request.suite, outcome, environment)


def _profile(workload: str, request: run.Request, json: bool) -> None:
    """Show where a training step's time goes."""
    found = run.profile(workload, request, console.notice)
    if json:
        console.json_line(found)
        return
    for text in tables.profile_lines(workload, found):
        console.line(text)


def _show(suite: str, outcome: Outcome, environment: dict[str, Any]) -> None:
    """Write the machine's limits and the table for a person."""
    for text in tables.machine_lines(outcome.machine):
        console.line(text)
    console.line()
    for text in tables.text_table(suite, outcome.rows):
        console.line(text)
    console.line()
    console.line(tables.environment_text(environment))
