"""A sweep that is killed anywhere goes on: each run once, none lost, with the bits of no stop."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from program import HANG, start_program
from runs import everything

from fastformer.training.run_lock import LOCK_FILE

FILE = """
task = "digits"
[options]
backend = "reference"
examples = 200
epochs = 6
checkpoint-every = 4
embed-dim = 8
num-heads = 2
num-layers = 1
ffn-dim = 8
dropout = 0.1
[grid]
seed = [1, 2, 3]
"""
WORDS = ("--jobs", "2", "--json")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a sweep without a stop."""
    directory = tmp_path_factory.mktemp("unbroken")
    (directory / "sweep.toml").write_text(FILE)
    process = start_program("sweep", "sweep.toml", "--out", "all", *WORDS, cwd=directory)
    _, err = process.communicate(timeout=HANG)
    assert process.returncode == 0, err
    return directory / "all"


def all_of(directory: Path) -> dict[str, object]:
    """Return all that the runs of a sweep hold, apart from times."""
    return {run.name: everything(run) for run in sorted(directory.glob("run-*"))}


def trains(directory: Path) -> bool:
    return any(directory.glob("run-*/checkpoints/step-*"))


def workers_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """Return the processes that train for a sweep."""
    children = psutil.Process(process.pid).children()
    return [child for child in children if "popen_loky_posix" in " ".join(child.cmdline())]


@pytest.mark.parametrize("victim", ["parent", "worker"])
def test_a_sweep_that_is_killed_goes_on(victim: str, unbroken: Path, tmp_path: Path) -> None:
    (tmp_path / "sweep.toml").write_text(FILE)
    process = start_program("sweep", "sweep.toml", "--out", "all", *WORDS, cwd=tmp_path)
    while not trains(tmp_path / "all"):
        assert process.poll() is None
        time.sleep(0.01)
    workers = workers_of(process)
    os.kill(workers[0].pid if victim == "worker" else process.pid, signal.SIGKILL)
    _, err = process.communicate(timeout=HANG)
    if victim == "worker":
        assert process.returncode == 2 and "a process that trained was killed" in err
    else:
        assert process.returncode == -signal.SIGKILL and "warn" not in err
    assert len(list((tmp_path / "all").glob("run-*/result.json"))) < 3  # there is work left
    _, alive = psutil.wait_procs(workers, timeout=HANG)
    assert not alive
    process = start_program("sweep", "--resume", "all", *WORDS, cwd=tmp_path)
    out, err = process.communicate(timeout=HANG)
    assert process.returncode == 0, err
    found = json.loads(out)["runs"]
    assert sorted(run["run"] for run in found) == [f"all/run-00{n}" for n in (1, 2, 3)]
    assert all_of(tmp_path / "all") == all_of(unbroken)
    assert not list((tmp_path / "all").rglob(LOCK_FILE))


def test_ctrl_c_saves_all_runs_and_says_how_to_go_on(unbroken: Path, tmp_path: Path) -> None:
    (tmp_path / "sweep.toml").write_text(FILE)
    process = start_program(
        *("sweep", "sweep.toml", "--out", "my sweep", *WORDS), cwd=tmp_path, start_new_session=True
    )
    while not trains(tmp_path / "my sweep"):
        assert process.poll() is None
        time.sleep(0.01)
    workers = workers_of(process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=HANG)
    assert (process.returncode, out) == (128 + signal.SIGINT, "")
    assert err.endswith("saved. To go on:\n  fastformer sweep --resume 'my sweep'\n"), err
    assert "Traceback" not in err and "warning" not in err.lower()
    psutil.wait_procs(workers, timeout=HANG)
    process = start_program("sweep", "--resume", "my sweep", *WORDS, cwd=tmp_path)
    _, err = process.communicate(timeout=HANG)
    assert process.returncode == 0, err
    assert all_of(tmp_path / "my sweep") == all_of(unbroken)
