"""The scorecard as a table, of what was measured now, or of the newest result of each row."""

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastformer.bench.environment import describe
from fastformer.threads import available_threads
from tests.scorecard.rows import Measured, Row, Tier

KEPT = Path(__file__).parent / "results.json"
TABLE = Path(__file__).parent.parent / "SCORECARD.md"
TIERS: tuple[Tier, ...] = ("fast", "nightly")
MOST_FAILURES = 3

Result = dict[str, Any]

HEAD = """# Scorecard

What fastformer promises, each promise measured: `python -m tests.scorecard` (`--nightly` for the
large counts, `--only ROW` for some rows). A row without a number is not listed, and a target that
was missed is printed as missed. A planted fault is one that the check must notice: a check that
misses one is blind. Times are what all CPUs together took and, on a machine that may have had other
work, how long it was. Kept by `python -m tests.scorecard --keep`: the newest of each row and tier.
"""
COLUMNS = (
    "| row | what holds | target | reached | faults noticed | CPU seconds (time) | tier | on |"
)


def result_of(one: Measured, tier: Tier) -> Result:
    """Return what is kept of a measured row."""
    environment = describe(available_threads())
    finding = one.finding
    return {
        "held": finding.held, "cases": finding.cases, "number": finding.number,
        "planted": finding.planted, "plants": finding.plants, "reached": finding.reached,
        "failures": list(finding.failures[:MOST_FAILURES]), "seconds": round(one.seconds),
        "cpu_seconds": round(one.cpu_seconds),
        "tier": tier, "date": f"{datetime.now(UTC):%Y-%m-%d}", "commit": environment["commit"],
        "machine": f"{environment['cpu']}, {available_threads()} of its {os.cpu_count()} CPUs, "
                   f"Python {platform.python_version()}",
    }  # fmt: skip


def keep(found: dict[str, Result], file: Path = KEPT) -> dict[str, dict[str, Result]]:
    """Put results into the file of those that are kept, and return all of them."""
    kept: dict[str, dict[str, Result]] = json.loads(file.read_text()) if file.exists() else {}
    for name, result in found.items():
        kept.setdefault(name, {})[result["tier"]] = result
    ordered = {name: kept[name] for name in sorted(kept, key=order)}
    file.write_text(json.dumps(ordered, indent=1) + "\n")
    return ordered


def order(name: str) -> tuple[str, int]:
    """Return what rows are sorted by: B2 comes before B10."""
    return name[0], int(name[1:])


def _line(row: Row, result: Result, machines: list[str]) -> str:
    number = f"{result['held']:,} of {result['cases']:,}"
    number += f"; {result['number']}" if result["number"] else ""
    verdict = "" if result["reached"] else "**missed**: "
    place = f"{result['date']}, {result['commit']}"
    place += f", machine {machines.index(result['machine']) + 1}" if len(machines) > 1 else ""
    planted = f"{result['planted']} of {result['plants']}"
    times = f"{result['cpu_seconds']} ({result['seconds']})"
    cells = (row.name, row.promise, row.target, verdict + number, planted, times, result["tier"],
             place)  # fmt: skip
    return "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |"


def table(rows: dict[str, Row], results: dict[str, dict[str, Result]]) -> str:
    """Return results as Markdown, those of the fast tier before those of the nightly one.

    Args:
        rows: all rows by name.    results: by row and tier; what is of no row is left out.
    """
    listed = [
        (rows[name], results[name][tier])
        for name in sorted(results, key=order)
        for tier in TIERS
        if name in rows and tier in results[name]
    ]
    machines = list(dict.fromkeys(result["machine"] for _, result in listed))
    lines = [HEAD, *(f"- Machine {n}: {machine}." for n, machine in enumerate(machines, 1)), ""]
    lines += [COLUMNS, "|---" * COLUMNS.count(" | ") + "|---|"]
    lines += [_line(row, result, machines) for row, result in listed]
    missed = [(row, result) for row, result in listed if not result["reached"]]
    if missed:
        lines += ["", "## Missed", ""]
    for row, result in missed:
        wrong = result["cases"] - result["held"]
        lines.append(f"- {row.name}, {result['tier']}: {wrong:,} of {result['cases']:,}, such as")
        lines += [f"  - `{line.replace('`', '')[:160]}`" for line in result["failures"]]
    return "\n".join(lines) + "\n"
