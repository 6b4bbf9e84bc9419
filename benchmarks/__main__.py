"""The project's own tables, from a checkout: `python -m benchmarks --suite steps`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from benchmarks import run
from benchmarks.tables import cells
from fastformer import cli
from fastformer.cli import console
from fastformer.cli.bench import show
from fastformer.errors import FastformerError

_SWITCH = Parameter(negative=(), show_default=False)

app = App(
    name="python -m benchmarks",
    help_format="markdown",
    version_flags=(),
    default_parameter=cli.app.default_parameter,
    print_error=False,
    exit_on_error=False,
    result_action="return_value",
)


@app.default
def bench(
    *,
    request: Annotated[
        run.Request | None, Parameter(name="*", consume_multiple=True, show_default=False)
    ] = None,
    out: Path | None = None,
    markdown: Annotated[bool, _SWITCH] = False,
    json: Annotated[bool, _SWITCH] = False,
) -> None:
    """Measure kernels or whole training steps beside other systems.

    What is not equal to its NumPy twin is not timed. Every system runs in processes of its own,
    which alternate. Times are medians; ratios are given with the lowest and the highest of the
    turns.

    Args:
        out: directory for the rows (JSON lines) and pictures (PNG).
        markdown: write the table as markdown.
        json: write one JSON object, the last line of standard output.
    """
    request = request or run.Request()
    suite = request.suite
    outcome, environment = run.measure(request, console.notice)
    files = run.keep(suite, outcome, environment, out) if out is not None else []
    table = cells(suite, outcome.rows)
    show(suite, outcome, environment, table, files, markdown=markdown, json=json)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code: 0, or 2 after a mistake of the user's."""
    try:
        app(sys.argv[1:] if arguments is None else list(arguments))
    except (CycloptsError, FastformerError) as error:
        console.error(error)
        return cli.WRONG_USE
    return 0


if __name__ == "__main__":
    sys.exit(main())
