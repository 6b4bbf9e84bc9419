"""A picture of what was taken for what."""

from typing import TYPE_CHECKING

import numpy as np

from fastformer.analysis.evaluation import CONFUSION_LABELS
from fastformer.analysis.figures import INK, default_style, heatmap, new_figure
from fastformer.batch import Ids

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@default_style()
def confusion_figure(confusion: Ids, title: str = "Digits, predicted and correct") -> "Figure":
    """Return a figure of a confusion matrix: each row's shares as colours, counts as numbers.

    Args:
        confusion: (11, 11), of `AnswerScores`. The row and column of no digit are left out where
            they are empty.    title: above it.
    """
    size = len(CONFUSION_LABELS)
    size -= not (confusion[-1].any() or confusion[:, -1].any())
    counts, labels = confusion[:size, :size], list(CONFUSION_LABELS[:size])
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    figure = new_figure(6.6, 5.8, title)
    axes = figure.subplots()
    texts = [[f"{count:,}" if count else "" for count in row] for row in counts.tolist()]
    image = heatmap(axes, shares, labels, labels, texts=texts)
    axes.set_xlabel("predicted digit", color=INK)
    axes.set_ylabel("correct digit", color=INK)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, label="share of the correct digit's row")
    bar.outline.set_visible(False)
    return figure
