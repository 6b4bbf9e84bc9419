"""Generation with the decoder: token after token, greedily, at random, or the best of several."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fastformer import checks
from fastformer.batch import pack
from fastformer.continuation import Continuation, check_ends
from fastformer.key_value_cache import KeyValueCache, check_room
from fastformer.models.decoder import TransformerDecoder
from fastformer.sampling import Sampling, log_softmax


@dataclass(frozen=True, kw_only=True)
class Generated:
    """What a model went on with.

    Attributes:
        tokens: the new ids, without the one, or the stop sequence, that ends.
        log_probability: of these tokens after the prompt, by the model's own softmax, with that of
            what ended it.
        ended: whether the ending token or a stop sequence came; else there was no room for more.
        cropped: whether the model did not see all of the text, which was longer than it reads.
    """

    tokens: list[int]
    log_probability: float
    ended: bool
    cropped: bool = False


def generate(
    model: TransformerDecoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    end: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    stop: Sequence[Sequence[int]] | None = None,
    num_samples: int = 1,
    seed: int = 0,
) -> list[Generated]:
    """Go on from each prompt.

    A text may become longer than the model reads. Of a prompt that is too long, the last
    max_seq_len tokens are read. Where there is no room for one more, the last half of what the
    model can read is read anew, as if the text began there, and all before is forgotten: so that
    reading anew is seldom, and whatever the positions are, the model sees them as it was trained.

    Args:
        model: a decoder.    prompts: token ids, at least one each.
        max_new_tokens: from 1 to 2^31 - 1; the last of them need not be read.
        end: the id after which a sequence is over; None for never.
        temperature: > 0, what logits are divided by before a token is drawn; None takes the
            likeliest token each time.
        top_k: draw from so many of the likeliest, 1 to V; None for all.
        top_p: > 0 and <= 1: and of these, from the likeliest that together have this share.
        min_p: from 0 to 1: and of these, from what is at least so likely as this times the
            likeliest.
        repetition_penalty: from 1e-6 to 1e6: logits of tokens that the prompt or the new tokens
            have are divided by it, negative ones multiplied, before all else; also without a
            temperature. See `fastformer.sampling` for sources.
        stop: lists of ids, at least one each: a sequence is over where its new tokens end with one.
        num_samples: of each prompt, which is read once; more than one need a temperature.
        seed: of the draws, which also depend on the numbers of the prompt, of the sample and of
            the place alone; the first sample is what there is without others.

    Returns:
        One for each sample of the first prompt, then for each of the second, and so on.

    Raises:
        ValueError, TypeError: an argument that is not allowed; the message names it.
    """
    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
    )
    texts = Continuation(model, prompts, max_new_tokens, end, sampling, stop, num_samples, seed)
    while texts.rows.size:
        texts.write()
    found = zip(texts.tokens, texts.sums, texts.ended, texts.cropped, strict=True)
    return [
        Generated(
            tokens=tokens, log_probability=float(total), ended=bool(ended), cropped=bool(cropped)
        )
        for tokens, total, ended, cropped in found
    ]


def generate_stream(
    model: TransformerDecoder,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    end: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    stop: Sequence[Sequence[int]] | None = None,
    seed: int = 0,
) -> Iterator[int]:
    """Go on from a prompt, and give each token when it is there.

    Tokens that may be the beginning of a stop sequence wait until it is known whether they are.

    Args:
        model: a decoder, whose weights must stay as they are.    prompt: token ids, at least one.
        max_new_tokens, end, temperature, top_k, top_p, min_p, repetition_penalty, stop, seed: as
            for `generate`.

    Returns:
        An iterator of the tokens that `generate` returns for this prompt alone.

    Raises:
        ValueError, TypeError: an argument that is not allowed; the message names it. It is raised
            at once, before the first token is asked for.
    """
    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
    )
    return _stream(Continuation(model, [prompt], max_new_tokens, end, sampling, stop, 1, seed))


def _stream(texts: Continuation) -> Iterator[int]:
    """Yield the new tokens of the one text that is written."""
    tokens, told = texts.tokens[0], 0
    while texts.rows.size:
        texts.write()
        sure = len(tokens) - (texts.begun_stop(tokens) if texts.rows.size else 0)
        yield from tokens[told:sure]
        told = max(told, sure)


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
    cache = KeyValueCache(model, 1)
    check_ends(model, max_new_tokens, end)
    batch = pack([prompt])
    check_room(batch.longest + max_new_tokens - 1, model.config.max_seq_len)
    logits = cache.extend(batch, last_only=True)
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
