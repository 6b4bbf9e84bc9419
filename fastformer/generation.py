"""Generation with the decoder: token after token, greedily, at random, or the best of several."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastformer import checks
from fastformer.batch import Ids, pack
from fastformer.key_value_cache import KeyValueCache, check_room
from fastformer.models.decoder import TransformerDecoder
from fastformer.parameters import Array
from fastformer.random import generator


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
