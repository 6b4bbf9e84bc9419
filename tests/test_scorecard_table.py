"""The scorecard's table: newest results, in order, and what was missed with its number."""

from pathlib import Path

from tests.scorecard.rows import Finding, Measured, Row, measure
from tests.scorecard.table import keep, result_of, table


def row(name: str, finding: Finding) -> Row:
    return Row(name, f"promise {name}", "all", lambda tier: finding)


GOOD, MISSED = Finding(1234, 1234, 2, 2, "worst 0.5"), Finding(7, 9, 1, 1, failures=("a|b", "c"))
BLIND = Finding(9, 9, 0, 1)
ROWS = {name: row(name, one) for name, one in (("B10", MISSED), ("B2", GOOD), ("D1", BLIND))}


def test_the_table_has_the_newest_of_each_tier_and_says_what_was_missed(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    keep({"B10": result_of(Measured(ROWS["B10"], GOOD, 5.0, 7.0), "fast")}, file)
    for name, one in ROWS.items():
        keep({name: result_of(measure(one, "fast"), "fast")}, file)
    kept = keep({"B2": result_of(Measured(ROWS["B2"], GOOD, 99.6, 151.2), "nightly")}, file)
    text = table(ROWS, kept)
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert [line.split(" | ")[0] for line in lines] == ["| B2", "| B2", "| B10", "| D1"]
    assert "| all | 1,234 of 1,234; worst 0.5 | 2 of 2 | 0 (0) | fast |" in lines[0]
    assert "| 151 (100) | nightly |" in lines[1]
    assert "| **missed**: 7 of 9 | 1 of 1 |" in lines[2]
    assert "| **missed**: 9 of 9 | 0 of 1 |" in lines[3]
    assert "- B10, fast: 2 of 9, such as\n  - `a|b`\n  - `c`" in text
    assert len({line.count("|") for line in lines}) == 1


def test_a_row_without_a_result_is_not_listed(tmp_path: Path) -> None:
    kept = keep({"B2": result_of(measure(ROWS["B2"], "fast"), "fast")}, tmp_path / "results.json")
    assert "B10" not in table(ROWS, kept)
    assert "B2" not in table({"B10": ROWS["B10"]}, kept)
