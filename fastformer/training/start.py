"""A run that begins with another run's weights."""

from dataclasses import asdict
from pathlib import Path

from fastformer.data.tokenizers import FILE
from fastformer.errors import CheckpointError, RunError
from fastformer.models.decoder import TransformerDecoder
from fastformer.models.transformer import Transformer
from fastformer.training.loop import load_weights
from fastformer.training.run_directory import RunDirectory
from fastformer.training.settings import TOKENIZER_DIGEST, Settings


def load_start(model: Transformer | TransformerDecoder, settings: Settings) -> list[str]:
    """Load the best weights of the run that a new one begins from.

    Args:
        model: of the new run.    settings: the new run's, with `start_from`.

    Returns:
        Sentences about what the new run has from the other, for a person.

    Raises:
        RunError: there is no such run, it has no best checkpoint, or its model has other sizes.
    """
    run = RunDirectory.open(Path(settings.start_from))
    tables, own = run.config, settings.tables()
    kind = tables.get("run", {}).get("kind")
    if kind != settings.kind:
        raise RunError(
            f"cannot begin from {run.path}: it is a run of kind {kind!r}, and this one of kind "
            f"{settings.kind!r}; choose another run, or train its task"
        )
    theirs, task = tables.get("model", {}), tables.get("task", {})
    if settings.has_tokenizer and task.get(TOKENIZER_DIGEST) != own["task"][TOKENIZER_DIGEST]:
        raise RunError(
            f"cannot begin from {run.path}: its tokens are others; give this run its tokenizer: "
            f"--tokenizer {run.path / FILE}"
        )
    # Dropout is for training alone, and leaves no trace in what weights mean.
    names = [name for name in asdict(settings.model) if name in theirs and name != "dropout"]
    others = {name: theirs[name] for name in names if theirs[name] != own["model"][name]}
    listed = ", ".join(
        f"{name} {value} (here {own['model'][name]})" for name, value in others.items()
    )
    checkpoint = run.best()
    try:
        load_weights(model, checkpoint)
    except CheckpointError as error:
        if not others:
            raise
        raise RunError(
            f"cannot begin from {run.path}: its model has {listed}; give this one the same, or "
            "leave out all options of the model"
        ) from error
    notices = [f"beginning with the weights of {checkpoint.path}"]
    if others:
        notices.append(f"their model had {listed}: they may mean little to this one")
    # Of the decoder's drawn tasks, no training ever has a test input, whatever its seed.
    drawn = {n: [*v] if isinstance(v, tuple) else v for n, v in own["task"].items()}
    begun = tables["run"].get("seed"), task, tables["run"].get("start_from")
    may_leak = settings.kind == "digits" or settings.has_tokenizer
    if may_leak and begun != (settings.seed, drawn, None):
        notices.append(
            "they were trained on examples that were chosen otherwise, which may be test examples "
            "here: the test may look too good"
        )
    return notices
