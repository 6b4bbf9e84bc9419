"""Figures without windows: they are drawn in memory, and need no display."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastformer import checks
from fastformer.errors import RunError
from fastformer.parameters import Array
from fastformer.training.atomic_file import make_directory, os_errors_as, write_atomically
from fastformer.writing import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

PICTURE_KINDS = ("png", "svg", "pdf")
DOTS_PER_INCH = 150
INK, GRID = "#222222", "#dddddd"
_DARK = 0.5


@contextlib.contextmanager
def default_style() -> Iterator[None]:
    """Draw as Matplotlib does by itself: a style of the user's may need LaTeX, or fonts.

    Raises:
        RunError: Matplotlib's settings are such that it cannot be imported.
    """
    try:
        import matplotlib.style
    except (OSError, ValueError) as error:
        raise RunError(
            f"Matplotlib cannot be started: {error}; mend its settings, such as the file "
            "matplotlibrc, or the environment variable MPLBACKEND"
        ) from error
    with matplotlib.style.context("default"):
        yield


def new_figure(width: float, height: float, title: str = "") -> "Figure":
    """Return an empty figure.

    It does not come from pyplot: no window system is asked for, and nothing needs closing.

    Args:
        width, height: in inches.    title: above everything.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    if title:
        # A name is text: two `$` in it are no formula.
        figure.suptitle(printable(title), fontsize=11, color=INK, parse_math=False)
    return figure


def dress(axes: "Axes") -> None:
    """Give curves and points a light grid, and no frame at the top and right."""
    axes.grid(True, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)


def check_picture(path: Path) -> Path:
    """Return a picture's path if its name ends in a kind of picture that can be drawn."""
    if path.suffix.lower().removeprefix(".") not in PICTURE_KINDS:
        kinds = ", ".join(f".{kind}" for kind in PICTURE_KINDS)
        checks.fail(f"a picture's name must end in one of {kinds}, got {str(path)!r}")
    return path


def picture_bytes(figure: "Figure", kind: str = "png") -> bytes:
    """Return a figure as the content of a picture file."""
    stream = io.BytesIO()
    with default_style():
        figure.savefig(stream, format=kind, dpi=DOTS_PER_INCH)
    return stream.getvalue()


def save_picture(figure: "Figure", path: str | Path) -> Path:
    """Write a figure; the directories above it are made. An older file is replaced.

    Raises:
        ValueError: a name that does not end in .png, .svg or .pdf.
        RunError: the operating system refused.
    """
    path = check_picture(Path(path))
    content = picture_bytes(figure, path.suffix.lower().removeprefix("."))
    with os_errors_as(RunError, f"write picture {path}"):
        make_directory(path.parent)
        write_atomically(path, content)
    return path


def heatmap(
    axes: "Axes",
    values: Array,
    rows: list[str],
    columns: list[str],
    *,
    low: float = 0.0,
    high: float = 1.0,
    colors: str = "Blues",
    texts: list[list[str]] | None = None,
    **text_options: Any,
) -> "AxesImage":
    """Draw a matrix as coloured cells, row 0 at the top.

    Args:
        values: (rows, columns).    rows, columns: the labels.
        low, high: the values of the first and the last colour.    colors: Matplotlib's name.
        texts: what is written into each cell, or None.    text_options: as for `Axes.text`.
    """
    image = axes.imshow(values, vmin=low, vmax=high, cmap=colors, aspect="equal")
    # A label has room for about six characters where there are few columns.
    crowded = max(map(len, columns), default=0) * len(columns) > 64
    axes.set_xticks(range(len(columns)), columns, fontsize=8, rotation=60 if crowded else 0)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.tick_params(length=0, colors=INK)
    axes.spines[:].set_visible(False)
    if texts is not None:
        for place in np.ndindex(values.shape):
            red, green, blue, _ = image.cmap(image.norm(values[place]))
            light = 0.299 * red + 0.587 * green + 0.114 * blue > _DARK
            axes.text(
                place[1],
                place[0],
                texts[place[0]][place[1]],
                ha="center",
                va="center",
                color=INK if light else "white",
                **{"fontsize": 7, **text_options},
            )
    return image
