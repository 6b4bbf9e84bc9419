"""`python -m tests.scorecard`: measure what fastformer promises, row by row, as one table.

    python -m tests.scorecard                    the fast tier, at most 10 minutes on two cores
    python -m tests.scorecard --nightly          the large counts
    python -m tests.scorecard --only A3 B4       some rows
    python -m tests.scorecard --out FILE         write the table, as Markdown
    python -m tests.scorecard --keep             keep the results, and rewrite tests/SCORECARD.md

Each row has a process of its own, as many at a time as there are CPUs; those that use several
threads come first, alone. The exit code is 1 where a target is missed; the table says so.
"""

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from fastformer.threads import available_threads
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


def measure_here(row: Row, tier: Tier) -> Result:
    """Measure a row in this process."""
    measured = measure(row, tier)
    for failure in measured.finding.failures:
        sys.stderr.write(f"{row.name}:   {failure}\n")
    return result_of(measured, tier)


def measure_apart(row: Row, tier: Tier) -> Result:
    """Measure a row in a process of its own.

    Raises:
        RuntimeError: it ended without a result.
    """
    sys.stderr.write(f"{row.name}: {row.promise}\n")
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "result.json"
        command = [sys.executable, "-m", "tests.scorecard", "--only", row.name]
        command += ["--result", str(file), *(["--nightly"] if tier == "nightly" else [])]
        ended = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        if not file.exists():
            raise RuntimeError(f"row {row.name} ended with {ended.returncode}, without a result")
        result: Result = json.loads(file.read_text())
        return result


def measure_all(rows: list[Row], tier: Tier) -> Iterator[tuple[str, Result]]:
    """Yield each row's name and result as it is there."""
    for row in rows:
        if row.alone:
            yield row.name, measure_apart(row, tier)
    with ThreadPoolExecutor(available_threads()) as pool:
        beside = [row for row in rows if not row.alone]
        waiting = {pool.submit(measure_apart, row, tier): row.name for row in beside}
        for future in as_completed(waiting):
            yield waiting[future], future.result()


def main() -> int:
    """Measure the rows that were asked for, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.scorecard", description=__doc__)
    parser.add_argument("--nightly", action="store_true", help="the large counts")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="some rows, such as A3 B4")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table")
    parser.add_argument("--keep", action="store_true", help="keep the results with the others")
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    rows = all_rows()
    unknown = sorted(set(given.only or ()) - set(rows))
    if unknown:
        parser.error(f"unknown rows {', '.join(unknown)}; there are {', '.join(rows)}")
    tier: Tier = "nightly" if given.nightly else "fast"
    if given.result:
        given.result.write_text(json.dumps(measure_here(rows[given.only[0]], tier)))
        return 0
    found: dict[str, Result] = {}
    for name, result in measure_all([rows[name] for name in given.only or rows], tier):
        found[name] = result
        if given.keep:
            TABLE.write_text(table(rows, keep({name: result})))
    text = table(rows, {name: {tier: result} for name, result in found.items()})
    sys.stdout.write(text)
    if given.out:
        given.out.write_text(text)
    return 0 if all(result["reached"] for result in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
