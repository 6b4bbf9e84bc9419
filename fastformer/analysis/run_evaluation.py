"""A run's best model, measured on the examples it never saw, or on a person's own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fastformer import checks
from fastformer.analysis.evaluation import Scores
from fastformer.analysis.loading import LoadedRun, load_run
from fastformer.data.asked import Asked
from fastformer.errors import FastformerError, InvalidValueError
from fastformer.training.atomic_file import os_errors_as
from fastformer.training.table_run import TableSettings

_MOST_BYTES: Final[int] = 1 << 26


@dataclass(frozen=True)
class RunScores:
    """How good a run's best model is.

    Attributes:
        run, checkpoint: what was measured.
        data: the file that the expressions are from; None for the run's test examples.
        scores: of the answers.    loss: mean cross-entropy.
        trained_on: how many of the expressions the model was trained on; of test examples none;
            None where that is not known.
        never_trained_on: of how many it is certain that they were not trained on.
    """

    run: Path
    checkpoint: Path
    data: Path | None
    scores: Scores
    loss: float
    trained_on: int | None
    never_trained_on: int

    def as_json(self) -> dict[str, Any]:
        """Return test_accuracy, test_loss, those of each group and the rest as JSON values."""
        exact = self.scores.exact
        return {
            "test_accuracy": exact.accuracy,
            "test_loss": self.loss,
            "test_examples": exact.total,
            "interval_95": list(exact.interval),
            **self.scores.for_json(),
            "trained_on": self.trained_on,
            "never_trained_on": self.never_trained_on,
            "data": None if self.data is None else str(self.data),
            "run": str(self.run),
            "checkpoint": str(self.checkpoint),
        }


def read_expressions(file: str | Path, loaded: LoadedRun) -> list[Asked]:
    """Read a person's own expressions, one a line, or texts with labels, of a table.

    Args:
        file: UTF-8 text, or .csv or .jsonl.    loaded: the run whose task they must be of.

    Raises:
        ValueError: a line that is no expression, or none of the run's task: the message has the
            line's number; a file without expressions or that is not text.
    """
    file = Path(file)
    if isinstance(loaded.settings, TableSettings):
        return [*loaded.settings.read_file(file)]
    with os_errors_as(InvalidValueError, f"read {file}"), file.open("rb") as stream:
        content = stream.read(_MOST_BYTES + 1)  # a pipe may be read, but has no size
    if len(content) > _MOST_BYTES:
        checks.fail(f"{file} has more than {_MOST_BYTES:,} bytes; give fewer expressions at a time")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InvalidValueError(f"{file}, line {line}: not UTF-8 text ({error.reason})") from error
    predictor, asked = loaded.predictor, []
    for number, line_text in enumerate(text.splitlines(), start=1):
        if line_text.strip():
            try:
                asked.append(predictor.read(line_text))
            except FastformerError as error:
                raise InvalidValueError(f"{file}, line {number}: {error}") from error
    if not asked:
        checks.fail(
            f"{file} has no expression; write one a line, for instance {predictor.example!r}"
        )
    return asked


def evaluate_run(directory: str | Path, data: str | Path | None = None) -> RunScores:
    """Measure the best weights of a run.

    Args:
        directory: of the run.    data: a file of expressions; None for the run's test examples.

    Raises:
        RunError: there is no such run, it is damaged, or has no checkpoint yet.
        ValueError: see `read_expressions`.
    """
    loaded = load_run(directory)
    asked = loaded.tests if data is None else read_expressions(data, loaded)
    answers, loss = loaded.predictor.answers(asked)
    scores = loaded.predictor.score(answers, asked)
    return RunScores(
        run=loaded.run.path,
        checkpoint=loaded.checkpoint.path,
        data=None if data is None else Path(data),
        scores=scores,
        loss=loss,
        trained_on=0 if data is None else loaded.settings.trained_on(asked),
        never_trained_on=len(asked) if data is None else loaded.settings.never_trained_on(asked),
    )
