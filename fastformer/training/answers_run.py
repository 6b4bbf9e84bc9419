"""Runs of the decoder on tasks with longer answers: presets, training, going on, the test."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from fastformer import checks
from fastformer.backend import BACKENDS
from fastformer.batch import Ids, PackedBatch
from fastformer.data.answers import (
    ANSWER_TOKENS,
    AnswerTask,
    draw_training,
    draw_unseen,
)
from fastformer.errors import RunError
from fastformer.models.config import DTYPES, DecoderConfig
from fastformer.models.decoder import TransformerDecoder
from fastformer.training.checkpoint import Checkpoint
from fastformer.training.config import TrainingConfig
from fastformer.training.loop import Trainer, load_weights
from fastformer.training.loss import CrossEntropyLoss
from fastformer.training.observer import TrainingObserver
from fastformer.training.run_directory import RunDirectory
from fastformer.training.source import Examples
from fastformer.training.steps import predict_classes
from fastformer.training.whole_run import train_to_the_end

KIND: Final[str] = "answers"


@dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """All that decides the bits of a run.

    Raises:
        ValueError, TypeError: a value that is not allowed, or a model that the task does not fit.
    """

    task: AnswerTask
    model: DecoderConfig
    training: TrainingConfig
    seed: int = 42
    backend: str = "numba"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        """Check every value."""
        checks.integer("seed", self.seed, 0)
        checks.choice("backend", self.backend, BACKENDS)
        checks.choice("dtype", self.dtype, DTYPES)
        if self.model.vocab_size != len(ANSWER_TOKENS):
            checks.fail(
                f"vocab_size must be {len(ANSWER_TOKENS)} for {self.task.name}, "
                f"got {self.model.vocab_size}"
            )
        longest = self.task.longest
        if longest > self.model.max_seq_len:
            checks.fail(
                f"examples of {self.task.name} have {longest} tokens, which is "
                f"{longest - self.model.max_seq_len} more than "
                f"max_seq_len={self.model.max_seq_len}; raise max_seq_len"
            )

    def tables(self) -> dict[str, dict[str, Any]]:
        """Return the tables of `config.toml`."""
        own = {"kind": KIND, "seed": self.seed, "backend": self.backend, "dtype": self.dtype}
        return {
            "run": own,
            "task": asdict(self.task),
            "model": asdict(self.model),
            "training": asdict(self.training),
        }

    @classmethod
    def from_run(cls, run: RunDirectory) -> "AnswerSettings":
        """Read the settings of a run.

        Raises:
            RunError: they are missing, unknown or not allowed.
        """
        try:
            own = dict(run.config["run"])
            checks.known_keys("run", own, {"kind", "seed", "backend", "dtype"})
            checks.choice("kind", own.pop("kind"), (KIND,))
            return cls(
                task=checks.from_settings(AnswerTask, run.config["task"]),
                model=checks.from_settings(DecoderConfig, run.config["model"]),
                training=checks.from_settings(TrainingConfig, run.config["training"]),
                **own,
            )
        except (KeyError, TypeError, ValueError) as error:
            problem = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise RunError(
                f"{run.path / 'config.toml'} does not hold the settings of such a run: {problem}; "
                "mend it or use another run"
            ) from error

    def new_model(self) -> TransformerDecoder:
        """Return the model with its initial weights."""
        return TransformerDecoder(
            self.model, seed=self.seed, backend=self.backend, dtype=self.dtype
        )


@dataclass(frozen=True)
class AnswerStream:
    """Fresh examples for each batch of a run: none is drawn twice but by chance."""

    task: AnswerTask

    @property
    def size(self) -> int:
        """How many examples an epoch has."""
        return self.task.examples

    def batches(
        self, seed: int, epoch: int, batch_size: int, start: int
    ) -> Iterator[tuple[PackedBatch, Ids]]:
        """Yield the batches of an epoch; see `fastformer.training.source.Source`."""
        count = -(-self.size // batch_size)
        for batch in range(start, count):
            size = min(batch_size, self.size - batch * batch_size)
            drawn = draw_training(self.task, seed, epoch * count + batch, size)
            yield drawn.packed(hints=True)


def _trainer(settings: AnswerSettings, run: RunDirectory, observer: TrainingObserver) -> Trainer:
    task = settings.task
    unseen = draw_unseen(task, settings.seed, "validation", task.validation_examples)
    return Trainer(
        settings.new_model(),
        settings.training,
        AnswerStream(task),
        Examples(*unseen.packed(hints=False)),
        run,
        settings.seed,
        observer,
    )


def train_answers(
    settings: AnswerSettings, directory: Path, observer: TrainingObserver, overwrite: bool = False
) -> dict[str, Any]:
    """Train a decoder on fresh examples, and test it on inputs that it has never seen.

    Args:
        settings: what, and how.    directory: where the run is kept.
        observer: is told of each step and epoch.    overwrite: replace a run that is there.

    Returns:
        test_accuracy (whole answers), test_loss, per_operation, test_examples, steps, epochs,
        seconds, examples_per_second, best_epoch, parameters, backend, seed, run.

    Raises:
        RunError: the directory is there and `overwrite` is False, or cannot be written.
        ValueError: settings that cannot be met; then no file is made.
        TrainingInterrupted: a signal came; the run is saved.
    """
    task = settings.task
    draw_unseen(task, settings.seed, "test", task.test_examples)
    run = RunDirectory.create(directory, settings.tables(), overwrite=overwrite)
    return _train_to_the_end(_trainer(settings, run, observer), settings)


def resume_answers(directory: Path, observer: TrainingObserver) -> dict[str, Any]:
    """Go on with a run that was stopped; it ends with the bits of one that never was.

    Returns:
        What `train_answers` returns. A run that has ended is not trained but tested anew.

    Raises:
        RunError: there is no such run, it is damaged, or has no checkpoint yet.
        TrainingInterrupted: a signal came; the run is saved.
    """
    run = RunDirectory.open(directory)
    settings = AnswerSettings.from_run(run)
    checkpoint = run.latest()
    trainer = _trainer(settings, run, observer)
    trainer.restore(checkpoint)
    return _train_to_the_end(trainer, settings)


def _train_to_the_end(trainer: Trainer, settings: AnswerSettings) -> dict[str, Any]:
    """Train what is left, test the best weights, and write the result."""
    task = settings.task
    description = (
        f"{task.name}: {trainer.model.num_parameters:,} parameters, fresh examples, "
        f"{task.validation_examples:,} validation and {task.test_examples:,} test inputs, "
        f"backend {settings.backend}, {settings.dtype}, seed {settings.seed}"
    )
    return train_to_the_end(trainer, description, lambda best: _test_scores(settings, best))


def _test_scores(settings: AnswerSettings, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return test_accuracy, test_loss, test_examples and per_operation of a checkpoint.

    An answer is right where each of its tokens is the likeliest after the right ones before it,
    which is where greedy generation gives the whole answer.
    """
    model, task = settings.new_model(), settings.task
    load_weights(model, checkpoint)
    drawn = draw_unseen(task, settings.seed, "test", task.test_examples)
    inputs, targets = drawn.packed(hints=False)
    logits = predict_classes(model, inputs)
    wrong = (logits.argmax(axis=1) != targets) & (targets >= 0)
    right = ~np.logical_or.reduceat(wrong, inputs.offsets[:-1])
    sums = task.name == "addition"
    names = np.array(["+" if sums else ANSWER_TOKENS[row] for row in drawn.question[:, 0]])
    return {
        "test_accuracy": float(right.mean()),
        "test_loss": CrossEntropyLoss(backend=model.ops.name).forward(logits, targets),
        "test_examples": int(right.size),
        "per_operation": {
            str(name): float(right[names == name].mean()) for name in np.unique(names)
        },
    }


def evaluate_answers(directory: Path) -> dict[str, Any]:
    """Test the best weights of a run on the inputs that it never saw.

    Returns:
        test_accuracy, test_loss, test_examples, per_operation, run, checkpoint.

    Raises:
        RunError: there is no such run, it is damaged, or has no checkpoint yet.
    """
    run = RunDirectory.open(directory)
    settings, checkpoint = AnswerSettings.from_run(run), run.best()
    scores = _test_scores(settings, checkpoint)
    return {**scores, "run": str(run.path), "checkpoint": str(checkpoint.path)}
