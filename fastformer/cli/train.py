"""`fastformer train`: a new run, or a stopped one that goes on."""

import dataclasses
import os
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from cyclopts import Group, Parameter

from fastformer import threads as thread_count
from fastformer import writing
from fastformer.cli import SIGNALLED, console
from fastformer.data.digits import DigitTask
from fastformer.data.text import TextTask
from fastformer.data.vocabulary import DIGIT_TOKENS
from fastformer.errors import InvalidValueError
from fastformer.models.config import TransformerConfig
from fastformer.training.config import TrainingConfig
from fastformer.training.signals import EndAtOnce

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastformer.cli.progress import LineProgress
    from fastformer.training.answers_run import AnswerSettings
    from fastformer.training.digits_run import RunSettings
    from fastformer.training.runs import AnySettings

_RUNS = Path("runs")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where a new run goes, and what it computes with."""

    out: Path | None = field(
        default=None,
        metadata={
            "help": "directory of the run; without it runs/digits-1 or runs/text-1, the first free"
        },
    )
    start_from: Annotated[Path | None, Parameter(name="--from")] = field(
        default=None,
        metadata={
            "help": "directory of a run with whose best weights this one begins; its model is that "
            "run's where no option says otherwise"
        },
    )
    overwrite: Annotated[bool, Parameter(negative=(), show_default=False)] = field(
        default=False, metadata={"help": "replace the run that is in the directory"}
    )
    tour: Annotated[bool, Parameter(negative=(), show_default=False)] = field(
        default=False,
        metadata={"help": "explain the run in ten steps; at a terminal, Enter goes on"},
    )
    preset: str | None = field(
        default=None,
        metadata={
            "help": "settings with a name, which other options go before: small, medium, large or "
            "wide; or a harder task for the decoder: double-digits, three-digits, long-lists, "
            "nested, arithmetic, addition; or, for text, names, a file with one on each line, "
            "shakespeare-cpu, nanoGPT's recipe, llama-small, or gpt2-small"
        },
    )
    seed: int = field(default=42, metadata={"help": "same seed, same bits"})
    seeds: int = field(
        default=1,
        metadata={
            "help": "train so many runs, with this seed and those after it, into seed-42 and so on "
            "in the directory; shows mean and spread"
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


@dataclass(frozen=True, kw_only=True)
class DigitModel(TransformerConfig):
    """The model's options. The task decides the size of the vocabulary."""

    vocab_size: Annotated[int, Parameter(parse=False)] = len(DIGIT_TOKENS)
    given: ClassVar[frozenset[str]]

    def __new__(cls, **given: Any) -> "DigitModel":
        """Note which options are given."""
        options = super().__new__(cls)
        object.__setattr__(options, "given", frozenset(given))
        return options


@dataclass(frozen=True, kw_only=True)
class TextOptions(TextTask):
    """The text's options. The texts themselves decide the rest."""

    files: Annotated[tuple[str, ...], Parameter(parse=False)] = ()
    digest: Annotated[str, Parameter(parse=False)] = ""
    tokens_digest: Annotated[str, Parameter(parse=False)] = ""


class TrainingOptions(TrainingConfig):
    """The training's options.

    Attributes:
        given: names of those that were given.
    """

    given: frozenset[str]

    def __new__(cls, **given: Any) -> "TrainingOptions":
        """Note which options are given; the others have their defaults."""
        options = super().__new__(cls)
        object.__setattr__(options, "given", frozenset(given))
        return options


