"""What the commands write: lines, one JSON object, tables. The only place that writes."""

import io
import math
import os
import shlex
import string
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

from fastformer import launcher, writing

BAR_CELLS: Final[int] = 40
_MOST_CHARACTERS: Final[int] = 2_000
_MOST_GROUPS: Final[int] = 24
_WARNING: Final = "warning: "
_PATIENCE: Final = 2.0  # seconds


def have_streams() -> None:
    """Put the null device where a stream is closed, and survive what an encoding does not have.

    Otherwise the next file that is opened would take a closed stream's place. What a stream's
    encoding lacks becomes a sign of replacement, rather than an error after long work.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def line(text: str = "") -> None:
    """Write one line to standard output."""
    sys.stdout.write(f"{_safe(text)}\n")


def error(text: object) -> None:
    """Write a message to standard error, under the program's name, on one line.

    What several processes find wrong is told by the first one, which ends the others meanwhile.
    """
    message = writing.printable(text)
    if len(message) > _MOST_CHARACTERS:
        message = f"{message[:_MOST_CHARACTERS]}..."
    rank = launcher.rank()
    if rank == 0:
        _write(f"fastformer: {message}")
    elif not message.startswith(_WARNING):
        time.sleep(_PATIENCE)
        _write(f"fastformer: rank {rank}: {message}")


def notice(text: str) -> None:
    """Write a line to standard error: what a person wants to see and a program does not.

    Of several processes, the first one does.
    """
    if launcher.rank() == 0:
        _write(text)


def _write(text: str) -> None:
    sys.stderr.write(f"{_safe(text)}\n")
    sys.stderr.flush()


def _safe(text: str) -> str:
    """Return text that no terminal obeys: only its line ends stay as they are."""
    return "\n".join(map(writing.printable, text.split("\n")))


def json_line(value: Mapping[str, object]) -> None:
    """Write one JSON object as one line of ASCII to standard output, at once.

    A number that is not finite is null.
    """
    from fastformer.training.json_text import finite, json_text

    line(json_text("the result", finite(value)))
    sys.stdout.flush()


def shell_word(path: object) -> str:
    """Write a path as a word that a person can copy into a shell, whatever is in its name."""
    text = str(path)
    if text.isprintable():
        return shlex.quote(text)
    plain = f"{string.ascii_letters}{string.digits}/._-".encode()
    codes = (chr(b) if b in plain else f"\\x{b:02x}" for b in os.fsencode(text))
    return f"$'{''.join(codes)}'"


def bar(share: float) -> str:
    """Draw a share from 0 to 1 as 40 cells. All are full only for the whole."""
    full = math.floor(BAR_CELLS * (share + writing.ROUNDING)) if math.isfinite(share) else 0
    return "█" * full + "░" * (BAR_CELLS - full)


def percent(share: float, decimals: int = 1) -> str:
    """Write a share as a percentage, right-aligned. It is 100 % only for the whole."""
    return writing.percent(share, decimals).rjust(6 + decimals)


def facts(rows: Iterable[tuple[str, str]]) -> None:
    """Write names and values in two columns."""
    for name, value in rows:
        line(f"{name:<15} {value}")


def per_group(
    accuracies: Mapping[str, float],
    notes: Mapping[str, str] | None = None,
    which: str = "operation",
) -> None:
    """Write the accuracy of each group as a bar, the hardest first, and name the extremes.

    Args:
        accuracies: the share of right answers, 0 to 1, of each group.
        notes: what is written after each bar, or None.    which: what the groups are.
    """
    ranked = sorted(accuracies.items(), key=lambda item: item[1])
    line(f"accuracy by {which}, hardest first")
    widest = max(10, *map(len, accuracies))
    for name, accuracy in ranked[:_MOST_GROUPS]:
        note = f"   {notes[name]}" if notes else ""
        line(f"  {name:<{widest}} {bar(accuracy)} {percent(accuracy)}{note}")
    if len(ranked) > _MOST_GROUPS:
        line(f"  and {len(ranked) - _MOST_GROUPS:,} others")
    hardest, easiest = ranked[0][1], ranked[-1][1]
    if len(ranked) == 1:
        return
    if hardest == easiest:
        line("  all are equally hard")
        return
    for label, extreme in (("hardest", hardest), ("easiest", easiest)):
        names = [name for name, value in ranked if value == extreme]
        more = f" and {len(names) - _MOST_GROUPS:,} others" if len(names) > _MOST_GROUPS else ""
        line(f"  {label:<10} {', '.join(names[:_MOST_GROUPS])}{more}")


def unseen_accuracy(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Describe the accuracy on the test examples, and how sure it is, as two facts."""
    from fastformer.training.metrics import wilson_interval

    accuracy, examples = result["test_accuracy"], result["test_examples"]
    return [
        (
            "test accuracy",
            f"{writing.percent(accuracy)} of {examples:,} inputs never seen in training",
        ),
        (
            "95 % interval",
            writing.interval(*wilson_interval(round(accuracy * examples), examples)),
        ),
    ]
