"""Batches without padding: tokens end to end, and where each sequence starts."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fastformer import checks
from fastformer.errors import InvalidTypeError, InvalidValueError, ReadOnlyError

Ids = npt.NDArray[np.int64]

# Of sequences, and of the ids of each, in a repr.
_SHOWN = 8


class PackedBatch:
    """Sequences of token ids, packed.

    Nothing of it can be changed, for kernels trust the ids that were checked here. `len(batch)` is
    the number of its sequences.

    Attributes:
        tokens: (N,) int64, all sequences end to end.
        offsets: (B + 1,) int64, from 0 to N; sequence b is tokens[offsets[b]:offsets[b + 1]].
        positions: (N,) int64, each token's position in its sequence, from 0.
        num_sequences, num_tokens: B and N.
        longest: the length of the longest sequence.
        largest_id: the largest token id.
    """

    num_sequences: int
    num_tokens: int
    longest: int
    largest_id: int
    _tokens: Ids
    _offsets: Ids
    _lengths: Ids
    _positions: Ids
    _first_rows: Ids
    _last_rows: Ids
    _one_row_offsets: Ids

    def __init__(self, tokens: npt.ArrayLike, offsets: npt.ArrayLike) -> None:
        """Copy and check the arrays.

        Raises:
            TypeError: ids or offsets are not integers.
            ValueError: no sequence, an empty one, a negative id, or offsets that do not rise
                strictly from 0 to N.
        """
        ids = checks.id_array("tokens", tokens)
        starts = checks.id_array("offsets", offsets)
        lengths = np.diff(starts)
        if starts.size < 2 or starts[0] != 0:
            checks.fail(
                "offsets must begin with 0 and have one more element than there are sequences "
                f"(at least one), got {starts.tolist()[:8]}"
            )
        if (lengths <= 0).any():
            index = int(np.argmax(lengths <= 0))
            checks.fail(
                f"offsets must rise strictly, so that no sequence is empty; sequence {index} "
                f"has length {lengths[index]}"
            )
        if starts[-1] != ids.size:
            checks.fail(
                f"the last offset must be the number of tokens, {ids.size}, got {starts[-1]}"
            )
        self._keep(ids, starts, lengths)

    def _keep(self, tokens: Ids, offsets: Ids, lengths: Ids) -> None:
        """Keep arrays that nobody else has, and that were checked."""
        starts, sequences = offsets[:-1], int(lengths.size)
        # Kernels are given the writable arrays: Numba would compile anew for read-only ones.
        self.__dict__.update(
            _tokens=tokens,
            _offsets=offsets,
            _lengths=lengths,
            _positions=np.arange(tokens.size, dtype=np.int64) - np.repeat(starts, lengths),
            _first_rows=starts.copy(),
            _last_rows=offsets[1:] - 1,
            _one_row_offsets=np.arange(sequences + 1, dtype=np.int64),
            num_sequences=sequences,
            num_tokens=int(tokens.size),
            longest=int(lengths.max()),
            largest_id=int(tokens.max()),
        )

    @cached_property
    def tokens(self) -> Ids:
        """The token ids, read-only."""
        return _read_only(self._tokens)

    @cached_property
    def offsets(self) -> Ids:
        """Where each sequence starts, and N; read-only."""
        return _read_only(self._offsets)

    @cached_property
    def positions(self) -> Ids:
        """Each token's position in its sequence; read-only."""
        return _read_only(self._positions)

    def select(self, sequences: npt.ArrayLike) -> "PackedBatch":
        """Return a batch of some of the sequences, in the order that is given.

        Args:
            sequences: (any,) integers, each from 0 to num_sequences - 1, at least one. A number
                may be there several times.

        Raises:
            TypeError: not integers, or not one-dimensional.
            ValueError: none, or one that is negative or too large.
        """
        chosen = checks.indices("sequences", sequences, self.num_sequences)
        starts = self._offsets[chosen]
        lengths = self._offsets[chosen + 1] - starts
        offsets = np.zeros(lengths.size + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        rows = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        selected = PackedBatch.__new__(PackedBatch)
        selected._keep(self._tokens[rows], offsets, lengths)
        return selected

    def _with_tokens(self, tokens: Ids) -> "PackedBatch":
        """Return the same batch of other ids, (N,) int64, each >= 0: neither copied nor checked."""
        other = PackedBatch.__new__(PackedBatch)
        other.__dict__.update(self.__dict__, _tokens=tokens, largest_id=int(tokens.max()))
        other.__dict__.pop("tokens", None)
        return other

    def going_on(self, read: Ids) -> "PackedBatch":
        """Return the same batch, whose sequences go on behind so many tokens of each, (B,)."""
        begun = PackedBatch.__new__(PackedBatch)
        begun.__dict__.update(self.__dict__)
        begun.__dict__.pop("positions", None)
        behind = np.repeat(read, self._lengths)
        begun.__dict__["_positions"] = self._positions + behind
        return begun

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse.

        Raises:
            ReadOnlyError: always.
        """
        raise ReadOnlyError(f"a PackedBatch cannot be changed ({name}); pack another one")

    def __delattr__(self, name: str) -> None:
        """Refuse, as `__setattr__` does."""
        self.__setattr__(name, None)

    def __len__(self) -> int:
        """Return the number of sequences."""
        return self.num_sequences

    def __repr__(self) -> str:
        """Say how much is packed, and show the beginning."""
        ends = zip(self._offsets[:_SHOWN], self._offsets[1:], strict=False)
        shown = [
            ", ".join(map(str, self._tokens[start : min(end, start + _SHOWN)]))
            + (", ..." if end - start > _SHOWN else "")
            for start, end in ends
        ]
        more = ", ..." if self.num_sequences > _SHOWN else ""
        sequences = ", ".join(f"[{ids}]" for ids in shown)
        return (
            f"PackedBatch({_count(self.num_sequences, 'sequence')}, "
            f"{_count(self.num_tokens, 'token')}, longest {self.longest}: {sequences}{more})"
        )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _read_only(array: Ids) -> Ids:
    # Over bytes, which no flag makes writable again.
    return np.frombuffer(array.tobytes(), np.int64)


def pack(
    sequences: Sequence[Sequence[int]] | npt.NDArray[Any],
    lengths: Sequence[int] | npt.NDArray[Any] | None = None,
) -> PackedBatch:
    """Pack sequences of token ids into one batch without padding.

    Args:
        sequences: a list of lists of ids, each of its own length; or, with `lengths`, a padded
            (B, T) array of integers, of which row b's first lengths[b] ids are used.
        lengths: (B,) integers from 1 to T.

    Returns:
        The packed batch.

    Raises:
        TypeError: ids or lengths are not integers.
        ValueError: no sequence, an empty one, a negative id, or a length outside 1 to T.
    """
    if lengths is not None:
        return _pack_padded(sequences, lengths)
    if isinstance(sequences, np.ndarray) and sequences.ndim != 2:
        checks.fail(f"a padded array must be (B, T), got shape {sequences.shape}")
    if isinstance(sequences, str) or not isinstance(sequences, Sequence | np.ndarray):
        raise InvalidTypeError(
            f"sequences must be a list of lists of token ids, got {type(sequences).__name__}"
        )
    if len(sequences) == 0:
        checks.fail("a batch must have at least one sequence, got none")
    parts = []
    for index, sequence in enumerate(sequences):
        if not _is_flat(sequence):
            raise InvalidTypeError(
                f"sequences must be a list of lists of token ids; sequence {index} is {sequence!r}"
            )
        if len(sequence) == 0:
            checks.fail(f"sequence {index} is empty; each must have at least one token")
        parts.append(checks.id_array(f"sequence {index}", sequence))
    offsets = np.zeros(len(parts) + 1, np.int64)
    np.cumsum([part.size for part in parts], out=offsets[1:])
    return PackedBatch(np.concatenate(parts), offsets)


def _is_flat(sequence: Any) -> bool:
    """Tell whether a sequence has one axis, whatever its elements are."""
    if isinstance(sequence, np.ndarray):
        return sequence.ndim == 1
    listed = isinstance(sequence, Sequence) and not isinstance(sequence, str)
    return listed and all(np.ndim(element) == 0 for element in sequence)


def pack_targets(
    targets: npt.NDArray[Any] | Sequence[Sequence[int]], lengths: npt.ArrayLike
) -> Ids:
    """Pack padded targets as `pack` packs the tokens that they belong to.

    A step's targets are one for each token, without padding:

        batch, packed = ff.pack(tokens, lengths), ff.pack_targets(targets, lengths)
        ff.train_step(model, batch, packed, loss_fn, optimizer)

    Args:
        targets: a padded (B, T) array of integers, of which row b's first lengths[b] are used;
            the loss's ignore_index where nothing is asked.
        lengths: (B,) integers from 1 to T: those of the tokens.

    Returns:
        (N,) int64, the targets of all sequences end to end.

    Raises:
        TypeError: targets or lengths are not integers, or targets are not (B, T).
        ValueError: a length outside 1 to T, or another number of lengths than of rows.
    """
    used, _ = _unpadded("targets", targets, lengths, "give those of each token, (N,), as they are")
    return used.astype(np.int64)


def pack_text(ids: npt.ArrayLike, length: int) -> tuple[PackedBatch, Ids]:
    """Pack a text, end to end, in sequences of one length, each token with the one behind it.

        inputs, targets = ff.pack_text(tokenizer.encode(text), 64)

    Args:
        ids: (N + 1,) integers, the tokens of the text, N >= 1.
        length: of each sequence; the last one has what is left. At least 1.

    Returns:
        The first N tokens as a batch, and their targets, (N,) int64: the last N.

    Raises:
        TypeError: ids are not integers.
        ValueError: fewer than two, one that is negative, or a length below 1.
    """
    tokens = checks.id_array("ids", ids)
    checks.integer("length", length, 1)
    if tokens.size < 2:
        checks.fail(f"ids must be at least two, so that one has another behind it: {tokens.size}")
    count = tokens.size - 1
    return PackedBatch(tokens[:-1], np.append(np.arange(0, count, length), count)), tokens[
        1:
    ].copy()


def _pack_padded(padded: Any, lengths: Any) -> PackedBatch:
    """Pack the rows of a padded array."""
    remedy = "leave lengths out to pack those"
    used, counts = _unpadded("with lengths, sequences", padded, lengths, remedy)
    offsets = np.zeros(counts.size + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return PackedBatch(used, offsets)


def _unpadded(name: str, padded: Any, lengths: Any, remedy: str) -> tuple[npt.NDArray[Any], Ids]:
    """Return the ids of a padded array that its lengths leave, end to end, and the lengths."""
    try:
        ids = np.asarray(padded)
    except ValueError:
        raise InvalidTypeError(
            f"{name} must be a padded (B, T) array of integers, got rows of different lengths; "
            f"{remedy}"
        ) from None
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise InvalidTypeError(
            f"{name} must be a padded (B, T) array of integers, got shape {ids.shape} {ids.dtype}"
        )
    counts = checks.id_array("lengths", lengths)
    if counts.shape != (ids.shape[0],):
        checks.fail(f"lengths must be ({ids.shape[0]},), one for each row, got {counts.shape}")
    outside = (counts < 1) | (counts > ids.shape[1])
    if outside.any():
        row = int(np.argmax(outside))
        raise InvalidValueError(
            f"lengths must be from 1 to T = {ids.shape[1]}, got {counts[row]} for row {row}"
        )
    return ids[np.arange(ids.shape[1]) < counts[:, None]], counts
