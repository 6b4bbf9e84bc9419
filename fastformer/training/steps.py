"""One training step, and an evaluation: for people who write their own loop."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastformer import checks
from fastformer.batch import Ids, PackedBatch
from fastformer.kernels.cross_entropy import cross_entropy, sum_of_losses
from fastformer.models.base import Model
from fastformer.models.config import RECOMPUTE
from fastformer.models.decoder import TransformerDecoder
from fastformer.models.transformer import Transformer
from fastformer.parameters import Array
from fastformer.program import Program
from fastformer.tensors import Axis
from fastformer.training.loss import CrossEntropyLoss
from fastformer.training.optimizers import Optimizer
from fastformer.training.ranks import ALONE, Ranks, ResultT
from fastformer.training.shards import add_shards, cut, shard_count
from fastformer.warmup import SHARDS_KERNELS, STEP_KERNELS, ensure_compiled
from fastformer.workspace import Workspace

# Elements that blocks keep from forward for backward, of one part of a batch: 128 MiB in float32.
# With more parameters than that, as many as those: each part reads all parameters.
MOST_KEPT_ELEMENTS = 1 << 25
# Sequences that are computed at a time where nothing is trained.
EVALUATED = 256
# Logits of an evaluation that are in memory at once: 128 MiB in float32.
MOST_LOGITS = 1 << 25


class Scores(NamedTuple):
    """The loss, and the share of right answers; NaN where nothing was asked."""

    loss: float
    accuracy: float


class Counts(NamedTuple):
    """How many answers are right, and how many were asked for."""

    right: int
    asked: int

    @property
    def accuracy(self) -> float:
        """The share of right answers; NaN where nothing was asked."""
        return self.right / self.asked if self.asked else math.nan


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


def count_right(
    batch: PackedBatch, logits: Array, targets: Ids, whole_answers: bool = False
) -> Counts:
    """Count the rows that have a target, and those of them whose largest logit is the target's.

    Args:
        batch, logits, targets: as of `wrong_sequences`.
        whole_answers: count sequences instead: one that has a target asks, and is right where all
            of its rows with a target are.
    """
    asked = targets >= 0
    right = (logits.argmax(axis=1) == targets) & asked
    if whole_answers and asked.size != batch.num_sequences:
        right = ~wrong_sequences(batch, logits, targets)
        asked = np.logical_or.reduceat(asked, batch.offsets[:-1])
        right &= asked
    return Counts(int(np.count_nonzero(right)), int(np.count_nonzero(asked)))


def accumulate_gradients(
    model: Transformer | TransformerDecoder,
    batch: PackedBatch,
    targets: npt.ArrayLike,
    loss_fn: CrossEntropyLoss,
    count: float | None = None,
) -> tuple[float, Array]:
    """Compute a batch's loss, and add its gradient to those of the model's parameters.

    A large batch goes through forward, loss and backward in shards, one after the other, whose
    gradients are added in one fixed binary tree; and a large shard in parts, so that what backward
    needs is in memory for one part alone. Loss and gradient are those of the whole batch but for
    the rounding of their sums; shards and parts depend on nothing but the model's and the batch's
    sizes. A dropout drops anew in each part. Each part is one run of a program, and what the
    model's layers show is still of the last forward.

    Args:
        model: a classifier or a decoder.    batch: B sequences of N tokens.
        targets: (B,) class ids, or (N,) for each token, a tagger's class ids or a decoder's next
            ids, an array or a list; the loss_fn's ignore_index where nothing is asked.
        loss_fn: the loss.
        count: where this is one of several batches whose gradients are added up, the targets that
            are asked in all of them, or with weights what these count. Losses and gradients then
            add up to those of one large batch, whatever each of them holds. None where this batch
            is all. A loss that is a sum is divided by nothing.

    Returns:
        The loss, the sum over this batch's targets divided by `count`: the mean where it is None.
        And the logits (B, V) or (N, V).

    Raises:
        TypeError, ValueError: as of the model's and the loss's forward, or a count of fewer targets
            than this batch has; nothing is added then.
    """
    checks.instance("accumulate_gradients", "model", model, Transformer, TransformerDecoder)
    checks.instance("accumulate_gradients", "batch", batch, PackedBatch)
    checks.instance("accumulate_gradients", "loss_fn", loss_fn, CrossEntropyLoss)
    _check_reduction("accumulate_gradients", loss_fn)
    ids, divisor = _checked_targets(model, batch, targets, loss_fn, count)
    found = _add_gradients(
        model, batch, ids, loss_fn, divisor, lambda shard, own, loss, logits: (loss, logits)
    )
    return sum(loss for loss, _ in found), np.concatenate([logits for _, logits in found])


def _checked_targets(
    model: Transformer | TransformerDecoder,
    batch: PackedBatch,
    targets: npt.ArrayLike,
    loss_fn: CrossEntropyLoss,
    count: float | None,
) -> tuple[Ids, float]:
    """Return a batch's targets, and what the sum of its losses is divided by."""
    rows = model.rows_of(batch)
    classes, ignored = model.config.num_logits, loss_fn.ignore_index
    ids, asked = checks.target_ids("CrossEntropyLoss", targets, rows, classes, ignored)
    loss_fn.weights_for(classes, model.dtype)
    own = loss_fn.divisor_of(ids, asked)
    if count is not None:
        if loss_fn.weight is None:
            count = checks.integer("count", count, asked)
        else:
            count = checks.number("count", count, at_least=own)
    return ids, (own if count is None or loss_fn.reduction == "sum" else count) or 1


