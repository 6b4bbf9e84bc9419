"""A report as one HTML page: no file beside it, no network, nothing but what a browser has.

Tables and curves are there without scripts; the attention explorer and the map's epochs need them.
"""

import importlib.resources
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

import fastformer
from fastformer.analysis.evaluation import ClassScore, ClassScores, Scores, Share, place_name
from fastformer.analysis.head_roles import Support
from fastformer.analysis.plots import CURVE_NAMES, PANELS, Curves, value_text
from fastformer.analysis.report import Example, Report
from fastformer.analysis.svg import map_places, map_svg, panel_svg
from fastformer.errors import RunError
from fastformer.parameters import Array
from fastformer.training.atomic_file import make_directory, os_errors_as, write_atomically
from fastformer.training.json_text import json_text
from fastformer.writing import ROUNDING, hundredths, interval, percent, printable, signed


def write_page(report: Report, path: Path) -> None:
    """Write a report's page; the directories above it are made. An older file is replaced.

    Raises:
        RunError: the operating system refused.
    """
    content = page(report).encode()
    with os_errors_as(RunError, f"write report {path}"):
        make_directory(path.parent)
        write_atomically(path, content)


def page(report: Report) -> str:
    """Return a report as HTML."""
    parts = {
        "title": escape(printable(report.name)),
        "summary": _summary(report),
        "notes": _notes(report.notes),
        "curves": _curves(report.curves),
        "answers": _answers(report),
        "attention": _attention(report),
        "embeddings": _embeddings(report),
        "settings": _settings(report.config),
        "footer": f"Written by fastformer {escape(fastformer.__version__)}. "
        "All of it is in this file: it needs no network.",
        "style": _resource("report.css"),
        "script": _resource("report.js"),
        "data": _embedded(_data(report)),
    }
    html = _resource("report.html")
    first, *pieces = html.split("{{")
    # Piece by piece, so that braces within a part are left alone.
    filled = [first]
    for piece in pieces:
        name, rest = piece.split("}}", 1)
        filled += [parts[name], rest]
    return "".join(filled)


def _resource(name: str) -> str:
    return (importlib.resources.files("fastformer.analysis") / "web" / name).read_text("utf-8")


def _embedded(data: dict[str, Any]) -> str:
    """Return JSON that can stand within a script element: nothing in it can close one."""
    return json_text("the data of a report", data).replace("<", "\\u003c")


def _data(report: Report) -> dict[str, Any]:
    """Return what the page's script needs."""
    places = map_places(report.maps) if report.maps else []
    return {
        "attention": [_example_data(example) for example in report.examples],
        "maps": [
            {"label": label, "places": points}
            for label, points in zip(report.map_labels, places, strict=True)
        ],
    }


def _example_data(example: Example) -> dict[str, Any]:
    prediction, attention = example.prediction, example.attention
    wrong = f" (answered {prediction.prediction})" if prediction.correct is False else ""
    return {
        "label": f"{prediction.expression}{wrong}",
        "tokens": attention.tokens,
        "causal": attention.causal,
        "read": None if attention.read_rows is None else list(attention.read_rows),
        "layers": [_short(layer) for layer in attention.layers],
        "heads": [summary.as_json() for summary in example.heads],
        "prediction": prediction.prediction,
        "probability": prediction.probability,
        "expected": prediction.expected,
        "correct": prediction.correct,
        "top": prediction.top,
    }


def _short(weights: Array) -> list[Any]:
    """Return weights with four decimals, rounded down as all shares are."""
    rounded: list[Any] = (np.floor((weights.astype(float) + ROUNDING) * 10_000) / 10_000).tolist()
    return rounded


def _summary(report: Report) -> str:
    """Show the few numbers that matter most."""
    facts = []
    if report.scores is not None:
        exact = report.scores.exact
        facts += [
            ("right on inputs never seen", f"{percent(exact.accuracy)} of {exact.total:,}"),
            ("95 % interval", interval(*exact.interval)),
        ]
    if report.curves is not None and report.curves.best is not None:
        facts.append((f"best {report.curves.axis}", f"{report.curves.best:g}"))
    if report.result is not None:
        forms = {"parameters": ",", "steps": ",", "seconds": ".1f", "examples_per_second": ",.0f"}
        for name, form in forms.items():
            facts.append((name.replace("_", " "), format(report.result[name], form)))
    items = [f"<div><dt>{escape(n)}</dt><dd>{escape(v)}</dd></div>" for n, v in facts]
    return f'<dl class="facts">{"".join(items)}</dl>' if items else ""


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    items = "".join(f"<p>{escape(printable(note))}</p>" for note in notes)
    return f'<div class="notes" role="note">{items}</div>'


