"""`fastformer evaluate`: a run's best model on its test examples."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fastformer import threads
from fastformer.cli import console


def evaluate(
    run: Path, /, *, json: Annotated[bool, Parameter(negative=(), show_default=False)] = False
) -> None:
    """Measure a run's best model on its test examples, none of which it was trained on.

    Args:
        run: directory of the run.
        json: print one JSON object and nothing else.
    """
    threads.configure()
    from fastformer.training.digits_run import evaluate_run

    result = evaluate_run(run)
    if json:
        console.json_line(result)
        return
    console.facts(
        [
            ("run", str(result["run"])),
            ("checkpoint", str(result["checkpoint"])),
            *console.unseen_accuracy(result),
            ("test loss", f"{result['test_loss']:.4f}"),
        ]
    )
    console.line()
    console.per_operation(result["per_operation"])
