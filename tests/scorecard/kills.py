"""Row B5: a run that is killed at random moments ends with the bits of one that never was."""

import os
import signal
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.scorecard import supervisor
from tests.scorecard.rows import Finding, Row, Tier, failures_of, shows
from tests.scorecard.supervisor import MEMORY, OPTIONS, SAVES_EACH_STEP, Change, Watch

# How many runs there are of each kind: forked, the command itself, the command with some of its
# kernels to compile, and with all of them.
KINDS = ("forked", "command", "some kernels", "all kernels")
COUNTS: dict[Tier, tuple[int, ...]] = {"fast": (184, 10, 5, 1), "nightly": (900, 70, 24, 6)}


@dataclass(frozen=True)
class Case:
    """One run with its kills.

    Attributes:
        kind: see KINDS.    seed: decides the moments of the kills.
        options, expected: of the run, and what it must hold in the end.
        fault: a name of FAULTS, or None.
    """

    kind: str
    seed: int
    options: tuple[str, ...]
    expected: dict[str, str]
    fault: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What is wrong with a case, and how many kills there were in which phase."""

    problems: tuple[str, ...]
    kills: Counter[str]


def kill(case: Case) -> Outcome:
    """Train a run that is killed and goes on, several times, and look at what it holds."""
    rng = np.random.default_rng(case.seed)
    found, kills = [], Counter[str]()
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        place, run = Path(name), Path(name) / "run"
        changes = (slow_disk, *((FAULTS[case.fault],) if case.fault else ()))
        kernels = supervisor.kernels(case.kind, place, rng)
        for moment in _moments(case, rng):
            watch = Watch(signal.SIGKILL, *moment)
            arguments = supervisor.command(run, case.options)
            if case.kind == "forked":
                ending = supervisor.forked(arguments, place / "log", watch, changes)
            else:
                ending = supervisor.executed(arguments, place / "log", watch, kernels, run)
            if watch.asked and ending.code == 128 + signal.SIGKILL:
                kills[_phase(case, run)] += 1
            elif ending.code != 0:
                found.append(f"ended with {ending.code}: {ending.words[-300:]}")
            found += supervisor.problems(run)
        found += supervisor.goes_on(run, case.options, case.expected, changes)
    return Outcome(tuple(found), kills)


def _moments(case: Case, rng: np.random.Generator) -> list[tuple[int, float]]:
    """Return after how many steps each kill of a case comes, and how many seconds after that."""
    if case.kind == "forked":
        steps = rng.integers(-5, 31, int(rng.integers(1, 4))).clip(0).tolist()
        return [(step, rng.uniform(0, 0.03 if step else 0.3)) for step in steps]
    if case.kind == "command":
        step = int(rng.integers(0, 3)) * 10
        return [(step, rng.uniform(0, 0.05 if step else 1.5))]
    spans = [4.0] * 2 if case.kind == "some kernels" else [2.0, 8.0, 8.0, 16.0]
    return [(0, rng.uniform(0, span)) for span in spans]


def _phase(case: Case, run: Path) -> str:
    """Tell what a run was doing when it was killed, from what it left."""
    from fastformer.training.atomic_file import is_temporary

    if any(is_temporary(path) for path in run.rglob(".*.tmp")):
        return "in a save"
    if any(run.glob("checkpoints/step-*.safetensors")):
        return "in training"
    return "in start-up" if "kernels" not in case.kind else "in start-up or compiling"


def slow_disk() -> None:
    """Let each forcing to disk take a moment, so that many kills come within a save."""
    force = os.fsync

    def slowly(descriptor: int) -> None:
        time.sleep(0.002)
        force(descriptor)

    os.fsync = slowly


def write_in_place() -> None:
    """Plant a fault: files are written where they belong, on a disk that takes its time."""
    from fastformer.training import checkpoint, metrics, run_directory

    def write(path: Path, *parts: Any) -> None:
        with path.open("wb", buffering=0) as file:
            for part in parts:
                for start in range(0, len(part), 8192):
                    file.write(part[start : start + 8192])
                    time.sleep(0.001)

    for module in (checkpoint, metrics, run_directory):
        module.write_atomically = write  # type: ignore[attr-defined]


def forget_moments() -> None:
    """Plant a fault: a run goes on with the moments of the optimizer at zero."""
    from fastformer.training.optimizers import AdamW

    def load(self: Any, state: Any, steps: int) -> None:
        self.steps = steps

    AdamW.load_state_dict = load  # type: ignore[method-assign]


def forget_dropout() -> None:
    """Plant a fault: a run goes on with the dropout masks of its beginning."""
    from fastformer.training.loop import Trainer

    restore = Trainer.restore

    def forgetful(self: Any, checkpoint: Any) -> None:
        restore(self, checkpoint)
        self.model.dropout_counter.forwards = 0

    Trainer.restore = forgetful  # type: ignore[method-assign]


FAULTS: dict[str, Change] = {
    "files written in place": write_in_place,
    "moments forgotten": forget_moments,
    "dropout masks forgotten": forget_dropout,
}


def noticed(pool: ProcessPoolExecutor, case: Case, fault: str, most: int = 12) -> bool:
    """Tell whether kills at random moments show a planted fault."""
    cases = [Case("forked", seed, case.options, case.expected, fault) for seed in range(most)]
    return shows(pool, kill, cases)


def measure(
    tier: Tier,
    counts: tuple[int, ...] | None = None,
    pool: ProcessPoolExecutor | None = None,
) -> Finding:
    """B5: kill -9 at random moments. Planted: see FAULTS."""
    if pool is None:
        with supervisor.workers() as own:
            return measure(tier, counts, own)
    variants = [
        (options, supervisor.undisturbed(options)) for options in (SAVES_EACH_STEP, OPTIONS)
    ]
    # The longest first, so that no process waits for one of them in the end.
    cases = [
        Case(kind, 1000 * KINDS.index(kind) + number, *variants[number % 2])
        for kind, count in reversed(list(zip(KINDS, counts or COUNTS[tier], strict=True)))
        for number in range(count)
    ]
    outcomes = list(pool.map(kill, cases))
    kills = sum((outcome.kills for outcome in outcomes), Counter[str]())
    planted = sum(noticed(pool, cases[-1], fault) for fault in FAULTS)
    names = [f"{case.kind}, seed {case.seed}" for case in cases]
    failures = failures_of(zip(names, outcomes, strict=True))
    number = f"{kills.total()} kills, " + ", ".join(
        f"{count} {phase}" for phase, count in sorted(kills.items())
    )
    held = len(cases) - len(failures)
    return Finding(held, len(cases), planted, len(FAULTS), number, failures[:5])


ROWS = (
    Row(
        "B5",
        "a run killed at random moments, compilation and saves among them, ends with the same bits",
        f"{sum(COUNTS['fast'])} runs, nightly {sum(COUNTS['nightly']):,}",
        measure,
    ),
)
