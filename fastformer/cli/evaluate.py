"""`fastformer evaluate`: how good a run's best model is."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from cyclopts import Parameter

from fastformer import threads as thread_count
from fastformer import writing
from fastformer.cli import console

if TYPE_CHECKING:
    from fastformer.analysis.evaluation import Scores, Share
    from fastformer.analysis.run_evaluation import RunScores

_MISTAKES_LISTED = 5
_LABELS_SHOWN = 16


def evaluate(
    run: Path,
    /,
    *,
    data: Path | None = None,
    picture: Path | None = None,
    threads: int | None = None,
    json: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
) -> None:
    """Measure a run's best model on its test examples, none of which it was trained on.

    Args:
        run: directory of the run.
        data: a file to measure on instead: your own expressions, one a line; for a run on a table,
            another table with the same columns.
        picture: file for a picture of which digit or class was taken for which: .png, .svg or .pdf.
        threads: number of threads; without it, as many as the machine or container allows.
        json: print one JSON object and nothing else.
    """
    thread_count.configure(threads)
    from fastformer.analysis.figures import check_picture, save_picture
    from fastformer.analysis.run_evaluation import evaluate_run

    if picture is not None:
        check_picture(picture)
    result = evaluate_run(run, data)
    if picture is not None and not result.scores.labels:
        console.error(
            "warning: there is no picture of what was taken for what: these answers are texts of "
            "any kind"
        )
        picture = None
    if picture is not None:
        from fastformer.analysis.evaluation_pictures import confusion_figure

        save_picture(confusion_figure(result.scores), picture)
    if json:
        console.json_line(result.as_json())
        return
    _show(result)
    if picture is not None:
        console.line(f"\npicture         {picture}")


def _show(result: "RunScores") -> None:
    """Write the scores for a person."""
    scores = result.scores
    facts = [("run", str(result.run)), ("checkpoint", str(result.checkpoint))]
    if result.data is None:
        facts += console.unseen_accuracy(result.as_json())
    else:
        facts += [
            ("accuracy", f"{writing.percent(scores.exact.accuracy)} of {result.data}"),
            ("right", _counts(scores.exact)),
            ("trained on", _trained_on(result)),
        ]
    console.facts(
        [*facts, ("test loss" if result.data is None else "loss", writing.loss(result.loss))]
    )
    console.line()
    for which, shares in scores.shares.items():
        accuracies = {name: share.accuracy for name, share in shares.items()}
        notes = {name: _counts(share) for name, share in shares.items()}
        console.per_group(accuracies, notes, which)
        console.line()
    _show_classes(scores)
    _show_digits(scores)
    _show_confusion(scores)


def _trained_on(result: "RunScores") -> str:
    """Say how many of a person's own expressions the model was trained on."""
    these = f"of these {result.scores.exact.total:,} expressions"
    if result.trained_on is not None:
        return f"{result.trained_on:,} {these}"
    return f"not {result.never_trained_on:,} {these}; any of the others may have been drawn"


def _counts(share: "Share") -> str:
    """Write how many are right, and the 95 % interval."""
    interval = writing.interval(*share.interval)
    return f"{share.correct:,} of {share.total:,}, 95 % interval {interval}"


def _show_classes(scores: "Scores") -> None:
    """Write how well each class is told from the others."""
    from fastformer.analysis.evaluation import ClassScores

    if not isinstance(scores, ClassScores):
        return
    widest = max(map(len, scores.per_class))
    console.line(f"{'class':<{widest}}  precision   recall      F1  examples")
    for name, score in scores.per_class.items():
        precision = "none" if score.precision is None else console.percent(score.precision.accuracy)
        console.line(
            f"{name:<{widest}}  {precision:>9}  {console.percent(score.recall.accuracy)}  "
            f"{writing.hundredths(score.f1):>6}  {score.recall.total:>8,}"
        )
    mean = writing.hundredths(scores.macro_f1)
    console.line(f"{'mean':<{widest}}  {'':>9}  {'':>7}  {mean:>6}\n")


def _show_digits(scores: "Scores") -> None:
    """Write the accuracy of each place of answers that are numbers."""
    from fastformer.analysis.evaluation import place_name

    if not scores.per_digit:
        return
    console.line("accuracy by answer digit, from the units up")
    for place, share in enumerate(scores.per_digit):
        cells = f"{console.bar(share.accuracy)} {console.percent(share.accuracy)}"
        console.line(f"  {place_name(place):<10} {cells}   {_counts(share)}")
    console.line()


def _show_confusion(scores: "Scores") -> None:
    """Write what was taken for what, and the worst of it; of many classes, the worst alone."""
    from fastformer.analysis.evaluation import mistakes, used_labels

    used = used_labels(scores)
    if 1 < len(used) <= _LABELS_SHOWN:
        labels, confusion = [scores.labels[place] for place in used], scores.confusion
        console.line(f"correct {scores.unit} (down) and predicted {scores.unit} (across)")
        first = max(6, *map(len, labels))
        width = max(5, len(str(confusion.max())) + 1, *(len(label) + 1 for label in labels))
        console.line(" " * (first + 2) + "".join(f"{label:>{width}}" for label in labels))
        for label, row in zip(labels, confusion[np.ix_(used, used)].tolist(), strict=True):
            cells = "".join(f"{count or '·':>{width}}" for count in row)
            console.line(f"  {label:<{first}}{cells}")
    worst = mistakes(scores)
    listed = [
        f"{wrong.correct} taken for {wrong.predicted} ({wrong.count:,})"
        for wrong in worst[:_MISTAKES_LISTED]
    ]
    more = f", and {len(worst) - _MISTAKES_LISTED} others" * (len(worst) > _MISTAKES_LISTED)
    if used:
        console.line(f"mistakes: {', '.join(listed) or 'none'}{more}")
