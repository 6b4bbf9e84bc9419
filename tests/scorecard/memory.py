"""Rows D1 to D3: no access outside an array, by two oracles, and no race."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from program import ROOT
from twins import CHECKED

from tests.scorecard.rows import Finding, Row, Tier

MOST_DEATHS = 20


def child(*arguments: Any, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run `memory_child` to its end, whatever that is."""
    names = [str(argument) for argument in arguments]
    return subprocess.run(
        [sys.executable, "-m", "tests.scorecard.memory_child", *names],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


def answer(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    """Return what a child found; raise if it died."""
    if done.returncode != 0:
        raise RuntimeError(f"{done.args} ended with {done.returncode}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def guard_pages(cases: int) -> Finding:
    """Call kernels between pages that must not be touched; a process that dies is a failure."""
    failures: list[str] = []
    first = 0
    with tempfile.TemporaryDirectory() as directory:
        progress = Path(directory) / "case"
        while first < cases and len(failures) < MOST_DEATHS:
            done = child("guard", first, cases, progress, NUMBA_NUM_THREADS="2")
            if done.returncode == 0:
                break
            if done.returncode > 0:
                raise RuntimeError(done.stderr[-2000:])
            died = int(progress.read_text())
            failures.append(f"case {died} ended with signal {-done.returncode}")
            first = died + 1
    # A process of its own is made by a fork for each planted fault, which OpenMP does not allow.
    plants = answer(child("guard-planted", NUMBA_THREADING_LAYER="workqueue"))
    failures += plants["failures"]
    held = cases - sum(line.startswith("case") for line in failures)
    return Finding(held, cases, plants["planted"], plants["plants"], failures=tuple(failures))


def _finding(found: dict[str, Any], number: str = "") -> Finding:
    counts = (found[name] for name in ("held", "cases", "planted", "plants"))
    return Finding(*counts, number, tuple(found["failures"][:10]))


def bounds_checks(tier: Tier, cases: int | None = None) -> Finding:
    """Call kernels in the checked build."""
    count, dtypes = (3_000, "float32") if tier == "fast" else (20_000, "float32,float64")
    build = CHECKED | {"NUMBA_NUM_THREADS": "1"}
    return _finding(answer(child("checked", 0, cases or count, dtypes, **build)))


def races(tier: Tier, cases: int | None = None) -> Finding:
    """Shuffle the turns of every `prange` in the python build."""
    count, shuffles = (8, 20) if tier == "fast" else (60, 100)
    found = answer(child("shuffled", cases or count, shuffles, FASTFORMER_BUILD="python"))
    return _finding(found, f"{found['loops']} loops, {shuffles} orders of each case")


ROWS = (
    Row(
        "D1",
        "no access outside an array: guard pages on both sides of every argument",
        "no fault in 20,000 calls; off-by-one always noticed",
        lambda tier: guard_pages(20_000 if tier == "fast" else 400_000),
    ),
    Row(
        "D2",
        "the same by bounds checks, marked margins, outputs full of NaN, inputs unchanged",
        "0 failures",
        bounds_checks,
    ),
    Row(
        "D3",
        "no races: one result for any order of any prange's turns",
        "1 bit pattern for every loop in 20 orders",
        races,
    ),
)
