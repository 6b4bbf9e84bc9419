"""The curves of one run or several: losses, accuracies, learning rate, gradient norm."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from fastformer import checks, writing
from fastformer.analysis.figures import INK, default_style, dress, new_figure
from fastformer.errors import RunError
from fastformer.training.json_text import finite, number_in
from fastformer.training.metrics import HISTORY_NAMES
from fastformer.training.run_directory import RunDirectory
from fastformer.writing import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS: Final[tuple[str, ...]] = (
    *("#2f6fdb", "#e4572e", "#0b8a5f", "#a05195", "#c98a00", "#4c5c68"),
)
MOST_RUNS: Final[int] = len(COLORS)
_LOG_FROM = 20.0  # largest by smallest value, above which a logarithmic axis shows more
_MARKED_UP_TO = 40
_MARKERS = "xo"  # of training, and of what is validated
_LARGEST_EPOCH = 1e15


@dataclass(frozen=True)
class Panel:
    """One picture of several: a title, and the values of the records that it shows.

    Attributes:
        lines: (name in the records, what it is called); the last is what is validated.
        logarithmic: whether its axis may be.    from_zero: whether its axis begins at 0.
    """

    title: str
    lines: tuple[tuple[str, str], ...]
    logarithmic: bool = False
    from_zero: bool = False


PANELS: Final[tuple[Panel, ...]] = (
    Panel("loss", (("train_loss", "train"), ("validation_loss", "validation")), True),
    Panel("accuracy", (("train_accuracy", "train"), ("validation_accuracy", "validation"))),
    Panel("learning rate", (("learning_rate", "learning rate"),), from_zero=True),
    Panel("gradient norm", (("gradient_norm", "gradient norm"),), True),
)
CURVE_NAMES: Final[tuple[str, ...]] = tuple(name for p in PANELS for name, _ in p.lines)


@dataclass(frozen=True)
class Curves:
    """What the records of a run say, over its epochs.

    Attributes:
        name: what the run is called.    axis: "epoch", or "step" where records have no epoch.
        x: the epoch or step of each record.
        values: the curves that are there: a name of `CURVE_NAMES` to a value for each record,
            NaN where a record has none.
        missing: the names that no record has.
        best: the epoch or step with the best validation accuracy, or None where none is known.
    """

    name: str
    axis: str
    x: list[float]
    values: dict[str, list[float]]
    missing: list[str]
    best: float | None


def read_curves(directory: str | Path) -> Curves:
    """Read the curves of a run, also of one that is still training.

    Damaged lines of `metrics.jsonl` are left out with a warning that has their numbers.

    Raises:
        RunError: there is no such run, or none of its records has any curve; the message says
            what is missing.
    """
    run = RunDirectory.open(directory)
    return curves_of(run.read_metrics(skip_damaged=True), str(directory), run.path)


def curves_of(records: Sequence[dict[str, Any]], name: str, path: Path) -> Curves:
    """Arrange the records of a run by curve.

    Args:
        records: of `metrics.jsonl`.    name: what the run is called.    path: where it is.

    Raises:
        RunError: as of `read_curves`.
    """
    if not records:
        raise RunError(
            f"run {path} has nothing to draw: its metrics.jsonl has no record of a finished epoch; "
            f"go on with fastformer train --resume {path}"
        )
    found = {key: [number_in(record.get(key)) for record in records] for key in CURVE_NAMES}
    values = {key: column for key, column in found.items() if any(map(math.isfinite, column))}
    missing = [key for key in CURVE_NAMES if key not in values]
    if not values:
        raise RunError(
            f"run {path} has nothing to draw: its {len(records)} records in metrics.jsonl lack "
            f"{', '.join(missing)}; at least one of them is needed"
        )
    axis = "epoch" if all(_is_epoch(record.get("epoch")) for record in records) else "step"
    x = [float(record[axis]) for record in records]
    return Curves(name, axis, x, values, missing, _best(x, values, records))


def missing_text(curves: Curves) -> str | None:
    """Return a sentence about the curves that a run lacks, or None where it has all."""
    if not curves.missing:
        return None
    names = ", ".join(curves.missing)
    return f"run {curves.name}: no record has {names}; the other curves are drawn"


def shared_axis(runs: Sequence[Curves]) -> str:
    """Return what several runs can be compared over.

    Raises:
        ValueError: no runs, too many, or runs of which only some have epochs.
    """
    checks.integer("the number of runs in one picture", len(runs), 1, MOST_RUNS)
    axes = {curves.axis for curves in runs}
    if len(axes) > 1:
        without = ", ".join(curves.name for curves in runs if curves.axis == "step")
        checks.fail(
            "runs in one picture must all have epochs in their records, or all only steps; only "
            f"steps have {without}: draw them on their own"
        )
    return axes.pop()


@default_style()
def curves_figure(runs: Sequence[Curves]) -> "Figure":
    """Draw the curves: training dashed, validation solid, the best epoch as a line.

    Args:
        runs: one, or several to lay over each other in colours of their own.

    Raises:
        ValueError: as of `shared_axis`.
    """
    axis = shared_axis(runs)
    title = runs[0].name if len(runs) == 1 else ""
    figure = new_figure(11, 7, title)
    places = {x for curves in runs for x in curves.x}
    for panel, axes in zip(PANELS, figure.subplots(2, 2).flat, strict=True):
        _draw_panel(axes, panel, runs)
        axes.set_xlabel(axis, color=INK, fontsize=9)
        if len(places) == 1:
            axes.set_xlim(min(places) - 1, max(places) + 1)
        axes.xaxis.get_major_locator().set_params(integer=True)
    if len(runs) > 1:
        handles = [_key(color) for color, _ in zip(COLORS, runs, strict=False)]
        names = [printable(curves.name) for curves in runs]
        below = figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
        for text in below.get_texts():
            text.set_parse_math(False)
    return figure


def is_logarithmic(panel: Panel, runs: Sequence[Curves]) -> bool:
    """Tell whether a panel's values are shown best on a logarithmic axis."""
    values = [v for curves in runs for v in panel_values(panel, curves) if math.isfinite(v)]
    return bool(
        panel.logarithmic and values and min(values) > 0 and max(values) / min(values) > _LOG_FROM
    )


