"""A run from its beginning, or from where it stands, to its result."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import fastformer
from fastformer import checks
from fastformer.batch import PackedBatch
from fastformer.errors import RunError
from fastformer.kernels._target import VECTOR_BITS
from fastformer.models.decoder import TransformerDecoder
from fastformer.models.transformer import Transformer
from fastformer.training.callbacks import TrainingCallbacks
from fastformer.training.checkpoint import Checkpoint
from fastformer.training.followed_run import run_of_all_ranks
from fastformer.training.json_text import LARGEST, number_in
from fastformer.training.loop import Trainer
from fastformer.training.ranks import all_ranks, disagreement
from fastformer.training.run_directory import RunDirectory
from fastformer.training.settings import Settings
from fastformer.training.shards import shard_count
from fastformer.training.start import load_start

_COUNTS: Final = ("test_examples", "steps", "epochs", "best_epoch", "parameters", "seed")
_NUMBERS: Final = ("test_accuracy", "test_loss", "seconds", "examples_per_second")
# Of runs on text; and what older runs have not.
_OF_SOME: Final = ("validation_loss", "bits_per_byte", "tokens_per_second")
_TEXTS: Final = ("backend", "run")
_SHARES: Final = ("per_operation", "per_class")
_RATES: Final = ("examples_per_second", "tokens_per_second")
RESULT_NAMES: Final = frozenset({*_COUNTS, *_NUMBERS, *_OF_SOME, *_TEXTS, *_SHARES})
"""What a result has."""

SettingsT = TypeVar("SettingsT", bound=Settings)


def checked_result(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result if it is one of `train_to_the_end`.

    Raises:
        RunError: something is missing, unknown or of another kind.
    """
    try:
        checks.known_keys("a result", result, RESULT_NAMES)
        for name in _COUNTS:
            checks.integer(name, result[name], int(name == "test_examples"))
        for name in (*_NUMBERS, *(name for name in _OF_SOME if name in result)):
            checks.number(name, result[name], at_least=0, at_most=LARGEST)
        for name in _TEXTS:
            checks.instance("a result", name, result[name], str)
        checks.number("test_accuracy", result["test_accuracy"], at_least=0, at_most=1)
        for name in (name for name in _SHARES if name in result):
            checks.instance("a result", name, result[name], dict)
            for group, share in result[name].items():
                checks.number(f"accuracy of {group}", share, at_least=0, at_most=1)
    except (KeyError, TypeError, ValueError) as error:
        problem = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise RunError(
            f"result.json does not hold the result of a run: {problem}; remove it, and evaluate "
            "the run anew"
        ) from error
    return result


class Job(Protocol):
    """What a run of one kind trains and tests. It touches no file."""

    @property
    def model(self) -> Transformer | TransformerDecoder:
        """The model that is trained, with its initial weights."""

    @property
    def tests(self) -> PackedBatch:
        """The test inputs."""

    @property
    def batch(self) -> PackedBatch:
        """A batch of training examples: what ranks share must be enough for all."""

    def trainer(self, run: RunDirectory, callbacks: TrainingCallbacks) -> Trainer:
        """Return a trainer of the model, at the beginning."""

    def description(self) -> str:
        """Say in a line what is trained."""

    def test(self, trainer: Trainer, best: Checkpoint) -> dict[str, Any]:
        """Return test_accuracy, test_loss, test_examples and per_operation of a checkpoint."""


def train_new(
    job: Job, settings: Settings, directory: Path, callbacks: TrainingCallbacks, overwrite: bool
) -> dict[str, Any]:
    """Train a new run to its end. See `fastformer.training.runs.train_run`."""
    # First all that can fail; then the directory.
    _load_start(job, settings, callbacks)
    tables, files = settings.tables(), settings.files()
    _check_agreement(tables)
    _check_shards(job, settings)
    new = RunDirectory.new(directory, tables, overwrite=overwrite, files=files)
    with run_of_all_ranks(directory, new) as run:
        return _train_from_the_beginning(job, settings, job.trainer(run, callbacks))


def _check_agreement(tables: dict[str, Any]) -> None:
    """Raise where the processes that train together have not the same settings, or kernels."""
    own = {name: value for table in tables.values() for name, value in table.items()}
    own |= {"fastformer": fastformer.__version__, "FASTFORMER_VECTOR_BITS": VECTOR_BITS}
    differs = disagreement(all_ranks().gather(own))
    if differs:
        raise RunError(f"processes that train together must have the same of all: {differs}")


def _check_shards(job: Job, settings: Settings) -> None:
    """Raise where there are more processes than shards of a batch."""
    ranks = all_ranks().size
    if settings.training.local_steps:
        return  # each computes batches of its own
    shards = shard_count(job.model, job.batch, settings.training.shards) if ranks > 1 else 1
    if shards < ranks:
        raise RunError(
            f"{ranks} processes share the {shards} shards of a batch: start at most {shards}, give "
            "--shards (at most one for each sequence of a batch), or a larger --batch-size"
        )


