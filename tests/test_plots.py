"""Curves of runs: what is read of damaged or scanty records, the picture, the sketch."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from program import ROOT
from runs import small_settings

from fastformer.analysis.plots import (
    CURVE_NAMES,
    PANELS,
    alone,
    curves_figure,
    read_curves,
    value_text,
)
from fastformer.analysis.svg import panel_svg
from fastformer.analysis.terminal_plot import terminal_plot
from fastformer.cli import main
from fastformer.cli.progress import epoch_line
from fastformer.errors import InvalidValueError, RunError
from fastformer.training.run_directory import RunDirectory
from fastformer.training.seeds_record import SeedsRecord

PNG = b"\x89PNG\r\n\x1a\n"
ACCURACIES = (0.5, 0.75, 1.0, 1.0, 0.875)


def record(epoch: int, accuracy: float, **changes: Any) -> dict[str, Any]:
    values = {name: 1 / epoch for name in CURVE_NAMES}
    return {"epoch": epoch, "step": 10 * epoch, **values, "validation_accuracy": accuracy} | changes


def make_run(path: Path, records: list[dict[str, Any]] | None = None) -> Path:
    """Make a run that has nothing but records."""
    run = RunDirectory.create(path, small_settings().tables())
    numbered = [record(place, a) for place, a in enumerate(ACCURACIES, start=1)]
    for item in numbered if records is None else records:
        run.append_metrics(item)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def spoil_line(run: Path, number: int, junk: str = "{") -> None:
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines()
    lines[number - 1] = junk
    file.write_text("\n".join([*lines, ""]))


@pytest.mark.smoke
def test_all_curves_of_a_run_are_read_and_the_earliest_best_epoch_is_marked(run: Path) -> None:
    curves = read_curves(run)
    assert (curves.axis, curves.x, curves.missing) == ("epoch", [1, 2, 3, 4, 5], [])
    assert set(curves.values) == set(CURVE_NAMES)
    assert curves.values["validation_accuracy"] == list(ACCURACIES)
    assert curves.best == 3


def test_damaged_lines_are_left_out_and_named(run: Path) -> None:
    spoil_line(run, 2)
    spoil_line(run, 4, "[1]")
    with pytest.warns(UserWarning, match=r"metrics\.jsonl: left out .* with a step: line 2, 4$"):
        curves = read_curves(run)
    assert curves.x == [1, 3, 5]
    with pytest.raises(RunError, match="line 2 is damaged"):  # for all who go on from it
        RunDirectory.open(run).read_metrics()


def test_a_file_of_junk_names_some_of_its_lines(run: Path) -> None:
    (run / "metrics.jsonl").write_text("junk\n" * 30 + json.dumps(record(1, 0.5)) + "\n")
    with pytest.warns(UserWarning, match=r"line 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 20 more$"):
        assert read_curves(run).x == [1]


def test_a_run_without_records_says_which_are_missing(tmp_path: Path) -> None:
    empty = make_run(tmp_path / "empty", [])
    with pytest.raises(RunError, match="nothing to draw: its metrics.jsonl has no record of a fin"):
        read_curves(empty)
    bare = make_run(tmp_path / "bare", [{"step": 3, "train_loss": "low"}])
    with pytest.raises(RunError, match="1 records in metrics.jsonl lack train_loss, validation_lo"):
        read_curves(bare)
    with pytest.raises(RunError, match="does not exist"):
        read_curves(tmp_path / "none")


def test_a_curve_that_is_missing_is_told_and_the_others_are_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [record(1, 0.5), record(2, 0.6)]
    for item in records:
        del item["gradient_norm"]
    run = make_run(tmp_path / "run", records)
    assert main(["plot", str(run)]) == 0
    out, err = capsys.readouterr()
    assert "no record has gradient_norm; the other curves are drawn" in err
    assert "no record" in out


def test_values_that_are_no_numbers_leave_a_gap(tmp_path: Path) -> None:
    records = [record(1, 0.5), record(2, 0.5, train_loss="?"), record(3, 0.5, train_loss=True)]
    curves = read_curves(make_run(tmp_path / "run", records))
    loss = curves.values["train_loss"]
    assert (loss[0], [math.isnan(value) for value in loss]) == (1.0, [False, True, True])


def test_steps_are_the_axis_where_records_have_no_epochs(tmp_path: Path, run: Path) -> None:
    records = [{"step": 5, "train_loss": 1.0}, {"step": 10, "train_loss": 0.5}]
    steps = read_curves(make_run(tmp_path / "steps", records))
    assert (steps.axis, steps.x, steps.best) == ("step", [5, 10], None)
    curves_figure([steps])
    with pytest.raises(InvalidValueError, match=r"only steps have .*steps: draw them on their own"):
        curves_figure([steps, read_curves(run)])
    with pytest.raises(InvalidValueError, match="number of runs in one picture must be .* from 1"):
        curves_figure([steps] * 7)


def drawn(run: Path, records: list[dict[str, Any]]) -> list[list[str]]:
    """Return the rows of the loss's panel in the sketch of a run, as lists of its characters."""
    lines = terminal_plot([read_curves(make_run(run, records))], width=80)
    start = next(place for place, line in enumerate(lines) if "loss" in line) + 1
    return [list(line[9:39].ljust(30)) for line in lines[start : start + 9]]


