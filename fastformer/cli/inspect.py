"""`fastformer inspect`: what reaches a run's parameters, and the loss around its weights."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter

from fastformer import threads as thread_count
from fastformer.cli import console

if TYPE_CHECKING:
    from fastformer.analysis.gradient_flow import ParameterFlow
    from fastformer.analysis.landscape import Landscape

EXAMPLES: Final[int] = 256
_BARS = " ▁▂▃▄▅▆▇█"
_HEIGHTS = ".:-=+*#%@"


def inspect(
    run: Path,
    /,
    *,
    picture: Path | None = None,
    points: int = 15,
    extent: float = 1.0,
    seed: int = 0,
    threads: int | None = None,
    program: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    json: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
) -> None:
    """Show the sizes of weights and gradients, histograms, and the loss around the weights.

    It looks at the run's best model, on the first 256 of its training examples, through the loss
    that it was trained by.

    Args:
        run: directory of the run.
        picture: file for a picture: .png, .svg or .pdf.
        points: of each side of the grid on which the loss is computed; odd.
        extent: how far the grid goes; at 1, a step is as long as the weights themselves.
        seed: of the two random directions of the grid.
        threads: number of threads; without it, as many as the machine or container allows.
        program: show the program of a training step instead: each op with its layer, what it reads
            and writes, where that lies, and where threads wait for each other.
        json: print one JSON object and nothing else.
    """
    thread_count.configure(threads)
    from fastformer.analysis.figures import check_picture, save_picture
    from fastformer.analysis.gradient_flow import gradient_flow
    from fastformer.analysis.landscape import loss_landscape
    from fastformer.analysis.loading import load_run

    if picture is not None:
        check_picture(picture)
    loaded = load_run(run)
    if program:
        from fastformer.training.steps import step_workspace

        batch, _ = loaded.settings.first_examples(loaded.settings.training.batch_size)
        space = step_workspace(loaded.model.train(), batch)
        space.grow(batch.num_tokens, batch.num_sequences)
        console.line(str(space))
        return
    batch, targets = loaded.settings.first_examples(EXAMPLES)
    smoothing = loaded.settings.training.label_smoothing
    landscape = loss_landscape(
        *(loaded.model, batch, targets),
        points=points,
        extent=extent,
        seed=seed,
        label_smoothing=smoothing,
    )
    flows = gradient_flow(loaded.model, batch, targets, label_smoothing=smoothing)
    if picture is not None:
        from fastformer.analysis.inspection_pictures import inspection_figure

        save_picture(inspection_figure(flows, landscape), picture)
    if json:
        parameters = [flow.as_json() for flow in flows]
        console.json_line(
            {"run": str(run), "parameters": parameters, "landscape": landscape.as_json()}
        )
        return
    _show_flows(flows)
    console.line()
    _show_landscape(landscape)
    if picture is not None:
        console.facts([("picture", str(picture))])


def _show_flows(flows: Sequence["ParameterFlow"]) -> None:
    """Write a line for each parameter, with its weights as a row of bars."""
    widest = max(len(flow.name) for flow in flows)
    console.line(f"{'':<{widest}}   weights  gradient     ratio  dead    histogram of the weights")
    for flow in flows:
        most = max(flow.counts)
        bars = "".join(_BARS[math.ceil(count / most * (len(_BARS) - 1))] for count in flow.counts)
        console.line(
            f"{flow.name:<{widest}}  {flow.weight_rms:>8.2g}  {flow.gradient_rms:>8.2g}  "
            f"{flow.ratio:>8.2g}  {console.percent(flow.dead, 0):>6}  "
            f"{flow.low:>6.2f} {bars} {flow.high:.2f}"
        )


def _show_landscape(landscape: "Landscape") -> None:
    """Write the loss as a map of characters, from '.' for the lowest to '@' for the highest."""
    finite = [v for row in landscape.losses.tolist() for v in row if math.isfinite(v)]
    low, high = (math.log(max(end, 1e-12)) for end in (min(finite), max(finite)))
    console.line(
        f"the loss around the weights: {landscape.centre:.4g} in the middle, "
        f"'{_HEIGHTS[0]}' {min(finite):.3g} to '{_HEIGHTS[-1]}' {max(finite):.3g}, logarithmic"
    )
    middle = len(landscape.steps) // 2
    for row, losses in enumerate(landscape.losses.tolist()):
        cells = [_height(value, low, high) for value in losses]
        if row == middle:
            cells[middle] = "O"
        console.line("  " + " ".join(cells))


def _height(value: float, low: float, high: float) -> str:
    """Return the character of a loss; a loss that is not finite is the highest."""
    if not math.isfinite(value):
        return _HEIGHTS[-1]
    share = (math.log(max(value, 1e-12)) - low) / (high - low) if high > low else 0.0
    return _HEIGHTS[min(int(share * len(_HEIGHTS)), len(_HEIGHTS) - 1)]