def step_gradients(
    model: Transformer | TransformerDecoder,
    batch: PackedBatch,
    targets: npt.ArrayLike,
    loss_fn: CrossEntropyLoss,
    count: float | None = None,
    *,
    shards: int = 0,
    ranks: Ranks = ALONE,
    fresh: bool = False,
    whole_answers: bool = False,
) -> tuple[float, Counts]:
    """Do what `accumulate_gradients` does, together with other processes, and count what is right.

    Args:
        model, batch, targets, loss_fn, count: as of `accumulate_gradients`; the same in each rank.
        shards: of the batch at most, a power of two; 0 for what the sizes say.
        ranks: who share them; each has the sum of all gradients then.
        fresh: whether the gradients are all 0 before.    whole_answers: as of `count_right`.

    Returns:
        The loss, and what is right, both of the whole batch.
    """
    ids, divisor = _checked_targets(model, batch, targets, loss_fn, count)

    def counted(shard: PackedBatch, own: Ids, loss: float, logits: Array) -> tuple[float, Counts]:
        return loss, count_right(shard, logits, own, whole_answers)

    own = _add_gradients(model, batch, ids, loss_fn, divisor, counted, shards, ranks, fresh)
    found = [one for of_rank in ranks.gather(own) for one in of_rank]
    right, asked = (sum(counts[which] for _, counts in found) for which in (0, 1))
    return sum(loss for loss, _ in found), Counts(right, asked)


def _add_gradients(
    model: Transformer | TransformerDecoder,
    batch: PackedBatch,
    ids: Ids,
    loss_fn: CrossEntropyLoss,
    divisor: float,
    left: Callable[[PackedBatch, Ids, float, Array], ResultT],
    shards: int = 0,
    ranks: Ranks = ALONE,
    fresh: bool = False,
) -> list[ResultT]:
    """Add a batch's gradients to the model's, and return what each shard of this rank has left.

    Args:
        left: is given a shard, its targets, its share of the loss, and its logits.
    """
    with model.guard:
        model.check(batch)  # all of it, before the first shard: messages name an index in it
        count = shard_count(model, batch, shards)
        if count == 1 and ranks.size == 1:
            return [left(batch, ids, *_accumulate(model, batch, ids, loss_fn, divisor))]
        counter = model.dropout_counter
        # Forward passes have numbers of their own in each shard, whichever rank computes it.
        begun, passes = counter.forwards, _part_count(model, batch)

        def compute(shard: PackedBatch, own: Ids, number: int) -> ResultT:
            counter.forwards = begun + number * passes
            return left(shard, own, *_accumulate(model, shard, own, loss_fn, divisor))

        found = add_shards(model, batch, ids, count, ranks, fresh, compute)
        counter.forwards = begun + count * passes * counter.training
        return found


