"""One training step, and an evaluation: for people who write their own loop."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastformer import checks
from fastformer.batch import Ids, PackedBatch
from fastformer.models.decoder import TransformerDecoder
from fastformer.models.transformer import Transformer
from fastformer.parameters import Array
from fastformer.training.loss import CrossEntropyLoss
from fastformer.training.optimizers import Optimizer


class Scores(NamedTuple):
    """Mean loss, and the share of right answers."""

    loss: float
    accuracy: float


def count_correct(logits: Array, targets: Ids) -> int:
    """Return in how many rows the largest logit is the target's."""
    return int(np.count_nonzero(logits.argmax(axis=1) == targets))


def wrong_sequences(batch: PackedBatch, logits: Array, targets: Ids) -> npt.NDArray[np.bool_]:
    """Tell which sequences, (B,), are wrong: in any row that has a target, where there are several.

    Args:
        batch: B sequences of N tokens.    logits: (B, V) or (N, V).
        targets: one for each row, negative where nothing is asked.
    """
    wrong: npt.NDArray[np.bool_] = (logits.argmax(axis=1) != targets) & (targets >= 0)
    if wrong.size != batch.num_sequences:
        wrong = np.logical_or.reduceat(wrong, batch.offsets[:-1])
    return wrong


def count_right(batch: PackedBatch, logits: Array, targets: Ids) -> int:
    """Return how many sequences are right; arguments as of `wrong_sequences`."""
    return batch.num_sequences - int(np.count_nonzero(wrong_sequences(batch, logits, targets)))


def train_step(
    model: Transformer,
    batch: PackedBatch,
    targets: Ids,
    loss_fn: CrossEntropyLoss,
    optimizer: Optimizer,
) -> Scores:
    """Make one step on one batch: zero gradients, forward, loss, backward, optimizer step.

    Args:
        model: a classifier.    batch: B sequences.    targets: (B,) class ids.

    Returns:
        The loss and accuracy on the batch before the step.
    """
    checks.instance("train_step", "model", model, Transformer)
    checks.instance("train_step", "loss_fn", loss_fn, CrossEntropyLoss)
    checks.instance("train_step", "optimizer", optimizer, Optimizer)
    model.zero_grad()
    logits = model.forward(batch)
    loss = loss_fn.forward(logits, targets)
    model.backward(loss_fn.backward())
    optimizer.step()
    return Scores(loss, count_correct(logits, targets) / batch.num_sequences)


def predict_classes(
    model: Transformer | TransformerDecoder, inputs: PackedBatch, batch_size: int = 256
) -> Array:
    """Return the logits (B, V) of all sequences, computed a part at a time, without dropout.

    A decoder's are (N, V), those of all tokens.
    """
    checks.instance("evaluate", "model", model, Transformer, TransformerDecoder)
    checks.instance("evaluate", "inputs", inputs, PackedBatch)
    checks.integer("batch_size", batch_size, 1)
    training = model.dropout_counter.training
    model.eval()
    order = np.arange(inputs.num_sequences)
    try:
        parts = [
            model.forward(inputs.select(order[first : first + batch_size]))
            for first in range(0, inputs.num_sequences, batch_size)
        ]
    finally:
        model.dropout_counter.training = training
    return np.concatenate(parts)


def evaluate(
    model: Transformer | TransformerDecoder,
    inputs: PackedBatch,
    targets: Ids,
    loss_fn: CrossEntropyLoss,
    batch_size: int = 256,
) -> Scores:
    """Return the mean loss and the accuracy over all sequences; nothing is trained.

    Args:
        model: a classifier or a decoder.    inputs: all sequences.
        targets: (B,) class ids, or a decoder's (N,) next ids, -1 where nothing is asked.
        batch_size: how many sequences are computed at a time, >= 1.
    """
    checks.instance("evaluate", "loss_fn", loss_fn, CrossEntropyLoss)
    logits = predict_classes(model, inputs, batch_size)
    loss = loss_fn.forward(logits, targets)
    return Scores(loss, count_right(inputs, logits, targets) / inputs.num_sequences)
