"""A run with its best weights, for everything that looks at what a model has learned."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

from fastformer.analysis.answer_prediction import TextAnswerPredictor
from fastformer.analysis.label_prediction import LabelPredictor
from fastformer.analysis.prediction import AnswerPredictor, DigitPredictor, Predictor
from fastformer.data.asked import Asked
from fastformer.data.vocabulary import NamedTokens
from fastformer.errors import RunError
from fastformer.models.decoder import TransformerDecoder
from fastformer.models.transformer import Transformer
from fastformer.parameters import Array
from fastformer.training.answered_run import AnsweredSettings
from fastformer.training.answers_run import AnswerSettings
from fastformer.training.checkpoint import Checkpoint
from fastformer.training.digits_run import RunSettings
from fastformer.training.embedding_records import embedding_table
from fastformer.training.labelled_run import LabelledSettings
from fastformer.training.run_directory import RunDirectory
from fastformer.training.runs import best_model, settings_of
from fastformer.training.text_run import TextSettings

AskedSettings: TypeAlias = RunSettings | LabelledSettings | AnswerSettings | AnsweredSettings
"""Of runs whose models are asked something that has one right answer."""


@dataclass(frozen=True)
class LoadedRun:
    """A run, read from disk.

    Attributes:
        run: its directory.    settings: all that decided its bits.
        model: with the weights of its best epoch.    checkpoint: where they are from.
    """

    run: RunDirectory
    settings: AskedSettings
    model: Transformer | TransformerDecoder
    checkpoint: Checkpoint

    @property
    def predictor(self) -> Predictor:
        """The model that answers expressions."""
        return predictor_of(self.settings, self.model)

    @cached_property
    def tests(self) -> list[Asked]:
        """Its test inputs, the same ones as in training: none of them was trained on."""
        return self.settings.tests()


def load_run(directory: str | Path) -> LoadedRun:
    """Load a run with its best weights.

    Raises:
        RunError: there is no such run, it is damaged, or has no checkpoint yet.
    """
    run = RunDirectory.open(directory)
    settings = settings_of(run)
    if isinstance(settings, TextSettings):
        raise RunError(
            f"run {run.path} has learned a text, and has no questions to answer: use "
            f"fastformer generate {run.path}"
        )
    model, checkpoint = best_model(run, settings)
    return LoadedRun(run, settings, model, checkpoint)


def load_text_run(directory: str | Path) -> tuple[TransformerDecoder, TextSettings]:
    """Load a run on text: its model with the best weights, and its settings with a tokenizer.

    Raises:
        RunError: there is no such run, it is damaged or of another task, or has no checkpoint yet.
    """
    run = RunDirectory.open(directory)
    settings = settings_of(run)
    if not isinstance(settings, TextSettings):
        raise RunError(
            f"run {run.path} was not trained on text: ask it with fastformer predict {run.path}"
        )
    model, _ = best_model(run, settings)
    assert isinstance(model, TransformerDecoder)
    return model, settings


def predictor_of(settings: AskedSettings, model: Transformer | TransformerDecoder) -> Predictor:
    """Return the predictor of a model that was made by these settings."""
    if isinstance(settings, AnswerSettings):
        assert isinstance(model, TransformerDecoder)
        return AnswerPredictor(model, settings.form)
    if isinstance(settings, AnsweredSettings):
        assert isinstance(model, TransformerDecoder)
        return TextAnswerPredictor(model, settings)
    assert isinstance(model, Transformer)
    if isinstance(settings, LabelledSettings):
        return LabelPredictor(model, settings)
    return DigitPredictor(model, settings.task)


def load_embeddings(directory: str | Path) -> tuple[NamedTokens, Array]:
    """Return the tokens of a run that are looked at, and the table (V, C) of its best weights.

    No model is made, so no kernel is compiled.

    Raises:
        RunError: there is no such run, it is damaged, or has no checkpoint yet.
    """
    run = RunDirectory.open(directory)
    settings = settings_of(run)
    shape = (settings.model.vocab_size, settings.model.embed_dim)
    return settings.named_tokens, embedding_table(run.best(), shape)
