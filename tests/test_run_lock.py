"""One run, one trainer; and what becomes of a run that others take away while it is trained."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from program import ROOT
from runs import Recorder, everything, one_thread, small_settings, tree

from fastformer.analysis.seeds import resume_seeds, train_seeds
from fastformer.cli import main
from fastformer.errors import RunError
from fastformer.training.run_directory import RunDirectory
from fastformer.training.run_lock import LOCK_FILE, TrainingLock
from fastformer.training.runs import resume_run, train_run

__all__ = ["one_thread"]  # a fixture that every test here uses

SETTINGS = small_settings(backend="reference", epochs=2, examples=200)


class At(Recorder):
    """Does something once, when an epoch has ended or a step is done."""

    def __init__(self, action: Callable[[], object], step: int = 0) -> None:
        super().__init__()
        self.action, self.step = action, step

    def stepped(self, step: int, loss: float, learning_rate: float, examples: int) -> None:
        if step == self.step:
            self.action()

    def epoch_finished(self, record: dict[str, Any]) -> None:
        if record["epoch"] == 1 and not self.step:
            self.action()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    train_run(SETTINGS, run, Recorder())
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def refused(run: Path) -> None:
    """Try all that would train a run, or write to it as training does."""
    opened = RunDirectory.open(run)
    for use in (
        lambda: resume_run(run, Recorder()),
        lambda: resume_run(run, Recorder(), epochs=9),
        lambda: train_run(SETTINGS, run, Recorder(), overwrite=True),
        lambda: opened.append_metrics({"step": 99}),
        lambda: opened.save_best({}, {}),
        lambda: opened.save_step(99, {}, {}),
        lambda: opened.go_on_from(0),
        lambda: opened.write_result({}),
        lambda: opened.change_config({}),
        opened.begin_anew,
    ):
        with pytest.raises(RunError, match="run is being trained by another process; wait until"):
            use()


@pytest.mark.smoke
def test_a_run_has_one_trainer_at_a_time(run: Path) -> None:
    before = tree(run)
    with RunDirectory.open(run).held() as holder:
        refused(run)
        holder.write_result(holder.read_result())  # but the one that has it may
    assert tree(run) == before  # and no lock is left
    resume_run(run, Recorder())


def test_training_itself_holds_its_run(tmp_path: Path) -> None:
    run, tried = tmp_path / "run", []

    def try_all() -> None:
        assert (run / LOCK_FILE).exists()
        refused(run)
        tried.append(run)

    train_run(SETTINGS, run, At(try_all))
    train_run(SETTINGS, run, At(try_all), overwrite=True)
    shutil.rmtree(run / "checkpoints")
    (run / "result.json").unlink()
    (run / "metrics.jsonl").unlink()
    resume_run(run, At(try_all))
    assert len(tried) == 3
    assert LOCK_FILE not in tree(run)


def test_a_kill_lets_go_of_a_run(run: Path) -> None:
    program = (
        "import sys, time; from fastformer.training.run_directory import RunDirectory\n"
        "with RunDirectory.open(sys.argv[1]).held(): print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(run)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as other:
        assert other.stdout and other.stdout.readline() == b"held\n"
        refused(run)
        other.kill()
    assert (run / LOCK_FILE).exists()
    with RunDirectory.open(run).held():
        pass
    assert not (run / LOCK_FILE).exists()


def test_a_directory_with_a_lock_alone_is_empty(tmp_path: Path) -> None:
    """That is what a kill leaves before a run's settings are written."""
    (tmp_path / LOCK_FILE).touch()
    RunDirectory.create(tmp_path, SETTINGS.tables())


def test_several_seeds_have_one_trainer_at_a_time(tmp_path: Path) -> None:
    seeds, calls = tmp_path / "seeds", []

    def train_one(settings: Any, place: Path, overwrite: bool) -> dict[str, Any]:
        for again in (
            lambda: train_seeds(train_one, SETTINGS, 2, seeds, overwrite=True),
            lambda: resume_seeds(train_one, lambda *_: {}, seeds),
        ):
            with pytest.raises(RunError, match="seeds is being trained by another process"):
                again()
        calls.append(place)
        return train_run(settings, place, Recorder(), overwrite)

    train_seeds(train_one, SETTINGS, 2, seeds)
    assert [place.name for place in calls] == ["seed-42", "seed-43"]
    assert LOCK_FILE not in tree(seeds)


def test_seeds_that_are_taken_away_are_not_made_anew(tmp_path: Path) -> None:
    seeds = tmp_path / "seeds"

    def train_one(settings: Any, place: Path, overwrite: bool) -> dict[str, Any]:
        result = train_run(settings, place, Recorder(), overwrite)
        seeds.rename(tmp_path / "elsewhere")
        return result

    with pytest.raises(RunError, match="seeds is gone: it was removed, renamed or replaced"):
        train_seeds(train_one, SETTINGS, 2, seeds)
    assert not seeds.exists()


def remove(run: Path) -> None:
    shutil.rmtree(run)


def rename(run: Path) -> None:
    run.rename(run.with_name("renamed"))


