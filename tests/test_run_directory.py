"""The run directory: made, opened, replaced, gone on with."""

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastformer.errors import CheckpointError, RunError
from fastformer.training.run_directory import RunDirectory
from fastformer.training.run_place import next_free_run

CONFIG: dict[str, dict[str, Any]] = {
    "run": {"seed": 42, "backend": "numba"},
    "task": {"operations": ("First", "Max"), "validation_fraction": 0.1, "balance": True},
    "training": {"learning_rate": 1e-05, "note": 'é "quoted"\n\\'},
}
LEFTOVER = ".config.toml.0123456789abcdef.tmp"


def tensors(value: float) -> dict[str, np.ndarray]:
    return {"w": np.full((2, 3), value, np.float32)}


def tree(path: Path) -> dict[str, bytes | None]:
    """Everything below a directory: files with their content, directories with None."""
    return {
        str(entry.relative_to(path)): entry.read_bytes() if entry.is_file() else None
        for entry in path.rglob("*")
    }


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", CONFIG)


@pytest.fixture
def full_run(run: RunDirectory) -> RunDirectory:
    """A run with all that a finished one has."""
    for step in (100, 200):
        run.append_metrics({"step": step, "loss": 1 / step})
        run.save_step(step, tensors(step), {"step": step})
    run.save_best(tensors(200), {"step": 200})
    run.write_result({"test_accuracy": 0.998})
    return run


# Making and opening


@pytest.mark.smoke
def test_a_run_opens_as_it_was_made(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "deep" / "digits-1"
    made = RunDirectory.create(path, CONFIG)
    opened = RunDirectory.open(str(path))
    expected = CONFIG | {"task": CONFIG["task"] | {"operations": ["First", "Max"]}}
    assert made.config == opened.config == expected
    assert made.path == opened.path == path
    text = (path / "config.toml").read_text()
    assert text.startswith('format_version = 1\nformat = "fastformer"\n')
    assert list(tree(path)) == ["config.toml"]


def test_an_empty_directory_may_become_a_run(tmp_path: Path) -> None:
    (tmp_path / LEFTOVER).touch()  # of a process that was killed while it made the run
    RunDirectory.create(tmp_path, CONFIG)
    RunDirectory.open(tmp_path)


def test_files_are_there_before_the_run_is_one(tmp_path: Path) -> None:
    files = {"tokenizer.json": b"new"}
    run = RunDirectory.create(tmp_path / "run", CONFIG, files=files)
    assert tree(run.path).keys() == {"config.toml", "tokenizer.json"}
    # What a process left that was killed before `config.toml` was there; a user's file is none.
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "tokenizer.json").write_bytes(b"new")
    RunDirectory.create(tmp_path / "a", CONFIG, files=files)
    for place in ("b", "c"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "tokenizer.json").write_bytes(b"of a user")
    for place, others in (("b", files), ("c", {})):
        with pytest.raises(RunError, match="is not empty, and not a run"):
            RunDirectory.create(tmp_path / place, CONFIG, overwrite=True, files=others)
    run.begin_anew()
    assert (run.path / "tokenizer.json").read_bytes() == b"new"
    RunDirectory.create(run.path, CONFIG, overwrite=True)
    assert tree(run.path).keys() == {"config.toml"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"run": {"seed": None}}, "config must consist of TOML values.*NoneType"),
        ({"run": {"name": "\ud800"}}, "config must consist of TOML values"),
        ({"run": 3}, "config must map names to tables, got 'run': 3"),
        ({"format_version": {}}, "config must map names to tables, got 'format_version'"),
    ],
)
def test_a_config_that_toml_cannot_hold_makes_and_removes_nothing(
    full_run: RunDirectory, config: Any, message: str
) -> None:
    before = tree(full_run.path)
    with pytest.raises(TypeError, match=message):
        RunDirectory.create(full_run.path, config, overwrite=True)
    with pytest.raises(TypeError, match=message):
        RunDirectory.create(full_run.path / "new", config)
    assert tree(full_run.path) == before