def _check_reduction(owner: str, loss_fn: CrossEntropyLoss) -> None:
    """Raise where a loss has many values, of which training and evaluation need one."""
    if loss_fn.reduction == "none":
        checks.fail(
            f"{owner}: a loss with the reduction 'none' has no one value to train on; make it with "
            "'mean' or 'sum', or call its forward and backward yourself"
        )


def _accumulate(
    model: Transformer | TransformerDecoder,
    batch: PackedBatch,
    ids: Ids,
    loss_fn: CrossEntropyLoss,
    divisor: float,
) -> tuple[float, Array]:
    """Add a shard's gradients, and return its share of the loss, and its logits."""
    parts = _part_count(model, batch)
    own_loss = type(loss_fn) is not CrossEntropyLoss or loss_fn.ops.name != model.ops.name
    compute = _called if own_loss else _run_step
    with model.threads.at("gradients", batch.num_tokens):
        if parts == 1:
            return compute(model, batch, ids, loss_fn, divisor)
        results = [
            compute(model, part, part_targets, loss_fn, divisor)
            for part, part_targets in _parts(batch, ids, parts)
        ]
    return sum(loss for loss, _ in results), np.concatenate([logits for _, logits in results])


def step_workspace(
    model: Transformer | TransformerDecoder, batch: PackedBatch, weighted: bool = False
) -> Workspace:
    """Return the workspace of a training step's program: forward, loss and backward.

    Args:
        model, batch: that are trained.    weighted: whether the loss has weights of classes.
    """
    way, name = model.way_of(batch, whole=True), "weighted step" if weighted else "step"
    build = partial(_step_program, weighted=weighted)
    return model.workspace(name, build, way, recomputed(model, batch))


def _step_program(model: Model, p: Program, weighted: bool) -> None:
    """Append forward, cross-entropy and backward, without a stage between them."""
    rows, classes = model.logits_rows, Axis(model.config.num_logits)
    logits = p.copied("logits", rows, classes)
    p.forward(model, logits)
    losses, _, _, dlogits = p.add(
        cross_entropy, logits=logits, targets=p.copied("targets", rows, kind="int"),
        weights=p.copied("weights", classes) if weighted else None,
        smoothing=p.number("smoothing"), scale=p.number("scale"),
    )  # fmt: skip
    loss = p.copied("loss", Axis(1), kind="double")
    p.add(sum_of_losses, losses=losses, loss=loss)
    p.backward(model, dlogits)


def _run_step(
    model: Transformer | TransformerDecoder,
    batch: PackedBatch,
    targets: Ids,
    loss_fn: CrossEntropyLoss,
    divisor: float,
) -> tuple[float, Array]:
    """Add a part's gradients, and return its share of the loss, and its logits.

    Args:
        divisor: of the loss of all of the parts.
    """
    weights = loss_fn.weights_for(model.config.num_logits, model.dtype)
    space = step_workspace(model, batch, bool(weights.size))
    ensure_compiled(space.kernels())
    model.dropout_counter.count()
    numbers = {"smoothing": loss_fn.label_smoothing, "scale": 1 / divisor}
    copied = {"targets": targets} | ({"weights": weights} if weights.size else {})
    space.run(batch, numbers=numbers | model.numbers_of(space), copied=copied)
    logits = space.left("logits", len(targets)).copy()
    return float(space.left("loss", 1)[0]) / divisor, logits


def _called(
    model: Transformer | TransformerDecoder,
    batch: PackedBatch,
    targets: Ids,
    loss_fn: CrossEntropyLoss,
    divisor: float,
) -> tuple[float, Array]:
    """Do the same by the methods of a loss of the caller's own."""
    logits = model.forward(batch)
    loss = loss_fn.forward(logits, targets)
    share = loss_fn.divisor / divisor
    model.backward(loss_fn.backward(share))
    return share * loss, logits


