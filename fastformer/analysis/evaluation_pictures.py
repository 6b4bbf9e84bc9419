"""A picture of what was taken for what."""

from typing import TYPE_CHECKING

import numpy as np

from fastformer.analysis.evaluation import Scores, used_labels
from fastformer.analysis.figures import INK, default_style, heatmap, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@default_style()
def confusion_figure(scores: Scores, title: str = "") -> "Figure":
    """Return a figure of a confusion matrix: each row's shares as colours, counts as numbers.

    Args:
        scores: of answers that have labels; those that are neither right nor answered are left out.
        title: above it.
    """
    used = used_labels(scores)
    counts, labels = scores.confusion[np.ix_(used, used)], [scores.labels[at] for at in used]
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    unit, plural = scores.unit, {"digit": "Digits", "class": "Classes"}[scores.unit]
    side = max(5.8, 0.45 * len(labels))
    figure = new_figure(side + 0.8, side, title or f"{plural}, predicted and correct")
    axes = figure.subplots()
    texts = [[f"{count:,}" if count else "" for count in row] for row in counts.tolist()]
    image = heatmap(axes, shares, labels, labels, texts=texts)
    axes.set_xlabel(f"predicted {unit}", color=INK)
    axes.set_ylabel(f"correct {unit}", color=INK)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, label=f"share of the correct {unit}'s row")
    bar.outline.set_visible(False)
    return figure
