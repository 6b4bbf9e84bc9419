"""Curves as text, for a terminal: a grid of characters that every encoding has."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from fastformer.analysis.plots import PANELS, Curves, Panel, is_logarithmic, shared_axis
from fastformer.writing import printable

WIDTH: Final[int] = 78
HEIGHT: Final[int] = 8
_LABEL = 8
_GAP = "  "
_TRAIN, _MARKS = ".", "ox+*#@"


@dataclass(frozen=True)
class _Scale:
    """The ends of an axis, and how a value is placed between them."""

    low: float
    high: float
    logarithmic: bool = False

    def place(self, value: float, cells: int) -> int:
        """Return the cell of a value, from 0 to cells - 1."""
        low, high, value = (
            map(math.log, (self.low, self.high, value))
            if self.logarithmic
            else (self.low, self.high, value)
        )
        share = 0.5 if high == low else (value - low) / (high - low)
        return round(share * (cells - 1))


def terminal_plot(runs: Sequence[Curves], width: int = WIDTH) -> list[str]:
    """Draw the curves of runs as lines of text, two panels beside each other.

    Of one run, "." is training and "o" validation; of several, each has a mark of its own and
    validation alone is drawn. "^" below a panel is the best epoch.

    Args:
        runs: as for `curves_figure`.    width: characters of a line, at least 60.
    """
    axis = shared_axis(runs)
    lines = [_legend(runs)]
    half = (max(width, 60) - len(_GAP)) // 2
    for left, right in zip(PANELS[::2], PANELS[1::2], strict=True):
        pair = [_panel(panel, runs, half, axis) for panel in (left, right)]
        lines += ["", *((a + _GAP + b).rstrip() for a, b in zip(*pair, strict=True))]
    return lines


def _legend(runs: Sequence[Curves]) -> str:
    """Say what the marks are."""
    if len(runs) == 1:
        name = printable(runs[0].name)
        return f"{name}: {_TRAIN} train  {_MARKS[0]} validation  ^ best {runs[0].axis}"
    names = "  ".join(
        f"{mark} {printable(curves.name)}" for mark, curves in zip(_MARKS, runs, strict=False)
    )
    return f"validation of  {names}  (^ best {runs[0].axis})"


def _panel(panel: Panel, runs: Sequence[Curves], width: int, axis: str) -> list[str]:
    """Draw one panel: title, rows with labels, axis with the best epochs, first and last epoch."""
    lines = panel.lines if len(runs) == 1 else panel.lines[-1:]
    values = [v for c in runs for key, _ in lines for v in _finite(c.values.get(key, []))]
    if not values:
        return [text.ljust(width) for text in [panel.title, "  no record", *[""] * (HEIGHT + 1)]]
    across = _Scale(min(min(c.x) for c in runs), max(max(c.x) for c in runs))
    up = _Scale(min(values), max(values), is_logarithmic(panel, runs))
    columns = width - _LABEL - 1
    grid = [[" "] * columns for _ in range(HEIGHT)]
    base = ["-"] * columns
    for mark, curves in zip(_MARKS, runs, strict=False):
        for key, name in lines:
            points = zip(curves.x, curves.values.get(key, []), strict=False)
            drawn = _TRAIN if name == "train" else mark
            for x, y in ((x, y) for x, y in points if math.isfinite(y)):
                row = HEIGHT - 1 - up.place(y, HEIGHT)
                grid[row][across.place(x, columns)] = drawn
        if curves.best is not None:
            base[across.place(curves.best, columns)] = "^"
    labels = {HEIGHT - 1 - up.place(value, HEIGHT): f"{value:.3g}" for value in (up.low, up.high)}
    rows = [f"{labels.get(row, ''):>{_LABEL}}|{''.join(cells)}" for row, cells in enumerate(grid)]
    first, last = f"{across.low:g}", f"{axis} {across.high:g}"
    ends = " " * (_LABEL + 1) + first + last.rjust(columns - len(first))
    scale = ", logarithmic" if up.logarithmic else ""
    title = f"{'':{_LABEL}} {panel.title}{scale}"
    return [text.ljust(width) for text in [title, *rows, f"{'':{_LABEL}}+{''.join(base)}", ends]]


def _finite(values: Iterable[float]) -> Iterable[float]:
    return (value for value in values if math.isfinite(value))
