"""What each task of `fastformer train` takes: options of a run, of a model, of the training.

They are the settings themselves. What the data decides, such as the size of the vocabulary, is not
an option.
"""

import dataclasses
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from fastformer.data.answered import AnsweredTask
from fastformer.data.answers import AnswerTask
from fastformer.data.labelled import LabelledTask
from fastformer.data.text import TextTask
from fastformer.models.config import DecoderConfig, TransformerConfig
from fastformer.training.config import TrainingConfig
from fastformer.training.presets import RECIPES

Decided = Parameter(parse=False)
"""Of what the data decides."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where a new run goes, and what it computes with."""

    out: Path | None = field(
        default=None,
        metadata={
            "help": "directory of the run; without it runs/TASK-1, or the first number that is free"
        },
    )
    overwrite: Annotated[bool, Parameter(negative=(), show_default=False)] = field(
        default=False, metadata={"help": "replace the run that is in the directory"}
    )
    seed: int = field(default=42, metadata={"help": "same seed, same bits"})
    seeds: int = field(
        default=1,
        metadata={
            "help": "train so many runs, with this seed and those after it, into seed-42 and so on "
            "in the directory; shows mean and spread"
        },
    )
    elastic: int | None = field(
        default=None,
        metadata={
            "help": "train with so many processes of mpiexec (extra mpi); where one is lost, go on "
            "from the last checkpoint with those that are left"
        },
    )
    backend: Literal["numba", "reference"] = field(
        default="numba", metadata={"help": "compiled kernels, or their NumPy twins"}
    )
    dtype: Literal["float32", "float64"] = field(
        default="float32", metadata={"help": "of parameters and activations"}
    )
    precision: Literal["float32", "bfloat16"] = field(
        default="float32",
        metadata={
            "help": "of what linear layers multiply; bfloat16 is faster on CPUs that have "
            "avx512_bf16 (fastformer doctor shows it)"
        },
    )
    start_from: Annotated[Path | None, Parameter(name="--from")] = field(
        default=None,
        metadata={
            "help": "directory of a run with whose best weights this one begins; its model is that "
            "run's where no option says otherwise, and a tokenizer must be its tokenizer.json"
        },
    )


@dataclass(frozen=True, kw_only=True)
class ExplainedRunOptions(RunOptions):
    """Of a run whose examples are drawn, which can be shown."""

    tour: Annotated[bool, Parameter(negative=(), show_default=False)] = field(
        default=False,
        metadata={"help": "explain the run in ten steps; at a terminal, Enter goes on"},
    )


@dataclass(frozen=True, kw_only=True)
class ClassifierOptions(TransformerConfig):
    """The classifier's options."""

    vocab_size: Annotated[int, Decided] = 1
    num_classes: Annotated[int, Decided] = 0


@dataclass(frozen=True, kw_only=True)
class DecoderOptions(DecoderConfig):
    """The decoder's options."""

    vocab_size: Annotated[int, Decided] = 1


@dataclass(frozen=True, kw_only=True)
class TextOptions(TextTask):
    """The text's options."""

    files: Annotated[tuple[str, ...], Decided] = ()
    digest: Annotated[str, Decided] = ""
    tokens_digest: Annotated[str, Decided] = ""


@dataclass(frozen=True, kw_only=True)
class LabelledOptions(LabelledTask):
    """The options of texts with labels."""

    files: Annotated[tuple[str, ...], Decided] = ()
    digest: Annotated[str, Decided] = ""
    labels: Annotated[tuple[str, ...], Decided] = ()


@dataclass(frozen=True, kw_only=True)
class AnsweredOptions(AnsweredTask):
    """The options of questions with answers."""

    files: Annotated[tuple[str, ...], Decided] = ()
    digest: Annotated[str, Decided] = ""
    longest_answer: Annotated[int, Decided] = 1


def options_of_questions(name: str) -> tuple[type[Any], type[Any], type[Any]]:
    """Return the options of one of the decoder's tasks: its own, the model's, the training's."""
    recipe = RECIPES[name]
    task = _subclass(AnswerTask, [("name", Annotated[str, Decided], field(default=name))])
    return (
        _with_defaults(task, recipe),
        _with_defaults(DecoderOptions, recipe),
        _with_defaults(TrainingConfig, recipe),
    )


def options_of_table(name: str, model: type[Any]) -> tuple[type[Any], type[Any]]:
    """Return the options of the model and of the training of a task on tables."""
    return _with_defaults(model, RECIPES[name]), _with_defaults(TrainingConfig, RECIPES[name])


def _with_defaults(options: type[Any], defaults: dict[str, Any]) -> type[Any]:
    """Return the same options, some of them with other defaults."""
    changed = [
        (one.name, one.type, field(default=defaults[one.name], metadata=one.metadata))
        for one in dataclasses.fields(options)
        if one.name in defaults
    ]
    return _subclass(options, changed)


def _subclass(options: type[Any], changed: list[tuple[str, Any, Any]]) -> type[Any]:
    made = make_dataclass(options.__name__, changed, bases=(options,), frozen=True, kw_only=True)
    made.__module__ = __name__
    return made