def go_on(
    settings_class: type[SettingsT],
    job_of: Callable[[SettingsT], Job],
    directory: Path,
    callbacks: TrainingCallbacks,
    epochs: int | None,
) -> dict[str, Any]:
    """Go on with a run to its end. See `fastformer.training.runs.resume_run`.

    Args:
        settings_class: of the run's settings.    job_of: makes the job of these settings.
        directory, callbacks, epochs: as of `fastformer.training.runs.resume_run`.
    """
    with run_of_all_ranks(directory, RunDirectory.open(directory).held()) as run:
        settings = settings_class.from_run(run)
        wanted = settings if epochs is None else settings.with_epochs(epochs)
        checkpoint = None if run.is_before_first_checkpoint else run.latest()
        if checkpoint is not None:
            settings.check_sizes(checkpoint)
        _check_agreement(wanted.tables())  # and all have read the run before one changes it
        job = job_of(wanted)
        _check_shards(job, wanted)
        if checkpoint is None:
            _load_start(job, settings, callbacks)
            run.begin_anew()
            if wanted != settings:
                run.change_config(wanted.tables())
            callbacks.message(f"run {run.path} has no checkpoint yet: it starts from its beginning")
            return _train_from_the_beginning(job, settings, job.trainer(run, callbacks))
        trainer = job.trainer(run, callbacks)
        trainer.restore(checkpoint)
        if wanted != settings:
            _change_epochs(trainer, settings, wanted)
        return _finished_result(trainer) or _train_to_the_end(job, trainer)


def _load_start(job: Job, settings: Settings, callbacks: TrainingCallbacks) -> None:
    """Load the weights that a run begins with, where they are another run's."""
    if settings.start_from:
        for notice in load_start(job.model, settings):
            callbacks.message(notice)


def _train_from_the_beginning(job: Job, settings: Settings, trainer: Trainer) -> dict[str, Any]:
    if settings.start_from:
        trainer.save()  # when this run has to go on, the other one may be gone or have changed
    return _train_to_the_end(job, trainer)


def _change_epochs(trainer: Trainer, settings: Settings, wanted: Settings) -> None:
    """Let a run have another number of epochs, and say what becomes of its learning rate.

    Raises:
        RunError: it has begun more already.
    """
    old, new, progress = settings.training.epochs, wanted.training.epochs, trainer.progress
    begun = progress.epoch + (progress.batch > 0)
    if new < begun:
        raise RunError(
            f"run {trainer.run.path} has begun {begun} epochs already; --epochs must be at least "
            f"that, got {new}"
        )
    trainer.run.change_config(wanted.tables())
    if settings.training.schedule == "cosine":
        trainer.callbacks.message(
            f"the cosine of the learning rate ends with epoch {new} from now on, not {old}: the "
            f"rates so far were not those of a run of {new} epochs"
        )


def _finished_result(trainer: Trainer) -> dict[str, Any] | None:
    """Return the result of a run that has ended, if it has one that can be read."""
    if not trainer.ended:
        return None
    patience, epochs = trainer.config.patience, trainer.config.epochs
    why = (
        f"it had no better epoch in {patience}, its patience"
        if trainer.progress.stopped_early
        else f"for more, give more epochs, such as --epochs {2 * epochs}"
    )
    trainer.callbacks.message(
        f"run {trainer.run.path} has ended after epoch {trainer.progress.epoch}: nothing is left "
        f"to train; {why}"
    )
    try:
        return checked_result(trainer.run.read_result())
    except RunError:
        return None


def seconds_of(records: list[dict[str, Any]]) -> float:
    """Return the time of all epochs that have a record."""
    times = (number_in(record.get("seconds")) for record in records)
    return sum(t for t in times if t >= 0)


def _mean_rate(records: list[dict[str, Any]], name: str) -> float:
    """Return the mean of a rate over the time of all epochs; 0 where no record has it."""
    pairs = [(number_in(record.get("seconds")), number_in(record.get(name))) for record in records]
    known = [(t, rate) for t, rate in pairs if t >= 0 and rate >= 0]
    seconds = sum(t for t, _ in known)
    # Of a run whose file was lost or changed, there is nothing to divide by.
    return sum(t * rate for t, rate in known) / seconds if seconds else 0.0


def _train_to_the_end(job: Job, trainer: Trainer) -> dict[str, Any]:
    """Train what is left, test the best weights, and write the result.

    Returns:
        The scores, and steps, epochs, seconds, examples_per_second, tokens_per_second, best_epoch,
        parameters, backend, seed, run.

    Raises:
        TrainingInterrupted: a signal came; the run is saved.
    """
    callbacks = trainer.callbacks
    trainer.prepare(job.tests)
    callbacks.started(trainer.total_steps, trainer.progress.step, job.description())
    started, first_step = time.perf_counter(), trainer.progress.step
    try:
        trainer.train()
    finally:
        callbacks.finished()
    trained = time.perf_counter() - started
    return trainer.ranks.first(lambda: _tested(job, trainer, None if first_step else trained))


def _tested(job: Job, trainer: Trainer, trained: float | None) -> dict[str, Any]:
    """Test the best weights, and write the result.

    Args:
        trained: seconds, where it was trained without a stop.
    """
    model, run, callbacks = trainer.model, trainer.run, trainer.callbacks
    if trainer.progress.stopped_early:
        epoch, config = trainer.progress.epoch, trainer.config
        callbacks.message(
            f"stopped early, after epoch {epoch} of {config.epochs}: there was no better one in "
            f"{config.patience} (--patience)"
        )
    records = run.read_metrics()
    result = {
        **job.test(trainer, run.best()),
        "steps": trainer.progress.step,
        "epochs": trainer.progress.epoch,
        "seconds": seconds_of(records) if trained is None else trained,
        **{name: _mean_rate(records, name) for name in _RATES},
        "best_epoch": trainer.tracker.best_epoch,
        "parameters": model.num_parameters,
        "backend": model.ops.name,
        "seed": trainer.seed,
        "run": str(run.path),
    }
    run.write_result(result)
    return result
