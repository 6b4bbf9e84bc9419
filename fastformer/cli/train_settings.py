"""What a command line of `fastformer train` would train: for sweeps, which have many of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cyclopts import CycloptsError

from fastformer.cli import app
from fastformer.cli.train import train
from fastformer.errors import InvalidValueError
from fastformer.training.presets import with_preset
from fastformer.training.sweep_file import NOT_OF_A_RUN

if TYPE_CHECKING:
    from fastformer.training.runs import AnySettings


def settings_of(words: Sequence[str]) -> "AnySettings":
    """Return the settings of the run that a command line would train; nothing is trained.

    Args:
        words: a task, and its files and options, as after `fastformer train`.

    Raises:
        ValueError, TypeError: as of that command; cyclopts's errors are among the ValueErrors.
    """
    found: list[AnySettings] = []

    def keep(_: str, settings: "AnySettings", *__: object) -> int:
        found.append(settings)
        return 0

    try:
        command, bound, _ = app.parse_args(with_preset(["train", *words]))
        command(*bound.args, **bound.kwargs, then=keep)
    except CycloptsError as error:
        raise InvalidValueError(str(error)) from error
    return found[0]


def settings_names(task: str) -> tuple[str, ...]:
    """Return the names of all options of a task that say what is trained, without dashes."""
    arguments = train[task].assemble_argument_collection()
    names = (one.name for one in arguments if one.parse and one.name.startswith("--"))
    return tuple(name[2:] for name in names if name[2:] not in NOT_OF_A_RUN)
