"""Sweeps: grids and searches, what is refused, and what the runs are."""

import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import mistake_of, object_of, text_of
from runs import everything, small_settings, tree

from fastformer import warmup
from fastformer.analysis.sweep import sweep_runs
from fastformer.cli import main
from fastformer.cli.sweep import FAILED, _tables_of
from fastformer.training.engines import in_processes, slurm_options
from fastformer.training.planned_run import Outcome, PlannedRun, outcome_of, train_quietly
from fastformer.training.run_directory import RunDirectory
from fastformer.training.sweep_file import option_words

# Without a kernel: what is tested here is no kernel, and processes start in no time.
OPTIONS = """
[options]
backend = "reference"
examples = 200
epochs = 2
embed_dim = 8
num-heads = 2
num-layers = 1
ffn-dim = 8
"""
GRID = f"""
task = "digits"
{OPTIONS}
[grid]
learning-rate = [1e-3, 0.03]
dropout = [0.0, 0.1]
"""
SEARCH = f"""
task = "digits"
{OPTIONS.replace("epochs = 2", "epochs = 4")}
[search]
trials = 9
sampler = "tpe"
pruner = "median"
[search.space]
learning-rate = {{ low = 1e-5, high = 0.1, log = true }}
dropout = {{ low = 0.0, high = 0.5 }}
batch-size = {{ low = 8, high = 32 }}
operations = [["Max", "Min"], ["First"]]
"""


