"""Print the table of docs/speed.md from committed rows: `python -m benchmarks.table`.

    python -m benchmarks.table [benchmarks/results/targets.jsonl ...]

Without arguments, all files of `benchmarks/results` are printed. Rows are made by, for instance,
`python -m benchmarks --suite targets --out benchmarks/results`. Every row stays in the table, also
where fastformer is the slower one.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.run import read_rows
from benchmarks.tables import cells
from fastformer.bench.tables import markdown_table

RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str]) -> int:
    """Print the tables of some files of rows; return the exit code."""
    paths = [Path(argument) for argument in arguments] or sorted(RESULTS.glob("*.jsonl"))
    if not paths:
        sys.stderr.write(f"{RESULTS} has no rows yet; see benchmarks/README.md\n")
        return 2
    for path in paths:
        try:
            rows, environment = read_rows(path)
        except ValueError as error:
            sys.stderr.write(f"{error}\n")
            return 2
        sys.stdout.write(f"{markdown_table(cells(rows[0]['suite'], rows), environment)}\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
