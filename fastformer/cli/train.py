"""`fastformer train`: a new run of a task, or a stopped one that goes on."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from cyclopts import App, Group, Parameter

from fastformer import checks, writing
from fastformer import threads as thread_count
from fastformer.cli import SIGNALLED, console
from fastformer.cli.train_options import (
    AnsweredOptions,
    ClassifierOptions,
    DecoderOptions,
    ExplainedRunOptions,
    LabelledOptions,
    RunOptions,
    TextOptions,
    options_of_questions,
    options_of_table,
)
from fastformer.data.answers import ANSWER_TASKS, ANSWER_TOKENS
from fastformer.data.digits import DigitTask
from fastformer.data.vocabulary import DIGIT_TOKENS
from fastformer.errors import InvalidValueError
from fastformer.models.config import DecoderConfig, TransformerConfig
from fastformer.training.config import TrainingConfig

if TYPE_CHECKING:
    from fastformer.cli.progress import LineProgress
    from fastformer.training.runs import AnySettings

_RUNS = Path("runs")
_RUN, _TASK, _MODEL, _TRAINING = (
    Parameter(name="*", group=Group(name, sort_key=place))
    for place, name in enumerate(("Run", "Task", "Model", "Training"))
)
Run: TypeAlias = Annotated[RunOptions | None, _RUN]
ExplainedRun: TypeAlias = Annotated[ExplainedRunOptions | None, _RUN]
Classifier: TypeAlias = Annotated[ClassifierOptions | None, _MODEL]
Decoder: TypeAlias = Annotated[DecoderOptions | None, _MODEL]
Training: TypeAlias = Annotated[TrainingConfig | None, _TRAINING]
Json: TypeAlias = Annotated[bool, Parameter(negative=(), show_default=False)]

New: TypeAlias = "Callable[[str, AnySettings, RunOptions, int | None, bool], int]"
Then: TypeAlias = Annotated[Any, Parameter(parse=False)]

_OWN_DATA = Group("Your own data", sort_key=0)
_DRAWN = Group("Tasks whose examples are drawn", sort_key=1)

train = App(name="train", help="Train a model, and test it on inputs that it has never seen.")


@train.default
def resume(
    *others: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    resume: Path | None = None,
    epochs: int | None = None,
    elastic: int | None = None,
    threads: int | None = None,
    json: Json = False,
) -> int:
    """Train a model on one of the tasks below, or go on with a run that was stopped.

    Args:
        resume: directory of a run, or of several seeds, that was stopped; it goes on with its own
            settings.
        epochs: train so many in all, in place of those that the run was to have.
        elastic: go on with so many processes of mpiexec, and where one is lost, with those that are
            left.
        threads: number of threads; without it, as many as the machine or container allows.
        json: write the result as one JSON object, the last line of standard output.
    """
    if resume is None:
        known = task_names()
        checks.choice("the task", others[0] if others else "", known)
        raise InvalidValueError(f"give a task, {', '.join(known)}, or --resume and a run")
    if others:
        raise InvalidValueError(
            "--resume goes on with the run's own settings; leave out every other option but "
            "--epochs, --elastic, --threads and --json, or leave out --resume to start a new run"
        )
    from fastformer.training.signals import EndAtOnce

    thread_count.configure(threads)
    with EndAtOnce(lambda: _last_words(resume)):
        return _train(resume, lambda callbacks: _resume(resume, callbacks, epochs, threads), json)


def task_names() -> tuple[str, ...]:
    """Return the names of the tasks."""
    return tuple(name for name in train if not name.startswith("-"))


@train.command(group=_DRAWN, sort_key=0)
def digits(
    *,
    preset: str | None = None,
    threads: int | None = None,
    json: Json = False,
    options: ExplainedRun = None,
    task: Annotated[
        DigitTask | None,
        Parameter(name="*", group=Group("Task", sort_key=1), consume_multiple=True),
    ] = None,
    model: Classifier = None,
    training: Training = None,
    then: Then = None,
) -> int:
    """Learn First, Second, Last, Max and Min of digits: a classifier names one digit.

    Args:
        preset: sizes with a name, which other options go before: small, medium and large are 1,000,
            10,000 and 100,000 examples; wide is a wider model.
        threads: number of threads; without it, as many as the machine or container allows.
        json: write the result as one JSON object, the last line of standard output.
    """
    thread_count.configure(threads)
    from fastformer.training.digits_run import RunSettings

    options = options or ExplainedRunOptions()
    own = _common(options, training)
    start = options.start_from
    sizes = vars(_model_of(start, TransformerConfig, model) or model or ClassifierOptions())
    settings = RunSettings(
        task=task or DigitTask(),
        model=TransformerConfig(**{**sizes, "vocab_size": len(DIGIT_TOKENS)}),
        **own,
    )
    return (then or _new_run)("digits", settings, options, threads, json)


def _taking(
    command: Callable[..., int], options_of: tuple[type[Any], type[Any], type[Any]]
) -> Callable[..., int]:
    """Return a command that takes these options of the task, the model and the training."""
    for name, kind, where in zip(
        ("task", "model", "training"), options_of, (_TASK, _MODEL, _TRAINING), strict=True
    ):
        command.__annotations__[name] = Annotated[kind | None, where]
    return command


def _questions(name: str) -> Callable[..., int]:
    """Return the command of one of the tasks whose answers a decoder writes."""
    task_class, model_class, training_class = options_of_questions(name)

    def questions(
        *,
        threads: int | None = None,
        json: Json = False,
        options: ExplainedRun = None,
        task: Any = None,
        model: Any = None,
        training: Any = None,
        then: Then = None,
    ) -> int:
        thread_count.configure(threads)
        from fastformer.data.answers import AnswerTask
        from fastformer.training.answers_run import AnswerSettings

        options = options or ExplainedRunOptions()
        own = _common(options, training or training_class())
        sizes = vars(_model_of(options.start_from, DecoderConfig, model) or model or model_class())
        settings = AnswerSettings(
            task=AnswerTask(**vars(task or task_class())),
            model=DecoderConfig(**{**sizes, "vocab_size": len(ANSWER_TOKENS)}),
            **own,
        )
        return (then or _new_run)(name, settings, options, threads, json)

    from fastformer.data.answer_formats import FORMS

    questions.__doc__ = f"""Learn to answer {FORMS[name].example}: a decoder writes the answer.

    Args:
        threads: number of threads; without it, as many as the machine or container allows.
        json: write the result as one JSON object, the last line of standard output.
    """
    return _taking(questions, (task_class, model_class, training_class))


for _name in ANSWER_TASKS:
    train.command(_questions(_name), name=_name, group=_DRAWN, sort_key=1)


@train.command(group=_OWN_DATA, sort_key=0)
def text(
    *files: Path,
    preset: str | None = None,
    threads: int | None = None,
    json: Json = False,
    options: Run = None,
    task: Annotated[TextOptions | None, _TASK] = None,
    model: Decoder = None,
    training: Training = None,
    then: Then = None,
) -> int:
    """Learn to go on with text of your own: a decoder predicts each next token.

    Args:
        files: UTF-8 text, end to end in their order.
        preset: settings with a name, which other options go before: shakespeare-cpu is nanoGPT's
            recipe, names is for a file with a name on each line, llama-small and gpt2-small have
            the choices and sizes of their models (gpt2-small takes days).
        threads: number of threads; without it, as many as the machine or container allows.
        json: write the result as one JSON object, the last line of standard output.
    """
    thread_count.configure(threads)
    from fastformer.cli import progress
    from fastformer.data.text import TextTask
    from fastformer.training.text_run import new_text_settings

    options = options or RunOptions()
    sizes = vars(_model_of(options.start_from, DecoderConfig, model) or model or DecoderOptions())
    own = _common(options, training)
    with progress.callbacks() as callbacks:
        settings = new_text_settings(files, task or TextTask(), dict(sizes), callbacks, **own)
    return (then or _new_run)("text", settings, options, threads, json)


def _table(
    name: str,
    summary: str,
    options_of: tuple[type[Any], type[Any], type[Any]],
    new_settings: Callable[..., "AnySettings"],
) -> Callable[..., int]:
    """Return the command of a task on tables.

    Args:
        options_of: the classes of its own options, the model's, and the training's.
        new_settings: makes the settings of a run of files, these options, and others by name.
    """
    task_class, model_class, training_class = options_of

    def table(
        *files: Path,
        threads: int | None = None,
        json: Json = False,
        options: Run = None,
        task: Any = None,
        model: Any = None,
        training: Any = None,
        then: Then = None,
    ) -> int:
        thread_count.configure(threads)
        options = options or RunOptions()
        own = _common(options, training or training_class())
        kind = DecoderConfig if issubclass(model_class, DecoderConfig) else TransformerConfig
        sizes = vars(_model_of(options.start_from, kind, model) or model or model_class())
        settings = new_settings(files, task or task_class(), dict(sizes), **own)
        return (then or _new_run)(name, settings, options, threads, json)

    table.__doc__ = f"""{summary}

    Args:
        files: .csv whose first line names the columns, .tsv, or .jsonl with an object a line.
        threads: number of threads; without it, as many as the machine or container allows.
        json: write the result as one JSON object, the last line of standard output.
    """
    return _taking(table, options_of)


def _new_labelled(*given: Any, **own: Any) -> "AnySettings":
    from fastformer.training.labelled_run import new_labelled_settings

    return new_labelled_settings(*given, **own)


def _new_answered(*given: Any, **own: Any) -> "AnySettings":
    from fastformer.training.answered_run import new_answered_settings

    return new_answered_settings(*given, **own)


for _name, _summary, _options, _new in (
    (
        "classify",
        "Learn labels of texts of your own: a classifier names one label for each text.",
        (LabelledOptions, *options_of_table("classify", ClassifierOptions)),
        _new_labelled,
    ),
    (
        "answers",
        "Learn to answer questions of your own: a decoder writes the answer.",
        (AnsweredOptions, *options_of_table("answers", DecoderOptions)),
        _new_answered,
    ),
):
    train.command(_table(_name, _summary, _options, _new), name=_name, group=_OWN_DATA, sort_key=1)


def _common(options: RunOptions, training: TrainingConfig | None) -> dict[str, Any]:
    """Return what the settings of every kind of run have from the same options."""
    own: dict[str, Any] = {
        name: getattr(options, name) for name in ("seed", "backend", "dtype", "precision")
    }
    own["training"] = TrainingConfig(**vars(training)) if training else TrainingConfig()
    if options.start_from is not None:
        own["start_from"] = os.path.abspath(options.start_from)
    return own


def _model_of(
    start_from: Path | None, config_class: type[Any], model: object | None
) -> TransformerConfig | DecoderConfig | None:
    """Return the settings of the model of a run to begin from, where no option says otherwise."""
    from fastformer.training.run_directory import RunDirectory
    from fastformer.training.runs import settings_of

    if start_from is None or model is not None:
        return None
    found = settings_of(RunDirectory.open(start_from)).model
    return found if isinstance(found, config_class) else None


def _new_run(
    task: str, settings: "AnySettings", options: RunOptions, threads: int | None, json: bool
) -> int:
    """Train a new run, or several, and return the exit code."""
    from fastformer.training.signals import EndAtOnce

    made = options.out is None
    with _place(options.out, task) as place, EndAtOnce(lambda: _last_words(place, made)):
        return _train(
            place,
            lambda callbacks: _start(place, callbacks, json, options, settings, threads),
            json,
        )


@contextmanager
def _place(out: Path | None, task: str) -> Iterator[Path]:
    """Give where a new run goes; where that is not told, one process takes a name for it."""
    from fastformer.training.ranks import all_ranks
    from fastformer.training.run_place import next_free_run

    with ExitStack() as block:
        taken = out or all_ranks().first(lambda: block.enter_context(next_free_run(_RUNS, task)))
        yield taken


def _train(directory: Path, work: "Callable[[LineProgress], dict[str, Any]]", json: bool) -> int:
    """Train, write the result, and return the exit code."""
    from fastformer.cli import progress
    from fastformer.training.loop import TrainingInterrupted

    try:
        with progress.callbacks() as callbacks:
            result = work(callbacks)
    except TrainingInterrupted as stop:
        where = f" after step {stop.step:,}; everything" if stop.step else "; what was trained"
        console.notice(
            f"Stopped{where} is saved. To go on:\n"
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


def _resume(
    directory: Path, callbacks: "LineProgress", epochs: int | None, threads: int | None
) -> dict[str, Any]:
    """Go on with a stopped run, or with several seeds."""
    from fastformer.training.runs import resume_run
    from fastformer.training.seeds_record import holds_seeds

    if holds_seeds(directory):
        from fastformer.cli.seeds import resume_several

        return resume_several(directory, epochs, threads)
    return resume_run(directory, callbacks, epochs)


def _start(
    directory: Path,
    callbacks: "LineProgress",
    json: bool,
    options: RunOptions,
    settings: "AnySettings",
    threads: int | None,
) -> dict[str, Any]:
    """Start a new run, or several."""
    from fastformer.training.runs import train_run

    tour = isinstance(options, ExplainedRunOptions) and options.tour
    if tour and options.seeds != 1:
        raise InvalidValueError("--tour explains one run; leave out --seeds, or --tour")
    if tour:
        from fastformer.cli.tour import take_tour
        from fastformer.training.answers_run import AnswerSettings
        from fastformer.training.digits_run import RunSettings

        assert isinstance(settings, RunSettings | AnswerSettings)  # others have no such option
        overwrite = options.overwrite
        return take_tour(settings, directory, callbacks, overwrite=overwrite, to_stderr=json)
    if options.seeds != 1:
        from fastformer.cli.seeds import train_several

        return train_several(settings, options.seeds, directory, options.overwrite, threads)
    return train_run(settings, directory, callbacks, overwrite=options.overwrite)


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
        for which in ("operation", "class"):
            if f"per_{which}" in result:
                console.per_group(result[f"per_{which}"], which=which)
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
