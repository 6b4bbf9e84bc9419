"""Generation with the decoder: token after token, greedily, at random, or the best of several.

Keys and values of what was read are kept, so a new token costs one row, not the whole sequence.
With the compiled kernels the logits have the bits of the full forward: none of a row's bits depend
on the rows beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastformer import checks
from fastformer.batch import Ids, PackedBatch, pack
from fastformer.errors import InvalidTypeError
from fastformer.fixed import Fixed
from fastformer.kernels.sequence_rows import keep_rows
from fastformer.models.base import Model
from fastformer.models.decoder import TransformerDecoder
from fastformer.parameters import Array
from fastformer.program import Program
from fastformer.random import generator
from fastformer.tensors import ROWS, SEQUENCE_ROWS, Axis, Tensor
from fastformer.warmup import ensure_compiled
from fastformer.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Generated:
    """What a model went on with.

    Attributes:
        tokens: the new ids, without the one that ends.
        log_probability: of these tokens after the prompt, by the model's own softmax, with that of
            the ending token where it ended.
        ended: whether the ending token came; else there was no room for more.
    """

    tokens: list[int]
    log_probability: float
    ended: bool


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
        self._kept = [np.zeros((*shape, t.axes[1].factor), model.dtype) for t in tensors]

    @property
    def lengths(self) -> Ids:
        """How many tokens of each sequence were read, (B,): a copy."""
        return self._lengths.copy()

    def extend(self, batch: PackedBatch) -> Array:
        """Read more tokens of each sequence, without dropout.

        Args:
            batch: the next tokens of each sequence, at least one.

        Returns:
            (N, V) logits, one row for each new token: what comes after it.

        Raises:
            ValueError: another number of sequences, an id that the model does not have, or a
                sequence that becomes longer than the model reads.
            TypeError: not a PackedBatch.
            OtherThreadError: another thread called one of the model's layers by itself.
        """
        with self.model.guard:
            self._check(batch)
            with self.model.evaluating(), self.model.threads.at("generation", batch.num_tokens):
                return self._extend(batch)

    def _extend(self, batch: PackedBatch) -> Array:
        space = generation_workspace(self.model)
        ensure_compiled(space.kernels())
        begun = batch.going_on(self._lengths)
        most = self.model.config.max_seq_len
        new, starts = np.diff(batch._offsets), self._slots * most
        ends, rows = self._lengths + new, np.repeat(starts, new) + begun._positions
        kept = zip(_kept_by(space), self._kept, strict=True)
        bound = {tensor: array.reshape(-1, array.shape[2]) for tensor, array in kept}
        space.run(
            begun,
            longest=int(ends.max()),
            numbers={"kept rows": most * self._kept[0].shape[0]},
            bound=bound,
            copied={"kept.rows": rows, "kept.starts": starts, "kept.ends": starts + ends},
        )
        self._lengths = ends
        return space.left("logits", batch.num_tokens).copy()

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
                self._kept = [np.pad(kept, [(0, more), (0, 0), (0, 0)]) for kept in self._kept]
                free = np.setdiff1d(np.arange(len(self._kept[0])), slots)
            for kept in self._kept:
                kept[free[:copies], :read] = kept[slots[again], :read]
            slots[again] = free[:copies]
            self._slots, self._lengths = slots, self._lengths[chosen]

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
        if batch.largest_id >= config.vocab_size:
            checks.fail(
                f"token ids must be below vocab_size={config.vocab_size}, got {batch.largest_id} "
                f"at token {int(batch.tokens.argmax())}"
            )
        check_room(int((self._lengths + np.diff(batch._offsets)).max()), config.max_seq_len)


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


def _generation_program(model: Model, p: Program) -> None:
    """Append forward with a cache."""
    p.cache = _Kept(p)
    p.forward(model, p.copied("logits", model.logits_rows, Axis(model.config.vocab_size)))


def generation_workspace(model: TransformerDecoder) -> Workspace:
    """Return the workspace of the program that reads more tokens."""
    return model.workspace("generation", _generation_program, "ops")


def _kept_by(space: Workspace) -> list[Tensor]:
    """Return the tensors of all layers' keys and values."""
    assert isinstance(space.program.cache, _Kept)
    return space.program.cache.tensors


def check_room(needed: int, max_seq_len: int) -> None:
    """Raise where a sequence is longer than a model reads, and say by how much."""
    if needed > max_seq_len:
        checks.fail(
            f"a sequence of {needed} tokens is {needed - max_seq_len} longer than "
            f"max_seq_len={max_seq_len}; shorten the prompt or ask for fewer new tokens"
        )


