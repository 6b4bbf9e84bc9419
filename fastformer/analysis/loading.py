"""A run with its best weights, for everything that looks at what a model has learned."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fastformer.data.digits import Splits
from fastformer.errors import CheckpointError
from fastformer.models.transformer import Transformer
from fastformer.parameters import Array
from fastformer.training.checkpoint import Checkpoint
from fastformer.training.digits_run import Predictor, RunSettings
from fastformer.training.loop import load_weights
from fastformer.training.run_directory import RunDirectory


@dataclass(frozen=True)
class LoadedRun:
    """A run, read from disk.

    Attributes:
        run: its directory.    settings: all that decided its bits.
        model: with the weights of its best epoch.    checkpoint: where they are from.
    """

    run: RunDirectory
    settings: RunSettings
    model: Transformer
    checkpoint: Checkpoint

    @cached_property
    def splits(self) -> Splits:
        """Its examples, drawn again: the same ones."""
        return self.settings.splits()

    @property
    def predictor(self) -> Predictor:
        """The model that answers expressions."""
        return Predictor(self.model, self.settings.task)


def load_run(directory: str | Path) -> LoadedRun:
    """Load a run with its best weights.

    Raises:
        RunError: there is no such run, it is damaged, or has no checkpoint yet.
    """
    run = RunDirectory.open(directory)
    settings = RunSettings.from_run(run)
    checkpoint = run.best()
    model = settings.new_model()
    load_weights(model, checkpoint)
    return LoadedRun(run, settings, model, checkpoint)


def load_embeddings(directory: str | Path) -> tuple[list[str], Array]:
    """Return the operations of a run, and the embedding table (V, C) of its best weights.

    No model is made, so no kernel is compiled.

    Raises:
        RunError: there is no such run, it is damaged, or has no checkpoint yet.
    """
    run = RunDirectory.open(directory)
    settings = RunSettings.from_run(run)
    checkpoint = run.best()
    table = checkpoint.tensors.get("embedding.weight")
    if table is None or table.shape != (settings.model.vocab_size, settings.model.embed_dim):
        raise CheckpointError(
            f"checkpoint {checkpoint.path} does not fit the model: it has no embedding.weight of "
            f"shape ({settings.model.vocab_size}, {settings.model.embed_dim})"
        )
    return list(settings.task.operations), table
