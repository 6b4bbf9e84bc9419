"""Runs of the digit task: train one, go on with one, evaluate it, ask it."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from fastformer import checks
from fastformer.backend import BACKENDS
from fastformer.batch import pack
from fastformer.data.digits import DigitExamples, DigitTask, Splits, generate, split
from fastformer.data.expressions import OPERATIONS, parse_expression
from fastformer.data.vocabulary import DIGIT_TOKENS, decode, encode
from fastformer.errors import RunError
from fastformer.models.config import DTYPES, TransformerConfig
from fastformer.models.decoder import TransformerDecoder
from fastformer.models.transformer import Transformer
from fastformer.parameters import Array
from fastformer.training.checkpoint import Checkpoint
from fastformer.training.config import TrainingConfig
from fastformer.training.loop import Trainer, load_weights
from fastformer.training.loss import CrossEntropyLoss
from fastformer.training.observer import TrainingObserver
from fastformer.training.run_directory import RunDirectory
from fastformer.training.source import Examples
from fastformer.training.steps import predict_classes
from fastformer.training.whole_run import train_to_the_end

_RESULT_NAMES = frozenset(
    "test_accuracy test_loss test_examples per_operation steps epochs seconds examples_per_second "
    "best_epoch parameters backend seed run".split()
)


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """All that decides the bits of a run.

    Raises:
        ValueError, TypeError: a value that is not allowed, or a model that the task does not fit.
    """

    task: DigitTask
    model: TransformerConfig
    training: TrainingConfig
    seed: int = 42
    backend: str = "numba"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        """Check every value."""
        checks.integer("seed", self.seed, 0)
        checks.choice("backend", self.backend, BACKENDS)
        checks.choice("dtype", self.dtype, DTYPES)
        if self.model.vocab_size != len(DIGIT_TOKENS):
            checks.fail(
                f"vocab_size must be {len(DIGIT_TOKENS)} for the digit task, "
                f"got {self.model.vocab_size}"
            )
        longest = 2 * self.task.num_arguments + 2
        if longest > self.model.max_seq_len:
            checks.fail(
                f"expressions of {self.task.num_arguments} arguments have {longest} tokens, "
                f"which is {longest - self.model.max_seq_len} more than "
                f"max_seq_len={self.model.max_seq_len}; raise max_seq_len or use fewer arguments"
            )

    def tables(self) -> dict[str, dict[str, Any]]:
        """Return the tables of `config.toml`."""
        own = {"kind": "digits", "seed": self.seed, "backend": self.backend, "dtype": self.dtype}
        return {
            "run": own,
            "task": asdict(self.task),
            "model": asdict(self.model),
            "training": asdict(self.training),
        }

    @classmethod
    def from_run(cls, run: RunDirectory) -> "RunSettings":
        """Read the settings of a run.

        Raises:
            RunError: they are missing, unknown or not allowed.
        """
        own_fields = {"kind"} | {f.name for f in fields(cls)} - {"task", "model", "training"}
        try:
            own = dict(run.config["run"])
            checks.known_keys("run", own, own_fields)
            checks.choice("kind", own.pop("kind"), ("digits",))
            return cls(
                task=checks.from_settings(DigitTask, run.config["task"]),
                model=checks.from_settings(TransformerConfig, run.config["model"]),
                training=checks.from_settings(TrainingConfig, run.config["training"]),
                **own,
            )
        except (KeyError, TypeError, ValueError) as error:
            problem = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise RunError(
                f"{run.path / 'config.toml'} does not hold the settings of a digit run: {problem}; "
                "mend it or use another run"
            ) from error

    def splits(self) -> Splits:
        """Draw the examples, the same ones every time."""
        return split(generate(self.task, self.seed), self.task, self.seed)

    def new_model(self) -> Transformer:
        """Return the model with its initial weights."""
        return Transformer(self.model, seed=self.seed, backend=self.backend, dtype=self.dtype)


def _packed(examples: DigitExamples) -> Examples:
    return Examples(pack(examples.inputs), examples.targets)


def _trainer(
    model: Transformer,
    settings: RunSettings,
    splits: Splits,
    run: RunDirectory,
    observer: TrainingObserver,
) -> Trainer:
    return Trainer(
        model,
        settings.training,
        _packed(splits.train),
        _packed(splits.validation),
        run,
        settings.seed,
        observer,
    )


def train_digits(
    settings: RunSettings,
    directory: Path,
    observer: TrainingObserver,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train a model on the digit task, and test it on inputs that it has never seen.

    Args:
        settings: what, and how.    directory: where the run is kept.
        observer: is told of each step and epoch.    overwrite: replace a run that is there.

    Returns:
        test_accuracy, test_loss, per_operation, test_examples, steps, epochs, seconds,
        examples_per_second, best_epoch, parameters, backend, seed, run.

    Raises:
        RunError: the directory is there and `overwrite` is False, or cannot be written.
        ValueError: settings that cannot be met; then no file is made.
        TrainingInterrupted: a signal came; the run is saved.
    """
    # First all that can fail; then the directory.
    splits, model = settings.splits(), settings.new_model()
    run = RunDirectory.create(directory, settings.tables(), overwrite=overwrite)
    trainer = _trainer(model, settings, splits, run, observer)
    return _train_to_the_end(trainer, settings, splits)


