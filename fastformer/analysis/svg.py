"""Curves and maps as SVG, to stand inside a page: colours come from the page's style sheet."""

import math
from collections.abc import Sequence
from html import escape
from typing import Final

import numpy as np

from fastformer.analysis.plots import (
    Curves,
    Panel,
    alone,
    is_logarithmic,
    panel_values,
    value_text,
)
from fastformer.parameters import Array

WIDTH: Final[int] = 460
HEIGHT: Final[int] = 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 12, 34
_TICKS = 4
_MAP_SIDE = 420
_MAP_EDGE = 30
_LETTER = 9.5  # width of a letter of a map's labels, at most
_DOTS_UP_TO = 80


class _Axis:
    """Maps values to places between two ends, and chooses where its marks are."""

    def __init__(
        self, values: Sequence[float], start: float, stop: float, logarithmic: bool
    ) -> None:
        """Span the values; equal ones lie in the middle.

        Args:
            values: at least one, finite.    start, stop: places of the least and the greatest.
        """
        self.logarithmic = logarithmic
        self.start, self.stop = start, stop
        self.low, self.high = min(map(self._scaled, values)), max(map(self._scaled, values))

    def place(self, value: float) -> float:
        """Return the place of a value."""
        span = self.high - self.low
        share = (self._scaled(value) - self.low) / span if span else 0.5
        return self.start + share * (self.stop - self.start)

    def marks(self, whole: bool = False) -> list[float]:
        """Return some round values between the ends, whole numbers only if that is asked for."""
        if self.logarithmic:
            powers = range(math.ceil(self.low), math.floor(self.high) + 1)
            every = math.ceil(len(powers) / _TICKS) or 1
            return [10.0**power for power in powers[::every]] or [10**self.high]
        if self.high == self.low:
            return [self.low]
        rough = (self.high - self.low) / _TICKS
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
        if whole:
            step = max(1, round(step))
        count = math.floor(self.high / step + 1e-9)
        return [n * step for n in range(math.ceil(self.low / step - 1e-9), count + 1)]

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value


def panel_svg(panel: Panel, curves: Curves) -> str:
    """Draw one panel of a run's curves: dashed for training, solid for validation.

    Each point tells its value when the pointer rests on it. The classes of what is drawn are
    frame, grid, line, train, dot and best.
    """
    values = [value for value in panel_values(panel, curves) if math.isfinite(value)]
    if not values:
        return f'<p class="missing">No record has the {escape(panel.title)}.</p>'
    logarithmic = is_logarithmic(panel, [curves])
    across = _Axis(curves.x, _LEFT, WIDTH - _RIGHT, False)
    up = _Axis(values + [0.0] * panel.from_zero, HEIGHT - _BOTTOM, _TOP, logarithmic)
    label = _description(panel, curves, logarithmic)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">']
    for mark in up.marks():
        y = up.place(mark)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{mark:.4g}</text>')
    base = HEIGHT - _BOTTOM
    for mark in across.marks(whole=True):
        x = across.place(mark)
        parts.append(f'<text x="{x:.1f}" y="{base + 15}" text-anchor="middle">{mark:g}</text>')
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{curves.axis}</text>')
    parts.append(f'<path class="frame" d="M{_LEFT} {_TOP}V{base}H{WIDTH - _RIGHT}"/>')
    if curves.best is not None:
        x = across.place(curves.best)
        parts.append(
            f'<path class="best" d="M{x:.1f} {_TOP}V{base}">'
            f"<title>best {curves.axis}: {curves.best:g}</title></path>"
        )
    for key, name in panel.lines:
        if key in curves.values:
            parts += _line(curves, key, name, across, up)
    return "".join([*parts, "</svg>"])


def _description(panel: Panel, curves: Curves, logarithmic: bool) -> str:
    """Say in words what a panel shows: first and last value of each curve."""
    known = [
        f"{name} from {value_text(key, finite[0])} to {value_text(key, finite[-1])}"
        for key, name in panel.lines
        if (finite := [v for v in curves.values.get(key, []) if math.isfinite(v)])
    ]
    scale = " on a logarithmic axis" if logarithmic else ""
    return f"{panel.title} over {curves.axis}s{scale}: {'; '.join(known)}"


def _line(curves: Curves, key: str, name: str, across: _Axis, up: _Axis) -> list[str]:
    """Draw one curve, broken where it has no value."""
    points = [
        (across.place(x), up.place(value), x, value) if math.isfinite(value) else None
        for x, value in zip(curves.x, curves.values[key], strict=True)
    ]
    path, pen = "", "M"
    for point in points:
        if point is None:
            pen = "M"
            continue
        path += f"{pen}{point[0]:.1f} {point[1]:.1f}"
        pen = "L"
    train = " train" if name == "train" else ""
    parts = [f'<path class="line{train}" d="{path}"/>']
    dotted = range(len(points)) if len(points) <= _DOTS_UP_TO else alone(curves.values[key])
    parts += [
        f'<circle class="dot{train}" cx="{point[0]:.1f}" cy="{point[1]:.1f}" r="3.5">'
        f"<title>{curves.axis} {point[2]:g}: {name} {value_text(key, point[3])}</title></circle>"
        for place in dotted
        if (point := points[place]) is not None
    ]
    return parts


def map_places(maps: Sequence[Array]) -> list[list[list[float]]]:
    """Return where the points of maps are drawn: all maps on one scale, the same both ways.

    Args:
        maps: arrays (n, 2).

    Returns:
        For each map, [x, y] for each point, within a square; `map_svg` has room beside it for the
        label of a point at its edge.
    """
    extent = max(float(np.abs(points).max()) for points in maps) or 1.0
    half = _MAP_SIDE / 2
    factor = (half - _MAP_EDGE) / extent
    return [
        [[round(half + x * factor, 1), round(half - y * factor, 1)] for x, y in points]
        for points in maps
    ]


def map_svg(tokens: Sequence[str], places: Sequence[Sequence[float]]) -> str:
    """Draw a map of tokens: digits of the class digit, operations of the class operation.

    Args:
        tokens: their names.    places: [x, y] of each, of `map_places`.
    """
    half = _MAP_SIDE / 2
    width = round(_MAP_SIDE - _MAP_EDGE + 7 + _LETTER * max(map(len, tokens)))
    parts = [
        f'<svg id="map" viewBox="0 0 {width} {_MAP_SIDE}" role="img" '
        f'aria-label="Map of the embeddings of {escape(", ".join(tokens))}">',
        f'<path class="grid" d="M0 {half}H{width}M{half} 0V{_MAP_SIDE}"/>',
    ]
    for token, (x, y) in zip(tokens, places, strict=True):
        kind = "digit" if token.isdecimal() else "operation"
        parts.append(
            f'<g class="{kind}" transform="translate({x} {y})"><circle r="4"/>'
            f'<text x="7" y="4">{escape(token)}</text></g>'
        )
    return "".join([*parts, "</svg>"])
