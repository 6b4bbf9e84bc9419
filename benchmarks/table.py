"""Print the README's table from committed rows: `python benchmarks/table.py`.

    python benchmarks/table.py [benchmarks/results/targets.jsonl ...]

Without arguments, all files of `benchmarks/results` are printed. Rows are made by, for instance,
`fastformer bench --suite targets --out benchmarks/results`. Every row stays in the table, also
where fastformer is the slower one.
"""

import sys
from pathlib import Path

from fastformer.bench.run import read_rows
from fastformer.bench.tables import markdown_table

RESULTS = Path(__file__).parent / "results"


def main(arguments):
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
        sys.stdout.write(f"{markdown_table(rows[0]['suite'], rows, environment)}\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
