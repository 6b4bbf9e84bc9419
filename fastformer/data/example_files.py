"""Files of examples: two columns of a CSV file, or of a file with one JSON object a line."""

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fastformer import checks
from fastformer.data.text_files import MARK, decoded
from fastformer.errors import InvalidValueError

JSON_LINES: Final = (".jsonl", ".ndjson", ".json")
_TABS: Final = (".tsv", ".tab")


@dataclass(frozen=True)
class Pair:
    """An example of a file.

    Attributes:
        first, second: the text of its two columns.    place: file and line, for messages.
    """

    first: str
    second: str
    place: str


def read_pairs(
    path: str | Path, columns: tuple[str, str], known: tuple[Sequence[str], Sequence[str]]
) -> tuple[list[Pair], tuple[str, str]]:
    """Return the examples of a file, and the names of the columns that they are from.

    Args:
        path: .csv, or .tsv with tabs, whose first line names the columns; or .jsonl. UTF-8.
        columns: the names of the two columns; where one is "", the first of `known` that the file
            has, or, of a file with two columns, the one that is left, or that comes first.
        known: usual names of either column.

    Raises:
        ValueError: a file that cannot be read, is not UTF-8, or has no examples; a line that is
            ragged, no JSON object, or lacks one of the columns. The message has the file, the
            line and the column.
    """
    path = Path(path)
    text = read_text(path)
    rows = _json_rows(path, text) if path.suffix.lower() in JSON_LINES else _csv_rows(path, text)
    chosen: tuple[str, str] | None = None
    found = []
    for line, row in rows:
        place = f"{path}, line {line}"
        if chosen is None:
            chosen = _choose(path, list(row), columns, known)
        values = [_value(place, row, name) for name in chosen]
        found.append(Pair(values[0], values[1], place))
    if chosen is None:
        checks.fail(f"{path} has no examples: it needs a line for each, below the columns' names")
    return found, chosen


def read_files(
    files: Sequence[str],
    columns: tuple[str, str],
    known: tuple[Sequence[str], Sequence[str]],
) -> tuple[list[Pair], tuple[str, str]]:
    """Return the examples of some files, which have the same columns; see `read_pairs`."""
    if not files:
        checks.fail("give at least one file of examples, .csv or .jsonl")
    found: list[Pair] = []
    for file in files:
        pairs, columns = read_pairs(file, columns, known)
        found += pairs
    return found, columns


def digest_of(pairs: Sequence[Pair]) -> str:
    """Return a digest of examples: others have another one."""
    found = hashlib.sha256()
    for pair in pairs:
        found.update(f"{len(pair.first)} {len(pair.second)} {pair.first}{pair.second}".encode())
    return found.hexdigest()[:16]


def read_text(path: str | Path) -> str:
    """Return the text of a file.

    Raises:
        ValueError: it cannot be read, is empty, or is not UTF-8: the message has the byte's offset.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InvalidValueError(f"cannot read {path}: {error.strerror}") from error
    before = len(MARK) if data.startswith(MARK) else 0
    text = decoded(Path(path), data[before:], before)
    if not text.strip():
        checks.fail(f"{path} is empty")
    return text


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line, row) of a file whose first line has the names of the columns."""
    tabs = path.suffix.lower() in _TABS
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter="\t" if tabs else ",")
    header: list[str] = []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InvalidValueError(f"{path}, line {reader.line_num}: no CSV: {error}") from error
        if not cells:
            continue
        if not header:
            header = [cell.strip() for cell in cells]
            _check_header(path, header)
            continue
        if len(cells) != len(header):
            checks.fail(
                f"{path}, line {line}: it has {len(cells)} columns, and the first line has "
                f"{len(header)}: {', '.join(header)}; put a text with commas in quotes"
            )
        yield line, dict(zip(header, cells, strict=True))


def _check_header(path: Path, header: list[str]) -> None:
    if len(header) < 2 and ";" in header[0]:
        checks.fail(
            f"{path}, line 1: columns are separated by commas, and here it looks like ';': save "
            "the file with commas, or as .tsv with tabs"
        )
    if len(header) < 2:
        checks.fail(
            f"{path}, line 1: the first line must name two columns or more, such as text,label; "
            f"got {header[0]!r:.60}"
        )
    if len(set(header)) < len(header):
        checks.fail(f"{path}, line 1: a column is named twice: {', '.join(header)}")


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line, object) of a file with one JSON object a line."""
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except (ValueError, RecursionError) as error:
            column = f", column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            raise InvalidValueError(
                f"{path}, line {line}{column}: no JSON; write one object a line"
            ) from error
        if not isinstance(row, dict):
            checks.fail(f"{path}, line {line}: it must be a JSON object, got {content!r:.60}")
        yield line, row


def _choose(
    path: Path,
    there: list[str],
    columns: tuple[str, str],
    known: tuple[Sequence[str], Sequence[str]],
) -> tuple[str, str]:
    """Return the names of the two columns that are read."""
    for name in columns:
        if name and name not in there:
            checks.fail(f"{path}: there is no column {name!r:.60}; there are {', '.join(there)}")
    chosen = [
        name or next((one for one in usual if one in there), "")
        for name, usual in zip(columns, known, strict=True)
    ]
    if len(there) == 2:
        first = chosen[0] or next(name for name in there if name != chosen[1])
        chosen = [first, chosen[1] or next(name for name in there if name != first)]
    for name, usual in zip(chosen, known, strict=True):
        if not name:
            checks.fail(
                f"{path}: none of the columns {', '.join(there)} is called {' or '.join(usual)}; "
                f"say which it is with --{usual[0]}-column"
            )
    if chosen[0] == chosen[1]:
        checks.fail(f"{path}: column {chosen[0]!r} cannot be both; name the other one")
    return chosen[0], chosen[1]


def _value(place: str, row: dict[str, Any], name: str) -> str:
    """Return the text of a column; a list of tokens is written with spaces between them."""
    if name not in row:
        checks.fail(f"{place}: column {name!r} is missing; there are {', '.join(row)}")
    value = row[name]
    if isinstance(value, list) and all(isinstance(one, str | int) for one in value):
        value = " ".join(map(str, value))
    if isinstance(value, bool | int | float):
        value = json.dumps(value)
    if not isinstance(value, str):
        checks.fail(f"{place}, column {name!r}: must be a text, got {value!r:.60}")
    if not value.strip():
        checks.fail(f"{place}, column {name!r}: it is empty")
    return str(value).strip()
