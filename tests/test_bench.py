"""What measurements are made of: timing, environment, rows, tables and a picture."""

import json
import math
import time
from pathlib import Path

import pytest

from fastformer.bench import run, tables
from fastformer.bench.environment import describe, system_environment, thread_count
from fastformer.bench.machine import attainable_seconds, bandwidth_at
from fastformer.bench.processes import alternate, ratios, spread
from fastformer.bench.timing import time_calls
from fastformer.errors import InvalidValueError
from fastformer.training.json_text import finite

MACHINE = {
    "threads": 2,
    "fma": {"float32": {"one": 1e11, "all": 2e11}, "float64": {"one": 5e10, "all": 1e11}},
    "bandwidth": {"one": [(1e5, 5e10), (1e9, 1e10)], "all": [(1e5, 1e11), (1e9, 2e10)]},
    "kernel_call": 4e-7,
    "parallel_region": 2e-6,
}
IS_PNG = b"\x89PNG\r\n\x1a\n"


# ---- timing and statistics ----


@pytest.mark.smoke
def test_a_call_is_warmed_up_and_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, finished, now = [], [], [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def call() -> int:
        calls.append(1)
        now[0] += 1.0 if len(calls) <= 2 else 1e-4 if len(calls) <= 30 else 2e-4
        return len(calls)

    timing = time_calls(call, seconds=0.005, finish=finished.append)
    # Neither of the first two, which may compile, is among what was timed.
    assert (timing.minimum, timing.maximum) == pytest.approx((1e-4, 2e-4))
    assert timing.minimum <= timing.median <= timing.maximum
    assert len(calls) == timing.calls + 2
    # The result of a sample's last call is waited for, whatever a sample holds.
    assert finished == sorted(finished) and len(finished) >= 5


@pytest.mark.smoke
def test_ratios_are_taken_turn_by_turn() -> None:
    found = ratios([4.0, 9.0, 2.0], [2.0, 3.0, 2.0])
    assert (found.median, found.minimum, found.maximum) == (2.0, 1.0, 3.0)
    assert spread([3.0, 1.0, 2.0]).median == 2.0


def test_whole_processes_alternate_and_every_other_turn_runs_backwards() -> None:
    order: list[tuple[str, int]] = []
    found = alternate(
        ["numba", "torch"],
        3,
        lambda system, turn: order.append((system, turn)) or {"turn": turn},
        lambda line: None,
        "steps",
    )
    assert [system for system, _ in order] == [
        *("numba", "torch"), *("torch", "numba"), *("numba", "torch"),
    ]  # fmt: skip
    assert [result["turn"] for result in found["torch"]] == [0, 1, 2]


def test_the_limit_is_the_roof() -> None:
    assert bandwidth_at(MACHINE, 5e4) == pytest.approx(1e11)
    assert bandwidth_at(MACHINE, 1e12, "one") == pytest.approx(1e10)
    assert bandwidth_at(MACHINE, 1e7) == pytest.approx((1e11 * 2e10) ** 0.5)
    assert attainable_seconds(MACHINE, 2e11, 1, 1) == 1
    assert attainable_seconds(MACHINE, 1, 1e5, 1e5) == pytest.approx(1e-6)
    assert attainable_seconds(MACHINE, 1, 1e5, 1e9, "one") == pytest.approx(1e-5)


# ---- environment ----


@pytest.mark.smoke
def test_compiled_kernels_never_run_beside_the_threads_of_blas() -> None:
    assert system_environment("numba", 4)["OPENBLAS_NUM_THREADS"] == "1"
    assert system_environment("numba", 4)["NUMBA_NUM_THREADS"] == "4"
    assert system_environment("numba-1", 4)["NUMBA_NUM_THREADS"] == "1"
    assert system_environment("reference", 4)["OPENBLAS_NUM_THREADS"] == "4"
    assert system_environment("torch", 4)["OMP_NUM_THREADS"] == "4"


def test_the_environment_says_what_was_measured_where() -> None:
    found = describe(2)
    assert found["threads"] == 2 and found["versions"]["numba"]
    assert found["versions"].keys() == {"fastformer", "numpy", "numba"}
    assert describe(1, "nothing-of-this-name", "pytest")["versions"].keys() == {
        *("fastformer", "numpy", "numba", "pytest")
    }
    assert "commit" in found and found["date"].endswith(" UTC")
    assert "2 threads" in tables.environment_text(found)
    with pytest.raises(InvalidValueError, match="threads must be an integer from 1 to"):
        thread_count(1000)


# ---- tables and a picture ----


def kernel_rows(count: int = 3, other: str = "reference") -> list[dict]:
    return [
        {
            "suite": "kernels", "case": f"softmax_forward {n}x8", "op": f"op{n % 9}",
            "system": system,
            "seconds": spread([1e-5, 2e-5]).as_dict(), "flops": 1e4 * 2**n, "traffic": 1e4,
            "gflops": 2.0**n, "gbytes": 1.0, "bound": "memory", "share_of_peak": 0.5,
            **({} if system == "numba" else {"ratio": spread([0.5, 2.0, 3.0]).as_dict()}),
        }
        for n in range(count)
        for system in ("numba", other)
    ]  # fmt: skip


def test_a_profile_names_the_dearest_kernel_first() -> None:
    found = {
        "step": 1e-3, "watched_step": 1e-3, "calls": 3, "outside": 5e-5, "calling": 1e-6,
        "peak": 1e9,
        "ops": {"adam_step": {"calls": 1, "seconds": 1e-4, "flops": 0},
                "head linear": {"calls": 2, "seconds": 8e-4, "flops": 4e5}},
    }  # fmt: skip
    lines = tables.profile_lines("P2", found)
    assert [line.split()[0] for line in lines[2:5]] == ["head", "adam_step", "Python,"]
    assert "80.0%" in lines[2] and lines[2].endswith("50%") and "5.0%" in lines[4]


def test_the_table_shows_every_row_also_the_slower_ones() -> None:
    table = tables.kernel_cells(kernel_rows())
    lines = tables.text_table(table)
    assert len(lines) == 2 + 6
    assert "2.00 (0.50 to 3.00)" in lines[3] and lines[3].lstrip().startswith("NumPy twins")
    text = tables.markdown_table(table, describe(2))
    assert "|  | NumPy twins | 15 us | 1 | 1 | 50% memory | 2.00 (0.50 to 3.00) |" in text
    assert "fastformer" in text.splitlines()[-1]
    assert [tables.seconds_text(s) for s in (2.0, 0.0025, 3e-6, 5e-9, math.inf)] == [
        *("2 s", "2.5 ms", "3 us", "5 ns", "never"),
    ]  # fmt: skip


def test_rows_and_their_roofline_are_kept(tmp_path: Path) -> None:
    outcome = run.Outcome(kernel_rows(), MACHINE)
    files = run.keep(outcome, describe(1), tmp_path / "new")
    assert [file.name for file in files] == ["kernels.jsonl", "roofline.png"]
    assert files[1].read_bytes().startswith(IS_PNG)
    first, *rows = map(json.loads, files[0].read_text().splitlines())
    assert first["suite"] == "environment" and first["threads"] == 1
    assert rows == json.loads(json.dumps(outcome.rows))
    assert finite({"a": [math.inf, 1.0]}) == {"a": [None, 1.0]}
