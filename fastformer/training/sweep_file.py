"""What a sweep is to train: a file of TOML, and the copy of it in the sweep's directory."""

import contextlib
import itertools
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import tomli_w

from fastformer import checks
from fastformer.errors import FastformerError, InvalidTypeError, InvalidValueError, RunError
from fastformer.training.atomic_file import (
    make_directory,
    os_errors_as,
    read_file,
    write_atomically,
)
from fastformer.training.run_config import MOST_BYTES

Scalar: TypeAlias = str | int | float | bool
Value: TypeAlias = Scalar | list[Scalar]
Values: TypeAlias = dict[str, Value]

SWEEP: Final[str] = "sweep.toml"
"""The file whose presence makes a directory one of a sweep."""

MOST_RUNS: Final[int] = 10_000
SAMPLERS: Final = ("tpe", "random")
PRUNERS: Final = ("none", "median", "halving", "hyperband")
NOT_OF_A_RUN: Final = (
    "out", "overwrite", "seeds", "elastic", "tour", "threads", "json", "resume", "jobs",
)  # fmt: skip
"""Options that say where runs go, and how they are trained and shown."""

_KEYS: Final = ("task", "files", "options", "grid", "search")
_SEARCH_KEYS: Final = ("trials", "sampler", "pruner", "seed", "space")
# So many combinations are tried before a value of a search is one that no run could have.
_MOST_TRIED: Final[int] = 64


@dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers that a search chooses from.

    Attributes:
        low, high: the smallest and the largest; integers where both are.
        log: whether small numbers are chosen as often as large ones, by their logarithms.

    Raises:
        ValueError, TypeError: ends that are no numbers, or in another order.
    """

    low: int | float
    high: int | float
    log: bool = False

    def __post_init__(self) -> None:
        """Check every value."""
        checks.boolean("log", self.log)
        checks.number("low", self.low)
        checks.number("high", self.high)
        if self.low >= self.high:
            checks.fail(f"low must be below high, got low = {self.low} and high = {self.high}")
        if self.log and self.low <= 0:
            checks.fail(f"low must be > 0 with log = true, got {self.low}")

    @property
    def examples(self) -> tuple[Value, ...]:
        """The ends."""
        return self.low, self.high


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Values that a search chooses from."""

    examples: tuple[Value, ...]


@dataclass(frozen=True, kw_only=True)
class Search:
    """What Optuna is asked for.

    Attributes:
        space: the settings that it chooses.    trials: how many runs.
        sampler, pruner: their names.    seed: of what is drawn.

    Raises:
        ValueError, TypeError: a value that is not allowed; the message names it.
    """

    space: dict[str, Range | Choices]
    trials: int
    sampler: str = "tpe"
    pruner: str = "none"
    seed: int = 42

    def __post_init__(self) -> None:
        """Check every value."""
        checks.integer("trials", self.trials, 1, MOST_RUNS)
        checks.choice("sampler", self.sampler, SAMPLERS)
        checks.choice("pruner", self.pruner, PRUNERS)
        checks.integer("seed", self.seed, 0)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep: what all runs have, and what differs.

    Attributes:
        tables: what the file holds, names of settings with dashes.
        task: of `fastformer train`.    files: that it trains on.
        options: the same for all runs.
        grid: values of each setting that differs; empty for a search.
        search: or what is searched.
    """

    tables: dict[str, Any]
    task: str
    files: tuple[str, ...]
    options: Values
    grid: dict[str, tuple[Value, ...]]
    search: Search | None

    @property
    def changed(self) -> tuple[str, ...]:
        """The settings that differ between runs."""
        return tuple(self.grid if self.search is None else self.search.space)

    @property
    def size(self) -> int:
        """How many runs there are."""
        return sum(1 for _ in self.points()) if self.search is None else self.search.trials

    def points(self) -> Iterator[Values]:
        """Yield the settings of each run of a grid that differ."""
        for values in itertools.product(*self.grid.values()):
            yield dict(zip(self.grid, values, strict=True))

    def examples(self) -> Iterator[Iterator[Values]]:
        """Yield, for each run of a grid, and each choice or end of a search, what to try first.

        One of the settings that are yielded together must be allowed.
        """
        if self.search is None:
            yield from (iter([point]) for point in self.points())
            return
        space = {name: one.examples for name, one in self.search.space.items()}
        for name, values in space.items():
            for value in values:
                fixed = {**space, name: (value,)}
                points = itertools.product(*fixed.values())
                yield (
                    dict(zip(fixed, point, strict=True))
                    for point in itertools.islice(points, _MOST_TRIED)
                )

    def words(self, changed: Values) -> list[str]:
        """Return what follows `fastformer train` in the command line of a run."""
        return [self.task, *self.files, *option_words({**self.options, **changed})]

    def write(self, directory: Path) -> None:
        """Write the copy in a sweep's directory, which is made. An older one is replaced.

        Raises:
            RunError: the operating system refused.
        """
        with os_errors_as(RunError, f"write {directory / SWEEP}"):
            make_directory(directory)
            write_atomically(directory / SWEEP, tomli_w.dumps(self.tables).encode())


def option_words(values: Values) -> list[str]:
    """Return settings as options of the command line."""
    words = []
    for name, value in values.items():
        for each in value if isinstance(value, list) else [value]:
            text = value_text(each)
            # A value that begins with a dash would be taken for an option, and none is for a flag.
            joined = text.startswith("-") or isinstance(each, bool)
            words += [f"--{name}={text}"] if joined else [f"--{name}", text]
    return words


def value_text(value: Value) -> str:
    """Write a value as on the command line."""
    if isinstance(value, list):
        return " ".join(map(value_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def short_text(value: Value) -> str:
    """Write a value for a person, a float with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else value_text(value)


