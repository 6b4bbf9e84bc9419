"""`fastformer evaluate`: how good a run's best model is."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from fastformer import threads as thread_count
from fastformer import writing
from fastformer.cli import console

if TYPE_CHECKING:
    from fastformer.analysis.evaluation import AnswerScores, Share
    from fastformer.analysis.run_evaluation import RunScores

_MISTAKES_LISTED = 5


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
        data: a file of your own expressions, one a line, to measure on instead.
        picture: file for a picture of which digit was taken for which: .png, .svg or .pdf.
        threads: number of threads; without it, as many as the machine or container allows.
        json: print one JSON object and nothing else.
    """
    thread_count.configure(threads)
    from fastformer.analysis.figures import check_picture, save_picture
    from fastformer.analysis.run_evaluation import evaluate_run

    if picture is not None:
        check_picture(picture)
    result = evaluate_run(run, data)
    if picture is not None:
        from fastformer.analysis.evaluation_pictures import confusion_figure

        save_picture(confusion_figure(result.scores.confusion), picture)
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
    for which, shares in (
        ("operation", scores.per_operation),
        ("inner operation", scores.per_inner_operation),
    ):
        if shares:
            accuracies = {name: share.accuracy for name, share in shares.items()}
            notes = {name: _counts(share) for name, share in shares.items()}
            console.per_operation(accuracies, notes, which)
            console.line()
    _show_digits(scores)


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


def _show_digits(scores: "AnswerScores") -> None:
    """Write the accuracy of each place, what was taken for what, and the worst of it."""
    from fastformer.analysis.evaluation import CONFUSION_LABELS, mistakes, place_name

    console.line("accuracy by answer digit, from the units up")
    for place, share in enumerate(scores.per_digit):
        cells = f"{console.bar(share.accuracy)} {console.percent(share.accuracy)}"
        console.line(f"  {place_name(place):<10} {cells}   {_counts(share)}")
    console.line("\ncorrect digit (down) and predicted digit (across)")
    confusion, size = scores.confusion, len(CONFUSION_LABELS)
    size -= not (confusion[-1].any() or confusion[:, -1].any())
    width = max(5, len(str(confusion.max())) + 1)
    console.line(" " * 8 + "".join(f"{label:>{width}}" for label in CONFUSION_LABELS[:size]))
    for label, row in zip(CONFUSION_LABELS[:size], confusion[:size, :size].tolist(), strict=True):
        console.line(f"  {label:<6}" + "".join(f"{count or '·':>{width}}" for count in row))
    worst = mistakes(confusion)
    listed = [
        f"{wrong.correct} taken for {wrong.predicted} ({wrong.count:,})"
        for wrong in worst[:_MISTAKES_LISTED]
    ]
    more = f", and {len(worst) - _MISTAKES_LISTED} others" * (len(worst) > _MISTAKES_LISTED)
    console.line(f"mistakes: {', '.join(listed) or 'none'}{more}")
