"""A supervisor of training runs: it starts the command, kills it, and goes on with what is left.

Most runs are forked from a process in which Python, Numba and the kernels are loaded already, and
call the command's `main`: that leaves the seconds to training. The kill is a real one of a real
process. Some runs are the command itself, with a cache of compiled kernels of their own or none.
"""

import contextlib
import functools
import hashlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from program import HANG, ROOT
from runs import everything

from fastformer.training.run_lock import LOCK_FILE

# Where there is one, a file system in memory: forcing thousands of files to disk takes minutes.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
FORK = multiprocessing.get_context("fork")

OPTIONS = tuple(
    "--examples 400 --embed-dim 16 --num-heads 2 --num-layers 1 --ffn-dim 32 --epochs 3 "
    "--optimizer adamw --dropout 0.1".split()
)
SAVES_EACH_STEP = (*OPTIONS, "--checkpoint-every", "1")

# Kernels that every run here needs, each compiled in a second or a few.
NEEDED = ("adam.", "cross_entropy.", "dropout.", "embedding.", "layernorm.", "sequence_rows.")

# A process can be forked after kernels have run on the work queue, but not on OpenMP.
WARM = {"NUMBA_THREADING_LAYER": "workqueue", "NUMBA_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

Change = Callable[[], None]


@dataclass(frozen=True)
class Ending:
    """How a process ended.

    Attributes:
        code: its exit code as shells have it, 128+n after signal n.    words: what it wrote.
        seconds: from the signal to the end; without a signal, from the start.
    """

    code: int
    words: str
    seconds: float


def command(directory: Path, options: tuple[str, ...], new: str | None = None) -> list[str]:
    """Return what a person would type next: go on where there is a run, else begin.

    Args:
        directory: of the run.    options: of the run, where it begins.
        new: the content that `config.toml` must have for the run to be the one that is meant.
    """
    config = directory / "config.toml"
    is_meant = new is None or (config.exists() and config.read_text() == new)
    if is_meant and config.exists():
        return ["train", "--resume", str(directory), "--threads", "1"]
    return ["train", "--out", str(directory), "--overwrite", "--threads", "1", *options]


class Watch:
    """Sends a signal to a process at a moment of which is known how far the process is.

    A forked process tells its steps by memory that it shares, the command by its checkpoints.

    Attributes:
        number: of the signal.    steps: made when the signal came, 0 before the first.
        over: whether the command had returned by then, or written its result.
        asked: whether the signal was sent.
    """

    def __init__(self, number: int, step: int, seconds: float) -> None:
        """Choose the moment: so many seconds after so many steps of this process."""
        self.number, self.step, self.seconds = number, step, seconds
        self.steps, self.over, self.asked = 0, False, False
        self._shared = RawArray("i", 3)

    def prepare(self) -> None:
        """Let the process that this is called in tell how far it is."""
        from fastformer import cli
        from fastformer.cli.progress import LineProgress

        main, shared = cli.main, self._shared

        def stepped(self: object, step: int, *_: object) -> None:
            shared[0], shared[1] = step, shared[1] + 1

        def watched(arguments: list[str]) -> int:
            code = main(arguments)
            shared[2] = 1
            return code

        LineProgress.stepped = stepped  # type: ignore[method-assign]
        cli.main = watched  # type: ignore[assignment]

    def send(self, process: int, is_alive: Callable[[], bool], run: Path | None = None) -> None:
        """Wait for the moment, stop the process, note how far it is, and send the signal.

        Args:
            process: its number.    is_alive: whether it has not ended.
            run: of the command; None for a forked process.
        """
        while (self._shared[1] if run is None else newest(run)) < self.step and is_alive():
            time.sleep(0.0005)
        end = time.perf_counter() + self.seconds
        while time.perf_counter() < end and is_alive():
            time.sleep(min(0.001, self.seconds))
        if not is_alive():
            return
        self.asked = True
        os.kill(process, signal.SIGSTOP)
        while Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "TZ":
            time.sleep(0.0005)
        if run is None:
            self.steps, self.over = self._shared[0], bool(self._shared[2])
        else:
            self.steps, self.over = newest(run), (run / "result.json").exists()
        os.kill(process, self.number)
        os.kill(process, signal.SIGCONT)


def newest(run: Path) -> int:
    """Return the step of a run's newest checkpoint; 0 where there is none."""
    saved = (int(path.stem[-8:]) for path in run.glob("checkpoints/step-*.safetensors"))
    return max(saved, default=0)


def _child(arguments: list[str], log: str, changes: tuple[Change, ...]) -> None:
    """Be the command, in a forked process."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    code = 1  # of an exception that nobody caught, as Python has it
    try:
        for change in changes:
            change()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        from fastformer.cli import main

        code = main(arguments)
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(code)


def forked(
    arguments: list[str],
    log: Path,
    watch: Watch | None = None,
    changes: tuple[Change, ...] = (),
) -> Ending:
    """Run the command in a process forked from this one, to its end or to a signal.

    Args:
        arguments: of the command.    log: a file for what it writes.
        watch: sends the signal; None for none.
        changes: called in the new process, before the command.
    """
    log.touch()  # a kill may come before anything is written
    if watch:
        changes = (watch.prepare, *changes)
    process = FORK.Process(target=_child, args=(arguments, str(log), changes))
    process.start()
    if watch:
        watch.send(process.pid or 0, process.is_alive)
    sent = time.perf_counter()
    process.join(HANG)
    return _ending(process.exitcode, log, sent)


def executed(
    arguments: list[str],
    log: Path,
    watch: Watch | None = None,
    environment: Mapping[str, str] | None = None,
    run: Path | None = None,
) -> Ending:
    """Run the command in a process of its own; see `forked`."""
    variables = {name: value for name, value in os.environ.items() if name not in WARM}
    variables |= {"PYTHONPATH": str(ROOT), **(environment or {})}
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "fastformer", *arguments],
            **{"env": variables, "stdin": subprocess.DEVNULL, "stdout": stream, "stderr": stream},
        )
    if watch:
        watch.send(process.pid, lambda: process.poll() is None, run)
    sent = time.perf_counter()
    process.wait(HANG)
    return _ending(process.returncode, log, sent)


def kernels(kind: str, place: Path, rng: np.random.Generator) -> dict[str, str]:
    """Return the environment of a command whose cache lacks "some kernels" or "all kernels"."""
    from fastformer.kernels._compile import CACHE_DIRECTORY

    if kind not in ("some kernels", "all kernels") or CACHE_DIRECTORY is None:
        return {}
    cache = place / "cache"
    cache.mkdir()
    if kind == "some kernels":
        shutil.copytree(CACHE_DIRECTORY, cache / CACHE_DIRECTORY.name)
        for needed in rng.choice(NEEDED, 2, replace=False):
            for file in cache.rglob(f"{needed}*"):
                file.unlink()
    return {"FASTFORMER_CACHE_DIR": str(cache)}


def _ending(code: int | None, log: Path, sent: float) -> Ending:
    seconds = time.perf_counter() - sent
    words = log.read_text(errors="replace")
    log.unlink()
    if code is None:
        raise TimeoutError(f"a run did not end within {HANG} s: {words}")
    return Ending(128 - code if code < 0 else code, words, seconds)


def problems(run: Path) -> list[str]:
    """Return what is wrong with the files of a run whose process was killed: each must be whole."""
    from fastformer.training.checkpoint import load_checkpoint
    from fastformer.training.run_directory import RunDirectory

    found = []
    for path in sorted(run.rglob("[!.]*.safetensors")):
        try:
            load_checkpoint(path)
        except ValueError as error:
            found.append(str(error))
    if (run / "config.toml").exists():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a torn last line of the metrics
            try:
                RunDirectory.open(run).read_metrics()
                if (run / "result.json").exists():
                    RunDirectory.open(run).read_result()
            except ValueError as error:
                found.append(str(error))
    return found


def state(run: Path) -> dict[str, str]:
    """Return a digest of each thing that a run holds, apart from times; and of what is too much."""
    from fastformer.training.checkpoint import load_checkpoint

    found: dict[str, Any] = everything(run)
    for path in (run / "embeddings").iterdir():
        table = load_checkpoint(path).tensors["embedding.weight"]
        found[path.name] = (table.dtype.str, table.tobytes())
    known = found.keys() | {"checkpoints", "embeddings", LOCK_FILE}
    found |= {path.name: "" for path in run.rglob("*") if path.name not in known}
    # The last but one may be of the step in which a signal came.
    steps = sorted(name for name in found if name.startswith("step-"))
    if len(steps) > 1:
        del found[steps[0]]
    return {name: hashlib.sha256(repr(one).encode()).hexdigest() for name, one in found.items()}


def unequal(run: Path, expected: dict[str, str]) -> list[str]:
    """Return the names of what a run holds that is not as expected."""
    try:
        found = state(run)
    except (OSError, ValueError) as error:
        return [f"{type(error).__name__}: {error}"]
    names = sorted(expected.keys() | found.keys())
    return [f"{name} differs" for name in names if found.get(name) != expected.get(name)]


def goes_on(
    directory: Path,
    options: tuple[str, ...],
    expected: dict[str, str],
    changes: tuple[Change, ...] = (),
    new: str | None = None,
    log: Path | None = None,
) -> list[str]:
    """Go on with a run to its end; return what is wrong with it then."""
    log = log or directory.with_suffix(".log")
    last = forked(command(directory, options, new), log, changes=changes)
    if last.code != 0:
        return [f"it does not go on: exit code {last.code}, {last.words[-300:]}"]
    return unequal(directory, expected)


@functools.cache
def undisturbed(options: tuple[str, ...]) -> dict[str, str]:
    """Return what a run holds that the command trained without any kill."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        run = Path(name) / "run"
        ending = executed(command(run, options), Path(name) / "log")
        if ending.code != 0:
            raise RuntimeError(f"the undisturbed run ended with {ending.code}: {ending.words}")
        return state(run)


def warm_up() -> None:
    """Load all that a run needs, so that the processes forked from this one have it."""
    from fastformer.cli import main

    with (
        tempfile.TemporaryDirectory(dir=MEMORY) as name,
        open(os.devnull, "w") as nothing,
        contextlib.redirect_stdout(nothing),
        contextlib.redirect_stderr(nothing),
    ):
        code = main(command(Path(name) / "run", OPTIONS))
    if code != 0:
        raise RuntimeError(f"the run that loads the kernels ended with {code}")


@contextlib.contextmanager
def workers(count: int = 2) -> Iterator[ProcessPoolExecutor]:
    """Give processes that are warmed up, to run cases in."""
    spawn = multiprocessing.get_context("spawn")
    with (
        mock.patch.dict(os.environ, WARM),
        ProcessPoolExecutor(count, mp_context=spawn, initializer=warm_up) as pool,
    ):
        yield pool
