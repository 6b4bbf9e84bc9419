"""What measurements are made of: timing, environment, goals, rows, tables and pictures."""

import json
import math
import time
from pathlib import Path

import pytest

from fastformer.bench import pictures, run, tables
from fastformer.bench.environment import (
    SYSTEMS,
    choose_systems,
    describe,
    system_environment,
    thread_count,
)
from fastformer.bench.equivalence import NotEqualError
from fastformer.bench.goals import GOALS, target_row
from fastformer.bench.machine import attainable_seconds, bandwidth_at
from fastformer.bench.processes import alternate, ratios, spread
from fastformer.bench.step_jobs import require_equal_losses
from fastformer.bench.timing import time_calls
from fastformer.bench.workloads import WORKLOADS, step_flops, useful_flops
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


def test_systems_that_are_not_installed_are_left_out_or_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    systems, missing = choose_systems(None, tuple(SYSTEMS))
    assert systems == ["reference", "numba-1", "numba"]
    assert missing[-1] == "JAX jit is left out: jax is not installed"
    with pytest.raises(InvalidValueError, match="torch is not installed; install it with"):
        choose_systems(["compile"], ())
    with pytest.raises(InvalidValueError, match="did you mean 'numba'"):
        choose_systems(["nunba"], ())


def test_the_environment_says_what_was_measured_where() -> None:
    found = describe(2)
    assert found["threads"] == 2 and found["versions"]["numba"]
    assert found["versions"].keys() <= {"fastformer", "numpy", "numba", "torch", "jax", "jaxlib"}
    assert "commit" in found and found["date"].endswith(" UTC")
    assert "2 threads" in tables.environment_text(found)
    with pytest.raises(InvalidValueError, match="threads must be an integer from 1 to"):
        thread_count(1000)


# ---- goals ----


@pytest.mark.smoke
def test_every_target_is_there_with_its_numbers() -> None:
    names = ["P1", "P2", "P3", "P4", "P5", "P8", "P8 worst", "P9", "P10", "P11", "P12", "P13"]
    assert list(GOALS) == [*names, "P14", "P14 quiet"]
    assert (GOALS["P1"].must, GOALS["P1"].goal) == (2.8, 3.6)
    assert (GOALS["P13"].must, GOALS["P13"].goal) == (2, 0.7)


@pytest.mark.parametrize(
    ("row", "value", "verdict"),
    [
        ("P1", 3.6, "goal"), ("P1", 2.8, "must"), ("P1", 2.79, "missed"),
        ("P1", None, "not measured"),
        ("P10", 10.0, "goal"), ("P10", 15.0, "must"), ("P10", 21.0, "missed"),
        ("P12", 0.5, "must"), ("P13", math.inf, "missed"),
    ],
)  # fmt: skip
def test_a_value_is_held_to_its_target(row: str, value: float | None, verdict: str) -> None:
    assert GOALS[row].verdict(value) == verdict


# ---- arithmetic of a step ----


def test_the_arithmetic_of_a_step() -> None:
    flops = step_flops(WORKLOADS["P1"], reads_one_row=False)
    # 6 operations for each weight and token, and attention on top.
    weights = 2 * (4 * 64 * 64 + 2 * 64 * 256)
    assert flops == 6 * 640 * weights + 2 * 14 * 32 * 20 * 20 * 64 + 6 * 32 * 64 * 20
    assert step_flops(WORKLOADS["P1"], reads_one_row=True) < 0.65 * flops
    assert useful_flops("torch", WORKLOADS["P1"]) == flops
    assert useful_flops("numba", WORKLOADS["P1"]) < flops
    decoder = WORKLOADS["P5"]
    assert useful_flops("numba", decoder) == useful_flops("jax", decoder)


def test_a_step_with_other_losses_is_not_timed() -> None:
    require_equal_losses("numba", "P1", [3.0, 2.9], [3.0001, 2.9])
    for wrong in (2.99, math.nan):
        with pytest.raises(NotEqualError, match=r"on P1: its loss at step 2 is .* nothing was"):
            require_equal_losses("numba", "P1", [3.0, wrong], [3.0, 2.9])


# ---- tables and pictures ----