def train(
    task: Literal["digits", "text"] = "digits",
    /,
    *files: Path,
    resume: Path | None = None,
    threads: int | None = None,
    json: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    options: Annotated[
        RunOptions | None, Parameter(name="*", group=Group("Run", sort_key=1))
    ] = None,
    digits: Annotated[
        DigitTask | None,
        Parameter(name="*", group=Group("Digit task", sort_key=2), consume_multiple=True),
    ] = None,
    text: Annotated[
        TextOptions | None, Parameter(name="*", group=Group("Text", sort_key=3))
    ] = None,
    model: Annotated[
        DigitModel | None, Parameter(name="*", group=Group("Model", sort_key=4))
    ] = None,
    training: Annotated[
        TrainingOptions | None, Parameter(name="*", group=Group("Training", sort_key=5))
    ] = None,
) -> int:
    """Train a model, and test it on inputs that it has never seen.

    Args:
        task: what to learn: digits, or text of your own.
        files: UTF-8 text files, for text.
        resume: directory of a run, or of several seeds, that was stopped; it goes on with its own
            settings. With --epochs it is trained to so many in all.
        threads: number of threads; without it, as many as the machine or container allows.
        json: write the result as one JSON object, the last line of standard output.
    """
    given = training.given if training else frozenset()
    parts = (options, digits, text, model, files or None)
    others = any(part is not None for part in parts) or given - {"epochs"}
    if resume is not None and others:
        raise InvalidValueError(
            "--resume goes on with the run's own settings; leave out every other option but "
            "--epochs, --threads and --json, or leave out --resume to start a new run"
        )
    thread_count.configure(threads)
    if resume is not None:
        epochs = training.epochs if training else None
        with EndAtOnce(lambda: _last_words(resume)):
            return _train(resume, lambda callbacks: _resume(resume, callbacks, epochs), json)
    options = options or RunOptions()
    if task == "text":
        if digits is not None:
            raise InvalidValueError("options of the digit task say nothing to text: leave them out")
        settings = _text_settings(options, files, text, model, training)
    elif files or text is not None:
        raise InvalidValueError(
            "files and options of text are for: fastformer train text FILE..., "
            f"got {' '.join(map(str, files)) or 'options of text'}"
        )
    else:
        settings = _settings(options, digits or DigitTask(), model, training)
    made = options.out is None
    with _place(options.out, task) as place, EndAtOnce(lambda: _last_words(place, made)):
        return _train(
            place, lambda callbacks: _start(place, callbacks, json, options, settings), json
        )


def _place(out: Path | None, task: str) -> AbstractContextManager[Path]:
    """Return where a new run goes; where that is not told, a name is taken for it."""
    from fastformer.training.run_place import next_free_run

    return next_free_run(_RUNS, task) if out is None else nullcontext(out)


def _train(directory: Path, work: "Callable[[LineProgress], dict[str, Any]]", json: bool) -> int:
    """Train, write the result, and return the exit code."""
    from fastformer.cli import progress
    from fastformer.training.loop import TrainingInterrupted

    try:
        with progress.callbacks() as callbacks:
            result = work(callbacks)
    except TrainingInterrupted as stop:
        console.notice(
            f"Stopped after step {stop.step:,}; everything is saved. To go on:\n"
            f"  fastformer train --resume {console.shell_word(directory)}"
        )
        return SIGNALLED + stop.signal
    if json:
        console.json_line(result)
    else:
        _show(result)
    return 0


def _last_words(directory: Path, made: bool = False) -> str:
    """Say what a signal left of a run, and how to go on with it.

    Args:
        made: whether the directory was made to take its name; then it goes while it is empty.
    """
    from fastformer.training.seeds_record import holds_seeds

    name = console.shell_word(directory)
    if holds_seeds(directory):
        return f"Stopped; what was trained is saved. To go on:\n  fastformer train --resume {name}"
    if any(directory.glob("checkpoints/step-*.safetensors")):
        return f"Stopped; the run is saved. To go on:\n  fastformer train --resume {name}"
    if (directory / "config.toml").exists():
        return (
            "Stopped before the first checkpoint. To start from the beginning:\n"
            f"  fastformer train --resume {name}"
        )
    if made:
        with suppress(OSError):
            directory.rmdir()
    return "Stopped before a run was begun: nothing is saved"


def _resume(directory: Path, callbacks: "LineProgress", epochs: int | None) -> dict[str, Any]:
    """Go on with a stopped run, or with several seeds."""
    from fastformer.training.runs import resume_run
    from fastformer.training.seeds_record import holds_seeds

    if holds_seeds(directory):
        from fastformer.cli.seeds import resume_several

        return resume_several(directory, epochs)
    return resume_run(directory, callbacks, epochs)


def _start(
    directory: Path,
    callbacks: "LineProgress",
    json: bool,
    options: RunOptions,
    settings: "AnySettings",
) -> dict[str, Any]:
    """Start a new run, or several."""
    from fastformer.training.runs import train_run

    if options.tour and options.seeds != 1:
        raise InvalidValueError("--tour explains one run; leave out --seeds, or --tour")
    if options.tour:
        from fastformer.cli.tour import take_tour
        from fastformer.training.text_run import TextSettings

        if isinstance(settings, TextSettings):
            raise InvalidValueError("--tour explains runs on the digit task")
        overwrite = options.overwrite
        return take_tour(settings, directory, callbacks, overwrite=overwrite, to_stderr=json)
    if options.seeds != 1:
        from fastformer.cli.seeds import train_several

        return train_several(settings, options.seeds, directory, options.overwrite)
    return train_run(settings, directory, callbacks, overwrite=options.overwrite)


