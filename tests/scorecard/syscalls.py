"""Row C1: a kill or an error at every call that writes leaves the old files or the new ones.

`strace` gives a process that is forked from a warm one a signal or an error at the N-th call of a
kind, for every N there is, in two scenarios: a save of everything that a run keeps; and a whole
training run, in place of another that is overwritten.
"""

import contextlib
import os
import re
import shutil
import signal
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastformer.training.run_lock import LOCK_FILE
from tests.scorecard import supervisor
from tests.scorecard.kills import write_in_place
from tests.scorecard.rows import Finding, Row, Tier
from tests.scorecard.strace import Call, Tracer, is_output, not_forced
from tests.scorecard.supervisor import MEMORY, OPTIONS, Change, Ending

ERRORS = ("ENOSPC", "EIO", "EDQUOT", "EROFS")
KILL, FULL = "signal=SIGKILL", "error=ENOSPC"
REMEDY = "check the path, its permissions and the free space"

TWO_EPOCHS = tuple(re.sub("(?<=--epochs )[0-9]+", "2", " ".join(OPTIONS)).split())


def tensors(value: float) -> dict[str, np.ndarray]:
    """Return what a small checkpoint holds."""
    return {name: np.full(999, value, np.float32) for name in ("weight", "optimizer.moment")}


def begin(directory: Path) -> None:
    """Make a run that `save` goes on with."""
    from fastformer.training.embedding_records import EmbeddingRecords
    from fastformer.training.run_directory import RunDirectory

    run = RunDirectory.create(directory, {"run": {"seed": 1}})
    for step in (1, 2):
        run.append_metrics({"step": step})
        run.save_step(step, tensors(step), {"step": step})
    run.save_best(tensors(2), {"step": 2})
    EmbeddingRecords(directory).save(0, tensors(0)["weight"].reshape(-1, 3))
    run.write_result({"step": 2})


def save(directory: Path) -> None:
    """Save all that a run keeps, once more."""
    from fastformer.training.embedding_records import EmbeddingRecords
    from fastformer.training.run_directory import RunDirectory

    run = RunDirectory.open(directory)
    run.append_metrics({"step": 3})
    run.save_best(tensors(3), {"step": 3})
    EmbeddingRecords(directory).save(0, tensors(3)["weight"].reshape(-1, 3))
    run.save_step(3, tensors(3), {"step": 3})
    run.write_result({"step": 3})
    run.go_on_from(2)


def saving() -> None:
    """Let the command be `save`."""
    from fastformer import cli
    from fastformer.errors import FastformerError

    def main(arguments: list[str]) -> int:
        try:
            save(Path(arguments[0]))
        except FastformerError as error:
            os.write(2, f"{error}\n".encode())
            return 2
        return 0

    cli.main = main  # type: ignore[assignment]


@dataclass(frozen=True)
class Scenario:
    """What is done under strace.

    Attributes:
        name: "save" or "run".    template: the run before.
        old, new: the files of "save" before and after it.
        config, expected: of "run", the content of its `config.toml` and what it holds in the end.
    """

    name: str
    template: Path
    old: dict[str, bytes]
    new: dict[str, bytes]
    config: str = ""
    expected: dict[str, str] | None = None


@dataclass(frozen=True)
class Point:
    """One call of a scenario that fails. `call` None traces only; `how` is a part of `inject`."""

    scenario: Scenario
    call: Call | None = None
    how: str = ""
    fault: str | None = None


def files(run: Path) -> dict[str, bytes]:
    """Return the content of each file of a run, but its lock: one that is left locks nothing."""
    found = (path for path in run.rglob("*") if path.is_file() and path.name != LOCK_FILE)
    return {str(path.relative_to(run)): path.read_bytes() for path in found}


