"""What a report tells of a run: gathered here, made into one HTML page in `report_page`.

Each part stands on records of its own. One that lacks them is left out, and the page says what is
missing; a run that is still training can be looked at, too.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from fastformer.analysis.attention import (
    ExpressionAttention,
    HeadSummary,
    expression_attention,
    head_summaries,
)
from fastformer.analysis.embeddings import EmbeddingReport, embedding_report, rows_of
from fastformer.analysis.evaluation import Scores
from fastformer.analysis.head_roles import HeadRole, head_roles
from fastformer.analysis.loading import LoadedRun, load_run
from fastformer.analysis.plots import Curves, missing_text, read_curves
from fastformer.analysis.prediction import Prediction
from fastformer.data.asked import Asked
from fastformer.errors import InvalidValueError, RunError
from fastformer.parameters import Array
from fastformer.training.embedding_records import EmbeddingRecords
from fastformer.training.run_directory import RunDirectory
from fastformer.training.runs import settings_of
from fastformer.training.whole_run import checked_result

EXAMPLES_PER_GROUP: Final[int] = 3
MISTAKES_SHOWN: Final[int] = 5
MOST_WEIGHTS: Final[int] = 400_000
"""Attention weights in a page; each takes about seven characters."""

MOST_MAPS: Final[int] = 40


@dataclass(frozen=True)
class Example:
    """An expression, the model's answer, and how it attended.

    Attributes:
        prediction: the answer.    attention: the weights.    heads: what each head does.
    """

    prediction: Prediction
    attention: ExpressionAttention
    heads: list[HeadSummary]


@dataclass
class Report:
    """All that is known of a run; None or empty where records are missing.

    Attributes:
        name: what the run is called.    config: the tables of its config.
        notes: sentences about what is missing.    curves: over its epochs.
        result: what training ended with.    scores: of its best model on its test inputs.
        examples: for the attention explorer.    roles: of heads, over the test inputs.
        embeddings: of the best model.    map_labels, maps: a map (n, 2) for each epoch kept, on
            the axes of the last one, which is that of the best model.
    """

    name: str
    config: dict[str, dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    curves: Curves | None = None
    result: dict[str, Any] | None = None
    scores: Scores | None = None
    examples: list[Example] = field(default_factory=list)
    roles: list[HeadRole] = field(default_factory=list)
    embeddings: EmbeddingReport | None = None
    map_labels: list[str] = field(default_factory=list)
    maps: list[Array] = field(default_factory=list)


def collect_report(directory: str | Path, expressions: Sequence[str] = ()) -> Report:
    """Gather all that a report tells of a run. Nothing is written.

    Args:
        directory: of the run.
        expressions: for the attention explorer, before those that are chosen of the test inputs.

    Raises:
        RunError: there is no such run, its config is damaged, or it has neither records nor a
            checkpoint.
        ValueError: an expression that the task does not have.
    """
    run = RunDirectory.open(directory)
    settings_of(run)
    report = Report(name=run.path.resolve().name, config=run.config)
    report.curves = _readable_curves(run.path, report.notes)
    try:
        loaded = load_run(run.path)
    except RunError as error:
        report.notes.append(str(error))
        if report.curves is None:
            raise RunError(
                f"run {run.path} has nothing to report: {'; '.join(report.notes)}"
            ) from error
        return report
    try:
        report.result = checked_result(run.read_result())
    except RunError as error:
        report.notes.append(str(error))
    predictor, chosen = loaded.predictor, []
    asked = [predictor.read(text) for text in expressions]
    try:
        tests = loaded.tests
    except InvalidValueError as error:  # of a table that has changed, or is gone
        report.notes.append(str(error))
    else:
        answers, _ = predictor.answers(tests)
        report.scores = predictor.score(answers, tests)
        report.roles = head_roles(loaded.model, tests)
        chosen = _chosen(tests, answers)
    report.examples = _examples(loaded, asked, chosen)
    _add_embeddings(report, loaded)
    return report


def _readable_curves(path: Path, notes: list[str]) -> Curves | None:
    """Return a run's curves, and note what cannot be read or is missing."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            curves = read_curves(path)
        except RunError as error:
            notes.append(str(error))
            curves = None
    for warning in caught:
        notes.append(str(warning.message))
    text = missing_text(curves) if curves is not None else None
    if text is not None:
        notes.append(text)
    return curves


def _chosen(tests: Sequence[Asked], answers: Sequence[str]) -> list[Asked]:
    """Choose some test inputs of each group, and some that are answered wrongly."""
    chosen: list[Asked] = []
    for group in dict.fromkeys(e.group for e in tests):
        same = [e for e in tests if e.group == group]
        chosen += same[:EXAMPLES_PER_GROUP]
    wrong = [e for e, answer in zip(tests, answers, strict=True) if answer != str(e.answer())]
    return chosen + wrong[:MISTAKES_SHOWN]


def _examples(loaded: LoadedRun, asked: Sequence[Asked], chosen: Sequence[Asked]) -> list[Example]:
    """Ask the model; leave out chosen expressions that would make the page too large."""
    examples, room = [], MOST_WEIGHTS
    for place, expression in enumerate(dict.fromkeys([*asked, *chosen])):
        text = str(expression)
        attention = expression_attention(loaded.predictor, text)
        room -= sum(layer.size for layer in attention.layers)
        if room < 0 and place >= max(1, len(asked)):
            break
        prediction = loaded.predictor.predict(text)
        examples.append(Example(prediction, attention, head_summaries(attention)))
    return examples


def _add_embeddings(report: Report, loaded: LoadedRun) -> None:
    """Describe the best model's embeddings, and map those of each epoch that was kept."""
    tokens = loaded.settings.named_tokens
    table = loaded.model.embedding.weight.value
    report.embeddings = embedding_report(table, tokens)
    try:
        tables = EmbeddingRecords(loaded.run.path).read_all(table.shape)
    except RunError as error:
        report.notes.append(str(error))
        tables = {}
    mapped, final = tokens.mapped, report.embeddings.map.points
    # What turns the best model's rows into its map turns those of every epoch into theirs.
    axes = np.linalg.lstsq(_centered(table, mapped), final, rcond=None)[0]
    epochs = list(tables)
    for epoch in epochs[:: -(-len(epochs) // MOST_MAPS) or 1]:
        report.map_labels.append(f"after epoch {epoch}" if epoch else "before training")
        report.maps.append(_centered(tables[epoch], mapped) @ axes)
    report.map_labels.append("the best model")
    report.maps.append(final)


def _centered(table: Array, tokens: Mapping[str, int]) -> Array:
    rows = rows_of(table, tokens)
    centered: Array = rows - rows.mean(axis=0)
    return centered
