"""Keys and values of what a decoder has read, so that a new token costs one row.

With the compiled kernels the logits have the bits of the full forward: none of a row's bits depend
on the rows beside it.
"""

import numpy as np
import numpy.typing as npt

from fastformer import checks
from fastformer.batch import Ids, PackedBatch
from fastformer.errors import InvalidTypeError
from fastformer.fixed import Fixed
from fastformer.kernels.sequence_rows import keep_rows
from fastformer.models.base import Model
from fastformer.models.decoder import TransformerDecoder
from fastformer.parameters import Array
from fastformer.program import Program
from fastformer.tensors import ROWS, SEQUENCE_ROWS, Axis, Tensor
from fastformer.warmup import ensure_compiled
from fastformer.workspace import Workspace


class KeyValueCache(Fixed):
    """Keys and values of the tokens that a decoder has read, for several sequences.

    Threads may share a model, each with a cache of its own.
    """

    def __init__(self, model: TransformerDecoder, num_sequences: int) -> None:
        """Start with nothing read.

        Args:
            model: whose weights must stay as they are.    num_sequences: B, >= 1.

        Raises:
            TypeError, ValueError: not a decoder, or not such a number.
        """
        if not isinstance(model, TransformerDecoder):
            raise InvalidTypeError(
                f"generation needs a TransformerDecoder, got {type(model).__name__}"
            )
        num_sequences = checks.integer("num_sequences", num_sequences, 1)
        self.model = model
        self._lengths: Ids = np.zeros(num_sequences, np.int64)
        # Each sequence has a slot: so many rows of every layer's keys, and of its values.
        self._slots: Ids = np.arange(num_sequences)
        shape = num_sequences, model.config.max_seq_len
        with model.evaluating():
            tensors = _kept_by(generation_workspace(model))
        self._keep([np.zeros((*shape, t.axes[1].factor), model.dtype) for t in tensors])

    def _keep(self, kept: list[Array]) -> None:
        """Keep arrays (slots, longest, width), and the same as a program is given them."""
        self._kept = kept
        self._rows = [array.reshape(-1, array.shape[2]) for array in kept]

    @property
    def lengths(self) -> Ids:
        """How many tokens of each sequence were read, (B,): a copy."""
        return self._lengths.copy()

    def extend(self, batch: PackedBatch, *, last_only: bool = False) -> Array:
        """Read more tokens of each sequence, without dropout.

        Args:
            batch: the next tokens of each sequence, at least one.
            last_only: whether logits are computed for the last token of each sequence alone: in a
                long prompt they would be the largest part of what is kept.

        Returns:
            (N, V) logits, one row for each new token: what comes after it; (B, V) of the last.

        Raises:
            ValueError: another number of sequences, an id that the model does not have, or a
                sequence that becomes longer than the model reads.
            TypeError: not a PackedBatch.
            OtherThreadError: another thread called one of the model's layers by itself.
        """
        with self.model.guard:
            checks.boolean("last_only", last_only)
            self._check(batch)
            last_only = last_only and batch.num_tokens > batch.num_sequences
            with self.model.evaluating(), self.model.threads.at("generation", batch.num_tokens):
                return self._extend(batch, last_only)

    def _extend(self, batch: PackedBatch, last_only: bool) -> Array:
        space = generation_workspace(self.model, last_only)
        ensure_compiled(space.kernels())
        begun = batch.going_on(self._lengths)
        most = self.model.config.max_seq_len
        new, starts = batch._lengths, self._slots * most
        ends, places = self._lengths + new, np.repeat(starts, new) + begun._positions
        space.run(
            begun,
            longest=int(ends.max()),
            numbers={"kept rows": most * self._kept[0].shape[0]},
            bound=dict(zip(_kept_by(space), self._rows, strict=True)),
            copied={"kept.rows": places, "kept.starts": starts, "kept.ends": starts + ends},
        )
        self._lengths = ends
        rows = batch.num_sequences if last_only else batch.num_tokens
        return space.left("logits", rows).copy()

    def select(self, sequences: npt.ArrayLike) -> None:
        """Go on with some of the sequences, in the order given; one may be taken several times.

        Raises:
            TypeError: not one-dimensional integers.
            ValueError: none, or one that is negative or too large.
        """
        with self.model.guard.lock:
            chosen = checks.indices("sequences", sequences, self._lengths.size)
            slots = self._slots[chosen]
            again = np.ones(slots.size, bool)
            again[np.unique(slots, return_index=True)[1]] = False
            free = np.setdiff1d(np.arange(len(self._kept[0])), slots)
            copies, read = int(again.sum()), int(self._lengths[chosen].max())
            if copies > free.size:
                more = copies - free.size
                self._keep([np.pad(kept, [(0, more), (0, 0), (0, 0)]) for kept in self._kept])
                free = np.setdiff1d(np.arange(len(self._kept[0])), slots)
            for kept in self._kept:
                kept[free[:copies], :read] = kept[slots[again], :read]
            slots[again] = free[:copies]
            self._slots, self._lengths = slots, self._lengths[chosen]

    def forget(self, sequences: npt.ArrayLike) -> None:
        """Have read nothing of some of the sequences: positions of what they read next begin anew.

        Raises:
            TypeError, ValueError: as `select`.
        """
        with self.model.guard.lock:
            chosen = checks.indices("sequences", sequences, self._lengths.size)
            lengths = self._lengths.copy()
            lengths[chosen] = 0
            self._lengths = lengths

    def _check(self, batch: PackedBatch) -> None:
        if not isinstance(batch, PackedBatch):
            raise InvalidTypeError(
                f"batch must be a PackedBatch, got {type(batch).__name__}; make one with "
                "fastformer.pack(list of lists of ids)"
            )
        config = self.model.config
        if batch.num_sequences != self._lengths.size:
            checks.fail(
                f"batch must have the cache's {self._lengths.size} sequences, "
                f"got {batch.num_sequences}"
            )
        check_ids(batch, config.vocab_size)
        check_room(int((self._lengths + batch._lengths).max()), config.max_seq_len)


