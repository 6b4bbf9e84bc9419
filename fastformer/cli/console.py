"""What the commands write: lines, one JSON object, tables. The only place that writes."""

import io
import json
import math
import sys
from collections.abc import Iterable, Mapping
from typing import Any

BAR_CELLS = 40
_ROUNDING = 1e-9  # so that 0.57 of 1000 is 570 and not 569


def survive_any_encoding() -> None:
    """Read and write a sign of replacement for what a stream's encoding does not have.

    Rather that than fail, after long work, at one character.
    """
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def line(text: str = "") -> None:
    """Write one line to standard output."""
    sys.stdout.write(f"{text}\n")


def error(text: str) -> None:
    """Write a message to standard error, under the program's name."""
    notice(f"fastformer: {text}")


def notice(text: str) -> None:
    """Write a line to standard error: what a person wants to see and a program does not."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def json_line(value: Mapping[str, object]) -> None:
    """Write one JSON object as one line to standard output, at once."""
    line(json.dumps(value, ensure_ascii=False))
    sys.stdout.flush()


def bar(share: float) -> str:
    """Draw a share from 0 to 1 as 40 cells. All are full only for the whole."""
    full = math.floor(BAR_CELLS * share + _ROUNDING)
    return "█" * full + "░" * (BAR_CELLS - full)


def percent(share: float, decimals: int = 1) -> str:
    """Write a share as a percentage, right-aligned. It is 100 % only for the whole."""
    scale = 10**decimals
    rounded_down = math.floor(share * 100 * scale + _ROUNDING) / scale
    return f"{rounded_down:{4 + decimals}.{decimals}f} %"


def facts(rows: Iterable[tuple[str, str]]) -> None:
    """Write names and values in two columns."""
    for name, value in rows:
        line(f"{name:<15} {value}")


def per_operation(
    accuracies: Mapping[str, float],
    notes: Mapping[str, str] | None = None,
    which: str = "operation",
) -> None:
    """Write the accuracy of each operation as a bar, the hardest first, and name the extremes.

    Args:
        accuracies: the share of right answers, 0 to 1, of each operation.
        notes: what is written after each bar, or None.    which: operations they are.
    """
    ranked = sorted(accuracies.items(), key=lambda item: item[1])
    line(f"accuracy by {which}, hardest first")
    for name, accuracy in ranked:
        note = f"   {notes[name]}" if notes else ""
        line(f"  {name:<10} {bar(accuracy)} {percent(accuracy)}{note}")
    hardest, easiest = ranked[0][1], ranked[-1][1]
    if len(ranked) == 1:
        return
    if hardest == easiest:
        line("  all are equally hard")
        return
    for label, extreme in (("hardest", hardest), ("easiest", easiest)):
        line(f"  {label:<10} {', '.join(name for name, value in ranked if value == extreme)}")


def unseen_accuracy(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Describe the accuracy on the test examples, and how sure it is, as two facts."""
    from fastformer.training.metrics import wilson_interval

    accuracy, examples = result["test_accuracy"], result["test_examples"]
    low, high = wilson_interval(round(accuracy * examples), examples)
    return [
        (
            "test accuracy",
            f"{percent(accuracy).strip()} of {examples:,} inputs never seen in training",
        ),
        ("95 % interval", f"{percent(low).strip()} to {percent(high).strip()}"),
    ]
