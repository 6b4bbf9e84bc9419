"""Pictures of what reaches a model's parameters, and of the loss around its weights."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fastformer.analysis.figures import INK, default_style, dress, new_figure
from fastformer.analysis.gradient_flow import ParameterFlow
from fastformer.analysis.landscape import Landscape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WEIGHTS, _GRADIENTS = "#2f6fdb", "#e4572e"
_LEVELS = 18


@default_style()
def inspection_figure(flows: Sequence[ParameterFlow], landscape: Landscape) -> "Figure":
    """Draw sizes of weights and gradients, histograms of the weights, and the loss around them."""
    height = max(5.0, 0.26 * len(flows) + 1.5)
    figure = new_figure(14, height)
    sizes, spread, around = figure.subplots(1, 3, width_ratios=(3, 3, 4))
    _draw_sizes(sizes, flows)
    _draw_histograms(spread, flows)
    _draw_landscape(around, landscape)
    return figure


def _draw_sizes(axes: "Axes", flows: Sequence[ParameterFlow]) -> None:
    """Draw a point for the weights and one for the gradient of each parameter."""
    places = range(len(flows))
    for color, label, values in (
        (_WEIGHTS, "weights", [flow.weight_rms for flow in flows]),
        (_GRADIENTS, "gradient", [flow.gradient_rms for flow in flows]),
    ):
        axes.plot([v or np.nan for v in values], places, "o", ms=4, color=color, label=label)
    axes.set_xscale("log")
    axes.set_yticks(places, [flow.name for flow in flows], fontsize=7)
    axes.set_ylim(len(flows) - 0.5, -1.0)
    axes.set_title("root mean square", fontsize=10, loc="left", color=INK)
    axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.05), ncols=2)
    dress(axes)


def _draw_histograms(axes: "Axes", flows: Sequence[ParameterFlow]) -> None:
    """Draw the weights of each parameter as a strip of bars, on one axis for all."""
    for place, flow in enumerate(flows):
        counts = np.array(flow.counts)
        edges = np.linspace(flow.low, flow.high, len(counts) + 1)
        top = place - 0.85 * counts / counts.max()
        axes.stairs(top, edges, baseline=place, fill=True, color=_WEIGHTS, linewidth=0)
    axes.set_yticks(range(len(flows)), [])
    axes.set_ylim(len(flows) - 0.5, -1.0)
    axes.set_title("weights", fontsize=10, loc="left", color=INK)
    dress(axes)


def _draw_landscape(axes: "Axes", landscape: Landscape) -> None:
    """Draw the loss as filled contours, in equal steps of its logarithm."""
    # Where it is not finite, it is as high as the highest.
    losses = np.where(np.isfinite(landscape.losses), landscape.losses, np.nan)
    heights = np.log10(np.maximum(np.nan_to_num(losses, nan=np.nanmax(losses)), 1e-12))
    ends = heights.min(), heights.max()
    levels = np.linspace(*ends, _LEVELS) if ends[0] < ends[1] else [ends[0], ends[0] + 1]
    drawn = axes.contourf(landscape.steps, landscape.steps, heights, levels, cmap="viridis")
    axes.plot(0, 0, "+", color="white", ms=10)
    axes.set_aspect("equal")
    axes.set_title(
        f"loss around the weights (in the middle: {landscape.centre:.4g})",
        fontsize=10,
        loc="left",
        color=INK,
    )
    axes.set_xlabel("first direction", color=INK, fontsize=9)
    axes.set_ylabel("second direction", color=INK, fontsize=9)
    bar = axes.figure.colorbar(drawn, ax=axes, shrink=0.7)
    bar.set_label("log10 of the loss", color=INK, fontsize=9)
