"""Attention as a model computes it: its weights on real inputs, and what each head looks at.

A classifier that reads out one token computes only that token's row in its last block, for the
answer needs no other. Here every row of every block is computed, so that all can be seen; the
row that is read out has the same weights either way. In the last block, the other rows show where
those tokens would look, and reach no answer: summaries leave them out.

A decoder reads its own answer as it writes it, so there the tokens are those of the expression and
of the answer but its last one, and each row from the expression's last on writes a token.
"""

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from fastformer import checks
from fastformer.analysis.prediction import Predictor
from fastformer.batch import PackedBatch, pack
from fastformer.data.answers import ANSWER_TOKENS
from fastformer.data.expressions import parse_expression
from fastformer.data.vocabulary import encode
from fastformer.models.base import Model
from fastformer.parameters import Array

FOCUSED_BELOW: Final[float] = 0.48
"""Entropy, relative to its maximum, below which a head is focused on few tokens."""

DISTRIBUTED_ABOVE: Final[float] = 0.96
"""Entropy, relative to its maximum, above which a head looks everywhere.

Both are llmlearn's thresholds, 1.0 and 2.0 for its eight tokens, divided by ln 8.
"""

KINDS: Final[tuple[str, ...]] = ("focused", "mixed", "distributed")
_POSITIONS_LISTED = 3


@dataclass(frozen=True)
class ExpressionAttention:
    """The attention of a model on one expression.

    Attributes:
        tokens: the T tokens that the model read.
        layers: one array (H, T, T) for each layer: how much each token (row) looks at each
            (column); a row's weights sum to 1.
        readout: the token that the answer is read from, or None where it is from all. A decoder's
            is read from this one and all after it.
        causal: whether a token sees only itself and those before it.
    """

    tokens: list[str]
    layers: list[Array]
    readout: int | None
    causal: bool = False

    @property
    def read_rows(self) -> range | None:
        """The rows that the answer is read from, or None where it is from all."""
        if self.readout is None:
            return None
        return range(self.readout, len(self.tokens) if self.causal else self.readout + 1)


@dataclass(frozen=True)
class HeadSummary:
    """What one head does with one expression, over the rows that reach the answer.

    Attributes:
        layer, head: counted from 1.
        entropy: mean over rows of the weights' entropy, divided by the largest possible, 0 to 1.
        kind: "focused", "mixed" or "distributed".
        looks_at: (position from 0, its token, mean weight), the greatest weights first.
    """

    layer: int
    head: int
    entropy: float
    kind: str
    looks_at: list[tuple[int, str, float]]

    def as_json(self) -> dict[str, Any]:
        """Return the attributes as JSON values."""
        return asdict(self)


def batch_attention(model: Model, batch: PackedBatch) -> list[Array]:
    """Return the weights of every row of a batch, (B, H, T, T) for each layer, without dropout.

    Args:
        model: a classifier or a decoder.    batch: B sequences, T tokens in the longest; the
            weights beyond a sequence's end are 0.

    Raises:
        ValueError: weights that are not finite.
    """
    with model.evaluating():
        model.guard.begin()
        x, layers = model.embedding.forward(batch, model.positions), []
        for block in model.blocks:
            x = block.forward(x, batch)
            layers.append(block.attention.weights())
            checks.finite_result("attention weights", layers[-1])
    return layers


def readout_position(model: Model, length: int) -> int | None:
    """Return the token that an answer is read from, in an expression of a length; None for all."""
    pooling = getattr(model.config, "pooling", "last")  # a decoder continues after the last
    return {"first": 0, "last": length - 1, "mean": None, "none": None}[pooling]


def attention_weights(
    predictor: Predictor | Model, expression: str
) -> tuple[list[str], list[Array]]:
    """Return the tokens of an expression, and the weights (H, T, T) of each layer.

    Args:
        predictor: of a run, or a model, which is then asked expressions of the digit task.
        expression: for instance "Max ( 5 3 9 )".

    Raises:
        ValueError: text that is no expression, or one that the task or the model does not have.
    """
    found = expression_attention(predictor, expression)
    return found.tokens, found.layers


def expression_attention(predictor: Predictor | Model, expression: str) -> ExpressionAttention:
    """Return the attention on one expression. Arguments and errors as of `attention_weights`."""
    if isinstance(predictor, Model):
        return token_attention(predictor, parse_expression(expression).tokens())
    read = predictor.sequence(predictor.read(expression))
    return token_attention(predictor.model, read.tokens, read.ids, read.given)


def token_attention(
    model: Model, tokens: list[str], ids: list[int] | None = None, given: int | None = None
) -> ExpressionAttention:
    """Return the attention on a list of tokens.

    Args:
        model: a classifier or a decoder.    tokens: as they are shown.
        ids: of the tokens; None for tokens of the tasks whose examples are drawn.
        given: how many of them are the expression; None for all.
    """
    if ids is None:
        ids = encode(tokens, ANSWER_TOKENS[: model.config.vocab_size])
    layers = [weights[0] for weights in batch_attention(model, pack([ids]))]
    causal = model.blocks[0].attention.causal
    readout = readout_position(model, len(tokens) if given is None else given)
    return ExpressionAttention(tokens, layers, readout, causal)


def relative_entropy(weights: Array, visible: Array | int) -> Array:
    """Return the entropy of each row, divided by that of equal weights.

    Args:
        weights: (..., T), each row >= 0 with sum 1.
        visible: how many tokens each row sees, broadcast to (...). Where it is one, the entropy
            is 0.

    Returns:
        (...), each from 0 to 1.
    """
    logs = np.log(weights, out=np.zeros(weights.shape), where=weights > 0)
    entropy = -(weights * logs).sum(axis=-1)
    relative: Array = np.clip(entropy / np.log(np.maximum(visible, 2)), 0.0, 1.0)
    return relative


def visible_tokens(length: int, causal: bool) -> Array:
    """Return (length,): how many tokens each row of a sequence sees."""
    return np.arange(1, length + 1) if causal else np.full(length, length)


def kind_of(entropy: float) -> str:
    """Return "focused", "mixed" or "distributed" for an entropy relative to its maximum."""
    return KINDS[int(entropy >= FOCUSED_BELOW) + int(entropy > DISTRIBUTED_ABOVE)]


def answering_rows(attention: ExpressionAttention, layer: int) -> slice:
    """Return the rows of a layer, counted from 0, whose result reaches the answer."""
    read = attention.read_rows
    if read is None or layer < len(attention.layers) - 1:
        return slice(None)
    return slice(read.start, read.stop)


def head_summaries(attention: ExpressionAttention) -> list[HeadSummary]:
    """Return what each head does, layer by layer."""
    summaries = []
    for layer, weights in enumerate(attention.layers):
        chosen = answering_rows(attention, layer)
        rows = weights[:, chosen].astype(np.float64)
        visible = visible_tokens(len(attention.tokens), attention.causal)[chosen]
        entropies = relative_entropy(rows, visible).mean(axis=1)
        for head, mean in enumerate(rows.mean(axis=1)):
            order = np.argsort(-mean, kind="stable")[:_POSITIONS_LISTED]
            summaries.append(
                HeadSummary(
                    layer=layer + 1,
                    head=head + 1,
                    entropy=float(entropies[head]),
                    kind=kind_of(entropies[head]),
                    looks_at=[(int(t), attention.tokens[t], float(mean[t])) for t in order],
                )
            )
    return summaries