def _missing(what: str) -> str:
    return f'<p class="missing">{escape(what)} The reason is at the top of this page.</p>'


def _table(
    header: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "", kind: str = ""
) -> str:
    """Return a table of cells that are HTML already; the first of a row is its header."""
    head = "".join(f'<th scope="col">{name}</th>' for name in header)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for first, *cells in rows
    )
    title = f"<caption>{caption}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table class="{kind}">{title}<thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _curves(curves: Curves | None) -> str:
    """Return the four panels, their legend, and the numbers in a table."""
    if curves is None:
        return _missing("There are no records to draw.")
    figures = "".join(
        f"<figure><figcaption>{escape(panel.title)}</figcaption>{panel_svg(panel, curves)}</figure>"
        for panel in PANELS
    )
    names = [name for name in CURVE_NAMES if name in curves.values]
    rows = [
        [f"{x:g}", *(value_text(name, curves.values[name][place]) for name in names)]
        for place, x in enumerate(curves.x)
    ]
    numbers = _table([curves.axis, *(name.replace("_", " ") for name in names)], rows)
    return (
        '<p class="hint"><span class="swatch train"></span>training'
        '<span class="swatch"></span>validation<span class="swatch best"></span>'
        f"best {curves.axis}. Point at a dot for its value.</p>"
        f'<div class="panels">{figures}</div>'
        f"<details><summary>The numbers</summary>{numbers}</details>"
    )


def _answers(report: Report) -> str:
    """Return the accuracy by operation and by digit, and what was taken for what."""
    scores = report.scores
    if scores is None:
        return _missing("There is no model to ask.")
    tables = ""
    for what, shares in scores.shares.items():
        ranked = sorted(shares.items(), key=lambda item: item[1].accuracy)
        notes = scores.per_class if isinstance(scores, ClassScores) else {}
        tables += _share_table(what, ranked, f"Right answers, hardest {what} first", notes)
    places = [(place_name(place), share) for place, share in enumerate(scores.per_digit)]
    if len(places) > 1:
        tables += _share_table("digit", places, "By digit of the answer")
    return (
        f'<p class="hint">On {scores.exact.total:,} test inputs, none of which was trained on.</p>'
        f'<div class="columns wide"><div>{tables}</div>'
        f"<div>{_confusion(scores)}</div></div>"
    )


def _share_table(
    name: str,
    shares: Iterable[tuple[str, Share]],
    caption: str,
    classes: Mapping[str, ClassScore] | None = None,
) -> str:
    """Return a table of shares; of classes with the precision and F1 of each."""
    rows = [
        [
            escape(label),
            percent(share.accuracy),
            f'<span class="bar"><i style="width:{100 * share.accuracy:.2f}%"></i></span>',
            f"{share.correct:,} of {share.total:,}",
            interval(*share.interval).replace(" %", "", 1),
            *_class_cells(classes[label] if classes else None),
        ]
        for label, share in shares
    ]
    header = [name, "recall" if classes else "accuracy", "", "right", "95 % interval"]
    if classes:
        header += ["precision", "F1"]
    return _table(header, rows, caption, "shares")


def _class_cells(score: ClassScore | None) -> list[str]:
    if score is None:
        return []
    precision = "none" if score.precision is None else percent(score.precision.accuracy)
    return [precision, hundredths(score.f1)]


