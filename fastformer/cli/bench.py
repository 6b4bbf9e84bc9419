"""`fastformer bench`: what kernels cost, and where a training step's time goes."""

from collections.abc import Sequence
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
    """Measure kernels beside NumPy. What is not equal to its NumPy twin is not timed.

    Every system runs in processes of its own, which alternate. Times are medians; ratios are
    given with the lowest and the highest of the turns.

    Args:
        profile: P1, P2, P4 or P5: show where this training step's time goes, and nothing else.
        out: directory for the rows (JSON lines) and a picture (PNG).
        markdown: write the table as markdown.
        json: write one JSON object, the last line of standard output.
    """
    request = request or run.Request()
    if profile is not None:
        _profile(profile, request, json)
        return
    outcome, environment = run.measure(request, console.notice)
    files = run.keep(outcome, environment, out) if out is not None else []
    table = tables.kernel_cells(outcome.rows)
    show("kernels", outcome, environment, table, files, markdown=markdown, json=json)


def _profile(workload: str, request: run.Request, json: bool) -> None:
    """Show where a training step's time goes."""
    found = run.profile(workload, request, console.notice)
    if json:
        console.json_line(found)
        return
    for text in tables.profile_lines(workload, found):
        console.line(text)


def show(
    suite: str,
    outcome: Outcome,
    environment: dict[str, Any],
    table: tables.Table,
    files: Sequence[Path],
    *,
    markdown: bool,
    json: bool,
) -> None:
    """Write what a suite found: as JSON, as markdown, or with the machine's limits for a person."""
    for path in files:
        console.notice(f"wrote {path}")
    if json:
        found = {
            "suite": suite,
            "environment": environment,
            "machine": outcome.machine,
            "rows": outcome.rows,
            "files": [str(path) for path in files],
        }
        console.json_line(found)
    elif markdown:
        console.line(tables.markdown_table(table, environment))
    else:
        lines = [*tables.machine_lines(outcome.machine), "", *tables.text_table(table), ""]
        for text in [*lines, tables.environment_text(environment)]:
            console.line(text)