def test_the_sketch_puts_marks_where_values_are(tmp_path: Path) -> None:
    records = [
        record(e, a, train_loss=8.0 - e, validation_loss=1.0 + e)
        for e, a in enumerate((0.1, 0.9, 0.5, 0.2, 0.2, 0.2), start=1)
    ]
    *rows, base = drawn(tmp_path / "run", records)
    places: dict[str, list[tuple[int, int]]] = {".": [], "o": [], " ": []}
    for row, cells in enumerate(rows):
        for column, mark in enumerate(cells):
            places[mark].append((row, column))
    assert [column for _, column in sorted(places["o"], reverse=True)] == [0, 6, 12, 17, 23, 29]
    assert [column for _, column in sorted(places["."])] == [0, 6, 12, 17, 23, 29]
    assert base.index("^") == 6  # below epoch 2


def test_the_sketch_needs_no_more_than_ascii_and_fits_its_width(run: Path) -> None:
    for width in (60, 100):
        lines = terminal_plot([read_curves(run)], width)
        assert max(map(len, lines[1:])) <= width  # the first has the run's name
        "\n".join(lines).encode("ascii")
    assert all(f" {title}" in "\n".join(lines) for title in ("loss", "accuracy", "learning rate"))


def test_values_that_stand_alone_are_seen(tmp_path: Path) -> None:
    curves = read_curves(make_run(tmp_path / "one", [record(1, 0.5)]))
    for axes in curves_figure([curves]).axes:
        lines = [line for line in axes.lines if len(line.get_xdata()) == 1]
        assert lines and all(line.get_marker() in "xo" for line in lines)
        assert all(line.get_markevery() in (None, [0]) for line in lines)
    assert alone([1.0, math.nan, 2.0, 3.0, math.nan, 4.0]) == [0, 5]
    gaps = [record(n, 0.5) | ({} if n == 50 else {"train_loss": "?"}) for n in range(1, 100)]
    curves = read_curves(make_run(tmp_path / "gaps", gaps))
    (line, *_) = curves_figure([curves]).axes[0].lines
    assert (line.get_marker(), line.get_markevery()) == ("x", [49])
    assert 'class="dot train"' in panel_svg(PANELS[0], curves)


