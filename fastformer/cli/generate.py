"""`fastformer generate`: what a model that has learned a text goes on with."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fastformer import checks
from fastformer import threads as thread_count
from fastformer.cli import console


def generate(
    run: Path,
    /,
    *,
    prompt: str | None = None,
    tokens: int = 200,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    stop: str | None = None,
    seed: int = 0,
    threads: int | None = None,
    json: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
) -> None:
    """Let a run's best model go on with a prompt, token after token.

    A text may become longer than the model reads: it then goes on from its last part.

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
        stop: end before this text; without it, where a document ends, if the model has learned
            documents.
        seed: of the draws: the same seed gives the same text.
        threads: number of threads; without it, as many as the machine or container allows.
        json: write one JSON object with prompt, text and tokens, instead of text as it comes.
    """
    thread_count.configure(threads)
    from fastformer.analysis.loading import load_text_run
    from fastformer.generation import generate_stream

    checks.number("temperature", temperature, at_least=0)
    model, settings = load_text_run(run)
    tokenizer = settings.tokenizer
    prompt = settings.usual_prompt if prompt is None else prompt
    ids = settings.prompt_tokens(prompt)
    stream = generate_stream(
        model,
        ids,
        max_new_tokens=tokens,
        temperature=temperature or None,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=settings.stop(settings.task.ending if stop is None else stop),
        seed=seed,
    )
    if json:
        found = list(stream)
        text = tokenizer.decode(found)
        console.json_line({"prompt": prompt, "text": text, "tokens": found})
        return
    # Behind the prompt, for a word that follows another one has a space before it.
    written, found = tokenizer.decode(ids), list(ids)
    sys.stdout.write(prompt.lstrip("\n"))
    for token in stream:
        found.append(token)
        text = tokenizer.decode(found)
        # A character may have several tokens: what may still change is held back.
        if not text.endswith("\ufffd"):
            sys.stdout.write(text[len(written) :])
            sys.stdout.flush()
            written = text
    sys.stdout.write(tokenizer.decode(found)[len(written) :] + "\n")