def test_opening_what_is_no_run_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"run .*none does not exist; give the directory of a run"):
        RunDirectory.open(tmp_path / "none")
    with pytest.raises(RunError, match=r"is not a run of fastformer: it has no config\.toml"):
        RunDirectory.open(tmp_path)
    with pytest.raises(RunError, match="File name too long"):
        RunDirectory.open(tmp_path / ("x" * 300))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not of a run of fastformer"),
        (b'format_version = 2\nformat = "fastformer"\n', "version 2, this .* 1; update fastformer"),
        (b'format_version = 0\nformat = "fastformer"\n', "is not of a run of fastformer"),
        (b'format_version = true\nformat = "fastformer"\n', "is not of a run of fastformer"),
        (b'format_version = 1\nformat = "other"\n', "is not of a run of fastformer"),
        (b"format_version = 1\n[task", r"config\.toml is damaged: Expected .*; mend it"),
        (b"\xff\xfe", r"config\.toml is damaged"),
        (b"a = " + b"[" * 100_000, r"config\.toml is damaged"),
        (b'format_version = 1\nformat = "fastformer"\ntask = 3\n', "'task' is not a table"),
    ],
)
def test_a_damaged_or_newer_config_is_refused_also_by_overwrite(
    full_run: RunDirectory, content: bytes, message: str
) -> None:
    (full_run.path / "config.toml").write_bytes(content)
    before = tree(full_run.path)
    with pytest.raises(RunError, match=message):
        RunDirectory.open(full_run.path)
    for overwrite in (False, True):
        with pytest.raises(RunError, match=message):
            RunDirectory.create(full_run.path, CONFIG, overwrite=overwrite)
    assert tree(full_run.path) == before


# Overwriting


def test_a_run_is_not_overwritten_without_being_told_to(full_run: RunDirectory) -> None:
    before = tree(full_run.path)
    with pytest.raises(RunError, match=r"already there.*--out.*--overwrite"):
        RunDirectory.create(full_run.path, {"run": {"seed": 7}})
    assert tree(full_run.path) == before


def test_overwrite_removes_what_fastformer_wrote_and_nothing_else(full_run: RunDirectory) -> None:
    path = full_run.path
    for name in ("notes.txt", "checkpoints/mine.safetensors", LEFTOVER, f"checkpoints/{LEFTOVER}"):
        (path / name).write_text("mine")
    run = RunDirectory.create(path, {"run": {"seed": 7}}, overwrite=True)
    assert run.config == {"run": {"seed": 7}}
    assert run.read_metrics() == []
    files = ["checkpoints", "checkpoints/mine.safetensors", "config.toml", "notes.txt"]
    assert sorted(tree(path)) == files
    (path / "checkpoints" / "mine.safetensors").unlink()
    RunDirectory.create(path, CONFIG, overwrite=True)
    assert sorted(tree(path)) == ["config.toml", "notes.txt"]