def trace(point: Point, place: Path) -> tuple[Ending, list[Call]]:
    """Do what a scenario says in `place`, with its failure."""
    call, run = point.call, place / "run"
    shutil.copytree(point.scenario.template, run)
    tracer = Tracer(place / "trace", call and f"{call.name}:{point.how}:when={call.number}")
    changes = (FAULTS[point.fault],) if point.fault else ()
    if point.scenario.name == "save":
        arguments, changes = [str(run)], (*changes, saving)
    else:
        arguments = supervisor.command(run, TWO_EPOCHS, point.scenario.config)
    ending = supervisor.forked(arguments, place / "log", tracer, changes)
    return ending, tracer.calls()


def reference(point: Point) -> tuple[list[Call], list[str]]:
    """Return a scenario's calls on the run and its output, and what is wrong with their order."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        ending, calls = trace(point, Path(name))
    wrong = [] if ending.code == 0 else [f"ended with {ending.code}: {ending.words[-300:]}"]
    calls = [call for call in calls if f"{name}/run" in call.text or is_output(call)]
    return calls, wrong + not_forced(calls)


def check(point: Point) -> list[str]:
    """Let one call fail; return what is wrong with what is left, and with how the run goes on."""
    assert point.call is not None
    scenario = point.scenario
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        place, run = Path(name), Path(name) / "run"
        ending, calls = trace(point, place)
        found = supervisor.problems(run)
        if point.how == KILL:
            if ending.code != 128 + signal.SIGKILL:
                found.append(f"was not killed, ended with {ending.code}")
        else:
            failed = [call.text for call in calls if "(INJECTED)" in call.text]
            if len(failed) != 1 or not (str(run) in failed[0] or is_output(point.call)):
                found.append(f"the error was not given where it should: {failed}")
            found += _told(ending, run, point)
        if scenario.name == "save":
            found += _old_or_new(scenario, run)
        else:
            expected, config = scenario.expected or {}, scenario.config
            found += supervisor.goes_on(run, TWO_EPOCHS, expected, new=config)
    where = f"{scenario.name}, {point.call.name} {point.call.number}, {point.how}"
    return [f"{where}: {one}" for one in found]


def _told(ending: Ending, run: Path, point: Point) -> list[str]:
    """Return what is wrong with how a process ended that was given an error."""
    from fastformer.training.atomic_file import is_temporary

    litter = [str(path) for path in run.rglob("*") if is_temporary(path)]
    if litter and not (point.call and point.call.name.startswith("unlink")):
        return [f"{litter} is left"]
    if ending.code == 0:  # an error that does not matter
        if point.scenario.name == "save":
            return [] if files(run) == point.scenario.new else ["code 0, but not all is saved"]
        return supervisor.unequal(run, point.scenario.expected or {})
    if point.call and is_output(point.call):
        where, remedy = "the output", "check where standard output and standard error go"
    else:
        where, remedy = str(run), REMEDY
    if ending.code != 2 or where not in ending.words or remedy not in ending.words:
        return [f"ended with {ending.code}: {ending.words[-500:]}"]
    return []


def _old_or_new(scenario: Scenario, run: Path) -> list[str]:
    """Return the files of a save that are neither as before nor as after it."""
    from fastformer.training.atomic_file import is_temporary
    from fastformer.training.run_directory import RunDirectory

    found = {name: data for name, data in files(run).items() if not is_temporary(run / name)}
    wrong = []
    for name in scenario.old.keys() | scenario.new.keys() | found.keys():
        allowed = [scenario.old.get(name), scenario.new.get(name)]
        data = found.get(name)
        if name == "metrics.jsonl" and data is not None:
            data = data[: len(scenario.old[name])]  # a record is there for a while
        if data not in allowed:
            wrong.append(f"{name} is neither old nor new")
    step = RunDirectory.open(run).latest().metadata["step"]
    return wrong if step in (2, 3) else [*wrong, f"step {step} is the newest"]


def remove_first() -> None:
    """Plant a fault: the old file is removed before the new one takes its place."""
    from fastformer.training import checkpoint

    write = checkpoint.write_atomically

    def remove_and_write(path: Path, *parts: Any) -> None:
        if path.exists():
            os.unlink(path)
        write(path, *parts)

    checkpoint.write_atomically = remove_and_write  # type: ignore[attr-defined]


def swallow_errors() -> None:
    """Plant a fault: a checkpoint that cannot be written is no error."""
    from fastformer.training import checkpoint

    write = checkpoint.write_atomically

    def write_or_not(path: Path, *parts: Any) -> None:
        with contextlib.suppress(OSError):
            write(path, *parts)

    checkpoint.write_atomically = write_or_not  # type: ignore[attr-defined]


def force_nothing() -> None:
    """Plant a fault: nothing is forced to disk."""
    os.fsync = lambda descriptor: None


FAULTS: dict[str, Change] = {
    "files written in place": write_in_place,
    "the old file removed first": remove_first,
    "errors swallowed": swallow_errors,
    "nothing forced to disk": force_nothing,
}


def scenarios(place: Path) -> tuple[Scenario, Scenario]:
    """Make what both scenarios begin with, and what they must leave."""
    begin(place / "begun")
    shutil.copytree(place / "begun", place / "saved")
    save(place / "saved")
    saving = Scenario("save", place / "begun", files(place / "begun"), files(place / "saved"))
    log, run = place / "log", place / "run"
    supervisor.executed(supervisor.command(run, TWO_EPOCHS), log)
    config, expected = (run / "config.toml").read_text(), supervisor.state(run)
    shutil.rmtree(run)
    supervisor.executed([*supervisor.command(run, TWO_EPOCHS), "--seed", "1"], log)
    run.rename(place / "other")
    return saving, Scenario("run", place / "other", {}, {}, config, expected)


def points(scenario: Scenario, calls: list[Call], tier: Tier) -> list[Point]:
    """Return each call with each failure that is tried; in the fast tier two where it is a run."""
    found = []
    for index, call in enumerate(calls):
        errors = ERRORS
        if tier == "fast" and scenario.name == "run":
            errors = (ERRORS[index % len(ERRORS)],)
        hows = [KILL, *(f"error={error}" for error in errors)]
        found += [Point(scenario, call, how) for how in hows]
    return found


def noticed(scenario: Scenario, fault: str, pool: ProcessPoolExecutor) -> bool:
    """Tell whether a planted fault shows in a save."""
    calls, wrong = pool.submit(reference, Point(scenario, fault=fault)).result()
    telling = [call for call in calls if call.name in ("write", "rename", "renameat")]
    tried = [Point(scenario, call, how, fault) for call in telling for how in (KILL, FULL)]
    parts = (tried[start : start + 8] for start in range(0, len(tried), 8))
    return bool(wrong) or any(any(list(pool.map(check, part))) for part in parts)


def measure(tier: Tier, every: int = 1, pool: ProcessPoolExecutor | None = None) -> Finding:
    """C1: let every call fail, or each so many-th. Planted: see FAULTS."""
    if shutil.which("strace") is None:
        return Finding(0, 0, 0, 0, "not measured: strace is not installed")
    if pool is None:
        with supervisor.workers() as own:
            return measure(tier, every, own)
    failures: list[str] = []
    cases: list[Point] = []
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        both = scenarios(Path(name))
        counts = []
        for scenario in both:
            calls, wrong = pool.submit(reference, Point(scenario)).result()
            failures += wrong
            counts.append(len(calls))
            cases += points(scenario, calls, tier)[::every]
        found = list(pool.map(check, cases))
        planted = sum(noticed(both[0], fault, pool) for fault in FAULTS)
    failed = [one for one in found if one]
    failures += [problem for one in failed for problem in one]
    held = len(cases) - len(failed) if not wrong else 0
    number = f"{counts[0]} calls of a save, {counts[1]} of a run"
    return Finding(held, len(cases), planted, len(FAULTS), number, tuple(failures[:8]))


ROWS = (
    Row(
        "C1",
        "a kill or an error at any call that writes leaves the old files or the new, none torn",
        "every call, at least 500 failures",
        measure,
    ),
)
