"""`fastformer embeddings`: what the embeddings of a run's best model have learned."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from fastformer import writing
from fastformer.cli import console

if TYPE_CHECKING:
    from fastformer.analysis.embeddings import EmbeddingMap, EmbeddingReport
    from fastformer.data.vocabulary import NamedTokens
    from fastformer.parameters import Array

_MAP_COLUMNS, _MAP_ROWS = 64, 20
_PAIRS = 5
_MATRIX = 12


def embeddings(
    run: Path,
    /,
    *,
    out: Path | None = None,
    json: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
) -> None:
    """Show what the embeddings of a run's best model have learned, and how they came about.

    Args:
        run: directory of the run.
        out: directory for pictures of norms, cosines, distance, map and epochs, as .png.
        json: print one JSON object and nothing else.
    """
    from fastformer.analysis.embeddings import embedding_report, learned_changes
    from fastformer.analysis.loading import load_embeddings
    from fastformer.errors import RunError
    from fastformer.training.embedding_records import EmbeddingRecords

    tokens, table = load_embeddings(run)
    report = embedding_report(table, tokens)
    records = EmbeddingRecords(run)
    tables: dict[int, Array] = {}
    gaps, missing = [str(records.directory)], ""
    try:
        tables = records.read_all(table.shape)
        gaps = records.missing()
        missing = f"these records of epochs are missing: {', '.join(gaps)}" if gaps else ""
    except RunError as error:
        if records.epochs():
            raise
        missing = str(error)
    history = {epoch: embedding_report(each, tokens) for epoch, each in tables.items()}
    changes = {
        epoch: embedding_report(each, tokens) for epoch, each in learned_changes(tables).items()
    }
    pictures = [] if out is None else _save(report, changes, tables, tokens, out)
    if json:
        epochs = [
            {
                "epoch": epoch,
                **each.as_json(),
                "learned": changes[epoch].as_json() if epoch in changes else None,
            }
            for epoch, each in history.items()
        ]
        own = {"run": str(run), **report.as_json(), "epochs": epochs}
        console.json_line({**own, "missing": gaps, "pictures": [str(path) for path in pictures]})
        return
    _show(report, changes)
    if missing:
        console.notice(missing)
    if history:
        _show_history(history, changes)
    for path in pictures:
        console.line(f"picture {path}")


def _save(
    report: "EmbeddingReport",
    changes: "Mapping[int, EmbeddingReport]",
    tables: "Mapping[int, Array]",
    tokens: "NamedTokens",
    out: Path,
) -> list[Path]:
    """Write all pictures, and return where they are."""
    from fastformer.analysis import embedding_pictures as draw
    from fastformer.analysis.figures import save_picture

    figures = {
        "norms": draw.norms_figure(report),
        "cosines": draw.cosines_figure(report),
        "map": draw.map_figure(report),
    }
    if report.digits:
        figures["distance"] = draw.distance_figure(report)
    if tables:
        figures["epochs"] = draw.history_figure(tables, tokens)
    if changes:
        learned, what = changes[max(changes)], "what was learned"
        figures["learned-cosines"] = draw.cosines_figure(learned, what)
        if report.digits:
            figures["learned-distance"] = draw.distance_figure(learned, what)
    return [save_picture(figure, out / f"{name}.png") for name, figure in figures.items()]


def _show(report: "EmbeddingReport", changes: "Mapping[int, EmbeddingReport]") -> None:
    """Write what is known of a table, and of what training added to it, for a person."""
    console.line("norm of each token's embedding, beside the largest")
    largest, widest = max(report.norms.values()) or 1.0, max(8, *map(len, report.norms))
    for name, norm in report.norms.items():
        console.line(f"  {name:<{widest}} {console.bar(norm / largest)} {norm:7.3f}")
    _show_cosines(report, "embeddings")
    if changes:
        last = max(changes)
        _show_cosines(
            changes[last],
            f"what was learned until epoch {last}, the difference to the random table of epoch 0",
        )
    first, second = map(writing.percent, report.map.explained)
    console.line(f"\nmap: the plane of the most variance ({first} across, {second} up)")
    for text in map_lines(report.map):
        console.line(text)


def _show_cosines(report: "EmbeddingReport", what: str) -> None:
    """Write the cosines of digits and others, and those of digits against their distance."""
    console.line(
        f"\ncosines of {what}\n(between random rows of this width they are 0 ± "
        f"{report.chance:.2f}: smaller ones say nothing)"
    )
    if report.digits:
        _show_matrix(report.digits, report.digit_cosines)
        console.line()
    if 1 < len(report.others) <= _MATRIX:
        _show_matrix(report.others, report.other_cosines)
    if not report.digits:
        _show_pairs(report.others, report.other_cosines)
        return
    _show_distances(report)
    _show_pairs(report.digits, report.digit_cosines)


def _show_distances(report: "EmbeddingReport") -> None:
    """Write how alike digits are that lie so far apart."""
    from fastformer.analysis.embeddings import near_minus_far

    console.line(
        f"\n  distance of digits {''.join(f'{p.distance:>7}' for p in report.by_distance)}"
    )
    means = (f"{writing.signed(part.mean):>7}" for part in report.by_distance)
    console.line(f"  mean cosine        {''.join(means)}")
    trend = writing.signed(report.trend)
    console.line(f"  correlation over all pairs: {trend} (negative where near numbers are alike)")
    nearer = sum(gain > 0 for gain in near_minus_far(report.digit_cosines))
    console.line(
        f"  {nearer} of {len(report.digits)} digits are more like their neighbours than like far "
        "ones"
    )


def _show_pairs(names: "Sequence[str]", cosines: "Array") -> None:
    """Write which pairs are the most and the least alike."""
    from fastformer.analysis.embeddings import alike

    pairs = alike(cosines, names)
    for label, listed in (
        ("most alike", pairs[:_PAIRS]),
        ("least alike", pairs[: -_PAIRS - 1 : -1]),
    ):
        console.line(
            f"  {label:<18} "
            + ", ".join(f"{a} {b} {writing.signed(value)}" for a, b, value in listed)
        )


def _show_matrix(names: list[str], values: "Array") -> None:
    width = max(7, *(len(name) + 1 for name in names))
    console.line(" " * 9 + "".join(f"{name:>{width}}" for name in names))
    for name, row in zip(names, values.tolist(), strict=True):
        console.line(f"  {name:<7}" + "".join(f"{writing.signed(value):>{width}}" for value in row))


def map_lines(found: "EmbeddingMap") -> list[str]:
    """Return a map as text in a frame: each token where it is, the later ones beside the earlier.

    A token that finds its place taken moves to the nearest free one in its line, or a near line.
    """
    cells = [[" "] * _MAP_COLUMNS for _ in range(_MAP_ROWS)]
    low, high = found.points.min(axis=0), found.points.max(axis=0)
    span = [float(reach) or 1.0 for reach in high - low]
    widest = max(len(token) for token in found.tokens)
    for (x, y), token in zip(found.points.tolist(), found.tokens, strict=True):
        column = round((x - float(low[0])) / span[0] * (_MAP_COLUMNS - widest))
        row = round((float(high[1]) - y) / span[1] * (_MAP_ROWS - 1))
        free = (
            (r, c)
            for r in range(_MAP_ROWS)
            for c in range(_MAP_COLUMNS - len(token) + 1)
            if all(cell == " " for cell in cells[r][max(0, c - 1) : c + len(token) + 1])
        )
        r, c = min(free, key=lambda place: 3 * abs(place[0] - row) + abs(place[1] - column))
        cells[r][c : c + len(token)] = list(token)
    edge = "+" + "-" * _MAP_COLUMNS + "+"
    return [edge, *("|" + "".join(line) + "|" for line in cells), edge]


def _show_history(
    history: "Mapping[int, EmbeddingReport]", changes: "Mapping[int, EmbeddingReport]"
) -> None:
    """Write a line for each epoch."""
    first = next(iter(history.values()))
    if first.digits:
        console.line("\nover the epochs: mean norms, and the correlation of cosine and distance")
        heads = ["digits", first.others_are, "correlation", "learned: digits", "correlation"]
    else:
        console.line("\nover the epochs: mean norms")
        heads = [first.others_are, "learned"]
    console.line("  epoch" + "".join(f"  {head:>15}" for head in heads))
    for epoch, report in history.items():
        values = [f"{_mean(report, report.others):.3f}"]
        if report.digits:
            values = [f"{_mean(report, report.digits):.3f}", *values, writing.signed(report.trend)]
        if epoch in changes:
            changed = changes[epoch]
            values.append(f"{_mean(changed, changed.digits or changed.others):.3f}")
            values += [writing.signed(changed.trend)] if changed.digits else []
        console.line(f"  {epoch:>5}" + "".join(f"  {value:>15}" for value in values))


def _mean(report: "EmbeddingReport", names: Iterable[str]) -> float:
    """Return the mean norm of some tokens."""
    norms = [report.norms[name] for name in names]
    return sum(norms) / len(norms)