def kernel_rows(count: int = 3) -> list[dict]:
    return [
        {
            "suite": "kernels", "case": f"softmax_forward {n}x8", "op": f"op{n % 9}",
            "system": system,
            "seconds": spread([1e-5, 2e-5]).as_dict(), "flops": 1e4 * 2**n, "traffic": 1e4,
            "gflops": 2.0**n, "gbytes": 1.0, "bound": "memory", "share_of_peak": 0.5,
            **({} if system == "numba" else {"ratio": spread([0.5, 2.0, 3.0]).as_dict()}),
        }
        for n in range(count)
        for system in ("numba", "torch")
    ]  # fmt: skip


def target_rows() -> list[dict]:
    peers = {"torch": {"value": spread([2.0, 3.0]).as_dict(), "ratio": spread([1.5]).as_dict()}}
    return [
        target_row(GOALS["P1"], spread([2.9, 3.0, 3.1]), spread([1e-3]), peers, "torch"),
        target_row(GOALS["P5"], None, spread([0.5]), {}),
        target_row(GOALS["P12"], spread([0.9]), spread([4e8]), {}),
    ]


def scaling_rows() -> list[dict]:
    return [
        {
            "suite": "scaling", "series": series, "value": 2**n, "tokens": 64 * 2**n,
            "seconds": spread([0.01 * 2**n]).as_dict(), "flops": 1e9 * 2**n, "gflops": 100.0,
            "tokens_per_second": 6400.0, "sizes": {"C": 8}, "step_bytes": 1e6 * 2**n,
        }
        for series in ("width", "threads")
        for n in range(3)
    ]  # fmt: skip


def test_tables_show_every_row_also_the_slower_ones() -> None:
    lines = tables.text_table("kernels", kernel_rows())
    assert len(lines) == 2 + 6
    assert "2.00 (0.50 to 3.00)" in lines[3] and lines[3].lstrip().startswith("torch eager")
    text = tables.markdown_table("targets", target_rows(), describe(2))
    assert (
        "| P1 | digit encoder, 20 tokens | 1 ms | torch eager 2.5 s | 3.00 (2.90 to 3.10) |" in text
    )
    assert "| - | >= 1.3 | >= 1.5 | not measured |" in text and "| missed |" in text
    assert "400 MB" in text and "fastformer" in text.splitlines()[-1]
    assert len(tables.text_table("scaling", scaling_rows())) == 2 + 6
    assert [tables.seconds_text(s) for s in (2.0, 0.0025, 3e-6, 5e-9, math.inf)] == [
        *("2 s", "2.5 ms", "3 us", "5 ns", "never"),
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


def test_pictures_are_drawn(tmp_path: Path) -> None:
    drawn = [
        pictures.roofline(kernel_rows(), MACHINE, tmp_path / "roofline.png"),
        pictures.ratio_bars(kernel_rows(), tmp_path / "few.png"),
        pictures.ratio_bars(kernel_rows(40), tmp_path / "many.png"),
        pictures.ratio_bars(target_rows(), tmp_path / "targets.png"),
        pictures.scaling_picture(scaling_rows(), tmp_path / "scaling.png"),
    ]
    assert all(path is not None and path.read_bytes().startswith(IS_PNG) for path in drawn)
    assert pictures.ratio_bars(kernel_rows()[:1], tmp_path / "none.png") is None
    # Many cases are joined by op.
    assert len(pictures._ratio_groups(kernel_rows(40))) == 9


def test_rows_are_kept_and_read_again(tmp_path: Path) -> None:
    outcome = run.Outcome(target_rows() + [{"suite": "targets", "value": math.inf}], MACHINE)
    outcome.rows.pop()
    files = run.keep("targets", outcome, describe(1), tmp_path / "new")
    assert [file.name for file in files] == ["targets.jsonl", "targets-ratios.png"]
    rows, environment = run.read_rows(files[0])
    assert rows == json.loads(json.dumps(outcome.rows)) and environment["threads"] == 1
    assert finite({"a": [math.inf, 1.0]}) == {"a": [None, 1.0]}
    (tmp_path / "other.jsonl").write_text("{}\n")
    for name in ("other.jsonl", "nowhere.jsonl"):
        with pytest.raises(InvalidValueError, match="is not a file of rows"):
            run.read_rows(tmp_path / name)