def _common(options: RunOptions, training: TrainingOptions | None) -> dict[str, Any]:
    """Return what the settings of every kind of run have from the same options."""
    own = {name: getattr(options, name) for name in ("seed", "backend", "dtype", "precision")}
    own["training"] = TrainingConfig(**dataclasses.asdict(training) if training else {})
    return own


def _text_settings(
    options: RunOptions,
    files: tuple[Path, ...],
    text: TextTask | None,
    model: DigitModel | None,
    training: TrainingOptions | None,
) -> "AnySettings":
    """Return the settings of a new run on text: the decoder's own, but for what is given."""
    from fastformer.cli import progress
    from fastformer.training.text_run import new_text_settings

    if options.start_from is not None:
        raise InvalidValueError("--from is for the digit task")
    own = _common(options, training)
    given = {name: getattr(model, name) for name in (model.given if model else ())}
    if "pooling" in given:
        raise InvalidValueError("text trains a decoder, which reads out every token: no --pooling")
    with progress.callbacks() as callbacks:
        return new_text_settings(files, text or TextTask(), given, callbacks, **own)


def _settings(
    options: RunOptions,
    task: DigitTask,
    model: DigitModel | None,
    training: TrainingOptions | None,
) -> "RunSettings | AnswerSettings":
    """Return the settings of a new run: of the decoder where the preset is one of its tasks.

    A group of options of which none was given has its defaults.
    """
    from fastformer.training.presets import is_answer_task

    own = _common(options, training)
    sizes = dataclasses.asdict(model or DigitModel())
    if options.start_from is not None:
        own["start_from"] = os.path.abspath(options.start_from)
        sizes = sizes if model else _model_of(options.start_from) or sizes
    if not is_answer_task(options.preset):
        from fastformer.training.digits_run import RunSettings

        return RunSettings(task=task, model=TransformerConfig(**sizes), **own)
    from fastformer.data.answers import ANSWER_TOKENS, AnswerTask
    from fastformer.models.config import DecoderConfig
    from fastformer.training.answers_run import AnswerSettings

    if dataclasses.replace(task, examples=1) != DigitTask(examples=1):
        raise InvalidValueError(
            f"--preset {options.preset} draws its own questions; of the digit task's options it "
            "takes --examples alone"
        )
    if sizes.pop("pooling") != DigitModel().pooling:
        raise InvalidValueError(
            f"--preset {options.preset} trains a decoder, which reads out every token: leave out "
            "--pooling"
        )
    return AnswerSettings(
        task=AnswerTask(name=str(options.preset), examples=task.examples),
        model=DecoderConfig(**sizes | {"vocab_size": len(ANSWER_TOKENS)}),
        **own,
    )


def _model_of(directory: Path) -> dict[str, Any] | None:
    """Return the settings of a classifier that a run has; None for another model."""
    from fastformer.training.digits_run import RunSettings
    from fastformer.training.run_directory import RunDirectory
    from fastformer.training.runs import settings_of

    settings = settings_of(RunDirectory.open(directory))
    return dataclasses.asdict(settings.model) if isinstance(settings, RunSettings) else None


def _show(result: dict[str, Any]) -> None:
    """Write a finished run's result for a person."""
    if "runs" in result:
        from fastformer.cli.seeds import show_seeds

        show_seeds(result)
        return
    is_text = "validation_loss" in result
    console.line()
    if is_text:
        loss, bits = result["validation_loss"], result["bits_per_byte"]
        scores = [("validation loss", f"{writing.loss(loss)} a token, {bits:.3f} bits a byte")]
    else:
        console.per_operation(result["per_operation"])
        console.line()
        scores = [
            *console.unseen_accuracy(result),
            ("test loss", writing.loss(result["test_loss"])),
        ]
    console.facts(
        [
            *scores,
            (
                "model",
                f"{result['parameters']:,} parameters, from epoch {result['best_epoch']} "
                "(the best on validation)",
            ),
            (
                "time",
                f"{result['steps']:,} steps in {result['seconds']:.1f} s, "
                f"{result['tokens_per_second' if is_text else 'examples_per_second']:,.0f} "
                f"{'tokens' if is_text else 'examples'}/s",
            ),
            ("run", str(result["run"])),
            (
                "next",
                f"fastformer {'generate' if is_text else 'predict'} "
                f"{console.shell_word(result['run'])}",
            ),
        ]
    )
