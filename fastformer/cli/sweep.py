"""`fastformer sweep`: many runs of one task, and the best of them."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from fastformer import launcher
from fastformer import threads as thread_count
from fastformer.cli import SIGNALLED, console
from fastformer.cli.many_progress import ManyProgress
from fastformer.errors import FastformerError, InvalidValueError, RunError

if TYPE_CHECKING:
    from fastformer.analysis.sweep import SweepRun
    from fastformer.training.planned_run import Outcome, PlannedRun
    from fastformer.training.runs import AnySettings
    from fastformer.training.study import TrialRun
    from fastformer.training.sweep_file import Sweep, Values

FAILED = 1
"""The exit code where a run failed."""

_RUNS = Path("runs")


def sweep(
    file: Path | None = None,
    /,
    *,
    out: Path | None = None,
    resume: Path | None = None,
    jobs: int | None = None,
    threads: int | None = None,
    slurm: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    json: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
) -> int:
    """Train a run for each combination of settings, or let Optuna search, and show the best.

    Args:
        file: TOML with the task, the options of all runs, and a table [grid] or [search]; see
            docs/sweeps.md.
        out: directory of all runs; without it runs/sweep-1, or the first number that is free.
        resume: directory of a sweep that was stopped: runs that have ended stay, and the others go
            on. Of a search, several machines may work on one directory at the same time.
        jobs: runs that are trained at the same time; without it, as many as there are cores.
        threads: of each run; without it, its share of the cores.
        slurm: train each run as a job of Slurm, with these of its options, such as partition=cpu
            time=60 cpus_per_task=2.
        json: write the result as one JSON object, the last line of standard output.
    """
    if (file is None) == (resume is None):
        raise InvalidValueError("give the file of a new sweep, or --resume and a sweep's directory")
    if resume is not None and out is not None:
        raise InvalidValueError("--resume goes on in its directory; leave out --out")
    from fastformer.training.signals import EndAtOnce

    launcher.refuse_several()
    engine = _engine(jobs, threads, slurm or [])
    found, settings = _read(file, resume)
    with _place(out, resume) as place, EndAtOnce(lambda: _last_words(place)):
        many = _Many(found, settings, place)
        signal = many.train(engine, new=resume is None)
        if signal:
            console.notice(_last_words(place))
            return SIGNALLED + signal
        return many.show(json)


def _last_words(directory: Path) -> str:
    return (
        "Stopped; what was trained is saved. To go on:\n"
        f"  fastformer sweep --resume {console.shell_word(directory)}"
    )


def _place(out: Path | None, resume: Path | None) -> AbstractContextManager[Path]:
    """Return the directory of the sweep; where that is not told, a name is taken for it."""
    from fastformer.training.run_place import next_free_run

    given = resume if resume is not None else out
    return next_free_run(_RUNS, "sweep") if given is None else nullcontext(given)


def _engine(
    jobs: int | None, threads: int | None, slurm: list[str]
) -> Callable[..., Iterator["Outcome"]]:
    """Return what trains runs: a function of work, items, and the directory of the sweep."""
    from fastformer import checks
    from fastformer.training.engines import in_processes, on_slurm, slurm_options
    from fastformer.training.sweep_file import MOST_RUNS

    if jobs is not None:
        checks.integer("jobs", jobs, 1, MOST_RUNS)
    if slurm:
        if threads is not None:
            raise InvalidValueError("jobs of Slurm have --slurm cpus_per_task=2; not --threads")
        options = slurm_options(slurm)
        return lambda work, items, directory: on_slurm(
            work, items, jobs or MOST_RUNS, options, directory / "slurm"
        )
    cores = thread_count.available_threads()
    if threads is not None:
        checks.integer("threads", threads, 1, cores)
    jobs = jobs or max(1, cores // (threads or 1))
    threads = threads or max(1, cores // jobs)
    return lambda work, items, _: in_processes(work, items, jobs, threads)


def _read(file: Path | None, resume: Path | None) -> "tuple[Sweep, list[AnySettings]]":
    """Read the file of a sweep, and check all of it.

    Returns:
        The sweep; and the settings of all runs of a grid, or some that a search may come to.

    Raises:
        ValueError, TypeError: the message names the file, and what is wrong in it.
    """
    from fastformer.training.sweep_file import SWEEP, holds_sweep, named_errors

    if resume is not None and not holds_sweep(resume):
        raise RunError(
            f"{resume} is no sweep: it has no {SWEEP}; give the directory of a sweep, or go on "
            f"with a single run by fastformer train --resume {resume}"
        )
    file = file or (resume or Path()) / SWEEP
    found = _tables_of(file)
    with named_errors(str(file)):
        return found, [_first_allowed(found, tried) for tried in found.examples()]


def _tables_of(file: Path) -> "Sweep":
    """Read the file of a sweep; the values of settings are not looked at."""
    from fastformer.cli.train import task_names
    from fastformer.cli.train_settings import settings_names
    from fastformer.training.sweep_file import named_errors, read_sweep, sweep_of

    tables = read_sweep(file)
    with named_errors(str(file)):
        return sweep_of(tables, {task: settings_names(task) for task in task_names()})


def _first_allowed(sweep: "Sweep", tried: "Iterable[Values]") -> "AnySettings":
    """Return the settings of the first run that may be; raise what is wrong with the first."""
    from fastformer.cli.train_settings import settings_of
    from fastformer.training.sweep_file import named_errors, values_text

    wrong: list[tuple[Values, FastformerError]] = []
    for changed in tried:
        try:
            return settings_of(sweep.words(changed))
        except FastformerError as error:
            wrong.append((changed, error))
    changed, first = wrong[0]
    try:
        settings_of(sweep.words({}))
    except FastformerError as error:
        if str(error) == str(first):  # it is what all runs have
            raise
    with named_errors(values_text(changed)):
        raise first


def _check_free(directory: Path) -> None:
    """Raise unless a new sweep may go to a directory."""
    from fastformer.training.run_lock import LOCK_FILE
    from fastformer.training.sweep_file import holds_sweep

    if holds_sweep(directory):
        raise RunError(
            f"sweep {directory} is already there; go on with fastformer sweep --resume "
            f"{directory}, or choose another directory with --out"
        )
    if any(entry.name != LOCK_FILE for entry in directory.iterdir()):
        raise RunError(f"{directory} is not empty; choose another directory with --out")


class _Many:
    """The runs of a sweep: trained, and shown."""

    def __init__(self, sweep: "Sweep", settings: "list[AnySettings]", directory: Path) -> None:
        from fastformer.analysis.sweep import ACCURACY, LOSS

        self.sweep, self.settings, self.directory = sweep, settings, directory
        self.measure = LOSS if settings[0].best_by_loss else ACCURACY
        self.changed: dict[Path, Values] = {}
        self.errors: dict[Path, str] = {}
        self.signal = 0  # that has stopped a run: no other one begins then

    def train(self, engine: "Callable[..., Iterator[Outcome]]", new: bool) -> int:
        """Bring all runs to their ends.

        Args:
            engine: as of `_engine`.    new: whether nothing may be there yet.

        Returns:
            The number of the signal that stopped it, or 0.
        """
        from fastformer.training.atomic_file import make_directory, os_errors_as
        from fastformer.training.planned_run import outcome_of
        from fastformer.training.run_lock import TrainingLock
        from fastformer.training.study import finish_trial

        with os_errors_as(RunError, f"make {self.directory}"):
            make_directory(self.directory)
        lock = TrainingLock(self.directory)
        with ExitStack() as block:
            if new or self.sweep.search is None:
                block.enter_context(lock.held())
            if new:
                _check_free(self.directory)
                self.sweep.write(self.directory)
            work: Callable[..., Outcome]
            items: Iterator[PlannedRun | TrialRun]
            if self.sweep.search is None:
                work, items = outcome_of, self._points(lock.check)
            else:
                block.close()  # several machines may work on one study
                work, items = finish_trial, self._trials()
            progress = block.enter_context(ManyProgress(self.sweep.size, self._described))
            for outcome in engine(work, items, self.directory):
                self.signal = self.signal or outcome.signal
                if outcome.state == "failed":
                    self.errors[outcome.place] = outcome.error
                progress.ended(outcome)
        return self.signal

    def _points(self, check: Callable[[], None]) -> "Iterator[PlannedRun]":
        """Yield the runs of a grid."""
        from fastformer.analysis.sweep import run_name
        from fastformer.training.planned_run import PlannedRun

        for number, changed in enumerate(self.sweep.points()):
            check()
            if self.signal:
                return
            place = self.directory / run_name(number)
            self.changed[place] = changed
            yield PlannedRun(place=place, settings=self.settings[number])

    def _trials(self) -> "Iterator[TrialRun]":
        """Yield the trials of a search."""
        from fastformer.analysis.sweep import run_name
        from fastformer.cli.train_settings import settings_of
        from fastformer.training.study import trial_runs

        assert self.sweep.search is not None
        for run in trial_runs(
            *(self.directory, self.sweep.search, self.measure),
            lambda number: self.directory / run_name(number),
            lambda changed: settings_of(self.sweep.words(changed)),
        ):
            if self.signal:
                return
            self.changed[run.place] = run.changed
            yield run

    def _described(self, outcome: "Outcome") -> str:
        from fastformer.analysis.sweep import value_text
        from fastformer.training.json_text import number_in
        from fastformer.training.planned_run import best_record
        from fastformer.training.sweep_file import values_text

        value = number_in((best_record(outcome.place) or {}).get(self.measure))
        parts = [f"{self.measure.replace('_', ' ')} {value_text(value, self.measure)}"]
        if outcome.result:
            parts.append(f"{outcome.result['seconds']:.1f} s")
        return "  ".join([*parts, values_text(self.changed.get(outcome.place, {}))])

    def show(self, json: bool) -> int:
        """Draw the picture, write the table and the best run's command line.

        Returns:
            The exit code.
        """
        from fastformer.analysis.figures import save_picture
        from fastformer.analysis.sweep import PICTURE, sweep_as_json, sweep_runs
        from fastformer.analysis.sweep_picture import sweep_figure

        runs = sweep_runs(self.directory, self.sweep, self.measure, self.errors)
        picture = self.directory / PICTURE
        if any(math.isfinite(run.value) for run in runs):
            figure = sweep_figure(runs, self.sweep.changed, self.measure, str(self.directory))
            save_picture(figure, picture)
        _write(runs, sweep_as_json(self.directory, self.sweep, self.measure, runs, picture), json)
        return FAILED if any(run.state == "failed" for run in runs) else 0


def show_again(directory: Path, out: Path | None, json: bool) -> None:
    """Draw a sweep, and write its table, also of one that is still training.

    Args:
        directory: of the sweep.    out: the picture, or None for that of the sweep itself.
        json: write one JSON object instead of the table.

    Raises:
        RunError: there is nothing to draw yet.
    """
    from fastformer.analysis.figures import check_picture, save_picture
    from fastformer.analysis.sweep import PICTURE, measure_in, sweep_as_json, sweep_runs
    from fastformer.analysis.sweep_picture import sweep_figure
    from fastformer.training.sweep_file import SWEEP

    picture = check_picture(out or directory / PICTURE)
    sweep, measure = _tables_of(directory / SWEEP), measure_in(directory)
    runs = sweep_runs(directory, sweep, measure, {})
    save_picture(sweep_figure(runs, sweep.changed, measure, str(directory)), picture)
    _write(runs, sweep_as_json(directory, sweep, measure, runs, picture), json)


def _write(runs: "list[SweepRun]", found: dict[str, Any], json: bool) -> None:
    if json:
        console.json_line(found)
    else:
        show_runs(runs, found)


def show_runs(runs: "list[SweepRun]", found: dict[str, Any]) -> None:
    """Write the runs of a sweep as a table, and the command line of the best.

    Args:
        runs: the best first.    found: of `sweep_as_json`.
    """
    from fastformer.analysis.sweep import value_text
    from fastformer.training.sweep_file import short_text

    measure, settings = found["measure"], list(dict.fromkeys(k for r in runs for k in r.changed))
    rows = [["run", *settings, measure.replace("_", " "), "seconds", "state"]]
    for run in runs:
        values = [short_text(run.changed[k]) if k in run.changed else "-" for k in settings]
        value = value_text(run.value, measure)
        rows.append([run.place.name, *values, value, f"{run.seconds:.1f}", run.state])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    console.line()
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        console.line("  ".join([row[0].ljust(widths[0]), *cells[1:-1], row[-1]]))
    console.line()
    for run in runs:
        if run.error:
            console.line(f"{run.place.name} failed: {run.error}")
    left = sum(run.state in ("unfinished", "waiting") for run in runs)
    if left:
        word = console.shell_word(found["sweep"])
        console.line(f"{left} runs are not at their end: fastformer sweep --resume {word}")
    if found["best"] is None:
        console.line("no run has come to its end")
        return
    best = runs[0]
    console.facts(
        [
            ("picture", found["picture"]),
            (
                "best",
                f"{best.place}, {measure.replace('_', ' ')} {value_text(best.value, measure)}",
            ),
            ("again", " ".join(map(console.shell_word, found["command"]))),
        ]
    )
