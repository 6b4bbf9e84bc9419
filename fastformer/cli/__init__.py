"""The command line: one thin file per sub-command, imported when that command is called.

So `fastformer --help` imports neither Numba nor Matplotlib.
"""

import os
import shutil
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

from cyclopts import App, CoercionError, CycloptsError, Parameter, Token, convert

from fastformer import launcher
from fastformer.cli import console
from fastformer.errors import FastformerError
from fastformer.kernels._environment import SettingError

SIGNALLED = 128
"""Plus a signal's number, the exit code of a command that it ended, as shells have it."""

WRONG_USE = 2
"""The exit code after a mistake of the user's: a wrong option, value, or file."""

_NARROWEST, _WIDEST = 20, 1_000  # columns of a terminal


def installed_version(package: str = "fastformer") -> str:
    """Return the version of an installed package; "not installed" where it is not."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _convert(type_: Any, tokens: Sequence[Token]) -> Any:
    """Convert an option's text. Unlike in the library's own conversion, 5.5 is no integer."""
    if type_ not in (int, int | None):
        return convert(type_, tokens)
    try:
        return int(tokens[0].value)  # of at most 4,300 digits
    except ValueError:
        raise CoercionError(token=tokens[0], target_type=int) from None


def _show_default(value: object) -> object:
    """Write a default as the user would."""
    return " ".join(value) if isinstance(value, tuple) else value


app = App(
    name="fastformer",
    help="Train small transformers, fast, on a CPU.",
    version=installed_version,
    help_format="markdown",
    default_parameter=Parameter(
        converter=_convert, negative_iterable=(), show_default=_show_default
    ),
    print_error=False,
    exit_on_error=False,
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)
app.command(
    "fastformer.cli.train:train",
    name="train",
    help="Train a model, or go on with a run that was stopped.",
)
app.command(
    "fastformer.cli.sweep:sweep",
    name="sweep",
    help="Train many runs that differ in some settings, and show the best.",
)
app.command(
    "fastformer.cli.evaluate:evaluate",
    name="evaluate",
    help="Measure a run's best model on its test examples.",
)
app.command(
    "fastformer.cli.predict:predict",
    name="predict",
    help="Ask a run's best model for an answer, or for one after the other.",
)
app.command(
    "fastformer.cli.generate:generate",
    name="generate",
    help="Let a model that has learned a text go on with a prompt.",
)
app.command(
    "fastformer.cli.attention:attention",
    name="attention",
    help="Show where a run's best model looks.",
)
app.command(
    "fastformer.cli.embeddings:embeddings",
    name="embeddings",
    help="Show what the embeddings of a run's best model have learned.",
)
app.command(
    "fastformer.cli.plot:plot",
    name="plot",
    help="Draw the curves of a run, or of several.",
)
app.command(
    "fastformer.cli.report:report",
    name="report",
    help="Write all about a run into one HTML file.",
)
app.command(
    "fastformer.cli.inspect:inspect",
    name="inspect",
    help="Show sizes of weights and gradients, and the loss around the weights.",
)
app.command(
    "fastformer.cli.bench:bench",
    name="bench",
    help="Measure kernels beside NumPy, and find where a training step's time goes.",
)
app.command(
    "fastformer.cli.doctor:doctor",
    name="doctor",
    help="Show what fastformer found: CPU, threads, kernel cache, versions.",
)


def _show_warning(message: Warning | str, *_: object) -> None:
    """Show a warning as one line, without the place in the code."""
    console.error(f"warning: {message}")


def _hint(error: CycloptsError) -> str:
    """Say where the options of the command that was meant are listed."""
    return " ".join(["Try: fastformer", *(error.command_chain or ()), "--help"])


def _end_of_start_up(words: Sequence[str]) -> AbstractContextManager[object]:
    """Let a signal end training's start-up: an exception would get lost where C calls imports."""
    if not {"train", "sweep"} & set(words[:1]):
        return nullcontext()
    from fastformer.training.signals import EndAtOnce

    return EndAtOnce(lambda: "Stopped before training began")


def _unwritable(error: OSError) -> int:
    """Say that standard output or standard error takes no more, as on a full disk."""
    with suppress(OSError):
        console.error(
            f"cannot write the output: {error.strerror or error}; check where standard output and "
            "standard error go, and the free space"
        )
    with suppress(OSError):  # what they still hold must not fail again at exit
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return WRONG_USE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the words after the program's name; None for those it was started with.

    Returns:
        The exit code: 0, 1 where a run of a sweep failed, 2 after a mistake of the user's, 130
        after Ctrl-C, 143 after SIGTERM.
    """
    console.have_streams()
    _have_environment()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run_together(words) if launcher.are_several() else _run(words)
    except OSError as error:
        return _unwritable(error)


def _run_together(words: list[str]) -> int:
    """Run one command in several processes, of which the first one speaks."""
    if launcher.rank() > 0:
        sys.stdout = open(os.devnull, "w")
    code = _run(words)
    if code == WRONG_USE:
        # The launcher ends the others, which may be waiting for this one, as MPI's own end would.
        sys.stdout.flush()
        os._exit(code)
    return code


def _have_environment() -> None:
    """Leave out what others' variables would do to help and pictures."""
    # A width of 0 means none at all, and of 1 or 2, no text could be broken into lines.
    columns = shutil.get_terminal_size().columns
    if "COLUMNS" in os.environ or columns < _NARROWEST:
        os.environ["COLUMNS"] = "80" if columns < _NARROWEST else str(min(columns, _WIDEST))
    os.environ.pop("LINES", None)
    os.environ.pop("MPLBACKEND", None)  # a notebook's window system is not there


def _with_task(words: list[str]) -> list[str]:
    """Return the words with a task, digits where none is named, and with a preset's options."""
    if words[:1] != ["train"]:
        return words
    named = any(word.partition("=")[0] in ("--resume", "--help", "-h") for word in words)
    if not named and (len(words) == 1 or words[1].startswith("-")):
        words = ["train", "digits", *words[1:]]
    if any(word.startswith("--preset") for word in words):
        from fastformer.training.presets import with_preset

        return with_preset(words)
    return words


def _command(words: list[str]) -> object:
    """Run one command, in several processes where it says so."""
    names = {word.partition("=")[0] for word in words}
    if words[:1] == ["train"] and "--elastic" in names and not names & {"--help", "-h"}:
        from fastformer.cli.elastic import train_elastically

        return train_elastically(words)
    return app(words)


def _run(words: list[str]) -> int:
    """Run one command, and turn what goes wrong into a message and an exit code."""
    with warnings.catch_warnings(), _end_of_start_up(words):
        warnings.showwarning = _show_warning  # type: ignore[assignment]
        try:
            code = _command(_with_task(words))
            sys.stdout.flush()
        except CycloptsError as error:
            console.error(error)
            console.notice(_hint(error))
            return WRONG_USE
        except (FastformerError, SettingError) as error:
            console.error(error)
            return WRONG_USE
        except KeyboardInterrupt:
            console.error("interrupted")
            return SIGNALLED + signal.SIGINT
        except MemoryError as error:
            console.error(f"out of memory: {error or 'too much was asked for'}; use smaller sizes")
            return WRONG_USE
        except BrokenPipeError:
            # The reader has gone (`| head`): nothing is left to say, also not at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except OSError as error:
            if error.filename is None:
                raise
            console.error(f"cannot use {error.filename!r}: {error.strerror}; check that path")
            return WRONG_USE
    return code if isinstance(code, int) else 0