def _confusion(scores: Scores) -> str:
    """Return the confusion matrix, shaded by share of a row; empty rows and columns left out."""
    if not scores.labels:
        return ""
    counts, names = scores.confusion.tolist(), [escape(label) for label in scores.labels]
    used = [
        place
        for place in range(len(counts))
        if any(counts[place]) or any(row[place] for row in counts)
    ]
    rows = []
    for row in used:
        total = sum(counts[row]) or 1
        cells = "".join(_heat_cell(counts[row][c] / total, str(counts[row][c] or "")) for c in used)
        rows.append(f'<tr><th scope="row">{names[row]}</th>{cells}</tr>')
    head = "".join(f'<th scope="col">{names[place]}</th>' for place in used)
    return (
        '<div class="scroll"><table class="heat compact"><caption>'
        f"Right {scores.unit} (row) and answered {scores.unit} (column)</caption>"
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _heat_cell(share: float, text: str) -> str:
    """Return a cell that is shaded by a share, -1 to 1: what is below 0 in another colour."""
    below = ' class="below"' if share < 0 else ""
    return f'<td{below} style="--w:{abs(share):.3f}">{text}</td>'


def _attention(report: Report) -> str:
    """Return the explorer, which a script fills, and what each head does over the test inputs."""
    if not report.examples:
        return _missing("There is no model to look into.")
    rows = [
        [
            f"layer {role.layer}, head {role.head}",
            escape(role.kind),
            hundredths(role.entropy),
            _support(role.readout, "all are read"),
            _support(role.tokens, "not read"),
        ]
        for role in report.roles
    ]
    roles = _table(
        ["head", "kind", "entropy", "from what is read out", "from all tokens"],
        rows,
        "What each head looks at most, and the share of test inputs that support it",
        "words",
    )
    return (
        '<p class="hint">The weights that the model computes for the expression. Each row sums to '
        "100 %. Pale rows of the last layer reach no answer. Entropy is given in parts of the "
        "largest possible.</p>"
        '<noscript><p class="notes">The explorer needs JavaScript; all else on this page does not.'
        "</p></noscript>"
        '<div class="controls"><label>Expression <select id="expression"></select></label>'
        '<label>Layer <select id="layer"></select></label>'
        '<label>Head <select id="head"></select></label></div>'
        '<p id="answer"></p><div class="explorer">'
        '<div><div class="scroll"><table id="weights" class="heat"></table></div>'
        '<p id="readout" aria-live="polite"></p><p id="kind" class="hint"></p></div>'
        '<div><h3>All heads</h3><div class="scroll">'
        '<div id="heads" class="heads"></div></div></div></div>'
        f"<h3>Over the whole test set</h3>{roles}"
    )


def _support(support: Support | None, otherwise: str) -> str:
    """Say what a head looks at most, and how often."""
    if support is None:
        return otherwise
    found = f"{escape(support.name)} ({percent(support.share, 0)})"
    return found if support.clear else f"nothing clear; most often {found}"


def _embeddings(report: Report) -> str:
    """Return the map, the cosines, and likeness against distance."""
    found = report.embeddings
    if found is None:
        return _missing("There is no embedding to show.")
    first, second = found.map.explained
    places = map_places(report.maps)
    last = len(places) - 1
    slider = (
        '<div class="controls"><label>Epoch <input type="range" id="epoch" min="0" '
        f'max="{last}" value="{last}"></label><output id="epoch-label" for="epoch"></output></div>'
        if last > 0
        else ""
    )
    shown = f"Digits and {found.others_are}" if found.digits else "The first tokens"
    distances = ""
    if found.digits:
        distances = _table(
            ["distance", "pairs", "mean cosine"],
            [[str(d.distance), str(d.pairs), signed(d.mean)] for d in found.by_distance],
            f"Digits: likeness against distance (correlation {signed(found.trend)})",
        )
    norms = _table(
        ["token", "length"], [[escape(t), f"{n:.3f}"] for t, n in found.norms.items()], "Lengths"
    )
    return (
        f'<p class="hint">{shown}, in the plane in which they differ most: it holds '
        f"{percent(first + second)} of the variance ({percent(first)} across, "
        f"{percent(second)} up). Cosines of random rows have a standard deviation of "
        f"{found.chance:.2f}: less means nothing. Those below 0 are shaded in another colour.</p>"
        f'<div class="columns"><div>{slider}{map_svg(found.map.tokens, places[-1])}</div>'
        f"<div>{_cosines(found.digits, found.digit_cosines, 'Cosines of digits')}"
        f"{_cosines(found.others, found.other_cosines, f'Cosines of {found.others_are}')}"
        f"</div><div>{distances}</div><div><details><summary>Lengths of tokens</summary>"
        f"{norms}</details></div></div>"
    )


def _cosines(names: Sequence[str], values: Array, caption: str) -> str:
    """Return a shaded matrix of cosines, of at least two tokens."""
    if len(names) < 2:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(_heat_cell(value, signed(value)) for value in row)
        + "</tr>"
        for name, row in zip(names, values.tolist(), strict=True)
    )
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    return (
        f'<div class="scroll"><table class="heat compact"><caption>{caption}</caption><thead><tr>'
        f"<td></td>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _settings(config: dict[str, dict[str, Any]]) -> str:
    """Return a table for each table of the config."""
    tables = []
    for title, table in config.items():
        rows = [[escape(name), escape(_setting(value))] for name, value in table.items()]
        tables.append(f"<div>{_table(['setting', 'value'], rows, escape(title))}</div>")
    return f'<div class="columns">{"".join(tables)}</div>'


def _setting(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
