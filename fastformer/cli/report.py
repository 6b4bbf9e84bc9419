"""`fastformer report`: all about a run in one HTML file."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fastformer import threads as thread_count
from fastformer.cli import console


def report(
    run: Path,
    /,
    *expressions: str,
    out: Path | None = None,
    threads: int | None = None,
    json: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
) -> None:
    """Write one HTML file with settings, curves, accuracies, attention and embeddings of a run.

    It opens from disk in any browser, without a network.

    Args:
        run: directory of the run; it may still be training.
        expressions: for the attention explorer, what the model is asked, each in quotes: an
            expression such as "Max ( 5 3 9 )", or a text; some of the test inputs are there without
            being asked for.
        out: the file; without it report.html in the directory of the run.
        threads: number of threads; without it, as many as the machine or container allows.
        json: print one JSON object with the file and what is missing, and nothing else.
    """
    thread_count.configure(threads)
    from fastformer.analysis.report import collect_report
    from fastformer.analysis.report_page import write_page
    from fastformer.training.run_directory import REPORT

    found = collect_report(run, expressions)
    path = out or run / REPORT
    write_page(found, path)
    for note in found.notes:
        console.error(f"warning: {note}")
    if json:
        console.json_line({"report": str(path), "missing": found.notes})
        return
    console.facts([("report", str(path)), ("", "open it in a browser; it needs nothing else")])
