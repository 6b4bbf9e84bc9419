"""A signal before, after or at the end of training is never lost: it ends the process at once."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from program import HANG, ROOT
from runs import Recorder, everything, one_thread, small_settings

from fastformer.training.loop import TrainingInterrupted
from fastformer.training.runs import resume_run, train_run
from fastformer.training.signals import SIGNALS

__all__ = ["one_thread"]  # a fixture that every test here uses

BEGIN = """
import os, signal, sys
from fastformer.training.signals import EndAtOnce, StopRequest
signal.signal(signal.SIGINT, signal.default_int_handler)
number = int(sys.argv[1])
def send():
    os.kill(os.getpid(), number)
"""
ONE_SIGNAL = """
with EndAtOnce(lambda: "last words"):
    print("said before", flush=False)
    send()
    print("said after")
"""
TWO_SIGNALS = """
with EndAtOnce(lambda: "last words"):
    with StopRequest() as stop:
        send()
        print("stop" if stop.signal == number else "lost", flush=True)
        send()
        print("said after")
"""
FAILING_WORDS = """
with EndAtOnce(lambda: 1 / 0):
    try:
        send()
    except BaseException:
        print("said after")
"""
OUTSIDE = """
with EndAtOnce(lambda: "last words"):
    pass
try:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    send()
except KeyboardInterrupt:
    print("an exception, as before")
"""
# Python drops an exception that a destructor raises, as it does in imports that C calls.
IN_A_DESTRUCTOR = """
from fastformer.cli import main

class Sender:
    def __del__(self):
        send()

class Finder:
    def find_spec(self, name, *_):
        if name == "fastformer.cli.train":
            Sender()

sys.meta_path.insert(0, Finder())
sys.exit(main(["train", "--out", sys.argv[2], "--examples", "200", "--epochs", "1"]))
"""


def run(program: str, number: int, *arguments: str) -> tuple[int, str, str]:
    """Run a program in a process of its own; return its exit code and what it wrote."""
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + program, str(int(number)), *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "NUMBA_NUM_THREADS": "1"},
        **{"capture_output": True, "text": True, "timeout": HANG},
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_process_at_once(number: int) -> None:
    code, out, err = run(ONE_SIGNAL, number)
    assert (code, out, err) == (128 + number, "said before\n", "last words\n")


@pytest.mark.parametrize("number", SIGNALS)
def test_the_second_signal_in_training_ends_the_process_at_once(number: int) -> None:
    code, out, err = run(TWO_SIGNALS, number)
    assert (code, out, err) == (128 + number, "stop\n", "last words\n")


def test_a_signal_ends_the_process_also_without_last_words() -> None:
    code, out, _ = run(FAILING_WORDS, signal.SIGTERM)
    assert (code, out) == (128 + signal.SIGTERM, "")


def test_after_it_signals_act_as_before() -> None:
    assert run(OUTSIDE, signal.SIGINT) == (0, "an exception, as before\n", "")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_where_exceptions_get_lost_ends_the_start_up(number: int, tmp_path: Path) -> None:
    code, out, err = run(IN_A_DESTRUCTOR, number, str(tmp_path / "run"))
    assert (code, out, err) == (128 + number, "", "Stopped before training began\n")
    assert not (tmp_path / "run").exists()


class LastMoment(Recorder):
    """Sends a signal when the last epoch is validated and saved."""

    def epoch_finished(self, record: dict[str, Any]) -> None:
        super().epoch_finished(record)
        if record["epoch"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_after_the_last_step_is_not_lost(tmp_path: Path) -> None:
    train_run(small_settings(), tmp_path / "unbroken", Recorder())
    with pytest.raises(TrainingInterrupted, match="was stopped after step 30"):
        train_run(small_settings(), tmp_path / "run", LastMoment())
    assert not (tmp_path / "run/result.json").exists()
    resume_run(tmp_path / "run", Recorder())
    assert everything(tmp_path / "run") == everything(tmp_path / "unbroken")
