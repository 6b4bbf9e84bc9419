"""Pictures of attention: one head, the heads of a layer side by side, all layers, all roles."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fastformer.analysis.attention import ExpressionAttention, HeadSummary, head_summaries
from fastformer.analysis.figures import INK, default_style, heatmap, new_figure
from fastformer.analysis.head_roles import HeadRole
from fastformer.analysis.token_roles import FIXED, ROLES
from fastformer.parameters import Array
from fastformer.writing import hundredths, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

COLORS = "magma"
_MOST_NUMBERED = 12  # tokens, up to which a cell has room for its number
_LARGEST = 8.5  # inches of one head
_MOST_BESIDE = 4  # heads, and then the next line


@default_style()
def head_figure(attention: ExpressionAttention, layer: int, head: int) -> "Figure":
    """Return a figure of one head.

    Args:
        attention: on an expression.    layer, head: counted from 1.
    """
    weights = attention.layers[layer - 1][head - 1]
    size = min(2.2 + 0.55 * len(attention.tokens), _LARGEST)
    figure = new_figure(size + 1.2, size, f"{_text(attention)}: layer {layer}, head {head}")
    axes = figure.subplots()
    numbers = len(attention.tokens) <= _MOST_NUMBERED
    image = _draw(axes, attention, weights, _highest(weights), numbers)
    axes.set_xlabel(f"looks at\n{_caption(attention, [layer])}".rstrip(), color=INK)
    axes.set_ylabel("token", color=INK)
    figure.colorbar(image, ax=axes, shrink=0.8, label="weight")
    return figure


@default_style()
def layer_figure(attention: ExpressionAttention, layer: int) -> "Figure":
    """Return a figure of all heads of a layer, counted from 1, four side by side."""
    return _grid_figure(attention, [layer], f"{_text(attention)}: layer {layer}")


@default_style()
def layers_figure(attention: ExpressionAttention) -> "Figure":
    """Return a figure of all heads of all layers, one layer below the other."""
    layers = list(range(1, len(attention.layers) + 1))
    return _grid_figure(attention, layers, f"{_text(attention)}: all layers")


@default_style()
def roles_figure(roles: Sequence[HeadRole]) -> "Figure":
    """Return a figure of what the heads do over a data set: heads down, roles across.

    Args:
        roles: of `head_roles`. Where no row is read out, the shares are of all rows.
    """
    supports = [role.readout or role.tokens for role in roles]
    shown = [role for role in ROLES if any(s and role in s.shares for s in supports)]
    shares = np.array(
        [
            [support.shares.get(role, 0.0) if support else 0.0 for role in shown]
            for support in supports
        ]
    )
    texts = [[percent(share, 0).removesuffix(" %") for share in row] for row in shares.tolist()]
    for row, support in zip(texts, supports, strict=True):
        if support:
            row[shown.index(FIXED)] += f"\nat {support.position}"
    rows = [f"layer {role.layer}, head {role.head}" for role in roles]
    figure = new_figure(
        8.5, 2.6 + 0.45 * len(roles), "Examples (%) whose largest weight is on the role's token"
    )
    axes = figure.subplots()
    heatmap(axes, shares, rows, shown, texts=texts)
    axes.set_xticks(range(len(shown)), shown, rotation=40, ha="right", fontsize=8)
    return figure


def _text(attention: ExpressionAttention) -> str:
    return " ".join(attention.tokens)


def _grid_figure(attention: ExpressionAttention, layers: list[int], title: str) -> "Figure":
    """Return a figure with lines of heads for each layer, all in the same colours."""
    heads = len(attention.layers[0])
    beside = min(heads, _MOST_BESIDE)
    lines = len(layers) * -(-heads // beside)
    size = min(1.0 + 0.24 * len(attention.tokens), 0.5 * _LARGEST)
    figure = new_figure(beside * size + 1.0, lines * (size + 0.35) + 0.5, title)
    grid = figure.subplots(lines, beside, squeeze=False)
    highest = _highest(*(attention.layers[layer - 1] for layer in layers))
    summaries = [s for s in head_summaries(attention) if s.layer in layers]
    for row, layer in zip(np.split(grid, len(layers)), layers, strict=True):
        places = list(row.flat)
        for axes in places[heads:]:
            axes.set_axis_off()
        for axes, summary in zip(places, (s for s in summaries if s.layer == layer), strict=False):
            weights = attention.layers[layer - 1][summary.head - 1]
            image = _draw(axes, attention, weights, highest, numbers=False)
            axes.set_title(_heading(summary), fontsize=8, color=INK)
    figure.colorbar(image, ax=grid, shrink=0.8, label="weight")
    figure.supxlabel(_caption(attention, layers), fontsize=9, color=INK)
    return figure


def _caption(attention: ExpressionAttention, layers: list[int]) -> str:
    """Say what the bold token is, and which rows reach no answer."""
    read, last = attention.read_rows, len(attention.layers)
    if read is None:
        return ""
    which = "token" if len(read) == 1 else "tokens"
    text = f"the answer is read from the bold {which}"
    return f"{text}: in layer {last}, no other row reaches it" if last in layers else text


def _heading(summary: HeadSummary) -> str:
    entropy = hundredths(summary.entropy)
    return f"layer {summary.layer}, head {summary.head}\n{summary.kind}, entropy {entropy}"


def _highest(*weights: Array) -> float:
    """Return the weight of the brightest colour: the largest, rounded up to a tenth."""
    largest = max(float(each.max()) for each in weights)
    return min(math.ceil(largest * 10) / 10, 1.0)


def _draw(
    axes: "Axes", attention: ExpressionAttention, weights: Array, highest: float, numbers: bool
) -> "AxesImage":
    """Draw one head's weights; mark the rows that the answer is read from."""
    labels = list(attention.tokens)
    texts = None
    if numbers:
        texts = [[hundredths(weight).lstrip("0") for weight in row] for row in weights.tolist()]
    image = heatmap(axes, weights, labels, labels, high=highest, colors=COLORS, texts=texts)
    for row in attention.read_rows or ():
        axes.get_yticklabels()[row].set_fontweight("bold")
    return image