def test_an_interrupted_overwrite_can_be_repeated(
    full_run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(RunError, match="cannot create run .*Input/output error"):
            RunDirectory.create(full_run.path, {}, overwrite=True)
    assert RunDirectory.open(full_run.path).config == full_run.config
    RunDirectory.create(full_run.path, {}, overwrite=True)
    assert list(tree(full_run.path)) == ["config.toml"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_not_a_run_is_never_replaced(tmp_path: Path, overwrite: bool) -> None:
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "metrics.jsonl").write_text("mine")
    with pytest.raises(RunError, match=r"not empty, and not a run .*no config\.toml.*--out"):
        RunDirectory.create(thesis, CONFIG, overwrite=overwrite)
    with pytest.raises(RunError, match=r"exists and is not a directory.*--out"):
        RunDirectory.create(thesis / "metrics.jsonl", CONFIG, overwrite=overwrite)
    with pytest.raises(RunError, match=r"cannot create run .*; check the path"):
        RunDirectory.create(thesis / "metrics.jsonl" / "run", CONFIG, overwrite=overwrite)
    (thesis / "link").symlink_to("nowhere")
    with pytest.raises(RunError, match="exists and is not a directory"):
        RunDirectory.create(thesis / "link", CONFIG, overwrite=overwrite)
    assert sorted(tree(thesis)) == ["link", "metrics.jsonl"]
    assert (thesis / "metrics.jsonl").read_text() == "mine"


# Checkpoints


@pytest.mark.smoke
def test_latest_and_best_are_what_was_saved(full_run: RunDirectory) -> None:
    latest = full_run.latest()
    assert latest.metadata == {"step": 200}
    assert latest.path == full_run.path / "checkpoints" / "step-00000200.safetensors"
    np.testing.assert_array_equal(latest.tensors["w"], tensors(200)["w"])
    full_run.save_step(300, tensors(300), {"step": 300})
    assert full_run.latest().metadata == {"step": 300}
    assert full_run.best().metadata == {"step": 200}
    full_run.save_best(tensors(300), {"step": 300})
    assert full_run.best().metadata == {"step": 300}


def checkpoint_names(run: RunDirectory) -> list[str]:
    return sorted(entry.name for entry in (run.path / "checkpoints").iterdir())


def test_the_newest_two_are_kept(run: RunDirectory) -> None:
    for step in (0, 5, 99_999_999, 100_000_000, 1_000_000_000):
        path = run.save_step(step, tensors(step), {"step": step})
        assert path.exists()
        assert run.latest().metadata == {"step": step}
        assert len(checkpoint_names(run)) <= 2
    assert checkpoint_names(run) == ["step-100000000.safetensors", "step-1000000000.safetensors"]


def test_files_of_others_among_the_checkpoints_stay(run: RunDirectory) -> None:
    run.save_best(tensors(1), {})
    others = ["step-00000009.safetensors.bak", "step-1.safetensors", "xstep-00000001.safetensors"]
    for name in others:
        (run.path / "checkpoints" / name).write_text("mine")
    for step in (1, 2, 3):
        run.save_step(step, tensors(step), {})
    steps = ["step-00000002.safetensors", "step-00000003.safetensors"]
    assert checkpoint_names(run) == sorted(["best.safetensors", *others, *steps])


def test_a_damaged_latest_checkpoint_is_skipped_with_a_warning(full_run: RunDirectory) -> None:
    damage(full_run.path / "checkpoints" / "step-00000200.safetensors")
    with pytest.warns(UserWarning, match=r"skipped: .*step-00000200\.safetensors is damaged"):
        assert full_run.latest().metadata == {"step": 100}


def test_every_truncation_of_the_latest_checkpoint_falls_back(full_run: RunDirectory) -> None:
    path = full_run.path / "checkpoints" / "step-00000200.safetensors"
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.warns(UserWarning, match="step-00000200"):
            assert full_run.latest().metadata == {"step": 100}


def test_going_on_from_an_earlier_checkpoint_removes_the_later_ones(
    full_run: RunDirectory,
) -> None:
    damage(full_run.path / "checkpoints" / "step-00000200.safetensors")
    full_run.save_step(150, tensors(150), {"step": 150})
    names = ["best.safetensors", "step-00000100.safetensors", "step-00000150.safetensors"]
    assert checkpoint_names(full_run) == names
    assert full_run.latest().metadata == {"step": 150}  # without a warning


def test_without_a_good_checkpoint_there_is_nothing_to_go_on_from(run: RunDirectory) -> None:
    with pytest.raises(CheckpointError, match="cannot go on: it has no checkpoint yet"):
        run.latest()
    with pytest.raises(CheckpointError, match="has no best checkpoint yet"):
        run.best()
    for step in (1, 2):
        damage(run.save_step(step, tensors(step), {}))
    with pytest.warns(UserWarning) as told, pytest.raises(CheckpointError, match="none of its"):
        run.latest()
    assert len(told) == 2
    damage(run.save_best(tensors(1), {}))
    with pytest.raises(CheckpointError, match=r"best\.safetensors is damaged"):
        run.best()


def test_old_checkpoints_go_only_after_the_new_one_is_safe(
    full_run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    before = tree(full_run.path)
    for call in ("write", "fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            with pytest.raises(CheckpointError, match="cannot write checkpoint"):
                full_run.save_step(300, tensors(300), {})
            with pytest.raises(CheckpointError, match="cannot write checkpoint"):
                full_run.save_best(tensors(300), {})
            with pytest.raises(RunError, match="cannot write the result"):
                full_run.write_result({})
        assert tree(full_run.path) == before


@pytest.mark.parametrize("step", [-1, 1.0, True, None])
def test_a_step_is_a_count(run: RunDirectory, step: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="step must be an integer >= 0"):
        run.save_step(step, {}, {})
    with pytest.raises((ValueError, TypeError), match="step must be an integer >= 0"):
        run.go_on_from(step)
    assert list(tree(run.path)) == ["config.toml"]


# Metrics and result


def test_metrics_are_cut_back_and_leftovers_removed(full_run: RunDirectory) -> None:
    assert [record["step"] for record in full_run.read_metrics()] == [100, 200]
    for directory in (full_run.path, full_run.path / "checkpoints"):
        (directory / LEFTOVER).touch()
    full_run.go_on_from(199)
    assert full_run.read_metrics() == [{"step": 100, "loss": 0.01}]
    assert not [name for name in tree(full_run.path) if name.endswith(".tmp")]
    full_run.append_metrics({"step": 150})
    assert [record["step"] for record in full_run.read_metrics()] == [100, 150]


def test_checkpoints_that_a_kill_left_are_removed(full_run: RunDirectory) -> None:
    """It came when the newest was written, and the oldest still there."""
    newest = full_run.save_step(300, tensors(300), {})
    first = newest.with_name("step-00000100.safetensors")
    first.write_bytes(newest.read_bytes())
    full_run.go_on_from(299)
    assert first.exists()  # training may go on from the one of step 200 or 100
    full_run.go_on_from(300)
    found = sorted(path.name for path in newest.parent.glob("step-*"))
    assert found == ["step-00000200.safetensors", newest.name]


def test_a_torn_metrics_line_is_told_with_its_number_and_the_caller_s_place(
    full_run: RunDirectory,
) -> None:
    file = full_run.path / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.warns(UserWarning, match=r"metrics\.jsonl: line 2, the last, is torn") as told:
        assert [record["step"] for record in full_run.read_metrics()] == [100]
    assert told[0].filename == __file__


def test_the_result_comes_back(run: RunDirectory) -> None:
    with pytest.raises(RunError, match="no result yet: training is not finished.*--resume"):
        run.read_result()
    run.write_result({"test_accuracy": np.float32(0.5), "per_operation": {"Max": 1.0}})
    assert run.read_result() == {"test_accuracy": 0.5, "per_operation": {"Max": 1.0}}
    with pytest.raises(ValueError, match="a result must consist of JSON values"):
        run.write_result({"loss": float("inf")})
    for content in (b"", b'{"a": 1', b"[]", b"\xff"):
        (run.path / "result.json").write_bytes(content)
        with pytest.raises(RunError, match=r"result\.json is damaged"):
            run.read_result()


# Names


def test_next_free_run_is_the_first_that_does_not_exist(tmp_path: Path) -> None:
    parent = tmp_path / "runs"
    with next_free_run(parent, "digits") as run:
        assert run == parent / "digits-1" and run.is_dir()
        with next_free_run(parent, "digits") as other:
            assert other == parent / "digits-2"
    assert not parent.exists()  # nothing was put there
    (parent / "digits-1").mkdir(parents=True)
    (parent / "digits-3").mkdir()
    (parent / "text-2").mkdir()
    (parent / "digits-2").symlink_to("nowhere")  # a name that is taken, though by nothing
    with next_free_run(str(parent), "digits") as run:
        assert run == parent / "digits-4"
        RunDirectory.create(run, CONFIG)
    assert list(tree(run)) == ["config.toml"]


def test_names_that_are_taken_at_once_are_unlike(tmp_path: Path) -> None:
    together = threading.Barrier(8)

    def take(_: int) -> Path:
        together.wait()
        with next_free_run(tmp_path / "runs", "digits") as run:
            RunDirectory.create(run, CONFIG)
            return run

    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(take, range(8)))
    assert {path.name for path in taken} == {f"digits-{number}" for number in range(1, 9)}