class _Kept:
    """Where a program of generation keeps keys and values: arrays that each run brings.

    Attributes:
        tensors: keys and values of each layer in turn, a row for each token of each slot.
    """

    def __init__(self, p: Program) -> None:
        self.tensors: list[Tensor] = []
        self._rows = p.copied("kept.rows", ROWS, kind="int")
        self._starts = p.copied("kept.starts", SEQUENCE_ROWS, kind="int")
        self._ends = p.copied("kept.ends", SEQUENCE_ROWS, kind="int")

    def keep(self, p: Program, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Append the ops that keep a block's new keys and values; see `program.KeyValues`."""
        keys, values = (
            p.bound(f"{name}.{len(self.tensors)}", p.number("kept rows"), k.axes[1])
            for name in ("keys", "values")
        )
        self.tensors += [keys, values]
        for x, kept in ((k, keys), (v, values)):
            p.add(keep_rows, x=x, rows=self._rows, kept=kept)
        return keys, values, self._starts, self._ends


def _all_rows(model: Model, p: Program) -> None:
    """Append forward with a cache."""
    p.cache = _Kept(p)
    p.forward(model, p.copied("logits", ROWS, Axis(model.config.vocab_size)))


def _last_rows(model: Model, p: Program) -> None:
    """Append forward with a cache, and the read-out of the last row of each sequence alone."""
    p.cache = _Kept(p)
    logits = p.copied("logits", SEQUENCE_ROWS, Axis(model.config.vocab_size))
    p.forward(model, logits, last_only=True)


def generation_workspace(model: TransformerDecoder, last_only: bool = False) -> Workspace:
    """Return the workspace of the program that reads more tokens; see `KeyValueCache.extend`."""
    name, build = ("last rows", _last_rows) if last_only else ("generation", _all_rows)
    return model.workspace(name, build, "ops")


def _kept_by(space: Workspace) -> list[Tensor]:
    """Return the tensors of all layers' keys and values."""
    assert isinstance(space.program.cache, _Kept)
    return space.program.cache.tensors


def check_ids(batch: PackedBatch, vocab_size: int) -> None:
    """Raise where a batch has an id that a model does not have, and say where."""
    if batch.largest_id >= vocab_size:
        checks.fail(
            f"token ids must be below {vocab_size=}, got {batch.largest_id} "
            f"at token {int(batch.tokens.argmax())}"
        )


def check_room(needed: int, max_seq_len: int) -> None:
    """Raise where a sequence is longer than a model reads, and say by how much."""
    if needed > max_seq_len:
        checks.fail(
            f"a sequence of {needed} tokens is {needed - max_seq_len} longer than "
            f"max_seq_len={max_seq_len}; shorten the prompt or ask for fewer new tokens"
        )
