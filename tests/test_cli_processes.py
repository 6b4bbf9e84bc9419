"""What only real processes show: signals, threads, streams."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from commands import object_of
from program import HANG, start_program
from runs import everything, one_thread, weights_digest

from fastformer.cli import main

__all__ = ["one_thread"]  # a fixture that every test here uses

TINY = "--examples 400 --embed-dim 16 --num-heads 2 --num-layers 1 --ffn-dim 32".split()
LONG = [*TINY, "--epochs", "60", "--optimizer", "adamw", "--dropout", "0.1"]


def run(*arguments: str, cwd: Path, text: str | None = None, **options: Any) -> tuple[str, str]:
    """Run a command that succeeds; return what it wrote."""
    process = start_program(*arguments, cwd=cwd, stdin=subprocess.PIPE, **options)
    out, err = process.communicate(text, timeout=HANG)
    assert process.returncode == 0, err
    return out, err


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train without a stop, in this process: the bits are those of any other."""
    directory = tmp_path_factory.mktemp("unbroken")
    assert main(["train", "--out", str(directory / "run"), *LONG, "--threads", "1"]) == 0
    return directory / "run"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_run_and_says_how_to_go_on(
    number: signal.Signals, unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "--out", "my run", *LONG, "--json"]
    process = start_program(*arguments, cwd=tmp_path, stdin=subprocess.DEVNULL)
    assert process.stderr is not None
    while not (line := process.stderr.readline()).startswith("    2 "):
        assert line, "it ended before the second epoch"
    process.send_signal(number)
    out, err = process.communicate(timeout=HANG)
    assert process.returncode == 128 + number, err
    assert out == ""
    assert "Traceback" not in err
    assert re.search(r"^Stopped after step [\d,]+; everything is saved\. To go on:$", err, re.M)
    assert err.endswith("  fastformer train --resume 'my run'\n")
    assert not (tmp_path / "my run/result.json").exists()
    assert main(["train", "--resume", str(tmp_path / "my run"), "--json"]) == 0
    out, err = capsys.readouterr()
    assert re.search(r"^going on from step [\d,]+ of 600$", err, re.M)
    assert json.loads(out)["steps"] == 600
    newest = "checkpoints/step-00000600.safetensors"
    assert weights_digest(tmp_path / "my run" / newest) == weights_digest(unbroken / newest)
    assert everything(tmp_path / "my run") == everything(unbroken)


def test_an_ignored_interrupt_stays_ignored(tmp_path: Path) -> None:
    arguments = ["train", "--out", "run", *TINY, "--epochs", "20"]
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as nohup and background jobs have it
    try:
        process = start_program(*arguments, cwd=tmp_path, stdin=subprocess.DEVNULL)
    finally:
        signal.signal(signal.SIGINT, previous)
    assert process.stderr is not None
    while not process.stderr.readline().startswith("    2 "):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=HANG)
    assert process.returncode == 0, err


def test_the_number_of_threads_changes_no_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digests = {}
    for threads in (1, 2, 3, 4):
        place = tmp_path / f"{threads}"
        out = object_of(capsys, "train", "--out", place, "--threads", threads, "--epochs", 1)
        assert out["steps"] > 200
        (saved,) = (place / "checkpoints").glob("step-*.safetensors")
        digests[threads] = weights_digest(saved)
    assert len(set(digests.values())) == 1, digests


def test_a_finished_run_is_asked_evaluated_and_resumed(
    unbroken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers, _ = run("predict", "run", cwd=unbroken.parent, text="max(5,3,9)\n")
    assert re.match(r"Max \( 5 , 3 , 9 \) = \d   \d+\.\d\d %   \(", answers)
    found = object_of(capsys, "evaluate", unbroken)
    trained = json.loads((unbroken / "result.json").read_text())
    for name in ("test_accuracy", "test_loss", "per_operation"):
        assert found[name] == trained[name]
    out, err = run("train", "--resume", "run", "--json", cwd=unbroken.parent)
    assert json.loads(out) == trained
    assert err.startswith("run run has ended after epoch 60: nothing is left to train")


def test_input_in_another_encoding_is_a_mistake_and_no_traceback(unbroken: Path) -> None:
    process = start_program("predict", "run", cwd=unbroken.parent, stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.buffer.write(b"max(5,3,\xff)\n")
    out, err = process.communicate(timeout=HANG)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("fastformer: line 1: unknown token ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("task", ["digits", "addition"])
def test_threads_are_counted_before_anything_starts_them(task: str, tmp_path: Path) -> None:
    """More than there are cores: only a pool that is not yet there can be so large."""
    threads = str((os.cpu_count() or 1) + 1)
    words = ["train", task, "--examples", "300", "--epochs", "1", "--out", str(tmp_path / "run")]
    process = start_program(*words, "--threads", threads)
    _, told = process.communicate(timeout=HANG)
    assert process.returncode == 0, told
