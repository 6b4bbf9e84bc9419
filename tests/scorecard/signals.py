"""Row E2: Ctrl-C and SIGTERM at any moment leave a checkpoint of that moment, and say who ended."""

import os
import re
import signal
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.scorecard import supervisor
from tests.scorecard.rows import Finding, Row, Tier, failures_of, shows
from tests.scorecard.supervisor import MEMORY, OPTIONS, Change, Ending, Watch

# How many signals there are of each kind: see `kills.KINDS`.
KINDS = ("forked", "command", "some kernels")
COUNTS: dict[Tier, tuple[int, ...]] = {"fast": (164, 28, 8), "nightly": (820, 140, 40)}
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Case:
    """One run with its signal.

    Attributes:
        kind: see KINDS.    seed: decides the signal and its moment.
        expected: what the run must hold in the end.    fault: a name of FAULTS, or None.
    """

    kind: str
    seed: int
    expected: dict[str, str]
    fault: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What is wrong with a case; whether it was in training; seconds from the signal to the end."""

    problems: tuple[str, ...]
    in_training: bool
    seconds: float


def interrupt(case: Case) -> Outcome:
    """Train a run that gets a signal; look at what is saved, and go on to its end."""
    rng = np.random.default_rng(case.seed)
    watch = Watch(SIGNALS[case.seed % 2], *_moment(case, rng))
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        place, run = Path(name), Path(name) / "run"
        arguments = supervisor.command(run, OPTIONS)
        if case.kind == "forked":
            changes = (FAULTS[case.fault],) if case.fault else ()
            ending = supervisor.forked(arguments, place / "log", watch, changes)
        else:
            kernels = supervisor.kernels(case.kind, place, rng)
            ending = supervisor.executed(arguments, place / "log", watch, kernels, run)
        found = _problems(case, ending, watch, run) + supervisor.problems(run)
        found += supervisor.goes_on(run, OPTIONS, case.expected)
    return Outcome(tuple(found), "Stopped after step" in ending.words, ending.seconds)


def _moment(case: Case, rng: np.random.Generator) -> tuple[int, float]:
    """Return the step after which the signal comes, and how many seconds after it."""
    if case.kind == "forked":
        step = max(0, int(rng.integers(-5, 31)))
        return step, rng.uniform(0, 0.02 if step else 0.2)
    if case.kind == "command":
        step = int(rng.integers(0, 3)) * 10
        return step, rng.uniform(0, 0.05 if step else 1.2)
    return 0, rng.uniform(0, 6)


def _problems(case: Case, ending: Ending, watch: Watch, run: Path) -> list[str]:
    """Return what is wrong with how a process ended, and with the step that it saved."""
    if ending.code == 0 and (watch.over or not watch.asked):
        return []
    if "init_import_site" in ending.words:
        return []  # Python had not begun yet, and its exit code for that is 1
    found = []
    if ending.code != 128 + watch.number:
        found.append(f"exit code {ending.code} after signal {watch.number}: {ending.words[-300:]}")
    last = supervisor.newest(run)
    if case.kind == "forked" and not 0 <= last - watch.steps <= 1:
        found.append(f"step {last} is saved, the signal came after step {watch.steps}")
    told = re.search(r"Stopped after step ([\d,]+)", ending.words)
    if told and int(told[1].replace(",", "")) != last:
        found.append(f"step {last} is saved, it says {told[0]!r}")
    return found


def end_with_zero() -> None:
    """Plant a fault: the exit code does not tell that a signal ended the run."""
    from fastformer.cli import train
    from fastformer.training import interrupt

    def run_and_forget(*arguments: Any, run: Any = train._train) -> int:
        run(*arguments)
        return 0

    train._train = run_and_forget
    interrupt.EndAtOnce._note = lambda *_: os._exit(0)  # type: ignore[method-assign]


def save_nothing() -> None:
    """Plant a fault: a signal ends the run without a checkpoint."""
    from fastformer.training.loop import Trainer

    def save(self: Any, save: Any = Trainer.save) -> None:
        if self.stop.signal is None:
            save(self)

    Trainer.save = save  # type: ignore[method-assign]


def lose_the_signal() -> None:
    """Plant a fault: nobody looks whether a signal came."""
    from fastformer.training.signals import StopRequest

    StopRequest._note = lambda *_: None  # type: ignore[method-assign]


FAULTS: dict[str, Change] = {
    "exit code 0": end_with_zero,
    "nothing saved": save_nothing,
    "signal lost": lose_the_signal,
}


def noticed(pool: ProcessPoolExecutor, expected: dict[str, str], fault: str) -> bool:
    """Tell whether signals at random moments show a planted fault."""
    cases = [Case("forked", seed, expected, fault) for seed in range(12)]
    return shows(pool, interrupt, cases)


def measure(
    tier: Tier,
    counts: tuple[int, ...] | None = None,
    pool: ProcessPoolExecutor | None = None,
) -> Finding:
    """E2: signals at random moments. Planted: see FAULTS."""
    if pool is None:
        with supervisor.workers() as own:
            return measure(tier, counts, own)
    expected = supervisor.undisturbed(OPTIONS)
    cases = [
        Case(kind, 1000 * KINDS.index(kind) + number, expected)
        for kind, count in reversed(list(zip(KINDS, counts or COUNTS[tier], strict=True)))
        for number in range(count)
    ]
    outcomes = list(pool.map(interrupt, cases))
    planted = sum(noticed(pool, expected, fault) for fault in FAULTS)
    names = [f"{case.kind}, seed {case.seed}" for case in cases]
    failures = failures_of(zip(names, outcomes, strict=True))
    held = len(cases) - len(failures)
    number = f"{sum(outcome.in_training for outcome in outcomes)} in training"
    seconds = [
        outcome.seconds
        for case, outcome in zip(cases, outcomes, strict=True)
        if outcome.in_training and case.kind == "forked"
    ]
    if seconds:
        number += f", stopped within {np.quantile(seconds, 0.99):.2f} s (p99)"
    return Finding(held, len(cases), planted, len(FAULTS), number, failures[:5])


ROWS = (
    Row(
        "E2",
        "a signal at any moment: saved within one step, exit code 128+n, the same bits in the end",
        f"{sum(COUNTS['fast'])} moments, nightly {sum(COUNTS['nightly']):,}",
        measure,
    ),
)