def generate(
    model: TransformerDecoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    end: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    seed: int = 0,
) -> list[Generated]:
    """Go on from each prompt.

    Args:
        model: a decoder.    prompts: token ids, at least one each.
        max_new_tokens: >= 1; the last of them need not be read.
        end: the id after which a sequence is over; None for never.
        temperature: > 0, what logits are divided by before a token is drawn; None takes the
            likeliest token each time.
        top_k: draw from so many of the likeliest, 1 to V; None for all.
        seed: of the draws, which also depend on the prompt's number and the place alone.

    Returns:
        One for each prompt.

    Raises:
        ValueError, TypeError: an argument that is not allowed; the message names it.
    """
    cache, logits = _start(model, prompts, max_new_tokens, end)
    vocab_size = model.config.vocab_size
    if temperature is not None:
        checks.number("temperature", temperature, above=0)
    if top_k is not None:
        checks.integer("top_k", top_k, 1, vocab_size)
        if temperature is None:
            checks.fail("top_k is for draws: give a temperature too, or leave out top_k")
    checks.integer("seed", seed, 0)
    tokens: list[list[int]] = [[] for _ in prompts]
    sums, ended = np.zeros(len(prompts)), np.zeros(len(prompts), bool)
    open_prompts = np.arange(len(prompts))
    for place in range(max_new_tokens):
        scores = log_softmax(logits)
        if temperature is None:
            chosen = logits.argmax(axis=1)
        else:
            uniform = np.array(
                [generator(seed, "generation", int(p), place).random() for p in open_prompts]
            )
            chosen = draw(logits, uniform, temperature, top_k)
        sums[open_prompts] += scores[np.arange(chosen.size), chosen]
        going_on = np.ones(chosen.size, bool) if end is None else chosen != end
        ended[open_prompts[~going_on]] = True
        open_prompts, chosen = open_prompts[going_on], chosen[going_on]
        for prompt, token in zip(open_prompts, chosen, strict=True):
            tokens[prompt].append(int(token))
        if not chosen.size or place == max_new_tokens - 1:
            break
        cache.select(np.flatnonzero(going_on))
        logits = cache.extend(pack(chosen[:, None]))
    return [
        Generated(tokens=ids, log_probability=float(total), ended=bool(over))
        for ids, total, over in zip(tokens, sums, ended, strict=True)
    ]


def beam_search(
    model: TransformerDecoder,
    prompt: Sequence[int],
    *,
    beams: int,
    max_new_tokens: int,
    end: int | None = None,
) -> list[Generated]:
    """Look for the likeliest ways to go on from a prompt.

    At each place the `beams` best sequences are kept, by the sum of their log probabilities, and
    ended ones among them. With one beam it is what `generate` does without a temperature; with as
    many as there are sequences it finds the best of all.

    Args:
        model: a decoder.    prompt: token ids, at least one.    beams: >= 1.
        max_new_tokens, end: as for `generate`.

    Returns:
        At most `beams`, the likeliest first.

    Raises:
        ValueError, TypeError: an argument that is not allowed; the message names it.
    """
    checks.integer("beams", beams, 1)
    cache, logits = _start(model, [prompt], max_new_tokens, end)
    kept = [Generated(tokens=[], log_probability=0.0, ended=False)]
    for place in range(max_new_tokens):
        going_on = [beam for beam in kept if not beam.ended]
        scores = log_softmax(logits) + np.array([[b.log_probability] for b in going_on])
        best = np.argsort(-scores, axis=None, kind="stable")[:beams]
        candidates: list[tuple[Generated, int]] = [(beam, -1) for beam in kept if beam.ended]
        for parent, token in zip(*np.unravel_index(best, scores.shape), strict=True):
            over = token == end
            ids = going_on[parent].tokens + ([] if over else [int(token)])
            total = float(scores[parent, token])
            found = Generated(tokens=ids, log_probability=total, ended=bool(over))
            candidates.append((found, int(parent)))
        candidates = sorted(candidates, key=lambda pair: -pair[0].log_probability)[:beams]
        kept = [beam for beam, _ in candidates]
        parents = [parent for beam, parent in candidates if not beam.ended]
        if not parents or place == max_new_tokens - 1:
            break
        cache.select(parents)
        logits = cache.extend(pack([beam.tokens[-1:] for beam in kept if not beam.ended]))
    return kept


def _start(
    model: TransformerDecoder,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    end: int | None,
) -> tuple[KeyValueCache, Array]:
    """Read the prompts; return the cache and the logits (B, V) of what comes after each."""
    checks.integer("max_new_tokens", max_new_tokens, 1)
    batch = pack(prompts)
    cache = KeyValueCache(model, batch.num_sequences)
    if end is not None:
        checks.integer("end", end, 0, model.config.vocab_size - 1)
    check_room(batch.longest + max_new_tokens - 1, model.config.max_seq_len)
    return cache, cache.extend(batch)[batch._last_rows]


def log_softmax(logits: Array) -> Array:
    """Return log softmax of each row, in float64.

    Raises:
        ValueError: logits that are not finite.
    """
    checks.finite_result("logits", logits)
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def draw(logits: Array, uniform: Array, temperature: float, top_k: int | None) -> Ids:
    """Draw a token for each row, by a number from 0 to 1 for each.

    Args:
        logits: (B, V).    uniform: (B,), each >= 0 and < 1.
        temperature: > 0.    top_k: so many of the likeliest; of equals the smaller id goes first.

    Returns:
        (B,) int64.
    """
    order = np.argsort(-logits, axis=1, kind="stable")[:, :top_k]
    likeliest = np.take_along_axis(logits.astype(np.float64), order, axis=1)
    weights = np.exp((likeliest - likeliest[:, :1]) / temperature)
    reached = np.cumsum(weights, axis=1)
    place = (reached <= uniform[:, None] * reached[:, -1:]).sum(axis=1)
    chosen: Ids = order[np.arange(len(order)), place]
    return chosen
