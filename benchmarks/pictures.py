"""Pictures of the rows: the ratios, and how cost grows."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.scaling import SERIES
from benchmarks.systems import LABELS
from fastformer.analysis.figures import INK, default_style, dress, new_figure, save_picture
from fastformer.bench.options import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {
    "numba": "#0b6e4f",
    "numba-1": "#7fb69f",
    "numba-all": "#3f8f6f",
    "reference": "#8d99ae",
    "torch": "#e4572e",
    "compile": "#f3a712",
    "jax": "#4059ad",
    "numpy": "#8d99ae",
    "llmlearn": "#5c4d7d",
    "transformers": "#8c564b",
    "tokenizers": "#8c564b",
    "nanogpt": "#e4572e",
    "step": "#7fb69f",
    "quarter": "#7fb69f",
    "yours": "#d81b60",
}
GOAL = "#c2185b"
MOST_BARS = 16


def _figure(width: float, height: float, **grid: Any) -> tuple["Figure", Any]:
    """Return a figure and its axes."""
    figure = new_figure(width, height)
    return figure, figure.subplots(**grid)


def _name(row: Row) -> str:
    """Return what a row's bars stand beside."""
    if "row" in row:
        return f"{row['row']}  {row['title']}"
    return row.get("case") or f"{row['workload']}  {row['title']}"


def _ratio_groups(rows: Sequence[Row]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Return {name: {system: (median, lowest, highest)}}.

    Many kernel cases are joined by op: the geometric mean over the shapes, and their extremes.
    """
    found: dict[str, dict[str, list[Mapping[str, float]]]] = {}
    rows = [row for row in rows if row.get("ratio") or row.get("peers")]
    join = len({row.get("case") for row in rows}) > MOST_BARS
    for row in rows:
        ratios = {name: peer["ratio"] for name, peer in row.get("peers", {}).items()}
        if "ratio" in row:
            ratios[row["system"]] = row["ratio"]
        for system, ratio in ratios.items():
            if math.isfinite(ratio["median"]):
                systems = found.setdefault(row["op"] if join else _name(row), {})
                systems.setdefault(system, []).append(ratio)
    return {
        name: {
            system: (
                statistics.geometric_mean([ratio["median"] for ratio in ratios]),
                min(ratio["minimum"] for ratio in ratios),
                max(ratio["maximum"] for ratio in ratios),
            )
            for system, ratios in systems.items()
        }
        for name, systems in found.items()
    }


def _mark_goals(axes: "Axes", rows: Sequence[Row], name: str, top: float, bottom: float) -> None:
    """Draw what must be reached, and what is hoped for, across a target's bars."""
    for row in rows:
        if row.get("unit") == "x" and _name(row) == name:
            for key, style in (("must", "-"), ("goal", ":")):
                known = key in axes.get_legend_handles_labels()[1]
                axes.plot([row[key]] * 2, [top, bottom], style, color=GOAL, lw=1.6,
                          label=None if known else key)  # fmt: skip


@default_style()
def ratio_bars(rows: Sequence[Row], path: Path) -> Path | None:
    """Draw how many times longer each other system takes, with the extremes of the turns.

    Args:
        rows: of the suites "kernels", "steps" or "targets".    path: of the PNG.

    Returns:
        The path, or None where there is no other system.
    """
    groups = _ratio_groups(rows)
    if not groups:
        return None
    bars = sum(len(group) for group in groups.values())
    height = 1.7 + 0.2 * bars + 0.14 * len(groups)
    figure, axes = _figure(10, height)
    y, centres = 0.0, []
    for name, group in groups.items():
        top = y - 0.5
        for system in (s for s in LABELS if s in group):
            middle, low, high = group[system]
            known = LABELS[system] in axes.get_legend_handles_labels()[1]
            axes.barh(y, middle - 1, 0.88, left=1, color=COLORS[system],
                      label=None if known else LABELS[system])  # fmt: skip
            axes.plot([low, high], [y, y], color=INK, lw=1.0, solid_capstyle="butt")
            axes.annotate(f"{middle:.2g}", (max(high, 1.0), y), textcoords="offset points",
                          xytext=(4, -3), fontsize=7.5, color=INK)  # fmt: skip
            y += 1
        _mark_goals(axes, rows, name, top, y - 0.5)
        centres.append((top + y - 0.5) / 2)
        y += 0.7
    axes.axvline(1, color=INK, lw=1.2)
    axes.set_xscale("log")
    axes.set_yticks(centres, list(groups))
    axes.set_ylim(y - 0.9, -0.9)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("what it takes / what fastformer takes: right of 1, fastformer takes less",
                    color=INK)  # fmt: skip
    dress(axes)
    axes.grid(False, axis="y")
    figure.legend(*axes.get_legend_handles_labels(), fontsize=9, frameon=False,
                  loc="outside lower center", ncols=4)  # fmt: skip
    return save_picture(figure, path)


@default_style()
def scaling_picture(rows: Sequence[Row], path: Path) -> Path:
    """Draw time and memory of each series, with lines for what they should grow as.

    Args:
        rows: of the suite "scaling".    path: of the PNG.
    """
    names = [name for name in SERIES if any(row["series"] == name for row in rows)]
    figure, grid = _figure(3.6 * len(names), 6.2, nrows=2, ncols=len(names), squeeze=False)
    for column, name in enumerate(names):
        chosen = [row for row in rows if row["series"] == name]
        x = [row["value"] for row in chosen]
        time, memory = grid[0][column], grid[1][column]
        # The line goes through the point that does most arithmetic a second.
        rate = max(row["flops"] / row["seconds"]["median"] for row in chosen)
        arithmetic = [row["flops"] / rate * 1e3 for row in chosen]
        if SERIES[name] == "threads":
            first = chosen[0]["seconds"]["median"] * 1e3
            arithmetic = [first * x[0] / value for value in x]
        time.plot(x, arithmetic, "--", color=INK, lw=1.1, label="as the arithmetic")
        keys = ("minimum", "median", "maximum")
        low, middle, high = ([row["seconds"][key] * 1e3 for row in chosen] for key in keys)
        time.fill_between(x, low, high, color=COLORS["numba"], alpha=0.2, linewidth=0)
        time.plot(x, middle, "o-", color=COLORS["numba"], lw=1.8, ms=5, label="a step")
        step = [row["step_bytes"] / 1e6 for row in chosen]
        activations = [row["tokens"] * row["sizes"]["C"] for row in chosen]
        memory.plot(x, [step[-1] * size / activations[-1] for size in activations], "--",
                    color=INK, lw=1.1, label="as tokens x width")  # fmt: skip
        memory.plot(x, step, "s-", color=COLORS["jax"], lw=1.8, ms=5, label="a step")
        for axes, unit in ((time, "ms"), (memory, "MB")):
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(x, [f"{value:g}" for value in x], rotation=45 if len(x) > 5 else 0)
            axes.minorticks_off()
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            # So that what hardly changes looks as if it hardly changed.
            bottom, top = axes.get_ylim()
            axes.set_ylim(min(bottom, top / 30), 1.6 * top)
            axes.set_ylabel(unit, color=INK)
            axes.set_xlabel(name.partition(",")[0], color=INK)
            dress(axes)
            axes.legend(fontsize=8, frameon=False)
        time.set_title(name, fontsize=10, loc="left")
    return save_picture(figure, path)
