"""Row E5: the tests give the same result every time, in any order of files, and none is rerun.

The fast tier runs the quick files only, three times; the whole suite is for the nightly tier.
"""

import importlib.util
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from program import ROOT

from tests.scorecard.rows import Finding, Row, Tier

RUNS: dict[Tier, int] = {"fast": 3, "nightly": 20}
# Each takes at most about a second, and starts no other process.
QUICK = "batch buffers expressions lengths metrics models_config schedules vocabulary".split()
FLAKY = """
import os

def test_of_a_coin():
    assert os.environ["RUN"] != "1"
"""
RERUNNERS = ("pytest_rerunfailures", "flaky", "pytest_retry")


def run_tests(files: list[Path], number: int) -> tuple[str, str]:
    """Run test files in an order of their own; return how many passed, and what failed."""
    chosen = random.Random(number).sample(files, len(files))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, chosen)],
        env=os.environ | {"RUN": str(number), "PYTHONHASHSEED": str(number)},
        **{"cwd": ROOT, "capture_output": True, "text": True},
    )
    passed = re.search(r"(\d+) passed", done.stdout)
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    failed = "" if done.returncode == 0 else "; ".join(lines[:5]) or done.stdout[-300:]
    return passed[1] if passed else "0", failed


def count(files: list[Path], runs: int) -> tuple[int, tuple[str, ...], set[str]]:
    """Run the files so often; return in how many runs all was well, failures, and numbers."""
    found = [run_tests(files, number) for number in range(runs)]
    failures = tuple(f"run {n}: {failed}" for n, (_, failed) in enumerate(found) if failed)
    return runs - len(failures), failures, {passed for passed, _ in found}


def measure(tier: Tier, quick: list[str] = QUICK, runs: int | None = None) -> Finding:
    """Run the suite again and again. Planted: a test that fails in one run of two."""
    names = [f"test_{name}.py" for name in quick]
    files = [ROOT / "tests" / name for name in names]
    if tier == "nightly":
        files = sorted((ROOT / "tests").glob("test_*.py"))
    times = runs or RUNS[tier]
    held, failures, passed = count(files, times)
    rerunners = [name for name in RERUNNERS if importlib.util.find_spec(name)]
    if len(passed) > 1 or rerunners:
        held, failures = 0, (*failures, f"passed {sorted(passed)}, rerun by {rerunners}")
    with tempfile.TemporaryDirectory() as name:
        flaky = Path(name) / "test_flaky.py"
        flaky.write_text(FLAKY)
        planted = count([flaky], 2)[0] == 1
    part = "the whole suite" if tier == "nightly" else f"{len(files)} quick files only"
    number = f"runs of {part}, {' or '.join(sorted(passed))} tests, files in another order each"
    return Finding(held, times, int(planted), 1, number, failures[:10])


ROWS = (
    Row(
        "E5",
        "the tests give the same result every time",
        "20 of 20 runs of the suite (nightly); 3 of 3 of its quick files here",
        measure,
    ),
)
