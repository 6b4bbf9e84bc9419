"""`fastformer generate`: what a model that has learned a text goes on with."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from fastformer import checks
from fastformer import threads as thread_count
from fastformer.cli import console

if TYPE_CHECKING:
    from fastformer.data.tokenizers import Tokenizer


def generate(
    run: Path,
    /,
    prompt: str | None = None,
    *,
    tokens: int = 200,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    stop: str | None = None,
    num_samples: int = 1,
    seed: int = 0,
    threads: int | None = None,
    json: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
) -> None:
    """Let a run's best model go on with a prompt, token after token.

    Args:
        run: directory of a run on text.
        prompt: what comes before; without one, the beginning of a document, or a new line, or a
            space, if the text has them.
        tokens: how many tokens are added.
        temperature: what logits are divided by before a token is drawn; 0 takes the likeliest.
        top_k: draw from so many of the likeliest.
        top_p: draw from the likeliest that have this share of the probability together.
        min_p: draw from those that have this share of the likeliest one's probability, or more.
        repetition_penalty: above 1, tokens that are there already become less likely.
        stop: end before this text. A text also ends where a document does, if the model has
            learned documents.
        num_samples: how many texts are written; more than one need a temperature.
        seed: of the draws: the same seed gives the same texts.
        threads: number of threads; without it, as many as the machine or container allows.
        json: write one JSON object with prompt, text and tokens for each text, instead of text as
            it comes.
    """
    thread_count.configure(threads)
    from fastformer.analysis.loading import load_text_run
    from fastformer.generation import generate_stream

    checks.number("temperature", temperature, at_least=0)
    model, settings = load_text_run(run)
    tokenizer = settings.tokenizer
    stops = [one for one in (stop, settings.task.ending) if one]
    prompt = settings.usual_prompt if prompt is None else prompt
    ids = settings.prompt_tokens(prompt)
    checks.integer("num_samples", num_samples, 1)
    if num_samples > 1 and not temperature:
        checks.fail("num_samples above 1 need a temperature: without one, all texts are the same")
    longest = model.config.max_seq_len
    if len(ids) + tokens > longest + 1 and not stops:
        console.notice(
            f"The text may become longer than the {longest} tokens that the model reads: from "
            "there on it sees the last part alone."
        )
    for sample in range(num_samples):
        stream = generate_stream(
            model,
            ids,
            max_new_tokens=tokens,
            temperature=temperature or None,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed + sample,
        )
        found: list[int] = []
        pieces = _pieces(tokenizer, ids, stream, stops, found)
        if json:
            text = "".join(pieces)
            console.json_line({"prompt": prompt, "text": text, "tokens": found})
            continue
        if sample:
            console.line("---")
        sys.stdout.write(prompt.lstrip("\n"))
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")


def _pieces(
    tokenizer: "Tokenizer",
    ids: list[int],
    stream: Iterator[int],
    stops: list[str],
    found: list[int],
) -> Iterator[str]:
    """Yield the new text as it comes, which ends before a stop, and note its tokens in `found`.

    A character may have several tokens: what may still change, or may become a stop, is held
    back. Texts are decoded behind the prompt, for a word that follows one has a space before it.
    """
    begin, written = len(tokenizer.decode(ids)), 0
    for token in stream:
        found.append(token)
        text = tokenizer.decode([*ids, *found])[begin:]
        ends = [text.index(stop) for stop in stops if stop in text]
        if ends:
            yield text[written : min(ends)]
            return
        held = max((_begun(text, stop) for stop in stops), default=0)
        if not text.endswith("\ufffd") and len(text) - held > written:
            yield text[written : len(text) - held]
            written = len(text) - held
    yield tokenizer.decode([*ids, *found])[begin + written :]


def _begun(text: str, stop: str) -> int:
    """Return how many of the text's last characters may be the beginning of a stop."""
    return next(n for n in range(len(stop) - 1, -1, -1) if text.endswith(stop[:n]))
