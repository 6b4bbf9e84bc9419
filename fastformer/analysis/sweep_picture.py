"""The picture of a sweep: how good each run is, over each setting that differs."""

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from fastformer.analysis.figures import INK, default_style, dress, new_figure
from fastformer.analysis.plots import COLORS
from fastformer.analysis.sweep import LOSS, SweepRun, value_text
from fastformer.errors import RunError
from fastformer.training.sweep_file import value_text as setting_text
from fastformer.writing import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PANELS: Final[int] = 12
_COLUMNS = 3
_LOG_FROM = 8.0  # largest by smallest value, from which a logarithmic axis shows more
_MOST_TICKS = 8
_DONE, _OTHER, _BEST = COLORS[0], "#9aa5b1", COLORS[1]
_MEAN: Final[dict[str, Any]] = {"color": _DONE, "linewidth": 1.2, "alpha": 0.5}


@default_style()
def sweep_figure(
    runs: Sequence[SweepRun], settings: Sequence[str], measure: str, title: str
) -> "Figure":
    """Draw what runs came to over each setting: a dot for each run, a line through their means.

    Args:
        runs: the best first.    settings: that differ; at most `MOST_PANELS` of them are drawn.
        measure: what they are compared by.    title: above everything.

    Raises:
        RunError: no run has anything to draw.
    """
    drawn = [run for run in runs if math.isfinite(run.value)]
    if not drawn:
        raise RunError(f"{title} has nothing to draw: no run has ended an epoch yet")
    names = settings[:MOST_PANELS]
    columns = min(_COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure = new_figure(max(5.5, 4.2 * columns), 3.6 * rows + 0.6, title)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for place, axes in enumerate(panels.flat):
        if place >= len(names):
            axes.set_visible(False)
            continue
        _draw_panel(axes, drawn, names[place])
        if place % columns == 0:
            axes.set_ylabel(measure.replace("_", " "), color=INK, fontsize=9)
    _scale(panels.flat[0], drawn, measure)
    _explain(figure, drawn, measure)
    return figure


def _draw_panel(axes: "Axes", runs: Sequence[SweepRun], name: str) -> None:
    """Draw all runs over one setting."""
    given = [run for run in runs if name in run.changed]
    values = [run.changed[name] for run in given]
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    are_numbers = len(numbers) == len(values)
    labels = sorted({setting_text(value) for value in values})
    places = list(
        map(float, numbers if are_numbers else map(labels.index, map(setting_text, values)))
    )
    different = sorted(set(places))
    if not are_numbers:
        axes.set_xticks(range(len(labels)), [printable(label) for label in labels])
        axes.set_xlim(-0.5, len(labels) - 0.5)
    else:
        axes.margins(x=0.1)
        if different and different[0] > 0 and different[-1] / different[0] >= _LOG_FROM:
            axes.set_xscale("log")
        else:
            axes.locator_params(axis="x", nbins=4)
        if len(different) < min(len(given), _MOST_TICKS):
            axes.set_xticks(different, [f"{number:g}" for number in different])
            axes.minorticks_off()
    if len(different) < len(given):  # several runs have one value: what they have in the mean
        means = [
            statistics.fmean(r.value for r, x in zip(given, places, strict=True) if x == place)
            for place in different
        ]
        line = {"linestyle": "-"} if are_numbers else {"marker": "_", "markersize": 40.0}
        axes.plot(different, means, **{"linestyle": "none", **line, **_MEAN}, zorder=1)
    for run, x in zip(given, places, strict=True):
        done = run.state == "done"
        best = run is runs[0] and done
        axes.plot(
            x,
            run.value,
            "*" if best else "o",
            color=_BEST if best else _DONE if done else _OTHER,
            markerfacecolor=None if done else "white",
            markersize=14 if best else 6,
            alpha=1 if best else 0.75,
            zorder=3 if best else 2,
        )
    axes.set_title(printable(name), fontsize=10, loc="left", color=INK, parse_math=False)
    dress(axes)


def _scale(axes: "Axes", runs: Sequence[SweepRun], measure: str) -> None:
    """Give the axis of the values, which all panels share, its scale and its labels."""
    values = [run.value for run in runs]
    if measure == LOSS:
        if min(values) > 0 and max(values) / min(values) > _LOG_FROM:
            axes.set_yscale("log")
        return
    from matplotlib.ticker import PercentFormatter

    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    room = max(0.02, 0.08 * (max(values) - min(values)))
    axes.set_ylim(min(values) - room, max(values) + room)


def _explain(figure: "Figure", runs: Sequence[SweepRun], measure: str) -> None:
    """Say below the panels what is drawn."""
    from matplotlib.lines import Line2D

    def key(marker: str, color: str, label: str, size: float, full: bool = True) -> Line2D:
        face = color if full else "white"
        return Line2D(
            [], [], marker=marker, color=color, markerfacecolor=face, linestyle="none",
            markersize=size, label=label,
        )  # fmt: skip

    keys = []
    if runs[0].state == "done":
        best = f"best: {runs[0].place.name}, {value_text(runs[0].value, measure)}"
        keys = [key("*", _BEST, best, 12), key("o", _DONE, "a run", 6)]
    if any(run.state != "done" for run in runs):
        keys.append(key("o", _OTHER, "without an end: pruned, stopped or failed", 6, False))
    keys.append(Line2D([], [], label="mean of runs with one value", **_MEAN))
    below = figure.legend(
        handles=keys, loc="outside lower center", ncols=len(keys), frameon=False, fontsize=9
    )
    for text in below.get_texts():
        text.set_parse_math(False)
