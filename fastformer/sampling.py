"""How a token is chosen by the logits of what comes after a text: the likeliest, or a draw.

The filters are those of `transformers`, in its order: the repetition penalty, the temperature,
`top_k`, `top_p`, `min_p`.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastformer import checks
from fastformer.batch import Ids
from fastformer.parameters import Array

# Where this many times `top_k` are there, the likeliest are looked for before they are sorted.
_WORTH_A_LOOK = 8
_ELEMENTS_AT_ONCE = 1 << 15


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What draws are made from; each is None for no such filter.

    Attributes:
        temperature: > 0, what logits are divided by; None takes the likeliest token each time.
        top_k: so many of the likeliest, 1 to V; of equals the smaller id goes first.
        top_p: > 0 and <= 1: of these, the likeliest that together have at least this share
            (nucleus sampling, Holtzman et al. 2020, arXiv:1904.09751).
        min_p: >= 0 and <= 1: of these, what is at least so likely as this times the likeliest
            (Nguyen et al. 2024, arXiv:2407.01082).
        repetition_penalty: from 1e-6 to 1e6, 1 for none: before all else, logits of tokens that the
            text has are divided by it, or where they are negative multiplied (Keskar et al. 2019,
            arXiv:1909.05858; negative ones as `transformers` does).
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    def check(self, vocab_size: int) -> None:
        """Raise for what is not allowed.

        Args:
            vocab_size: V.

        Raises:
            TypeError, ValueError: the message names it.
        """
        if self.temperature is not None:
            checks.number("temperature", self.temperature, above=0)
        if self.top_k is not None:
            checks.integer("top_k", self.top_k, 1, vocab_size)
        if self.top_p is not None:
            checks.number("top_p", self.top_p, above=0, at_most=1)
        if self.min_p is not None:
            checks.number("min_p", self.min_p, at_least=0, at_most=1)
        if self.repetition_penalty is not None:
            checks.number("repetition_penalty", self.repetition_penalty, at_least=1e-6, at_most=1e6)
        for name in ("top_k", "top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and self.temperature is None:
                checks.fail(
                    f"{name} is for draws, got {name}={value} and no temperature: give a "
                    f"temperature too, or leave out {name}"
                )

    def penalized(self, logits: Array, seen: npt.NDArray[np.bool_]) -> Array:
        """Return logits (B, V) with the penalty of tokens that were seen, (B, V)."""
        if self.repetition_penalty is None:
            return logits
        penalty, given = float(self.repetition_penalty), logits.astype(np.float64)
        return np.where(seen, np.where(given < 0, given * penalty, given / penalty), given)

    def weights(self, logits: Array) -> tuple[Ids, Array]:
        """Return what is drawn from, the likeliest first.

        Args:
            logits: (B, V), after the penalty; there must be a temperature.

        Returns:
            (B, K) ids, and (B, K) float64 weights that are their probabilities but for a factor:
            0 for those that filters leave out.
        """
        assert self.temperature is not None
        order = _likeliest(logits, self.top_k)
        likeliest = np.take_along_axis(logits, order, axis=1).astype(np.float64)
        weights: Array = np.exp((likeliest - likeliest[:, :1]) / self.temperature)
        if self.top_p is not None and self.top_p < 1:
            reached = np.cumsum(weights, axis=1)
            before = reached - weights
            weights[before >= self.top_p * reached[:, -1:]] = 0
        if self.min_p is not None:
            weights[weights < self.min_p] = 0  # the likeliest has the weight 1
        return order, weights

    def draw(self, logits: Array, uniform: Array) -> Ids:
        """Draw a token for each row, by a number from 0 to 1 for each.

        Args:
            logits: (B, V), after the penalty; there must be a temperature.
            uniform: (B,) float64, each >= 0 and < 1.

        Returns:
            (B,) int64.
        """
        order, weights = self.weights(logits)
        reached = np.cumsum(weights, axis=1)
        place = (reached <= uniform[:, None] * reached[:, -1:]).sum(axis=1)
        chosen: Ids = order[np.arange(len(order)), place]
        return chosen


def _likeliest(logits: Array, top_k: int | None) -> Ids:
    """Return ids (B, K), the likeliest first; of equals the smaller id goes first."""
    if top_k is None or top_k * _WORTH_A_LOOK > logits.shape[1]:
        order: Ids = np.argsort(-logits, axis=1, kind="stable")[:, :top_k]
        return order
    rows = []
    for row in logits:
        least = np.partition(row, -top_k)[-top_k]
        found = np.flatnonzero(row >= least)
        rows.append(found[np.argsort(-row[found], kind="stable")[:top_k]])
    return np.stack(rows)


def log_softmax(logits: Array) -> Array:
    """Return log softmax of each row, in float64.

    Raises:
        ValueError: logits that are not finite.
    """
    checks.finite_result("logits", logits)
    shifted = _shifted(logits)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def log_probabilities(logits: Array, chosen: Ids) -> Array:
    """Return what `log_softmax` has of the token chosen in each row, (B,), for finite logits."""
    found = np.empty(chosen.size)
    # Some rows at a time: what does not stay in the cache costs more than the sum.
    count = max(1, _ELEMENTS_AT_ONCE // logits.shape[1])
    for first in range(0, chosen.size, count):
        part = slice(first, first + count)
        shifted = _shifted(logits[part])
        own = shifted[np.arange(len(shifted)), chosen[part]]
        found[part] = own - np.log(np.exp(shifted, out=shifted).sum(axis=1))
    return found


def _shifted(logits: Array) -> Array:
    """Return logits less the largest of each row, (B, V) float64."""
    result: Array = logits.astype(np.float64)
    result -= logits.max(axis=1, keepdims=True)
    return result
