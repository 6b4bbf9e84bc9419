"""What the project's own tables are made of: systems, targets, arithmetic, tables and pictures."""

import json
import math
from pathlib import Path

import pytest
from test_bench import IS_PNG, MACHINE, kernel_rows

from benchmarks import pictures, run, text_suite
from benchmarks.arithmetic import step_flops, useful_flops
from benchmarks.step_jobs import require_equal_losses
from benchmarks.systems import LABELS, SYSTEMS, choose_systems
from benchmarks.tables import cells
from benchmarks.targets import GOALS, compare, target_row
from fastformer.bench.environment import describe
from fastformer.bench.equivalence import NotEqualError
from fastformer.bench.options import Outcome
from fastformer.bench.processes import spread
from fastformer.bench.tables import markdown_table, text_table
from fastformer.bench.workloads import WORKLOADS
from fastformer.errors import InvalidValueError

# ---- systems ----


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


# ---- goals ----


@pytest.mark.smoke
def test_every_target_is_there_with_its_numbers() -> None:
    names = ["P1", "P2", "P3", "P4", "P5", "P8", "P8 worst", "P9", "P10", "P11", "P12", "P13"]
    assert list(GOALS) == [*names, "P14", "P14 quiet", "P15", "P15 many"]
    assert (GOALS["P1"].must, GOALS["P1"].goal) == (2.8, 3.6)
    assert (GOALS["P13"].must, GOALS["P13"].goal) == (2, 0.7)


def test_the_goals_of_text_have_numbers_of_their_own_and_rows_of_their_suite() -> None:
    goals = text_suite.GOALS
    assert not goals.keys() & GOALS.keys()
    assert (goals["P7"].must, goals["P16"].must, goals["P18"].must) == (1.2, 0.9, 1.6)
    row = compare(goals["P17 P4"], [1.02, 1.05], {"step": [1.0, 1.0]}, suite="text")
    assert row["suite"] == "text" and row["value"]["median"] == pytest.approx(1.035)
    assert row["reached"] == "missed" and goals["P18 loss"].verdict(1.81) == "goal"
    memory = compare(goals["P16 memory"], [3.2e8], {"quarter": [3.1e8]}, suite="text")
    loss = target_row(goals["P18 loss"], spread([1.81]), None, {}, suite="text")
    table = markdown_table(cells("text", [row, memory, loss]), describe(2))
    assert "| 320 MB | a quarter of the text 310 MB | 1.03 |" in table
    assert "| its validation loss | - | - | 1.81 | <= 1.88 | <= 1.85 | goal |" in table


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
    lines = text_table(cells("kernels", kernel_rows(other="torch")))
    assert len(lines) == 2 + 6
    assert "2.00 (0.50 to 3.00)" in lines[3] and lines[3].lstrip().startswith("torch eager")
    text = markdown_table(cells("targets", target_rows()), describe(2))
    assert (
        "| P1 | digit encoder, 20 tokens | 1 ms | torch eager 2.5 s | 3.00 (2.90 to 3.10) |" in text
    )
    assert "| - | >= 1.3 | >= 1.5 | not measured |" in text and "| missed |" in text
    assert "400 MB" in text and "fastformer" in text.splitlines()[-1]
    assert len(text_table(cells("scaling", scaling_rows()))) == 2 + 6


def test_every_system_has_a_color() -> None:
    assert LABELS.keys() == pictures.COLORS.keys()


def test_pictures_are_drawn(tmp_path: Path) -> None:
    drawn = [
        pictures.ratio_bars(kernel_rows(other="torch"), tmp_path / "few.png"),
        pictures.ratio_bars(kernel_rows(40, "torch"), tmp_path / "many.png"),
        pictures.ratio_bars(target_rows(), tmp_path / "targets.png"),
        pictures.scaling_picture(scaling_rows(), tmp_path / "scaling.png"),
    ]
    assert all(path is not None and path.read_bytes().startswith(IS_PNG) for path in drawn)
    assert pictures.ratio_bars(kernel_rows(other="torch")[:1], tmp_path / "none.png") is None
    # Many cases are joined by op.
    assert len(pictures._ratio_groups(kernel_rows(40, "torch"))) == 9


def test_rows_are_kept_and_read_again(tmp_path: Path) -> None:
    outcome = Outcome(target_rows(), MACHINE)
    files = run.keep("targets", outcome, describe(1), tmp_path / "new")
    assert [file.name for file in files] == ["targets.jsonl", "targets-ratios.png"]
    rows, environment = run.read_rows(files[0])
    assert rows == json.loads(json.dumps(outcome.rows)) and environment["threads"] == 1
    (tmp_path / "other.jsonl").write_text("{}\n")
    for name in ("other.jsonl", "nowhere.jsonl"):
        with pytest.raises(InvalidValueError, match="is not a file of rows"):
            run.read_rows(tmp_path / name)
