"""What reaches each parameter of a model: sizes of weights and gradients, and their spread."""

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from fastformer import checks
from fastformer.batch import Ids, PackedBatch
from fastformer.models.decoder import TransformerDecoder
from fastformer.models.transformer import Transformer
from fastformer.parameters import Array
from fastformer.training.loss import CrossEntropyLoss
from fastformer.training.steps import accumulate_gradients

BINS: Final[int] = 24


@dataclass(frozen=True)
class ParameterFlow:
    """One parameter and its gradient.

    Attributes:
        name: as in the model's state.    size: how many numbers.
        weight_rms, gradient_rms: root of the mean square.
        dead: the share, 0 to 1, of numbers whose gradient is exactly 0.
        counts: (BINS,), how many weights are in each of as many equal steps from `low` to `high`.
        low, high: the smallest and the largest weight.
    """

    name: str
    size: int
    weight_rms: float
    gradient_rms: float
    dead: float
    counts: list[int]
    low: float
    high: float

    @property
    def ratio(self) -> float:
        """The gradient's size by the weights'; 0 where both are 0."""
        return self.gradient_rms / self.weight_rms if self.weight_rms else 0.0

    def as_json(self) -> dict[str, Any]:
        """Return the attributes and the ratio as JSON values."""
        return {**asdict(self), "ratio": self.ratio}


def gradient_flow(
    model: Transformer | TransformerDecoder,
    batch: PackedBatch,
    targets: Ids,
    *,
    label_smoothing: float = 0.0,
) -> list[ParameterFlow]:
    """Return the flow to each parameter, from the mean loss of a batch, without dropout.

    The gradients that the model held before are set to zero; weights are left alone.

    Args:
        model: a classifier or a decoder.    batch: B sequences.
        targets: (B,) class ids, or what comes after each token, (N,), negative for nothing.
        label_smoothing: of the loss, as the model was trained with.

    Raises:
        ValueError: a gradient that is not finite; the message names the parameter.
    """
    loss = CrossEntropyLoss(label_smoothing=label_smoothing, backend=model.ops.name)
    with model.evaluating():
        model.zero_grad()
        accumulate_gradients(model, batch, targets, loss)
        flows = [_flow(name, value, gradient) for name, value, gradient in model.parameters()]
        model.zero_grad()
    return flows


def histogram(values: Array) -> tuple[list[int], float, float]:
    """Return the counts of `BINS` equal steps, and the ends; equal values are in the middle."""
    low, high = float(values.min()), float(values.max())
    counts, _ = np.histogram(values, BINS, (low, high))
    return counts.tolist(), low, high


def _flow(name: str, value: Array, gradient: Array) -> ParameterFlow:
    if not np.isfinite(gradient).all():
        checks.fail(f"the gradient of {name} is not finite, so nothing can be said of it")
    counts, low, high = histogram(value)
    return ParameterFlow(
        name=name,
        size=value.size,
        weight_rms=_rms(value),
        gradient_rms=_rms(gradient),
        dead=float(np.mean(gradient == 0)),
        counts=counts,
        low=low,
        high=high,
    )


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
