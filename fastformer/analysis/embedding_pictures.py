"""Pictures of embeddings: norms, cosines, likeness against distance, the map, and its history."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from fastformer.analysis.embeddings import (
    EmbeddingReport,
    embedding_map,
    embedding_report,
    learned_changes,
    rows_of,
)
from fastformer.analysis.figures import INK, default_style, dress, heatmap, new_figure
from fastformer.data.vocabulary import DIGITS, NamedTokens
from fastformer.parameters import Array
from fastformer.writing import percent, signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DIGIT_COLOR, OPERATION_COLOR, OTHER_COLOR = "#0b6e4f", "#e4572e", "#8d99ae"
CHANGE_COLOR = "#4059ad"
_WRITTEN = 12  # tokens whose cosines are written, at most
_MAPS = 3  # of the history, at most


@default_style()
def norms_figure(report: EmbeddingReport) -> "Figure":
    """Return a figure of the length of each token's embedding."""
    figure = new_figure(8.0, 3.6, "Length of each token's embedding")
    axes = figure.subplots()
    dress(axes)
    names = list(report.norms)
    colors = [_color(name, report.others) for name in names]
    axes.bar(range(len(names)), list(report.norms.values()), color=colors)
    axes.set_xticks(range(len(names)), names, fontsize=8, rotation=40)
    axes.set_ylabel("norm", color=INK)
    return figure


@default_style()
def cosines_figure(report: EmbeddingReport, what: str = "embeddings") -> "Figure":
    """Return a figure of the cosines of the digits, and of the others where there are two."""
    parts = [("digits", report.digits, report.digit_cosines)] if report.digits else []
    if len(report.others) > 1:
        parts.append((report.others_are, report.others, report.other_cosines))
    wide = max(0, len(report.others) - 10)
    figure = new_figure(
        5.5 * len(parts) + 0.8 + 0.2 * wide,
        5.2 + 0.2 * wide,
        f"Cosines of {what} (between random ones: 0 ± {report.chance:.2f})",
    )
    axes = figure.subplots(1, len(parts), width_ratios=[10, 7][-len(parts) :], squeeze=False)[0]
    for each, (title, names, cosines) in zip(axes, parts, strict=True):
        texts = None  # of many tokens: the numbers would run into each other
        if len(names) <= _WRITTEN:
            texts = [[signed(value) for value in row] for row in cosines.tolist()]
        image = heatmap(each, cosines, names, names, low=-1, colors="RdBu_r", texts=texts)
        each.set_title(title, fontsize=10, color=INK)
    figure.colorbar(image, ax=axes, shrink=0.8, label="cosine")
    return figure


@default_style()
def distance_figure(report: EmbeddingReport, what: str = "embeddings") -> "Figure":
    """Return a figure of the cosines of all pairs of digits against their distance."""
    figure = new_figure(
        6.4, 4.2, f"Likeness of {what} and distance: correlation {signed(report.trend)}"
    )
    axes = figure.subplots()
    dress(axes)
    first, second = np.triu_indices(len(report.digits), 1)
    axes.scatter(
        second - first, report.digit_cosines[first, second], s=14, color=OTHER_COLOR, label="a pair"
    )
    axes.plot(
        [part.distance for part in report.by_distance],
        [part.mean for part in report.by_distance],
        color=DIGIT_COLOR,
        marker="o",
        label="mean",
    )
    axes.axhspan(
        -report.chance, report.chance, color=OTHER_COLOR, alpha=0.15, label="random rows (1 sd)"
    )
    axes.set_xlabel("distance of two digits", color=INK)
    axes.set_ylabel(f"cosine of {what}", color=INK)
    axes.legend(frameon=False, fontsize=9)
    return figure


@default_style()
def map_figure(report: EmbeddingReport) -> "Figure":
    """Return a figure of digits and others in the plane of their first two components."""
    shares = report.map.explained
    figure = new_figure(6.4, 5.6, "Embeddings in the plane in which they differ most")
    axes = figure.subplots()
    dress(axes)
    axes.set_xlabel(f"first component ({percent(shares[0])} of the variance)", color=INK)
    axes.set_ylabel(f"second component ({percent(shares[1])})", color=INK)
    _scatter(axes, report.map.points, report.map.tokens, report.others)
    return figure


