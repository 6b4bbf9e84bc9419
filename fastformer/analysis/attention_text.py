"""Attention as text: shaded heatmaps for a terminal."""

from collections.abc import Collection, Sequence
from typing import Final

import numpy as np

from fastformer.analysis.attention import ExpressionAttention, head_summaries
from fastformer.parameters import Array
from fastformer.writing import hundredths, percent

SHADES: Final[str] = " ░▒▓█"
"""Weights from 0 to 1 in five steps: below 0.1, 0.3, 0.6, 0.85, and from there on."""

_STEPS = (0.1, 0.3, 0.6, 0.85)
_MOST_NUMBERED = 16  # tokens, up to which cells have their numbers
_HINT, _HINT_FROM = "·", 2.0  # without numbers, for lower weights of so many equal shares


def shade(weight: float) -> str:
    """Return the character for a weight from 0 to 1."""
    return SHADES[sum(weight >= step for step in _STEPS)]


def legend(columns: int = 0) -> str:
    """Return one line that says what the shades mean, in a heatmap of so many columns."""
    ends = ["0", *map(str, _STEPS), "1"]
    parts = [
        f"'{mark}' {low} to {high}" for mark, low, high in zip(SHADES, ends, ends[1:], strict=False)
    ]
    if columns > _MOST_NUMBERED:
        parts.insert(1, f"'{_HINT}' below, but {_HINT_FROM:g} equal shares")
    return "shades: " + ", ".join(parts)


def heatmap_lines(
    weights: Array,
    rows: Sequence[str],
    columns: Sequence[str],
    marked: Collection[int] = (),
) -> list[str]:
    """Return a matrix of weights as shaded cells, with the numbers where there is room.

    Args:
        weights: (rows, columns), from 0 to 1.    rows, columns: the labels.
        marked: rows that get a mark.
    """
    numbered = len(columns) <= _MOST_NUMBERED
    widest = max(len(column) for column in columns)
    width = max(6 if numbered else 2, widest + 1 if numbered or widest > 1 else 2)
    margin = max(len(row) for row in rows) + 2
    lines = [" " * margin + "".join(f"{column:>{width}}" for column in columns)]
    for place, (label, row) in enumerate(zip(rows, weights.tolist(), strict=True)):
        cells = [_cell(weight, numbered, len(columns)).rjust(width) for weight in row]
        mark = ">" if place in marked else " "
        lines.append(f"{mark}{label:<{margin - 1}}" + "".join(cells))
    return lines


def head_lines(attention: ExpressionAttention, layer: int, head: int) -> list[str]:
    """Return one head, counted from 1, with its title; marks show the rows that are read out."""
    summary = next(s for s in head_summaries(attention) if (s.layer, s.head) == (layer, head))
    entropy = hundredths(summary.entropy)
    title = f"layer {layer}, head {head}: {summary.kind}, entropy {entropy} of its maximum"
    weights = attention.layers[layer - 1][head - 1]
    tokens = attention.tokens
    return [title, *heatmap_lines(weights, tokens, tokens, attention.read_rows or ())]


def overview_lines(attention: ExpressionAttention) -> list[str]:
    """Return where all heads look: from the token that is read out, or in the mean of all."""
    rows, labels = [], []
    for summary in head_summaries(attention):
        weights = attention.layers[summary.layer - 1][summary.head - 1]
        own = weights.mean(axis=0) if attention.readout is None else weights[attention.readout]
        rows.append(own)
        labels.append(f"layer {summary.layer}, head {summary.head}")
    return heatmap_lines(np.stack(rows), labels, attention.tokens)


def summary_lines(attention: ExpressionAttention) -> list[str]:
    """Return a line for each head: its entropy, kind, and the positions that it looks at."""
    lines = [f"{'layer':>5} {'head':>5}  {'entropy':>7}  {'kind':<12} looks at (mean weight)"]
    for summary in head_summaries(attention):
        looks = ", ".join(
            f"'{token}' at {position} ({percent(weight, 0)})"
            for position, token, weight in summary.looks_at
        )
        lines.append(
            f"{summary.layer:>5} {summary.head:>5}  {hundredths(summary.entropy):>7}  "
            f"{summary.kind:<12} "
            f"{looks}"
        )
    return lines


def _cell(weight: float, numbered: bool, columns: int) -> str:
    mark = shade(weight) * 2
    if not numbered:
        unshaded = weight < _STEPS[0] and weight * columns >= _HINT_FROM
        return _HINT * 2 if unshaded else mark
    return f"{mark}{hundredths(weight)}".replace("0.", ".").replace("1.00", "1.0")
