"""The loss around a model's weights, in a plane through them.

Two random directions span the plane. Each is scaled, column by column of every matrix, to the
length of the weights there, so that one step is the same change of every unit's input however its
weights are scaled; biases and norms stay. Source: Li et al. 2018, "Visualizing the loss landscape
of neural nets", arXiv:1712.09913.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from fastformer import checks
from fastformer.batch import Ids, PackedBatch
from fastformer.models.decoder import TransformerDecoder
from fastformer.models.transformer import Transformer
from fastformer.parameters import Array
from fastformer.random import generator
from fastformer.training.loss import CrossEntropyLoss

POINTS: Final[int] = 15
EXTENT: Final[float] = 1.0
MOST_POINTS: Final[int] = 201


@dataclass(frozen=True)
class Landscape:
    """The loss on a square grid around the weights, which are in its middle.

    Attributes:
        steps: (points,), along either direction; 1 is as long as the weights themselves.
        losses: (points, points), a row for each step along the second direction.
    """

    steps: Array
    losses: Array

    @property
    def centre(self) -> float:
        """The loss of the weights themselves."""
        middle = len(self.steps) // 2
        return float(self.losses[middle, middle])

    def as_json(self) -> dict[str, Any]:
        """Return the attributes as JSON values; a loss that is not finite is None."""
        losses = [[v if np.isfinite(v) else None for v in row] for row in self.losses.tolist()]
        return {"steps": self.steps.tolist(), "losses": losses, "centre": self.centre}


def loss_landscape(
    model: Transformer | TransformerDecoder,
    batch: PackedBatch,
    targets: Ids,
    *,
    points: int = POINTS,
    extent: float = EXTENT,
    seed: int = 0,
    label_smoothing: float = 0.0,
) -> Landscape:
    """Compute the mean loss of a batch on a grid around the weights, without dropout.

    The weights are as they were afterwards, bit for bit.

    Args:
        model: a classifier or a decoder.    batch: B sequences.
        targets: (B,) class ids, or what comes after each token, (N,), negative for nothing.
        points: of each side of the grid, odd, from 3 to 201.
        extent: how far the grid goes either way, > 0.    seed: of the directions, >= 0.
        label_smoothing: of the loss, as the model was trained with.

    Raises:
        ValueError, TypeError: an argument that is not allowed.
    """
    if checks.integer("points", points, 3, MOST_POINTS) % 2 == 0:
        checks.fail(f"points must be odd, to have one in the middle, got {points}")
    checks.number("extent", extent, above=0)
    checks.integer("seed", seed, 0)
    first, second = (_direction(model, seed, number) for number in (0, 1))
    loss = CrossEntropyLoss(label_smoothing=label_smoothing, backend=model.ops.name)
    weights = model.state_dict()
    steps = np.linspace(-extent, extent, points)
    losses = np.empty((points, points))
    with model.evaluating():
        try:
            for row, column in np.ndindex(losses.shape):
                for name, value, _ in model.parameters():
                    moved = steps[column] * first[name] + steps[row] * second[name]
                    value[...] = weights[name] + moved
                losses[row, column] = loss.forward(model.forward(batch), targets)
        finally:
            model.load_state_dict(weights)
    return Landscape(steps, losses)


def _direction(model: Transformer | TransformerDecoder, seed: int, number: int) -> dict[str, Array]:
    """Return a random direction for each parameter, 0 for biases and norms."""
    random = generator(seed, "loss landscape", number)
    direction = {}
    for name, value, _ in model.parameters():
        drawn = random.standard_normal(value.shape)
        if value.ndim != 2:
            direction[name] = np.zeros(value.shape)
            continue
        # A column of a matrix makes one unit; a row of a table is one token or position.
        axis = 1 if name.startswith(("embedding", "positions")) else 0
        lengths = np.linalg.norm(value, axis=axis, keepdims=True)
        direction[name] = drawn * (lengths / np.linalg.norm(drawn, axis=axis, keepdims=True))
    return direction