def training_kernels(
    model: Transformer | TransformerDecoder, batch: PackedBatch, shards: int = 0
) -> tuple[str, ...]:
    """Return the names of the kernels that a training step on a batch calls.

    Args:
        model, batch: that are trained.    shards: as of `step_gradients`.
    """
    count = shard_count(model, batch, shards)
    if count > 1:
        batch = batch.select(np.arange(batch.num_sequences // count))
    kernels = step_workspace(model, batch).kernels()
    if not kernels:
        return ()
    return (*kernels, *STEP_KERNELS, *(SHARDS_KERNELS if count > 1 else ()))


def _kept(model: Transformer | TransformerDecoder, recompute: str) -> int:
    """Return how many elements of each token are kept for backward, about."""
    config = model.config
    # What a block and its norms and layers give, and the activation's derivative.
    block = 9 * config.embed_dim + 2 * config.ffn_dim
    if recompute == "block":
        return config.num_layers * config.embed_dim + block
    if recompute == "attention":
        return config.num_layers * (block - 4 * config.embed_dim)
    return config.num_layers * block


def _most_kept(model: Transformer | TransformerDecoder) -> int:
    """Return how many elements may be kept of one part of a batch."""
    if model.memory_limit:
        return max(1, model.memory_limit // model.dtype.itemsize)
    return max(MOST_KEPT_ELEMENTS, model.parameters().gradients.size)


def recomputed(model: Transformer | TransformerDecoder, batch: PackedBatch) -> str:
    """Return what is computed again: what the model says, or the least that its limit allows."""
    if not model.memory_limit:
        return str(model.recompute)
    most = _most_kept(model) // batch.longest
    allowed = RECOMPUTE[RECOMPUTE.index(model.recompute) :]
    return next((choice for choice in allowed if _kept(model, choice) <= most), RECOMPUTE[-1])


def _part_count(model: Transformer | TransformerDecoder, batch: PackedBatch) -> int:
    """Return in how many parts a batch is computed."""
    kept = batch.num_tokens * _kept(model, recomputed(model, batch))
    return min(batch.num_sequences, -(-kept // _most_kept(model)))


def _parts(batch: PackedBatch, targets: Ids, parts: int) -> Iterator[tuple[PackedBatch, Ids]]:
    """Cut a batch into parts of alike many sequences, in order."""
    for sequences in np.array_split(np.arange(batch.num_sequences), parts):
        yield cut(batch, targets, sequences[0], sequences[-1] + 1)


def train_step(
    model: Transformer | TransformerDecoder,
    batch: PackedBatch,
    targets: npt.ArrayLike,
    loss_fn: CrossEntropyLoss,
    optimizer: Optimizer,
) -> Scores:
    """Make one step on one batch: zero gradients, forward, loss, backward, optimizer step.

    Args:
        model: a classifier or a decoder.    batch: B sequences of N tokens.
        targets: (B,) class ids, or (N,) for each token, a tagger's class ids or a decoder's next
            ids, an array or a list; -1 where nothing is asked.

    Returns:
        The loss and accuracy on the batch before the step: of the sequences' classes, or of
        tokens. What is not asked counts in neither.

    Raises:
        TypeError, ValueError: an argument that is not allowed, or an optimizer of other parameters
            than this model's; nothing is changed then.
        NotFiniteError: as of the optimizer's step.
        OtherThreadError: another thread called one of the model's layers by itself.
    """
    checks.instance("train_step", "model", model, Transformer, TransformerDecoder)
    checks.instance("train_step", "loss_fn", loss_fn, CrossEntropyLoss)
    checks.instance("train_step", "optimizer", optimizer, Optimizer)
    optimizer.check_trains(model)
    checks.instance("train_step", "batch", batch, PackedBatch)
    targets = checks.target_array("train_step", targets)
    ensure_compiled(training_kernels(model, batch))
    with model.guard:
        model.zero_grad()
        loss, counts = step_gradients(model, batch, targets, loss_fn, fresh=True)
        optimizer.step()
    return Scores(loss, counts.accuracy)


def predict_classes(
    model: Transformer | TransformerDecoder, inputs: PackedBatch, batch_size: int = EVALUATED
) -> Array:
    """Return the logits (B, V) of all sequences, computed a part at a time, without dropout.

    A tagger's and a decoder's are (N, V), those of all tokens.
    """
    checks.instance("evaluate", "model", model, Transformer, TransformerDecoder)
    checks.instance("evaluate", "inputs", inputs, PackedBatch)
    checks.integer("batch_size", batch_size, 1)
    order = np.arange(inputs.num_sequences)
    with model.evaluating():
        parts = [
            model.forward(inputs.select(order[first : first + batch_size]))
            for first in range(0, inputs.num_sequences, batch_size)
        ]
    return np.concatenate(parts)


def evaluate(
    model: Transformer | TransformerDecoder,
    inputs: PackedBatch,
    targets: npt.ArrayLike,
    loss_fn: CrossEntropyLoss,
    batch_size: int = EVALUATED,
    whole_answers: bool = False,
) -> Scores:
    """Return the loss and the accuracy over all that is asked; nothing is trained.

    Args:
        model: a classifier or a decoder.    inputs: all sequences.
        targets: (B,) class ids, or (N,) for each token, a tagger's class ids or a decoder's next
            ids, an array or a list; -1 where nothing is asked.
        batch_size: how many sequences are computed at a time at most, >= 1.
        whole_answers: where tokens are asked, the accuracy is that of sequences of which all that
            are asked are right, and not that of tokens.
    """
    checks.instance("evaluate", "model", model, Transformer, TransformerDecoder)
    checks.instance("evaluate", "inputs", inputs, PackedBatch)
    checks.instance("evaluate", "loss_fn", loss_fn, CrossEntropyLoss)
    _check_reduction("evaluate", loss_fn)
    targets = checks.target_array("evaluate", targets)
    if fits_at_once(model, inputs):
        logits = predict_classes(model, inputs, batch_size)
        loss = loss_fn.forward(logits, targets)
        return Scores(loss, count_right(inputs, logits, targets, whole_answers).accuracy)
    checks.integer("batch_size", batch_size, 1)
    rows, most = inputs.num_tokens, min(batch_size, evaluated_at_once(model, inputs))
    classes, ignored = model.config.num_logits, loss_fn.ignore_index
    checks.target_ids("CrossEntropyLoss", targets, rows, classes, ignored)
    total, divisor, right, asked = 0.0, 0.0, 0, 0
    for first in range(0, inputs.num_sequences, most):
        last = min(first + most, inputs.num_sequences)
        part = inputs.select(np.arange(first, last))
        part_targets = targets[inputs.offsets[first] : inputs.offsets[last]]
        logits = predict_classes(model, part, most)
        loss = loss_fn.forward(logits, part_targets)
        if loss_fn.count:
            total, divisor = total + loss * loss_fn.divisor, divisor + loss_fn.divisor
        counts = count_right(part, logits, part_targets, whole_answers)
        right, asked = right + counts.right, asked + counts.asked
    mean = total if loss_fn.reduction == "sum" else total / divisor if divisor else 0.0
    return Scores(mean, Counts(right, asked).accuracy)


def fits_at_once(model: Transformer | TransformerDecoder, inputs: PackedBatch) -> bool:
    """Tell whether an evaluation has all logits in memory; a classifier's are few."""
    classes = model.config.num_logits
    return not isinstance(model, TransformerDecoder) or inputs.num_tokens * classes <= MOST_LOGITS


def evaluated_at_once(model: Transformer | TransformerDecoder, inputs: PackedBatch) -> int:
    """Return how many sequences are computed at a time where nothing is trained."""
    if fits_at_once(model, inputs):
        return EVALUATED
    return max(1, min(EVALUATED, MOST_LOGITS // (model.config.num_logits * inputs.longest)))
