"""`fastformer train --elastic`: processes that train together, and go on where one is lost."""

import argparse
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from types import FrameType
from typing import Final

import psutil

from fastformer import checks, launcher
from fastformer.cli import SIGNALLED, console
from fastformer.errors import InvalidValueError

_RUNS: Final = Path("runs")
_ASKED_TO_STOP: Final = (SIGNALLED + signal.SIGINT, SIGNALLED + signal.SIGTERM)


def train_elastically(words: Sequence[str]) -> int:
    """Train with several processes of mpiexec, and again with those that are left.

    A process that is killed, as where memory is short, ends all; the run then goes on from its last
    checkpoint with one process less. Any number of processes has the same bits.

    Args:
        words: of the command `train`, with --elastic.

    Returns:
        The exit code of the last attempt.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("--elastic", "--out", "--resume", "--threads"):
        parser.add_argument(name)
    parser.add_argument("--json", action="store_true")
    try:
        given, others = parser.parse_known_args(words)
        left = checks.integer("--elastic", int(given.elastic), 1)
    except (argparse.ArgumentError, ValueError) as error:
        raise InvalidValueError(f"--elastic takes a number of processes: {error}") from None
    if launcher.are_several():
        raise InvalidValueError("--elastic starts mpiexec itself; start it without mpiexec")
    kept = [*(["--threads", given.threads] if given.threads else []), *["--json"] * given.json]
    with ExitStack() as block:
        if given.resume:
            place, others = Path(given.resume), [*others, "--resume", given.resume]
        else:
            place = Path(given.out) if given.out else block.enter_context(_free_run(others[1]))
            others += ["--out", str(place)]
        while True:
            before = _written(place)
            code, stopped = _attempt([launcher.mpiexec(), "-n", str(left)], [*others, *kept])
            if stopped:
                return SIGNALLED + stopped
            left -= 1
            if code <= SIGNALLED or code in _ASKED_TO_STOP or not left:
                return code
            if not given.resume and _written(place) != before:
                given.resume, others = str(place), ["train", "--resume", str(place)]
            console.notice(f"A process was lost. Going on with {left}")


def _free_run(task: str) -> AbstractContextManager[Path]:
    """Return where a run goes whose place is not told."""
    from fastformer.training.run_place import next_free_run

    return next_free_run(_RUNS, task)


def _written(place: Path) -> tuple[int, int] | None:
    """Return what changes when a run is begun in a directory, or None where there is none."""
    try:
        status = (place / "config.toml").stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _attempt(start: list[str], words: list[str]) -> tuple[int, int]:
    """Run all processes to their end; return the exit code, and the signal that came, or 0."""
    own = [sys.executable, "-m", "fastformer", *words]
    came = [0]

    def pass_on(number: int, frame: FrameType | None) -> None:
        """Let one of them save, and so all; mpiexec itself would not wait for that."""
        first = None if came[0] else _first_of(process.pid, own)
        came[0] = number
        (first or process).terminate()

    # In a session of its own, so that Ctrl-C comes here alone.
    process = subprocess.Popen([*start, *own], start_new_session=True)
    before = {n: signal.signal(n, pass_on) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        return process.wait(), came[0]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _first_of(launched: int, words: list[str]) -> psutil.Process | None:
    """Return a process with these words that a launcher has started, or None."""
    for process in psutil.Process(launched).children(recursive=True):
        with suppress(psutil.Error):
            if process.cmdline() == words:
                return process
    return None
