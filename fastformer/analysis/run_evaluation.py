"""A run's best model, measured on the examples it never saw, or on a person's own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastformer import checks
from fastformer.analysis.evaluation import AnswerScores, evaluate_answers
from fastformer.analysis.loading import LoadedRun, load_run
from fastformer.batch import pack
from fastformer.data.digits import DigitExamples
from fastformer.data.expressions import Expression, parse_expression
from fastformer.data.vocabulary import decode
from fastformer.errors import FastformerError, InvalidValueError
from fastformer.models.transformer import Transformer
from fastformer.training.atomic_file import os_errors_as
from fastformer.training.loss import CrossEntropyLoss
from fastformer.training.steps import predict_classes


@dataclass(frozen=True)
class RunScores:
    """How good a run's best model is.

    Attributes:
        run, checkpoint: what was measured.
        data: the file that the expressions are from; None for the run's test examples.
        scores: of the answers.    loss: mean cross-entropy.
        trained_on: how many of the expressions the model was trained on; of test examples none.
    """

    run: Path
    checkpoint: Path
    data: Path | None
    scores: AnswerScores
    loss: float
    trained_on: int

    def as_json(self) -> dict[str, Any]:
        """Return test_accuracy, test_loss, per_operation and the rest as JSON values."""
        parts = self.scores.as_json()
        exact = self.scores.exact
        return {
            "test_accuracy": exact.accuracy,
            "test_loss": self.loss,
            "test_examples": exact.total,
            "interval_95": list(exact.interval),
            "per_operation": {
                name: share.accuracy for name, share in self.scores.per_operation.items()
            },
            "operations": parts["per_operation"],
            "per_digit": parts["per_digit"],
            "confusion": parts["confusion"],
            "trained_on": self.trained_on,
            "data": None if self.data is None else str(self.data),
            "run": str(self.run),
            "checkpoint": str(self.checkpoint),
        }


def read_expressions(file: str | Path, loaded: LoadedRun) -> list[Expression]:
    """Read a person's own expressions, one a line; empty lines are left out.

    Args:
        file: UTF-8 text.    loaded: the run whose task they must be of.

    Raises:
        ValueError: a line that is no expression, or none of the run's task: the message has the
            line's number; a file without expressions or that is not text.
    """
    file = Path(file)
    with os_errors_as(InvalidValueError, f"read {file}"):
        content = file.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InvalidValueError(f"{file}, line {line}: not UTF-8 text ({error.reason})") from error
    expressions = []
    for number, line_text in enumerate(text.splitlines(), start=1):
        if line_text.strip():
            try:
                expression = parse_expression(line_text)
                loaded.settings.task.check(expression)
            except FastformerError as error:
                raise InvalidValueError(f"{file}, line {number}: {error}") from error
            expressions.append(expression)
    if not expressions:
        checks.fail(f"{file} has no expression; write one a line, for instance 'Max ( 5 3 9 )'")
    return expressions


def evaluate_run(directory: str | Path, data: str | Path | None = None) -> RunScores:
    """Measure the best weights of a run.

    Args:
        directory: of the run.    data: a file of expressions; None for the run's test examples.

    Raises:
        RunError: there is no such run, it is damaged, or has no checkpoint yet.
        ValueError: see `read_expressions`.
    """
    loaded = load_run(directory)
    if data is None:
        examples, trained_on = loaded.splits.test, 0
    else:
        examples = DigitExamples(read_expressions(data, loaded))
        trained = set(loaded.splits.train.expressions)
        trained_on = sum(expression in trained for expression in examples.expressions)
    answers, loss = answers_of(loaded.model, examples)
    scores = evaluate_answers(
        answers,
        [str(expression.answer()) for expression in examples.expressions],
        [expression.operation for expression in examples.expressions],
    )
    return RunScores(
        run=loaded.run.path,
        checkpoint=loaded.checkpoint.path,
        data=None if data is None else Path(data),
        scores=scores,
        loss=loss,
        trained_on=trained_on,
    )


def answers_of(model: Transformer, examples: DigitExamples) -> tuple[list[str], float]:
    """Return a classifier's answers, the likeliest tokens, and its mean loss."""
    logits = predict_classes(model, pack(examples.inputs))
    loss = CrossEntropyLoss(backend=model.ops.name).forward(logits, examples.targets)
    return decode(np.asarray(logits.argmax(axis=1), dtype=np.int64)), loss
