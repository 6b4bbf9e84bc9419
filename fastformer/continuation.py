"""What generation does: prompts are read, and tokens chosen and read one after the other."""

from collections.abc import Sequence

import numpy as np

from fastformer import checks
from fastformer.batch import Ids, pack
from fastformer.errors import InvalidTypeError
from fastformer.key_value_cache import KeyValueCache, check_ids
from fastformer.models.decoder import TransformerDecoder
from fastformer.parameters import Array
from fastformer.random import first_numbers
from fastformer.sampling import Sampling, log_probabilities

# Places and samples are counters of random numbers, which have 32 bits.
MOST_TOKENS = MOST_SAMPLES = 2**31 - 1
# For so many places random numbers are made at once.
_PLACES_AT_ONCE = 256


class Continuation:
    """Texts that begin with prompts, written a token of each row at a time.

    A row is a sample of a prompt. What it becomes depends on no other row.

    Attributes:
        rows: numbers of those that go on.
        tokens, sums, ended, cropped: of all rows, as in `generation.Generated`.
    """

    def __init__(
        self,
        model: TransformerDecoder,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        end: int | None,
        sampling: Sampling,
        stop: Sequence[Sequence[int]] | None,
        num_samples: int,
        seed: int,
    ) -> None:
        """Check what `generate` is given, and read the prompts."""
        batch = pack(prompts)
        self._cache = KeyValueCache(model, batch.num_sequences)
        check_ends(model, max_new_tokens, end)
        vocab_size, self._window = model.config.vocab_size, model.config.max_seq_len
        sampling.check(vocab_size)
        check_ids(batch, vocab_size)
        checks.integer("num_samples", num_samples, 1, MOST_SAMPLES)
        if num_samples > 1 and sampling.temperature is None:
            checks.fail(
                f"num_samples={num_samples} are draws: give a temperature too, or leave it out"
            )
        self._seed, self._sampling = checks.integer("seed", seed, 0), sampling
        self._end, self._stop = end, _stop_sequences(stop, vocab_size)
        self._left, self._place = int(max_new_tokens), 0

        texts = [ids.tolist() for ids in np.split(batch._tokens, batch._offsets[1:-1])]
        count = num_samples * len(texts)
        self._prompts, self._samples = np.divmod(np.arange(count), num_samples)
        self._texts = [texts[prompt] for prompt in self._prompts]
        self.tokens: list[list[int]] = [[] for _ in self._texts]
        self.sums, self.ended = np.zeros(count), np.zeros(count, bool)
        self.cropped = np.array([len(text) > self._window for text in self._texts])
        self.rows: Ids = np.arange(count)
        self._seen = np.zeros((count, vocab_size if sampling.repetition_penalty else 0), bool)
        for seen, text in zip(self._seen, self._texts, strict=True):
            seen[text if seen.size else []] = True
        if batch.longest > self._window:
            batch = pack([text[-self._window :] for text in texts])
        # A copy: of the arrays of one prompt's samples, each goes on by itself.
        self._logits = self._cache.extend(batch, last_only=True)[self._prompts]
        if num_samples > 1:
            self._cache.select(self._prompts)
        self._chosen: Ids | None = None  # tokens that are not read yet
        self._one_each = pack([[0]])

    def write(self) -> None:
        """Read what was chosen before, and choose a token for each row that goes on.

        Raises:
            ValueError: the model's logits are not finite.
        """
        if self._chosen is not None:
            self._read(self._chosen)
        checks.finite_result("logits", self._logits)
        chosen, rows = self._choose(), self.rows
        self.sums[rows] += log_probabilities(self._logits, chosen)
        self._place += 1
        self._left -= 1
        over = np.zeros(rows.size, bool) if self._end is None else chosen == self._end
        for place, (row, token) in enumerate(zip(rows.tolist(), chosen.tolist(), strict=True)):
            if not over[place]:
                self.tokens[row].append(token)
                over[place] = bool(self._stop) and self._cut_stop(self.tokens[row])
        if self._seen.size:
            self._seen[rows, chosen] = True
        if over.any():
            self.ended[rows[over]] = True
            self.rows, chosen = rows[~over], chosen[~over]
            if self.rows.size:
                self._cache.select(np.flatnonzero(~over))
        if not self._left:
            self.rows = self.rows[:0]
        self._chosen = chosen

    def begun_stop(self, tokens: list[int]) -> int:
        """Return how many of the last tokens may be the beginning of a stop sequence."""
        most = max(map(len, self._stop), default=1) - 1
        for count in range(min(most, len(tokens)), 0, -1):
            if any(tokens[-count:] == ids[:count] for ids in self._stop):
                return count
        return 0

    def _cut_stop(self, tokens: list[int]) -> bool:
        """Tell whether tokens end with a stop sequence; the longest such is then taken off."""
        found = max((len(ids) for ids in self._stop if tokens[-len(ids) :] == ids), default=0)
        del tokens[len(tokens) - found :]
        return found > 0

    def _choose(self) -> Ids:
        """Return the next token of each row that goes on."""
        logits = self._logits
        if self._seen.size:
            logits = self._sampling.penalized(logits, self._seen[self.rows])
        if self._sampling.temperature is None:
            likeliest: Ids = logits.argmax(axis=1)
            return likeliest
        place = self._place % _PLACES_AT_ONCE
        if place == 0:
            self._uniform = self._draw_numbers()
        return self._sampling.draw(logits, self._uniform[self.rows, place])

    def _draw_numbers(self) -> Array:
        """Return a number from 0 to 1 for each row and each of the next places."""
        places = self._place + np.arange(min(_PLACES_AT_ONCE, self._left))
        named = self._seed, "generation", self._prompts[:, None], places
        numbers = first_numbers(*named)
        if self._samples.any():
            samples = self._samples[:, None]
            numbers = np.where(samples, first_numbers(*named, samples), numbers)
        return numbers

    def _read(self, chosen: Ids) -> None:
        """Read the tokens that were chosen, and more of those rows whose beginning is dropped."""
        full = np.flatnonzero(self._cache.lengths == self._window)
        if not full.size:
            if len(self._one_each) != chosen.size:
                self._one_each = pack(chosen[:, None])
            batch = self._one_each._with_tokens(chosen)
        else:
            self.cropped[self.rows[full]] = True
            self._cache.forget(full)
            new, kept = chosen[:, None].tolist(), max(1, self._window // 2)
            for place in full:
                row = self.rows[place]
                new[place] = [*self._texts[row], *self.tokens[row]][-kept:]
            batch = pack(new)
        self._logits = self._cache.extend(batch, last_only=True)


def check_ends(model: TransformerDecoder, max_new_tokens: int, end: int | None) -> None:
    """Raise for a number of tokens, or an ending token, that is not allowed."""
    checks.integer("max_new_tokens", max_new_tokens, 1, MOST_TOKENS)
    if end is not None:
        checks.integer("end", end, 0, model.config.vocab_size - 1)


def _stop_sequences(stop: Sequence[Sequence[int]] | None, vocab_size: int) -> list[list[int]]:
    """Return stop sequences as lists of ints.

    Raises:
        TypeError, ValueError: what is no list of lists of ids that the model has.
    """
    if stop is None:
        return []
    if isinstance(stop, str) or not isinstance(stop, Sequence):
        raise InvalidTypeError(
            f"stop must be a list of lists of token ids, or None, got {stop!r:.60}"
        )
    found = [checks.id_array(f"stop sequence {n}", ids).tolist() for n, ids in enumerate(stop)]
    for n, ids in enumerate(found):
        if not ids or max(ids) >= vocab_size:
            checks.fail(
                f"stop sequence {n} must have at least one token id, all below {vocab_size=}, "
                f"got {ids!r:.60}"
            )
    return found
