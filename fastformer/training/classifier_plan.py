"""A small classifier's loss and gradients in one call of one kernel."""

from weakref import WeakKeyDictionary

import numpy as np

from fastformer.batch import Ids, PackedBatch
from fastformer.kernels.transformer_gradients import PER_BLOCK, room_places
from fastformer.layers.positional_encoding import PositionalEncoding
from fastformer.models.decoder import TransformerDecoder
from fastformer.models.transformer import Transformer
from fastformer.parameters import Array, Parameter, aligned_zeros
from fastformer.training.loss import CrossEntropyLoss
from fastformer.warmup import ensure_compiled, step_in_one

# Sequences, elements of a batch's states, and parameters, for which one region for all of a model
# is the faster way. Beyond, shards are few for many cores, or their copies of gradients large.
FEWEST_SEQUENCES = 4
MOST_ELEMENTS = 1 << 17
MOST_PARAMETERS = 1 << 19
# Tokens of a shard, about, each of which is one thread's; and the most shards.
SHARD_TOKENS = 128
MOST_SHARDS = 8


class ClassifierPlan:
    """What `transformer_gradients` is given for one model, gathered once.

    The layers' own forward and backward are not called, and what they keep stays as it was. Logits
    and loss are theirs; gradients are too, but for the rounding of their sums over shards.

    Attributes:
        kernels: names of the kernels of a training step that are compiled ahead.
    """

    def __init__(self, model: Transformer, positions: PositionalEncoding) -> None:
        """Gather what does not depend on the batch. The model itself is not kept."""
        config, first = model.config, model.blocks[0]
        self.ops, self.dtype = model.ops, model.dtype
        self.embedding, self.positions = model.embedding, positions
        self.dropout_counter, self.pooling = model.dropout_counter, config.pooling
        self.parameters = model.parameters()
        self.config = config
        self._settings = (
            config.num_heads, config.ffn_dim, first.attention.scale, first.norm1.epsilon,
            first.feed_forward.activation, config.attention_bias,
        )  # fmt: skip
        self._blocks = [
            [
                self._start(parameter)
                for parameter in (
                    block.norm1.weight,
                    block.norm1.bias,
                    block.attention.qkv_weight,
                    block.attention.qkv_bias,
                    block.attention.output.weight,
                    block.attention.output.bias,
                    block.norm2.weight,
                    block.norm2.bias,
                    block.feed_forward.expand.weight,
                    block.feed_forward.expand.bias,
                    block.feed_forward.contract.weight,
                    block.feed_forward.contract.bias,
                )  # fmt: skip
            ]
            for block in model.blocks
        ]
        self._others = [
            self._start(model.embedding.weight),
            self._start(positions.weight) if positions.learned else -1,
            self._start(model.output.weight),
            self._start(model.output.bias),
        ]
        self.kernels = step_in_one() if model.kernels(block_op="transformer_block") else ()
        self._tokens = self._sequences = 0
        self._copies = np.zeros((0, self.parameters.values.size), self.dtype)

    def _start(self, parameter: Parameter) -> int:
        """Return where in the flat arrays a parameter begins; 0 for one that stands for none."""
        if not parameter.value.size:
            return 0
        values = self.parameters.values
        return (parameter.value.ctypes.data - values.ctypes.data) // values.itemsize

    def fits(self, batch: PackedBatch) -> bool:
        """Tell whether a batch is of a size for which this is the faster way."""
        elements = batch.num_tokens * self.config.embed_dim
        drops = self.dropout_counter.training and self.config.dropout > 0
        return not drops and batch.num_sequences >= FEWEST_SEQUENCES and elements <= MOST_ELEMENTS

    def accumulate(
        self, batch: PackedBatch, ids: Ids, loss_fn: CrossEntropyLoss, count: int
    ) -> tuple[float, Array]:
        """Do what `accumulate_gradients` says, for a batch that fits, and checked targets."""
        self.embedding.check(batch, self.positions)
        sequences, classes = batch.num_sequences, self.config.vocab_size
        self.dropout_counter.count()
        if batch.num_tokens > self._tokens or batch.num_sequences > self._sequences:
            self._make_room(batch)
        logits = np.empty((sequences, classes), self.dtype)
        copies = self._copies[: self._shards(batch.num_tokens, sequences) - 1]
        total = self.ops.transformer_gradients(
            batch._tokens,
            batch._positions,
            batch._offsets,
            batch._first_rows if self.pooling == "first" else batch._last_rows,
            batch._one_row_offsets,
            ids,
            *self._settings,
            loss_fn.label_smoothing,
            1 / max(1, count),
            self._places,
            self.parameters.values,
            self.positions.table,
            self.parameters.gradients,
            copies,
            self._room,
            logits,
        )
        return total / max(1, count), logits

    def _shards(self, tokens: int, sequences: int) -> int:
        """Return the number of shards of a batch: by its size, never by the number of threads."""
        shards = 1
        while 2 * shards <= min(MOST_SHARDS, sequences, tokens // SHARD_TOKENS):
            shards *= 2
        return shards

    def _make_room(self, batch: PackedBatch) -> None:
        """Make room for this batch, and for all that were there before."""
        ensure_compiled(self.kernels)
        config = self.config
        self._tokens = max(self._tokens, batch.num_tokens)
        self._sequences = max(self._sequences, batch.num_sequences)
        rooms, places, size = room_places(
            config.num_layers, self._tokens, self._sequences, config.embed_dim, config.num_heads,
            config.ffn_dim, config.vocab_size,
        )  # fmt: skip
        others = [*self._others, *places]
        blocks = [own + room for own, room in zip(self._blocks, rooms, strict=True)]
        rows = [*blocks, others + [0] * (PER_BLOCK - len(others))]
        self._places = np.array(rows, np.int64).reshape(-1)
        self._room = aligned_zeros(size, self.dtype)
        copies = self._shards(self._tokens, self._sequences) - 1
        columns = self._copies.shape[1]
        self._copies = aligned_zeros(copies * columns, self.dtype).reshape(copies, columns)


_PLANS: WeakKeyDictionary[Transformer, ClassifierPlan | None] = WeakKeyDictionary()


def classifier_plan(
    model: Transformer | TransformerDecoder, batch: PackedBatch, loss_fn: CrossEntropyLoss
) -> ClassifierPlan | None:
    """Return the plan for a model, a batch and a loss; None where layers are called instead."""
    plan = _plan_of(model)
    if plan is None or type(loss_fn) is not CrossEntropyLoss or loss_fn.ops is not plan.ops:
        return None
    return plan if plan.fits(batch) else None


def training_kernels(
    model: Transformer | TransformerDecoder, batch: PackedBatch | None = None
) -> tuple[str, ...]:
    """Return the names of the kernels that a training step calls.

    Args:
        batch: the step's; None for one of the usual size.
    """
    plan = _plan_of(model)
    if plan is not None and (batch is None or plan.fits(batch)):
        return plan.kernels
    return model.kernels(block_op=model.blocks[0].op_for(batch), training=True)


def _plan_of(model: Transformer | TransformerDecoder) -> ClassifierPlan | None:
    if type(model) is not Transformer:
        return None
    try:
        return _PLANS[model]
    except KeyError:
        plan = _PLANS[model] = _new_plan(model)
        return plan


def _new_plan(model: Transformer) -> ClassifierPlan | None:
    """Return a plan where blocks are the usual ones, post-norm, and a row of each is read out."""
    usual = all(block.usual for block in model.blocks) and model.config.norm == "post"
    small = model.parameters().values.size <= MOST_PARAMETERS
    if model.positions is None or not usual or not small or model.config.pooling == "mean":
        return None
    return ClassifierPlan(model, model.positions)
