"""The programs in examples/, each run as a person runs it, in an empty directory."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from program import HANG, ROOT

EXAMPLES = ROOT / "examples"
# What each prints, among others.
PRINTED = {
    "own_text.py": r"'the cow' goes on: '.*(on the hill|by the river|in the house|under the tree)",
    "own_table.py": r"'my coffee was late' is about food",
    "own_loop.py": r"the largest of \[3, 8, 5, 2\] is 8",
    "own_layer.py": r"compiled beside twins: [\s\S]* (8|9)\d% of unseen ones right|100% of",
}


def test_each_example_is_run_and_short() -> None:
    found = {path.name: path.read_text() for path in EXAMPLES.glob("*.py")}
    assert found.keys() == PRINTED.keys()
    for name, text in found.items():
        assert len(text.splitlines()) < 60, name
        # The public names alone, as people are told to import them.
        assert not re.search(r"^\s*(from|import) fastformer(?! as ff$)", text, re.MULTILINE), name


@pytest.mark.parametrize("name", PRINTED)
def test_it_runs_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "NUMBA_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(PRINTED[name], done.stdout), done.stdout
    assert not list(tmp_path.iterdir())