def resume_digits(directory: Path, observer: TrainingObserver) -> dict[str, Any]:
    """Go on with a run that was stopped; it ends with the bits of one that never was.

    Returns:
        What `train_digits` returns. A run that has ended is not trained further: its result is
        returned as it is, or, where there is none that can be read, tested anew.

    Raises:
        RunError: there is no such run, it is damaged, or has no checkpoint yet.
        TrainingInterrupted: a signal came; the run is saved.
    """
    run = RunDirectory.open(directory)
    settings = RunSettings.from_run(run)
    splits, checkpoint = settings.splits(), run.latest()
    trainer = _trainer(settings.new_model(), settings, splits, run, observer)
    trainer.restore(checkpoint)
    result = _finished_result(trainer)
    return result or _train_to_the_end(trainer, settings, splits)


def _finished_result(trainer: Trainer) -> dict[str, Any] | None:
    """Return the result of a run that has ended, if it has one that can be read."""
    if not trainer.ended:
        return None
    trainer.observer.message(
        f"run {trainer.run.path} has ended after epoch {trainer.progress.epoch}: nothing is left "
        "to train; for more epochs start a new run"
    )
    try:
        result = trainer.run.read_result()
    except RunError:
        return None
    return result if result.keys() == _RESULT_NAMES else None


def _train_to_the_end(trainer: Trainer, settings: RunSettings, splits: Splits) -> dict[str, Any]:
    """Train what is left, test the best weights, and write the result."""
    description = (
        f"{trainer.model.num_parameters:,} parameters, {len(splits.train):,} training examples, "
        f"{len(splits.validation):,} validation and {len(splits.test):,} test inputs, "
        f"backend {settings.backend}, {settings.dtype}, seed {settings.seed}"
    )

    def test(best: Checkpoint) -> dict[str, Any]:
        warning = trainer.tracker.overfitting_warning()
        if warning:
            trainer.observer.message(warning)
        return _test_scores(trainer.model, best, splits.test)

    return train_to_the_end(trainer, description, test)


def _test_scores(
    model: Transformer | TransformerDecoder, checkpoint: Checkpoint, examples: DigitExamples
) -> dict[str, Any]:
    """Return test_accuracy, test_loss, test_examples and per_operation of a checkpoint."""
    load_weights(model, checkpoint)
    packed = _packed(examples)
    logits = predict_classes(model, packed.inputs)
    loss = CrossEntropyLoss(backend=model.ops.name).forward(logits, packed.targets)
    right = logits.argmax(axis=1) == packed.targets
    operations = np.array([expression.operation for expression in examples.expressions])
    names = [name for name in OPERATIONS if name in operations]
    return {
        "test_accuracy": float(right.mean()),
        "test_loss": loss,
        "test_examples": len(examples),
        "per_operation": {name: float(right[operations == name].mean()) for name in names},
    }


def evaluate_run(directory: Path) -> dict[str, Any]:
    """Test the best weights of a run on the inputs that it never saw.

    Returns:
        test_accuracy, test_loss, test_examples, per_operation, run, checkpoint.

    Raises:
        RunError: there is no such run, it is damaged, or has no checkpoint yet.
    """
    run = RunDirectory.open(directory)
    settings = RunSettings.from_run(run)
    checkpoint = run.best()
    scores = _test_scores(settings.new_model(), checkpoint, settings.splits().test)
    return {**scores, "run": str(run.path), "checkpoint": str(checkpoint.path)}


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A model's answer to one expression.

    Attributes:
        expression: as the model read it.    prediction: the likeliest token.
        probability: of the prediction.    expected: the right answer.
        correct: whether they are the same.    top: the likeliest tokens, (token, probability).
    """

    expression: str
    prediction: str
    probability: float
    expected: str
    correct: bool
    top: list[tuple[str, float]]


@dataclass(frozen=True)
class Predictor:
    """A trained model that answers expressions."""

    model: Transformer
    task: DigitTask

    def predict(self, text: str, top: int = 5) -> Prediction:
        """Answer an expression.

        Args:
            text: for instance "Max ( 5 3 9 )".    top: how many tokens to list, >= 1.

        Raises:
            ValueError: text that is no expression, or one that the task does not have.
        """
        expression = parse_expression(text)
        self.task.check(expression)
        checks.integer("top", top, 1, len(DIGIT_TOKENS))
        logits = self.model.forward(pack([encode(expression.tokens())]))[0]
        probabilities = _softmax(logits)
        likeliest = np.argsort(-probabilities, kind="stable")[:top]
        listed = [
            (token, float(probabilities[index]))
            for token, index in zip(decode(likeliest), likeliest, strict=True)
        ]
        answer, expected = listed[0][0], str(expression.answer())
        return Prediction(
            expression=str(expression),
            prediction=answer,
            probability=listed[0][1],
            expected=expected,
            correct=answer == expected,
            top=listed,
        )


def _softmax(logits: Array) -> Array:
    shifted: Array = np.exp(logits.astype(np.float64) - logits.max())
    probabilities: Array = shifted / shifted.sum()
    return probabilities


def load_predictor(directory: Path) -> Predictor:
    """Load the best weights of a run.

    Raises:
        RunError: there is no such run, it is damaged, or has no checkpoint yet.
    """
    run = RunDirectory.open(directory)
    settings = RunSettings.from_run(run)
    checkpoint = run.best()
    model = settings.new_model()
    load_weights(model, checkpoint)
    return Predictor(model, settings.task)
