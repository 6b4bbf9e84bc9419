"""`fastformer attention`: where a run's best model looks."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from fastformer import threads as thread_count
from fastformer.cli import console
from fastformer.errors import InvalidValueError
from fastformer.writing import hundredths

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fastformer.analysis.attention import ExpressionAttention
    from fastformer.analysis.head_roles import HeadRole
    from fastformer.analysis.prediction import Predictor


def attention(
    run: Path,
    /,
    *expression: str,
    layer: int | None = None,
    head: int | None = None,
    data: Path | None = None,
    picture: Path | None = None,
    out: Path | None = None,
    threads: int | None = None,
    json: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
) -> None:
    """Show where a run's best model looks: in one expression or text, or in all test examples.

    Args:
        run: directory of the run.
        expression: for instance Max 5 3 9, or a text; without one, what each head seems to do in
            the run's test examples.
        layer: show the heads of this layer alone, counted from 1; without it, an overview.
        head: show this head alone, counted from 1.
        data: a file of your own expressions, one a line, to look at instead of the test examples.
        picture: file for a picture of what is shown: .png, .svg or .pdf.
        out: directory for pictures of all heads, one by one, by layer, and together.
        threads: number of threads; without it, as many as the machine or container allows.
        json: print one JSON object and nothing else.
    """
    thread_count.configure(threads)
    from fastformer.analysis.figures import check_picture
    from fastformer.analysis.loading import load_run

    if picture is not None:
        check_picture(picture)
    loaded = load_run(run)
    _check_place(layer, head, loaded.model.config.num_layers, loaded.model.config.num_heads)
    if not expression:
        from fastformer.analysis.head_roles import head_roles

        if layer is not None or out is not None:
            raise InvalidValueError(
                "--layer, --head and --out show the attention in one expression; give one, for "
                'instance "Max ( 5 3 9 )"'
            )
        if data is None:
            expressions, source = loaded.tests, "test examples"
        else:
            from fastformer.analysis.run_evaluation import read_expressions

            expressions, source = read_expressions(data, loaded), f"expressions of {data}"
        roles = head_roles(loaded.model, expressions)
        causal = loaded.model.blocks[0].attention.causal
        _show_roles(roles, run, len(expressions), source, causal, picture, json)
    elif data is not None:
        raise InvalidValueError("give an expression, or --data with a file of them, not both")
    else:
        text = " ".join(expression)
        _show_expression(loaded.predictor, text, layer, head, picture, out, json)


def _check_place(layer: int | None, head: int | None, layers: int, heads: int) -> None:
    """Raise unless the model has such a layer and head."""
    from fastformer import checks

    if head is not None and layer is None:
        raise InvalidValueError(f"--head {head} is one of a layer; add --layer")
    if layer is not None:
        checks.integer("--layer", layer, 1, layers)
    if head is not None:
        checks.integer("--head", head, 1, heads)


def _show_expression(
    predictor: "Predictor",
    expression: str,
    layer: int | None,
    head: int | None,
    picture: Path | None,
    out: Path | None,
    json: bool,
) -> None:
    """Show the attention in one expression."""
    from fastformer.analysis.attention import expression_attention, head_summaries

    found = expression_attention(predictor, expression)
    answer = predictor.predict(expression)
    saved = _save(found, layer, head, picture, out)
    if json:
        layers = [weights.tolist() for weights in found.layers]
        console.json_line(
            {
                "expression": answer.expression,
                "prediction": answer.prediction,
                "expected": answer.expected,
                "tokens": found.tokens,
                "readout": found.readout,
                "read_rows": None if found.read_rows is None else list(found.read_rows),
                "layers": layers,
                "heads": [summary.as_json() for summary in head_summaries(found)],
                "pictures": [str(path) for path in saved],
            }
        )
        return
    console.line(f"{answer.expression} = {answer.prediction}{answer.verdict}\n")
    for text in _expression_lines(found, layer, head):
        console.line(text)
    for path in saved:
        console.line(f"picture {path}")


def _expression_lines(
    found: "ExpressionAttention", layer: int | None, head: int | None
) -> list[str]:
    """Return the overview, or the heads that are asked for, as text."""
    from fastformer.analysis.attention_text import (
        head_lines,
        legend,
        overview_lines,
        summary_lines,
    )

    read = found.read_rows
    source = "in the mean of all tokens, from which the answer is read"
    if read is not None:
        token = found.tokens[read.start]
        source = f"from {token}, the token that the answer is read from"
        if found.causal:
            source = f"from {token}, after which the model writes the first token of its answer"
    last = len(found.layers)
    lines: list[str] = []
    if layer is None:
        lines += [f"where each head looks {source}"]
        lines += [*overview_lines(found), legend(len(found.tokens)), "", *summary_lines(found), ""]
        lines += [f"For each row of a layer: --layer 1 to {last}. For all examples: no expression."]
    else:
        heads = range(1, len(found.layers[0]) + 1) if head is None else [head]
        for number in heads:
            lines += [*head_lines(found, layer, number), ""]
        lines += [legend(len(found.tokens))]
    if read is not None and layer in (None, last):
        rows = f"the row of {found.tokens[read.start]} reaches"
        if len(read) > 1:
            rows = f"the rows from {found.tokens[read.start]} on reach"
        lines += [
            f"In layer {last}, only {rows} the answer; the other rows are computed to be seen, and "
            "summaries leave them out."
        ]
    return lines


def _save(
    found: "ExpressionAttention",
    layer: int | None,
    head: int | None,
    picture: Path | None,
    out: Path | None,
) -> list[Path]:
    """Write the pictures that are asked for, and return where they are."""
    if picture is None and out is None:
        return []
    from fastformer.analysis.attention_pictures import head_figure, layer_figure, layers_figure
    from fastformer.analysis.figures import save_picture

    pictures: list[tuple[Path, Figure]] = []
    if picture is not None:
        if layer is None:
            pictures.append((picture, layers_figure(found)))
        elif head is None:
            pictures.append((picture, layer_figure(found, layer)))
        else:
            pictures.append((picture, head_figure(found, layer, head)))
    if out is not None:
        pictures.append((out / "all-layers.png", layers_figure(found)))
        for number, weights in enumerate(found.layers, start=1):
            pictures.append((out / f"layer-{number}.png", layer_figure(found, number)))
            pictures += [
                (out / f"layer-{number}-head-{each}.png", head_figure(found, number, each))
                for each in range(1, len(weights) + 1)
            ]
    return [save_picture(figure, path) for path, figure in pictures]


def _show_roles(
    roles: list["HeadRole"],
    run: Path,
    examples: int,
    source: str,
    causal: bool,
    picture: Path | None,
    json: bool,
) -> None:
    """Show what each head seems to do over a number of examples from a source."""
    if picture is not None:
        from fastformer.analysis.attention_pictures import roles_figure
        from fastformer.analysis.figures import save_picture

        save_picture(roles_figure(roles), picture)
    if json:
        console.json_line(
            {
                "run": str(run),
                "examples": examples,
                "heads": [role.as_json() for role in roles],
                "picture": None if picture is None else str(picture),
            }
        )
        return
    which = "the token that the answer is read from"
    if causal:
        which = "a token after which a digit is written"
    if roles[0].readout is None:
        which = "each of their tokens"
    console.line(
        f"what each head seems to do in {examples:,} {source}: in so many, the largest\n"
        f"weight from {which} is on this token\n"
    )
    for role in roles:
        console.line(
            f"layer {role.layer}, head {role.head}: {role.kind}, entropy "
            f"{hundredths(role.entropy)} of its maximum"
        )
        if role.readout is not None:
            console.line(f"  all              {role.readout.text()}")
        for name, support in role.by_group.items():
            console.line(f"  {name:<16} {support.text()}")
        if role.tokens is not None:
            console.line(f"  from every token {role.tokens.text()}")
    if picture is not None:
        console.line(f"\npicture {picture}")