def replace_by_a_copy(run: Path) -> None:
    """Which has all files, and on some file systems the same number."""
    shutil.copytree(run, run.with_name("copy"))
    shutil.rmtree(run)
    run.with_name("copy").rename(run)


@pytest.mark.parametrize("take_away", [remove, rename, replace_by_a_copy])
@pytest.mark.parametrize("stopped", [False, True])
def test_a_run_that_is_taken_away_is_never_said_to_be_saved(
    take_away: Callable[[Path], None], stopped: bool, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    left: list[dict[str, str]] = []

    def act() -> None:
        take_away(run)
        left.append(tree(tmp_path))
        if stopped:
            os.kill(os.getpid(), signal.SIGTERM)

    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with pytest.raises(RunError, match="run is gone: it was removed, renamed or replaced"):
            train_run(SETTINGS, run, At(act, step=7))  # within the second epoch
    finally:
        signal.signal(signal.SIGTERM, previous)
    # Nothing is made anew, or written to what took its place.
    found = {name: value for name, value in tree(tmp_path).items() if LOCK_FILE not in name}
    assert found == {name: value for name, value in left[0].items() if LOCK_FILE not in name}


def test_a_run_that_was_renamed_goes_on_by_its_new_name(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(RunError, match="--resume and its new name"):
        train_run(SETTINGS, run, At(lambda: rename(run)))
    train_run(SETTINGS, run, Recorder())
    resume_run(tmp_path / "renamed", Recorder())
    assert everything(tmp_path / "renamed") == everything(run)


def test_a_run_that_loses_its_settings_says_so(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(RunError, match="config.toml was removed: without it this is no run"):
        train_run(SETTINGS, run, At((run / "config.toml").unlink))


# Links


@pytest.mark.parametrize("part", ["checkpoints", "embeddings"])
def test_a_part_that_is_a_link_leads_nowhere(part: str, run: Path, tmp_path: Path) -> None:
    (run / part).rename(tmp_path / "outside")
    (run / part).symlink_to(tmp_path / "outside")
    (tmp_path / "outside/.x.0123456789abcdef.tmp").touch()
    before = tree(tmp_path)
    for use in (
        lambda: resume_run(run, Recorder(), epochs=3),
        lambda: train_run(SETTINGS, run, Recorder(), overwrite=True),
    ):
        with pytest.raises(RunError, match=f"{part} is a symbolic link.*Put a directory in its"):
            use()
        assert tree(tmp_path) == before
    assert (run / part).is_symlink()


@pytest.mark.parametrize("part", ["checkpoints", "embeddings"])
def test_a_part_that_becomes_a_link_in_training_is_not_followed(part: str, tmp_path: Path) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"

    def link() -> None:
        (run / part).rename(outside)
        (run / part).symlink_to(outside)

    with pytest.raises(RunError, match=f"{part} is a symbolic link"):
        train_run(SETTINGS, run, At(link))
    steps = {path.name for path in outside.glob("*.safetensors")}
    assert (
        steps
        == {
            "checkpoints": {"best.safetensors", "step-00000005.safetensors"},
            "embeddings": {"epoch-0000.safetensors", "epoch-0001.safetensors"},
        }[part]
    )


@pytest.mark.parametrize(
    "name", ["config.toml", "metrics.jsonl", "result.json", "checkpoints/best.safetensors"]
)
def test_a_file_that_is_a_link_is_replaced_itself_or_refused(
    name: str, run: Path, tmp_path: Path
) -> None:
    (run / name).rename(tmp_path / "outside")
    (run / name).symlink_to(tmp_path / "outside")
    before = (tmp_path / "outside").read_bytes()
    try:
        resume_run(run, Recorder(), epochs=3)
    except RunError as error:
        assert "Too many levels of symbolic links" in str(error)
    train_run(SETTINGS, run, Recorder(), overwrite=True)
    assert (tmp_path / "outside").read_bytes() == before


def test_a_seed_that_is_a_link_leads_nowhere(run: Path, tmp_path: Path) -> None:
    seeds = tmp_path / "seeds"
    train_seeds(train_digits_alone, SETTINGS, 1, seeds)
    shutil.rmtree(seeds / "seed-42")
    (seeds / "seed-42").symlink_to(run)
    before = tree(run)
    for use in (
        lambda: train_seeds(train_digits_alone, SETTINGS, 1, seeds, overwrite=True),
        lambda: resume_seeds(train_digits_alone, lambda *_: {}, seeds, 9),
    ):
        with pytest.raises(RunError, match="seed-42 is a symbolic link"):
            use()
    assert tree(run) == before


def train_digits_alone(settings: Any, place: Path, overwrite: bool) -> dict[str, Any]:
    return train_run(settings, place, Recorder(), overwrite)


def test_a_lock_that_is_a_link_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("mine")
    (run / LOCK_FILE).symlink_to(tmp_path / "outside")
    with pytest.raises(RunError, match="cannot lock"), TrainingLock(run).held():
        pass
    assert (tmp_path / "outside").read_text() == "mine"


def test_the_command_line_says_it_in_a_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunDirectory.open(run).held():
        assert main(["train", "--resume", str(run)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert "run is being trained by another process" in err
