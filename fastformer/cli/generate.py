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
    prompt: str = "\n",
    tokens: int = 200,
    temperature: float = 0.8,
    top_k: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    json: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
) -> None:
    """Let a run's best model go on with a prompt, token after token.

    Args:
        run: directory of a run on text.
        prompt: what comes before; a new line unless given.
        tokens: how many tokens are added.
        temperature: what logits are divided by before a token is drawn; 0 takes the likeliest.
        top_k: draw from so many of the likeliest.
        seed: of the draws: the same seed gives the same text.
        threads: number of threads; without it, as many as the machine or container allows.
        json: write one JSON object with prompt, text and tokens.
    """
    thread_count.configure(threads)
    from fastformer import generation
    from fastformer.analysis.loading import load_text_run

    checks.number("temperature", temperature, at_least=0)
    model, tokenizer = load_text_run(run)
    ids = tokenizer.encode(prompt).tolist()
    if not ids:
        checks.fail("the prompt is empty: give at least one character")
    (found,) = generation.generate(
        model,
        [ids],
        max_new_tokens=tokens,
        temperature=temperature or None,
        top_k=top_k,
        seed=seed,
    )
    text = tokenizer.decode(found.tokens)
    if json:
        console.json_line({"prompt": prompt, "text": text, "tokens": found.tokens})
        return
    sys.stdout.write(prompt.lstrip("\n") + text + "\n")
