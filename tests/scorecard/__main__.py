"""`python -m tests.scorecard`: measure what fastformer promises, row by row, as one table.

    python -m tests.scorecard                    the fast tier, at most 10 minutes on two cores
    python -m tests.scorecard --nightly          the large counts
    python -m tests.scorecard --only A3 B4       some rows
    python -m tests.scorecard --out FILE         keep the table, as Markdown

The exit code is 1 where a target is missed; the table says so, with the number.
"""

import argparse
import importlib
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path

from fastformer.bench.environment import describe
from fastformer.bench.environment import thread_count as default_threads
from tests.scorecard.rows import Measured, Row, Tier, measure

MODULES: tuple[str, ...] = (
    "numbers",
    "misuse",
    "peers",
    "files",
    "loading",
    "determinism",
    "processes",
    "suite",
    "kills",
    "signals",
    "syscalls",
    "full_disk",
)


def all_rows() -> dict[str, Row]:
    """Return the rows of all modules by name, sorted."""
    modules = [importlib.import_module(f"tests.scorecard.{name}") for name in MODULES]
    rows = {row.name: row for module in modules for row in module.ROWS}
    return {name: rows[name] for name in sorted(rows, key=lambda name: (name[0], int(name[1:])))}


def table(found: list[Measured], tier: Tier) -> str:
    """Return the measured rows as Markdown."""
    environment = describe(default_threads(None))
    lines = [
        "# Scorecard",
        "",
        f"Made by `python -m tests.scorecard{' --nightly' if tier == 'nightly' else ''}` on "
        f"{datetime.now(UTC):%Y-%m-%d}: {environment['cpu']}, {environment['threads']} threads, "
        f"Python {platform.python_version()}, commit {environment['commit']}.",
        "A planted fault is one that the check must notice: a check that misses one is blind.",
        "",
        "| row | promise | target | measured | planted faults noticed | seconds | |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found:
        row, finding = one.row, one.finding
        number = f"{finding.held:,} of {finding.cases:,}"
        number += f"; {finding.number}" if finding.number else ""
        verdict = "reached" if finding.reached else "**missed**"
        lines.append(
            f"| {row.name} | {row.promise} | {row.target} | {number} | "
            f"{finding.planted} of {finding.plants} | {one.seconds:.0f} | {verdict} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure the rows that were asked for, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.scorecard", description=__doc__)
    parser.add_argument("--nightly", action="store_true", help="the large counts")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="some rows, such as A3 B4")
    parser.add_argument("--out", type=Path, metavar="FILE", help="keep the table")
    given = parser.parse_args()
    rows = all_rows()
    unknown = sorted(set(given.only or ()) - set(rows))
    if unknown:
        parser.error(f"unknown rows {', '.join(unknown)}; there are {', '.join(rows)}")
    tier: Tier = "nightly" if given.nightly else "fast"
    found: list[Measured] = []
    for name in given.only or rows:
        sys.stderr.write(f"{name}: {rows[name].promise}\n")
        found.append(measure(rows[name], tier))
        for failure in found[-1].finding.failures:
            sys.stderr.write(f"  {failure}\n")
    text = table(found, tier)
    sys.stdout.write(text)
    if given.out:
        given.out.write_text(text)
    return 0 if all(one.finding.reached for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