def written(directory: Path, text: str) -> Path:
    """Write the file of a sweep."""
    file = directory / "sweep file.toml"
    file.write_text(text)
    return file


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Train a grid on two processes; return its directory, and what is told of it."""
    directory = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        out: list[str] = []
        patch.setattr(sys.stdout, "write", out.append)
        file = written(directory, GRID)
        assert (
            main(["sweep", str(file), "--out", str(directory / "all"), "--jobs=2", "--json"]) == 0
        )
    return directory / "all", json.loads("".join(out))


def test_a_grid_has_each_combination_once_the_best_first(
    trained: tuple[Path, dict[str, Any]],
) -> None:
    directory, found = trained
    points = [
        (run["settings"]["learning-rate"], run["settings"]["dropout"]) for run in found["runs"]
    ]
    assert sorted(points) == [(0.001, 0.0), (0.001, 0.1), (0.03, 0.0), (0.03, 0.1)]
    assert {run["state"] for run in found["runs"]} == {"done"}
    values = [run["value"] for run in found["runs"]]
    assert values == sorted(values, reverse=True) and found["measure"] == "validation_accuracy"
    for run in found["runs"]:
        records = RunDirectory.open(run["run"]).read_metrics()
        assert run["value"] == max(record["validation_accuracy"] for record in records)
    assert (directory / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_the_best_runs_command_line_gives_its_bits_again(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, found = trained
    assert found["command"][:3] == ["fastformer", "train", "digits"]
    object_of(capsys, *found["command"][1:], "--out", tmp_path / "again")
    assert everything(tmp_path / "again") == everything(Path(found["best"]["run"]))
    others = [everything(Path(run["run"])) for run in found["runs"][1:]]
    assert everything(tmp_path / "again") not in others


def test_its_runs_are_runs_like_any_other_and_are_trained_once(
    trained: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    directory, found = trained
    evaluated = object_of(capsys, "evaluate", found["best"]["run"])
    assert evaluated["test_accuracy"] == found["best"]["test_accuracy"]
    before = tree(directory)
    out = text_of(capsys, "sweep", "--resume", directory, "--jobs", 1)
    assert tree(directory) == before
    assert out.rstrip().splitlines()[-1].split(maxsplit=1)[1] == " ".join(found["command"])
    rows = re.findall(r"^(run-\d{3}) .* done$", out, re.MULTILINE)
    assert rows == [Path(run["run"]).name for run in found["runs"]]
    (directory / "sweep.png").unlink()
    assert object_of(capsys, "plot", directory) == found
    assert tree(directory) == before
    assert "drawn alone" in mistake_of(capsys, "plot", directory, directory)


def test_what_is_there_is_never_replaced(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, _ = trained
    file = written(tmp_path, GRID)
    said = mistake_of(capsys, "sweep", file, "--out", directory)
    assert f"go on with fastformer sweep --resume {directory}" in said
    (tmp_path / "own").mkdir()
    (tmp_path / "own/thesis.txt").touch()
    assert "is not empty" in mistake_of(capsys, "sweep", file, "--out", tmp_path / "own")
    assert "is no sweep" in mistake_of(capsys, "sweep", "--resume", tmp_path / "own")
    assert "give the file" in mistake_of(capsys, "sweep")
    assert "leave out --out" in mistake_of(
        capsys, "sweep", "--resume", directory, "--out", tmp_path / "x"
    )


def test_a_run_that_fails_stops_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = GRID.replace("[1e-3, 0.03]", "[1e30, 1e-3]").replace("[0.0, 0.1]", "[0.0]")
    file = written(tmp_path, text)
    assert main(["sweep", str(file), "--out", str(tmp_path / "all"), "--jobs=1"]) == FAILED
    out, err = capsys.readouterr()
    assert re.search(r"^run-002 .* done$[\s\S]*^run-001 .* failed$", out, re.MULTILINE)
    assert "run-001 failed: " in out and re.search("^best +", out, re.MULTILINE)
    assert "run-001  failed: " in err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('task = "digits"', "", "task must be one of 'digits', "),
        ('task = "digits"', 'task = "digit"', "got 'digit'; did you mean 'digits'?"),
        (
            'task = "digits"',
            'task = "digits"\ngird = 1',
            "has no setting 'gird'; did you mean 'grid'",
        ),
        (
            'task = "digits"',
            'task = "digits"\nfiles = "a"',
            "files must be a list of names of files",
        ),
        ('task = "digits"', 'task = "digits"\nfiles = ["a"]', "a']"),
        ('task = "digits"', 'task = "text"', "[options] has no setting 'examples'"),
        ("dropout =", "droput =", "[grid] has no setting 'droput'; did you mean 'dropout'?"),
        ("epochs = 2", "epoch = 2", "[options] has no setting 'epoch'; did you mean 'epochs'?"),
        (
            "epochs = 2",
            "epochs = 2.5",
            'Invalid value for --epochs: unable to convert "2.5" into int',
        ),
        ("epochs = 2", "epochs = 0", "toml: epochs must be an integer >= 1, got 0"),
        ("epochs = 2", "epochs = 2\nlearning_rate = 1", "learning-rate is both in [options] and"),
        ("epochs = 2", "epochs = 2\nembed-dim = 8", "[options] has embed_dim twice"),
        (
            "epochs = 2",
            "threads = 2",
            "[options] cannot have threads, which is no setting of a run",
        ),
        ("epochs = 2", "seeds = 2", "several seeds as seed = [42, 43] in [grid]"),
        ("epochs = 2", "seed = 2020-01-01", "[options] seed must be text, a number, true or false"),
        ("[0.0, 0.1]", "[]", "[grid] dropout must be a list of at least one value"),
        ("[0.0, 0.1]", "0.1", "[grid] dropout must be a list of at least one value"),
        ("[0.0, 0.1]", "[0.1, 0.1]", "[grid] dropout has 0.1 twice"),
        (
            "[0.0, 0.1]",
            '["no"]',
            "learning-rate = 0.001, dropout = no: Invalid value for --dropout",
        ),
        ("[0.0, 0.1]", "[0.0, 1.5]", "learning-rate = 0.001, dropout = 1.5: dropout must be"),
        ("[0.0, 0.1]", "[{}]", "[grid] dropout must be text, a number, true or false"),
        ("[0.0, 0.1]", "[[]]", "[grid] dropout must be text, a number, true or false"),
        ("learning-rate = [1e-3, 0.03]\ndropout = [0.0, 0.1]", "", "[grid] is empty"),
        ("[grid]", "[search]", "[search] has no setting 'learning-rate'"),
        ("[grid]", "[gri", "is no TOML"),
        (
            "dropout = [0.0, 0.1]",
            "[search]\ntrials = 1",
            "either a table [grid] or a table [search]",
        ),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused_before_anything_is_trained(
    old: str, new: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert old in GRID
    file = written(tmp_path, GRID.replace(old, new, 1))
    said = mistake_of(capsys, "sweep", file, "--out", tmp_path / "all")
    assert message in said and str(file) in said and said.count("\n") == 1
    assert not (tmp_path / "all").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("trials = 9", "trials = 0", "[search]: trials must be an integer from 1 to 10000, got 0"),
        ("trials = 9", "", "[search] must have trials"),
        ('"tpe"', '"tpo"', "[search]: sampler must be one of 'tpe', 'random', got 'tpo'"),
        ('"median"', '"mean"', "[search]: pruner must be one of 'none', 'median'"),
        ("trials = 9", "trials = 9\nseed = -1", "[search]: seed must be an integer >= 0"),
        ("trials = 9", "trails = 9", "[search] has no setting 'trails'; did you mean 'trials'?"),
        ("low = 1e-5", "low = 0.1", "[search.space] learning-rate: low must be below high"),
        (
            "low = 1e-5",
            "low = 0.0",
            "[search.space] learning-rate: low must be > 0 with log = true",
        ),
        ("low = 1e-5, ", "", "[search.space] learning-rate must have low"),
        ("low = 1e-5", 'low = "x"', "[search.space] learning-rate: low must be a finite number"),
        (
            "log = true",
            "lag = true",
            "learning-rate: Range has no setting 'lag'; did you mean 'log'",
        ),
        (
            "high = 0.5",
            "high = 1.5",
            "dropout = 1.5, batch-size = 8, operations = Max Min: dropout",
        ),
        (
            "low = 8",
            "low = 8.5",
            "batch-size = 8.5, operations = Max Min: Invalid value for --batch-",
        ),
        ('["First"]', '["Fist"]', "operations = Fist: each of operations must be one of"),
        ("dropout =", "drop =", "[search.space] has no setting 'drop'"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused_before_anything_is_trained(
    old: str, new: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert old in SEARCH
    file = written(tmp_path, SEARCH.replace(old, new, 1))
    said = mistake_of(capsys, "sweep", file, "--out", tmp_path / "all")
    assert message in said and str(file) in said
    assert not (tmp_path / "all").exists()


def test_values_that_go_together_with_some_others_alone_are_searched(tmp_path: Path) -> None:
    """A width of 6 has no four heads, but three."""
    text = SEARCH[: SEARCH.index("learning-rate = {")].replace("num-heads = 2\n", "")
    text = text.replace("embed_dim = 8\n", "") + "embed-dim = [6, 8]\nnum-heads = [3, 4]\n"
    file = written(tmp_path, text.replace("trials = 9", "trials = 4"))
    code = main(["sweep", str(file), "--out", str(tmp_path / "all"), "--jobs=1"])
    runs = sweep_runs(tmp_path / "all", _tables_of(file), "validation_accuracy", {})
    together = {run.changed["embed-dim"] % run.changed["num-heads"] == 0 for run in runs}  # type: ignore[operator]
    assert len(runs) == 4 and code == (0 if together == {True} else FAILED)
    for run in runs:
        fits = run.changed["embed-dim"] % run.changed["num-heads"] == 0  # type: ignore[operator]
        assert (run.state == "failed") != fits
        assert fits or "num_heads must divide embed_dim" in run.error


def without_times(found: dict[str, Any]) -> list[Any]:
    """Return what is told of the runs of a sweep, without what differs from call to call."""
    return [
        {name: value for name, value in run.items() if name != "seconds"}
        | {"run": Path(run["run"]).name}
        for run in found["runs"]
    ]


def test_a_search_has_the_same_trials_again_also_after_a_stop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, words = written(tmp_path, SEARCH), ("--jobs", 1)
    found = object_of(capsys, "sweep", file, "--out", tmp_path / "one", *words)
    states = [run["state"] for run in found["runs"]]
    assert sorted(run["run"][-3:] for run in found["runs"]) == [f"{n:03d}" for n in range(1, 10)]
    assert set(states) == {"done", "pruned"} and states == sorted(states)
    pruned = Path(next(run["run"] for run in found["runs"] if run["state"] == "pruned"))
    assert not (pruned / "result.json").exists()
    assert len(RunDirectory.open(pruned).read_metrics()) < 4
    assert 0 <= object_of(capsys, "evaluate", pruned)["test_accuracy"] <= 1

    # One that has fewer trials, of which more are asked then.
    file = written(tmp_path, SEARCH.replace("trials = 9", "trials = 5"))
    object_of(capsys, "sweep", file, "--out", tmp_path / "two", *words)
    copy = tmp_path / "two/sweep.toml"
    copy.write_text(copy.read_text().replace("trials = 5", "trials = 9"))
    again = object_of(capsys, "sweep", "--resume", tmp_path / "two", *words)
    assert without_times(again) == without_times(found)
    for run in sorted((tmp_path / "one").glob("run-*")):
        assert everything(run) == everything(tmp_path / "two" / run.name)
    other = written(tmp_path, SEARCH.replace("trials = 9", "trials = 1\nseed = 7"))
    first = object_of(capsys, "sweep", other, "--out", tmp_path / "three", *words)["runs"][0]
    assert first["settings"] not in [run["settings"] for run in found["runs"]]


def test_a_search_on_several_processes_has_all_its_trials(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = SEARCH.replace('"median"', '"none"').replace('"tpe"', '"random"')
    file = written(tmp_path, text.replace("trials = 9", "trials = 4"))
    found = object_of(capsys, "sweep", file, "--out", tmp_path / "all", "--jobs", 2)
    assert [run["state"] for run in found["runs"]] == ["done"] * 4
    alone = object_of(capsys, "sweep", file, "--out", tmp_path / "one", "--jobs", 1)
    assert without_times(alone) == without_times(found)  # what is random does not look at others


@pytest.mark.parametrize("package", ["optuna", "submitit"])
def test_what_is_not_installed_is_named(
    package: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    file = written(tmp_path, SEARCH if package == "optuna" else GRID)
    words = ["--slurm", "cluster=debug"] if package == "submitit" else ["--jobs", 1]
    said = mistake_of(capsys, "sweep", file, "--out", tmp_path / "all", *words)
    assert "pip install 'fastformer[sweep]'" in said


def test_jobs_of_a_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, GRID.replace("[0.0, 0.1]", "[0.0]"))
    found = object_of(
        *(capsys, "sweep", file, "--out", tmp_path / "all"),
        *("--slurm", "cluster=local", "timeout_min=30"),
    )
    assert [run["state"] for run in found["runs"]] == ["done"] * 2
    assert len(list((tmp_path / "all/slurm").glob("*_result.pkl"))) == 2
    said = mistake_of(
        *(capsys, "sweep", file, "--out", tmp_path / "b", "--slurm", "cluster=local", "partion=x")
    )
    assert "submitit cannot send jobs to Slurm" in said
    said = mistake_of(capsys, "sweep", file, "--out", tmp_path / "c", "--slurm", "time")
    assert "--slurm takes name=value, such as partition=cpu or time=60, got 'time'" in said
    assert slurm_options(["time=60", "partition=cpu"]) == {"time": 60, "partition": "cpu"}


@pytest.mark.parametrize("jobs", [0, -1, 1.5, 10**9])
def test_the_number_of_jobs_is_checked(
    jobs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = mistake_of(
        *(capsys, "sweep", written(tmp_path, GRID), "--out", tmp_path / "all", f"--jobs={jobs}")
    )
    assert "jobs must be an integer from 1 to 10000" in said or "--jobs" in said
    assert not (tmp_path / "all").exists()


def test_words_of_the_command_line() -> None:
    values: Any = {"a": 1e-5, "b": True, "c": ["x", "y"], "d": -1, "e": "two words"}
    assert option_words(values) == [
        *("--a", "1e-05", "--b=true", "--c", "x", "--c", "y", "--d=-1", "--e", "two words")
    ]


def test_a_run_that_another_process_trains_is_waited_for(tmp_path: Path) -> None:
    settings = small_settings(backend="reference", epochs=1, examples=200)
    run = RunDirectory.create(tmp_path / "run", settings.tables())
    planned = PlannedRun(place=run.path, settings=settings)
    with run.held():
        assert outcome_of(planned, patience=0.1).state == "elsewhere"
        found: list[Outcome] = []
        waiting = threading.Thread(target=lambda: found.append(outcome_of(planned)))
        waiting.start()
        time.sleep(0.3)
    waiting.join()
    assert [(each.state, len(each.notices)) for each in found] == [("done", 1)]


def test_what_nobody_foresaw_fails_one_run_alone(tmp_path: Path) -> None:
    def broken(*_: object) -> Any:
        raise ZeroDivisionError("by nothing")

    planned = PlannedRun(place=tmp_path / "run", settings=small_settings())
    found = outcome_of(planned, broken)
    assert (found.state, found.error) == ("failed", "ZeroDivisionError: by nothing")
    assert train_quietly is not broken


def working_directory(_: int) -> str:
    """Tell where a process is."""
    return os.getcwd()


def test_processes_are_where_their_parent_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "other"):  # the same processes do both
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        found = set(in_processes(working_directory, range(4), 2, 1))
        assert found == {str(tmp_path / name)}


def squared(number: int) -> int:
    """Stand for training."""
    return number**2


@pytest.mark.parametrize("jobs", [1, 2])
def test_items_are_taken_as_processes_are_free(jobs: int) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(5):
            taken.append(number)
            yield number

    found = in_processes(squared, items(), jobs, 1)
    first = next(found)
    assert jobs > 1 or taken == [0]
    assert sorted([first, *found]) == [0, 1, 4, 9, 16]


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_giving_an_item_raises_is_raised(jobs: int) -> None:
    def items() -> Iterator[int]:
        yield from range(4)
        raise ZeroDivisionError("by nothing")

    found = []
    with pytest.raises(ZeroDivisionError, match="by nothing"):
        for value in in_processes(squared, items(), jobs, 1):
            found.append(value)
    assert sorted(found) == [0, 1, 4, 9]


def test_one_process_at_a_time_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmup, "_markers", lambda: tmp_path / "compiled")
    order: list[str] = []

    def other() -> None:
        with warmup.compiling_in_turn(["adam.adam_step"]):
            order.append("second")

    with warmup.compiling_in_turn(["adam.adam_step"]):
        waiting = threading.Thread(target=other)
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        order.append("first")
    waiting.join()
    assert order == ["first", "second"] and (tmp_path / "compiled/adam.adam_step").exists()
    with warmup.compiling_in_turn(["adam.adam_step"]):  # nothing is left to compile
        other()
    shutil.rmtree(tmp_path / "compiled")