def test_one_value_has_one_text(tmp_path: Path) -> None:
    records = [record(1, 0.57) | {"validation_loss": 0.123456}, record(2, 0.56999)]
    svg = panel_svg(PANELS[0], read_curves(make_run(tmp_path / "run", records)))
    assert svg.count("0.1235") == 2 and "0.1234" not in svg
    assert value_text("validation_accuracy", 0.57) == "57.0 %"
    assert value_text("validation_accuracy", 0.56999) == "56.9 %"
    assert epoch_line(records[0] | {"examples_per_second": 1, "best": False}).split()[-4:-1] == [
        *("0.1235", "57.0", "%")
    ]


def test_runs_of_several_seeds_are_drawn_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (9, 10):
        make_run(tmp_path / f"all/seed-{seed}")
    assert main(["plot", str(tmp_path / "all")]) == 2
    assert f"give one of them: {tmp_path}/all/seed-9, {tmp_path}/all/seed-10" in (
        capsys.readouterr().err
    )
    SeedsRecord(settings=small_settings(), count=2, overwrite=False).write(tmp_path / "all")
    assert main(["plot", str(tmp_path / "all"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [Path(run["run"]).name for run in found["runs"]] == ["seed-9", "seed-10"]
    assert (tmp_path / "all/curves.png").exists()
    assert main(["evaluate", str(tmp_path / "all")]) == 2
    assert "but runs are in it; give one of them: " in capsys.readouterr().err


def test_one_epoch_is_enough(tmp_path: Path) -> None:
    curves = read_curves(make_run(tmp_path / "run", [record(1, 0.0, gradient_norm=0.0)]))
    curves_figure([curves])
    assert any("o" in line for line in terminal_plot([curves])[3:])


def test_plot_writes_the_picture_into_the_run_and_changes_nothing_else(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["plot", str(run)]) == 0
    out = capsys.readouterr().out
    assert "^ best epoch" in out and str(run / "curves.png") in out
    assert (run / "curves.png").read_bytes().startswith(PNG)
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert after.keys() - before.keys() == {run / "curves.png"}
    assert before.items() <= after.items()


def test_runs_are_laid_over_each_other_in_another_file(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from matplotlib.colors import to_rgb
    from matplotlib.image import imread

    from fastformer.analysis.plots import COLORS

    other = make_run(tmp_path / "other", [record(1, 0.3), record(2, 0.4)])
    picture = tmp_path / "new/both.png"
    assert main(["plot", str(run), str(other), "--out", str(picture), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [item["run"] for item in found["runs"]] == [str(run), str(other)]
    assert found["runs"][1]["best"] == 2
    assert found["picture"] == str(picture)
    assert not (run / "curves.png").exists()
    pixels = imread(picture)[..., :3]
    counts = [
        int((np.abs(pixels - np.array(to_rgb(color))).max(axis=2) < 0.01).sum())
        for color in COLORS[:3]
    ]
    assert counts[0] > 100 and counts[1] > 100 and counts[2] == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["{run}", "--out", "{run}/curves.gif"], "a picture's name must end in one of .png, .svg"),
        (["{run}/none"], "does not exist"),
        (["{run}", "{run}/checkpoints"], "does not exist"),
        ([], "RUN"),
    ],
)
def test_a_mistake_is_explained_and_leaves_no_picture(
    arguments: list[str], complaint: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plot", *(word.format(run=run) for word in arguments)]) == 2
    assert complaint in capsys.readouterr().err
    assert not list(run.glob("curves.*"))


def test_no_display_is_needed_whatever_the_environment_asks_for(run: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    done = subprocess.run(
        [sys.executable, "-m", "fastformer", "plot", str(run)],
        env=environment | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "TkAgg"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (run / "curves.png").read_bytes().startswith(PNG)


def test_an_overwritten_run_loses_the_pictures_of_the_old_one(run: Path) -> None:
    for name in ("curves.png", "report.html", "mine.png"):
        (run / name).write_text("old")
    RunDirectory.create(run, small_settings().tables(), overwrite=True)
    assert {path.name for path in run.iterdir()} == {"config.toml", "mine.png"}