def alone(values: Sequence[float]) -> list[int]:
    """Return the places of values with no value beside them: a line would not show these."""
    known = [False, *map(math.isfinite, values), False]
    return [
        place
        for place in range(len(values))
        if known[place + 1] and not (known[place] or known[place + 2])
    ]


def panel_values(panel: Panel, curves: Curves) -> list[float]:
    """Return all values of a run that a panel shows."""
    return [value for key, _ in panel.lines for value in curves.values.get(key, [])]


def value_text(key: str, value: float) -> str:
    """Write a value of a curve, of a name of `CURVE_NAMES`, as the table of training does."""
    if not math.isfinite(value):
        return "-"
    if key.endswith("_loss"):
        return writing.loss(value)
    return writing.percent(value) if key.endswith("_accuracy") else f"{value:.4g}"


def curves_as_json(runs: Sequence[Curves], picture: Path) -> dict[str, Any]:
    """Return the curves as JSON values, None for NaN, and the picture's path."""

    return {
        "picture": str(picture),
        "runs": [
            {
                "run": curves.name,
                curves.axis: curves.x,
                "best": curves.best,
                "missing": curves.missing,
                "curves": finite(curves.values),
            }
            for curves in runs
        ],
    }


def _draw_panel(axes: "Axes", panel: Panel, runs: Sequence[Curves]) -> None:
    """Draw one panel with the curves of all runs."""
    for color, curves in zip(COLORS, runs, strict=False):
        for place, (key, label) in enumerate(panel.lines):
            if key not in curves.values:
                continue
            validated = place == len(panel.lines) - 1
            values = curves.values[key]
            marked = validated and len(curves.x) <= _MARKED_UP_TO
            axes.plot(
                curves.x,
                values,
                "-" if validated else "--",
                color=color,
                linewidth=1.8 if validated else 1.2,
                marker=_MARKERS[validated],
                markevery=None if marked else alone(values),
                markersize=3.5 if validated else 6,
                label=label,
            )
        if curves.best is not None:
            axes.axvline(curves.best, color=color, linewidth=1.0, linestyle=":")
    if is_logarithmic(panel, runs):
        axes.set_yscale("log")
    elif panel.from_zero and axes.lines:
        axes.set_ylim(bottom=0)
    axes.set_title(panel.title, fontsize=10, loc="left", color=INK)
    dress(axes)
    if not axes.lines:
        axes.text(0.5, 0.5, "no record", transform=axes.transAxes, ha="center", color=INK)
    elif len(panel.lines) > 1:
        _explain_lines(axes, runs)


def _explain_lines(axes: "Axes", runs: Sequence[Curves]) -> None:
    """Say once in a panel what dashed, solid and dotted lines are."""
    color = COLORS[0] if len(runs) == 1 else INK
    keys = [_key(color, "--", 1.2), _key(color), _key(color, ":", 1.0)]
    if all(len(curves.x) == 1 for curves in runs):
        for key, marker in zip(keys, _MARKERS, strict=False):
            key.set(marker=marker, linestyle="none")
    best = runs[0].best
    label = f"best {runs[0].axis}: {best:g}" if len(runs) == 1 and best is not None else "best"
    names = ["train", "validation", label]
    count = 3 if any(curves.best is not None for curves in runs) else 2
    axes.legend(keys[:count], names[:count], fontsize=8, frameon=False)


def _key(color: str, style: Literal["-", "--", ":"] = "-", width: float = 1.8) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=color, linestyle=style, linewidth=width)


def _is_epoch(value: object) -> bool:
    return type(value) in (int, float) and 0 <= number_in(value) <= _LARGEST_EPOCH


def _best(
    x: list[float], values: dict[str, list[float]], records: Sequence[dict[str, Any]]
) -> float | None:
    """Return the last record that was the best so far.

    Where none says so, it is that of the greatest validation accuracy; among equals, the earliest.
    """
    told = [place for place, record in zip(x, records, strict=True) if record.get("best") is True]
    if told:
        return told[-1]
    accuracies = values.get(HISTORY_NAMES[-1])
    if accuracies is None:
        return None
    known = [(-a, place) for place, a in enumerate(accuracies) if math.isfinite(a)]
    return x[min(known)[1]]
