"""`python -m tests.scorecard`: measure what fastformer promises, row by row, as one table.

    python -m tests.scorecard                    the fast tier, at most 10 minutes on two cores
    python -m tests.scorecard --nightly          the large counts
    python -m tests.scorecard --only A3 B4       some rows
    python -m tests.scorecard --out FILE         write the table, as Markdown
    python -m tests.scorecard --keep             keep the results, and rewrite tests/SCORECARD.md

The exit code is 1 where a target is missed; the table says so, with the number.
"""

import argparse
import importlib
import sys
from pathlib import Path

from tests.scorecard.rows import Row, Tier, measure
from tests.scorecard.table import TABLE, Result, keep, order, result_of, table

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
    return {name: rows[name] for name in sorted(rows, key=order)}


def main() -> int:
    """Measure the rows that were asked for, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.scorecard", description=__doc__)
    parser.add_argument("--nightly", action="store_true", help="the large counts")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="some rows, such as A3 B4")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table")
    parser.add_argument("--keep", action="store_true", help="keep the results with the others")
    given = parser.parse_args()
    rows = all_rows()
    unknown = sorted(set(given.only or ()) - set(rows))
    if unknown:
        parser.error(f"unknown rows {', '.join(unknown)}; there are {', '.join(rows)}")
    tier: Tier = "nightly" if given.nightly else "fast"
    found: dict[str, Result] = {}
    for name in given.only or rows:
        sys.stderr.write(f"{name}: {rows[name].promise}\n")
        measured = measure(rows[name], tier)
        found[name] = result_of(measured, tier)
        for failure in measured.finding.failures:
            sys.stderr.write(f"  {failure}\n")
        if given.keep:
            TABLE.write_text(table(rows, keep({name: found[name]})))
    text = table(rows, {name: {tier: result} for name, result in found.items()})
    sys.stdout.write(text)
    if given.out:
        given.out.write_text(text)
    return 0 if all(result["reached"] for result in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
