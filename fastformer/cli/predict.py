"""`fastformer predict`: the answer to one expression, or to one after the other."""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from fastformer import threads as thread_count
from fastformer import writing
from fastformer.cli import console
from fastformer.errors import FastformerError, InvalidValueError
from fastformer.training.atomic_file import os_errors_as

if TYPE_CHECKING:
    from fastformer.analysis.prediction import Prediction, Predictor

_PROMPT = "> "
_FAREWELLS = ("exit", "quit", "q")


def predict(
    run: Path,
    /,
    *expression: str,
    top: int = 5,
    threads: int | None = None,
    json: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
) -> None:
    """Ask a run's best model for an answer.

    Args:
        run: directory of the run.
        expression: what it is asked: of a run on a table, a text; of digits for instance Max 5 3 9,
            or in quotes "max(5,3,9)"; of other tasks for instance "Max ( First ( 2 8 ) 5 )" or
            "12 + 345". Without one, each line of the standard input is asked.
        top: how many of the likeliest answers are listed; a decoder looks for as many beams.
        threads: number of threads; without it, as many as the machine or container allows.
        json: print one JSON object for each answer.
    """
    thread_count.configure(threads)
    from fastformer.analysis.loading import load_run

    predictor = load_run(run).predictor
    if expression:
        _show(predictor.predict(" ".join(expression), top), json)
    elif sys.stdin.isatty():
        _converse(predictor, top, json)
    else:
        _answer_lines(predictor, top, json)


def _answer_lines(predictor: "Predictor", top: int, json: bool) -> None:
    """Answer each line of the standard input. A mistake ends it."""
    for number, text in enumerate(_lines(), start=1):
        if text.strip():
            try:
                prediction = predictor.predict(text, top)
            except FastformerError as error:
                raise InvalidValueError(f"line {number}: {error}") from error
            _show(prediction, json)


def _lines() -> Iterator[str]:
    """Yield the lines of the standard input, without the mark that some editors put first."""
    with os_errors_as(InvalidValueError, "read the standard input"):
        line = sys.stdin.readline().removeprefix("\ufeff")
        while line:
            yield line.rstrip("\r\n")
            line = sys.stdin.readline()


def _converse(predictor: "Predictor", top: int, json: bool) -> None:
    """Answer what is typed until the user has enough. A mistake does not end it."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (then `input` has keys for editing and for earlier lines)
    example = predictor.example
    console.notice(f'Type an expression, for instance "{example}". Ctrl-D or "quit" ends.')
    while True:
        try:
            text = _typed().strip()
        except (EOFError, KeyboardInterrupt):
            console.notice("")
            return
        if text.lower() in _FAREWELLS:
            return
        if not text:
            continue
        try:
            _show(predictor.predict(text, top), json)
        except FastformerError as error:
            console.notice(str(error))


def _typed() -> str:
    """Return a line that is typed; the prompt is no part of an output that goes elsewhere."""
    if sys.stdout.isatty():
        return input(_PROMPT)
    sys.stderr.write(_PROMPT)
    sys.stderr.flush()
    return input("")


def _show(prediction: "Prediction", json: bool) -> None:
    """Write a prediction with the most probable answers."""
    if json:
        console.json_line(dataclasses.asdict(prediction))
        return
    probability = writing.percent(prediction.probability, 2)
    answer = f"{prediction.expression} = {prediction.prediction}"
    console.line(f"{answer}   {probability}{prediction.verdict}")
    if prediction.top[0][0] != prediction.prediction:
        console.line("  likelier as a whole than what the model writes token by token:")
    widest = max(6, *(len(answer) for answer, _ in prediction.top))
    for answer, share in prediction.top:
        console.line(f"  {answer:<{widest}} {console.bar(share)} {console.percent(share, 2)}")
