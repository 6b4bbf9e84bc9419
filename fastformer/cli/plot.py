"""`fastformer plot`: the curves of runs, as a picture and as a sketch in the terminal."""

import shutil
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fastformer.cli import console
from fastformer.errors import InvalidValueError

_WIDEST = 120


def plot(
    run: Path,
    /,
    *more: Path,
    out: Path | None = None,
    json: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
) -> None:
    """Draw loss, accuracy, learning rate and gradient norm over the epochs of a run, or of several.

    The best epoch is marked. Of a sweep, what runs came to is drawn over each setting that differs.
    It needs no display, and no window opens.

    Args:
        run: directory of the run, of several seeds, or of a sweep; it may still be training.
        more: directories of other runs, drawn over it.
        out: the picture: .png, .svg or .pdf; without it curves.png in the directory of the first
            run, or sweep.png in that of a sweep.
        json: print one JSON object, with the curves, and nothing else.
    """
    from fastformer.analysis import plots, terminal_plot
    from fastformer.analysis.figures import check_picture, save_picture
    from fastformer.training.run_directory import CURVES
    from fastformer.training.sweep_file import holds_sweep

    if holds_sweep(run):
        from fastformer.cli.sweep import show_again

        if more:
            raise InvalidValueError("a sweep is drawn alone; leave out the other directories")
        show_again(run, out, json)
        return
    path = check_picture(out or run / CURVES)
    given = [each for directory in (run, *more) for each in _runs_of(directory)]
    runs = [plots.read_curves(directory) for directory in given]
    figure = plots.curves_figure(runs)
    for text in map(plots.missing_text, runs):
        if text is not None:
            console.error(f"warning: {text}")
    save_picture(figure, path)
    if json:
        console.json_line(plots.curves_as_json(runs, path))
        return
    width = min(_WIDEST, shutil.get_terminal_size().columns - 2)
    for text in terminal_plot.terminal_plot(runs, width):
        console.line(text)
    console.line()
    console.facts([("picture", str(path))])


def _runs_of(directory: Path) -> list[Path]:
    """Return a run, or the runs of several seeds that are in a directory."""
    from fastformer.training.finding import runs_within
    from fastformer.training.seeds_record import holds_seeds

    return (holds_seeds(directory) and runs_within(directory)) or [directory]