def values_text(values: Values) -> str:
    """Write settings and their values for a person."""
    return ", ".join(f"{name} = {short_text(value)}" for name, value in values.items())


@contextlib.contextmanager
def named_errors(where: str) -> Iterator[None]:
    """Say in an error for the user where that is which is wrong."""
    try:
        yield
    except FastformerError as error:
        raise InvalidValueError(f"{where}: {error}") from error


def holds_sweep(directory: Path) -> bool:
    """Tell whether a directory is one of a sweep."""
    return (directory / SWEEP).is_file()


def read_sweep(file: Path) -> dict[str, Any]:
    """Read the tables of a file, which `sweep_of` checks.

    Raises:
        RunError: it cannot be read, or is no TOML.
    """
    with os_errors_as(RunError, f"read {file}"):
        data = read_file(file, MOST_BYTES)
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise RunError(f"{file} is no TOML: {error}") from error


def sweep_of(tables: Mapping[str, Any], tasks: Mapping[str, Any]) -> Sweep:
    """Return the sweep that tables ask for, after a look at everything but the values of settings.

    Args:
        tables: of a file.    tasks: the names of each task's settings.

    Raises:
        ValueError, TypeError: something is missing, unknown, not allowed, or there twice.
    """
    checks.known_keys("the file", tables, _KEYS)
    task = checks.choice("task", tables.get("task", ""), tuple(tasks))
    names = tasks[task]
    files = tables.get("files", [])
    if not isinstance(files, list) or not all(isinstance(one, str) and one for one in files):
        raise InvalidTypeError(f"files must be a list of names of files, got {files!r:.200}")
    options = _named("options", tables.get("options", {}), names)
    if isinstance(options.get("from"), str):
        options["from"] = str(Path(options["from"]).absolute())
    for name, value in options.items():
        _check_value(f"[options] {name}", value)
    if ("grid" in tables) == ("search" in tables):
        checks.fail("there must be either a table [grid] or a table [search]")
    grid, search = {}, None
    if "grid" in tables:
        grid = _values_of("grid", _named("grid", tables["grid"], names))
        runs = 1
        for values in grid.values():
            runs *= len(values)
        checks.integer("the number of runs of [grid]", runs, 1, MOST_RUNS)
    else:
        search = _search_of(tables["search"], names)
    for name in grid or (search.space if search else ()):
        if name in options:
            checks.fail(f"{name} is both in [options] and in what differs; leave out one of them")
    paths = [str(Path(one).absolute()) for one in files]  # so that it can go on from anywhere
    kept = {**tables, "task": task, "files": paths, "options": options}
    return Sweep(
        tables=kept, task=task, files=tuple(paths), options=options, grid=grid, search=search
    )


def _named(where: str, table: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Return a table with dashes in its keys, which must be names of settings."""
    if not isinstance(table, dict):
        raise InvalidTypeError(f"{where} must be a table of settings, got {table!r:.200}")
    found = {key.replace("_", "-"): value for key, value in table.items()}
    if len(found) < len(table):
        twice = next(key for key in table if key.replace("_", "-") in table and "_" in key)
        checks.fail(f"[{where}] has {twice} twice, with a dash and with an underscore")
    for key in found:
        if key in NOT_OF_A_RUN:
            checks.fail(
                f"[{where}] cannot have {key}, which is no setting of a run: give --out, --threads "
                "and --json to fastformer sweep, and several seeds as seed = [42, 43] in [grid]"
            )
    checks.known_keys(f"[{where}]", found, names)
    return found


def _values_of(where: str, table: Mapping[str, Any]) -> dict[str, tuple[Value, ...]]:
    """Return lists of values as tuples."""
    if not table:
        checks.fail(f"[{where}] is empty: name at least one setting, with a list of values")
    return {name: _list_of(f"[{where}] {name}", values) for name, values in table.items()}


def _list_of(where: str, values: Any) -> tuple[Value, ...]:
    if not isinstance(values, list) or not values:
        raise InvalidTypeError(
            f"{where} must be a list of at least one value, such as [0.001, 0.003], got "
            f"{values!r:.200}"
        )
    for value in values:
        _check_value(where, value)
    twice = [value for place, value in enumerate(values) if value in values[:place]]
    if twice:
        checks.fail(f"{where} has {twice[0]!r} twice")
    return tuple(values)


def _check_value(where: str, value: Any) -> None:
    """Raise unless a value can stand on a command line."""
    whole = value if isinstance(value, list) else [value]
    if not whole or not all(isinstance(one, str | int | float) for one in whole):
        raise InvalidTypeError(
            f"{where} must be text, a number, true or false, or a list of these, got {value!r:.200}"
        )


def _search_of(table: Any, names: tuple[str, ...]) -> Search:
    if not isinstance(table, dict):
        raise InvalidTypeError(f"search must be a table, got {table!r:.200}")
    checks.known_keys("[search]", table, _SEARCH_KEYS)
    if "trials" not in table:
        checks.fail("[search] must have trials, the number of runs")
    given = _named("search.space", table.get("space", {}), names)
    if not given:
        checks.fail("[search.space] is empty: name at least one setting")
    space: dict[str, Range | Choices] = {}
    for name, one in given.items():
        where = f"[search.space] {name}"
        if not isinstance(one, dict):
            space[name] = Choices(examples=_list_of(where, one))
            continue
        if missing := {"low", "high"} - one.keys():
            checks.fail(f"{where} must have {' and '.join(sorted(missing))}")
        with named_errors(where):
            space[name] = checks.from_settings(Range, one)
    with named_errors("[search]"):
        return Search(**{**table, "space": space})