@default_style()
def history_figure(tables: Mapping[int, Array], tokens: NamedTokens) -> "Figure":
    """Return a figure of how norms, likeness and the map changed over the epochs.

    Args:
        tables: (V, C) by epoch, at least one.    tokens: those that are looked at.
    """
    reports = {epoch: embedding_report(table, tokens) for epoch, table in tables.items()}
    changes = learned_changes(tables)
    figure = new_figure(11.0, 8.0, "Embeddings over the epochs")
    grid = figure.add_gridspec(2, 6, height_ratios=[1, 1.05])
    _draw_norms(figure.add_subplot(grid[0, :3] if tokens.digits else grid[0, :]), reports)
    if tokens.digits:
        _draw_trends(figure.add_subplot(grid[0, 3:]), reports, changes, tokens)
    shown = changes or dict(tables)
    epochs = sorted(shown)
    chosen = sorted({epochs[round(at)] for at in np.linspace(0, len(epochs) - 1, _MAPS)})
    maps = [figure.add_subplot(grid[1, 2 * n : 2 * n + 2]) for n in range(len(chosen))]
    title = "what was learned until epoch {}" if changes else "epoch {}"
    _draw_maps(maps, {epoch: shown[epoch] for epoch in chosen}, tokens, title)
    return figure


def _draw_trends(
    axes: "Axes",
    reports: Mapping[int, EmbeddingReport],
    changes: Mapping[int, Array],
    tokens: NamedTokens,
) -> None:
    """Draw how alike near digits are, over the epochs."""
    dress(axes)
    axes.axhline(0, color=OTHER_COLOR, linewidth=1)
    trends = [report.trend for report in reports.values()]
    axes.plot(list(reports), trends, color=DIGIT_COLOR, marker="o", label="whole embedding")
    if changes:
        trends = [embedding_report(change, tokens).trend for change in changes.values()]
        axes.plot(list(changes), trends, color=CHANGE_COLOR, marker="o", label="what was learned")
    axes.set_ylim(-1, 1)
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("epoch", color=INK)
    axes.set_ylabel("correlation of cosine and distance of digits", fontsize=9, color=INK)
    axes.legend(frameon=False, fontsize=9)


def _draw_norms(axes: "Axes", reports: Mapping[int, EmbeddingReport]) -> None:
    """Draw the norm of each digit and of each other token over the epochs."""
    dress(axes)
    first = next(iter(reports.values()))
    other = {"operations": "an operation", "tokens": "a token"}[first.others_are]
    for names, color, label in (
        (first.digits, DIGIT_COLOR, "a digit"),
        (first.others, OPERATION_COLOR, other),
    ):
        for place, name in enumerate(names):
            values = [report.norms[name] for report in reports.values()]
            axes.plot(
                list(reports),
                values,
                color=color,
                linewidth=1,
                marker="o" if len(values) == 1 else None,
                label="" if place else label,
            )
    axes.set_ylim(bottom=0)
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("epoch", color=INK)
    axes.set_ylabel("norm", color=INK)
    axes.legend(frameon=False, fontsize=9, loc="lower right")


def _draw_maps(
    maps: list["Axes"], tables: Mapping[int, Array], tokens: NamedTokens, title: str
) -> None:
    """Draw each table in the plane of the last one, so that motion is seen."""
    names = list(tokens.mapped)
    rows = {epoch: rows_of(table, tokens.mapped) for epoch, table in tables.items()}
    last = rows[max(rows)]
    center = last.mean(axis=0)
    plane = np.linalg.lstsq(last - center, embedding_map(last, names).points, rcond=None)[0]
    points = {epoch: (each - center) @ plane for epoch, each in rows.items()}
    reach = 1.2 * max(float(np.abs(each).max()) for each in points.values()) or 1.0
    for axes, epoch in zip(maps, points, strict=True):
        dress(axes)
        _scatter(axes, points[epoch], names, list(tokens.others))
        axes.set_title(title.format(epoch), fontsize=9, color=INK)
        axes.set_xlim(-reach, reach)
        axes.set_ylim(-reach, reach)
        axes.set_aspect("equal")
        axes.tick_params(labelsize=7)


def _scatter(axes: "Axes", points: Array, tokens: list[str], others: list[str]) -> None:
    for (x, y), token in zip(points.tolist(), tokens, strict=True):
        color = _color(token, others)
        axes.scatter([x], [y], s=8, color=color)
        axes.annotate(
            token, (x, y), xytext=(3, 3), textcoords="offset points", fontsize=9, color=color
        )


def _color(token: str, others: list[str]) -> str:
    if token in others:
        return OPERATION_COLOR
    return DIGIT_COLOR if token in DIGITS else OTHER_COLOR
