"""Pictures: what is drawn is what was measured, and the files are pictures."""

import struct
from pathlib import Path

import numpy as np
import pytest

from fastformer.analysis import attention_pictures, embedding_pictures
from fastformer.analysis.attention import ExpressionAttention
from fastformer.analysis.attention_text import (
    heatmap_lines,
    legend,
    overview_lines,
    shade,
    summary_lines,
)
from fastformer.analysis.embeddings import embedding_report, learned_changes
from fastformer.analysis.evaluation import evaluate_answers
from fastformer.analysis.evaluation_pictures import confusion_figure
from fastformer.analysis.figures import new_figure, picture_bytes, save_picture
from fastformer.analysis.head_roles import HeadRole, Support
from fastformer.analysis.token_roles import FIXED, ROLES
from fastformer.data.vocabulary import DIGIT_TOKENS, DIGITS, NamedTokens

TWO = NamedTokens.of(DIGIT_TOKENS, ["Max", "Min"])
TOKENS = ["Max", "(", "4", ",", "7", ")"]


def planted_attention(readout: int | None = 0) -> ExpressionAttention:
    """Return random attention of 2 layers and 3 heads, whose rows sum to 1."""
    random = np.random.default_rng(3)
    layers = [random.dirichlet(np.full(6, 0.3), (3, 6)).astype(np.float32) for _ in range(2)]
    return ExpressionAttention(TOKENS, layers, readout)


def drawn(figure) -> list[np.ndarray]:
    """Return the matrices of all heatmaps of a figure."""
    return [np.asarray(image.get_array()) for axes in figure.axes for image in axes.get_images()]


def test_a_heads_picture_has_its_weights_and_tokens() -> None:
    attention = planted_attention()
    figure = attention_pictures.head_figure(attention, 2, 3)
    (matrix,) = drawn(figure)
    np.testing.assert_array_equal(matrix, attention.layers[1][2])
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == TOKENS
    assert [label.get_text() for label in axes.get_yticklabels()] == TOKENS
    bold = [label.get_fontweight() == "bold" for label in axes.get_yticklabels()]
    assert bold == [True, False, False, False, False, False]
    assert "layer 2, head 3" in figure.get_suptitle()
    assert "no other row reaches it" in axes.get_xlabel()


def test_all_heads_and_all_layers_are_side_by_side() -> None:
    attention = planted_attention()
    one = drawn(attention_pictures.layer_figure(attention, 1))
    np.testing.assert_array_equal(one, attention.layers[0])
    every = drawn(attention_pictures.layers_figure(attention))
    np.testing.assert_array_equal(every, np.concatenate(attention.layers))
    titles = [a.get_title() for a in attention_pictures.layers_figure(attention).axes[:6]]
    assert [title.split("\n")[0] for title in titles] == [
        f"layer {layer}, head {head}" for layer in (1, 2) for head in (1, 2, 3)
    ]


def test_many_heads_go_to_the_next_line_and_keep_their_places() -> None:
    random = np.random.default_rng(3)
    layers = [random.dirichlet(np.full(6, 3.0), (5, 6)) for _ in range(2)]
    figure = attention_pictures.layers_figure(ExpressionAttention(TOKENS, layers, readout=0))
    np.testing.assert_array_equal(drawn(figure), np.concatenate(layers))
    assert [axes.axison for axes in figure.axes[:16]] == [*[True] * 5, *[False] * 3] * 2
    assert figure.axes[8].get_title().startswith("layer 2, head 1")
    # One scale for all: the largest weight, rounded up to a tenth.
    limits = {image.get_clim() for axes in figure.axes[:16] for image in axes.get_images()}
    assert len(limits) == 1
    ((low, high),) = limits
    largest = np.max(layers)
    assert low == 0 and largest <= high < largest + 0.1 and high < 1


def test_the_picture_of_roles_has_every_share() -> None:
    shares = {role: place / 20 for place, role in enumerate(ROLES)}
    support = Support(shares, dict.fromkeys(ROLES, 0.1), position=5)
    roles = [HeadRole(1, head, 0.5, "mixed", support, {}, None) for head in (1, 2)]
    figure = attention_pictures.roles_figure(roles)
    (matrix,) = drawn(figure)
    np.testing.assert_allclose(matrix, [list(shares.values())] * 2)
    assert f"{shares[FIXED] * 100:.0f}\nat 5" in [text.get_text() for text in figure.axes[0].texts]


def test_the_confusion_picture_has_counts_and_shares() -> None:
    scores = evaluate_answers(["1", "2", "2", "9"], ["1", "2", "1", "9"])
    figure = confusion_figure(scores)
    (matrix,) = drawn(figure)
    assert matrix.shape == (10, 10)
    assert (matrix[1, 1], matrix[1, 2], matrix[2, 2], matrix[3, 3]) == (0.5, 0.5, 1.0, 0.0)
    assert sorted(text.get_text() for text in figure.axes[0].texts if text.get_text()) == ["1"] * 4
    with_none = evaluate_answers(["12"], ["1"])
    assert drawn(confusion_figure(with_none))[0].shape == (11, 11)


def planted_tables() -> dict[int, np.ndarray]:
    random = np.random.default_rng(5)
    first = random.standard_normal((20, 8)).astype(np.float32)
    direction = random.standard_normal(8)
    return {
        epoch: (first + epoch * np.linspace(-1, 1, 20)[:, None] * direction).astype(np.float32)
        for epoch in range(5)
    }


def test_embedding_pictures_have_the_numbers_of_the_report() -> None:
    tables = planted_tables()
    report = embedding_report(tables[4], TWO)
    digits, operations = drawn(embedding_pictures.cosines_figure(report))
    np.testing.assert_array_equal(digits, report.digit_cosines)
    np.testing.assert_array_equal(operations, report.other_cosines)
    bars = embedding_pictures.norms_figure(report).axes[0].patches
    np.testing.assert_allclose([bar.get_height() for bar in bars], list(report.norms.values()))
    (line,) = embedding_pictures.distance_figure(report).axes[0].lines
    np.testing.assert_allclose(line.get_ydata(), [part.mean for part in report.by_distance])
    axes = embedding_pictures.map_figure(report).axes[0]
    assert [text.get_text() for text in axes.texts] == [*DIGITS, "Max", "Min"]
    np.testing.assert_allclose([text.xy for text in axes.texts], report.map.points)


def test_what_was_learned_is_seen_in_the_history() -> None:
    tables = planted_tables()
    changes = learned_changes(tables)
    assert list(changes) == [1, 2, 3, 4]
    np.testing.assert_allclose(changes[2], 2 * changes[1], atol=1e-6)
    assert learned_changes({1: tables[1]}) == {}
    figure = embedding_pictures.history_figure(tables, TWO)
    norms, trend, *maps = figure.axes
    assert len(norms.lines) == 12
    seven = embedding_report(tables[3], TWO).norms["7"]
    assert norms.lines[7].get_ydata()[3] == pytest.approx(seven)
    np.testing.assert_allclose(
        trend.lines[2].get_ydata(),
        [embedding_report(change, TWO).trend for change in changes.values()],
    )
    assert [axes.get_title()[-1] for axes in maps] == ["1", "3", "4"]
    # What was learned is a line through digits and operations: all of the map is on one axis.
    places = np.array([text.xy for text in maps[-1].texts])
    assert np.ptp(places[:, 1]) < 1e-3 < np.ptp(places[:, 0])
    assert (
        len(
            embedding_pictures.history_figure(
                {3: tables[3]}, NamedTokens.of(DIGIT_TOKENS, ["Max"])
            ).axes
        )
        == 3
    )


@pytest.mark.parametrize(
    ("name", "start"), [("a.png", b"\x89PNG"), ("b.SVG", b"<?xml"), ("c.pdf", b"%PDF")]
)
def test_a_picture_is_written_in_the_kind_of_its_name(
    name: str, start: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    path = save_picture(new_figure(2, 1), tmp_path / "deep" / name)
    assert path.read_bytes().startswith(start)


def test_a_picture_has_the_size_that_was_asked_for_and_a_kind() -> None:
    content = picture_bytes(new_figure(2, 1))
    assert struct.unpack(">II", content[16:24]) == (300, 150)
    with pytest.raises(ValueError, match=r"must end in one of .png, .svg, .pdf, got 'x.jpg'"):
        save_picture(new_figure(1, 1), "x.jpg")


def test_a_directory_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="write picture"):
        save_picture(new_figure(1, 1), tmp_path / "file" / "x.png")


def test_shades_rise_with_the_weight() -> None:
    weights = [0.0, 0.09, 0.1, 0.29, 0.3, 0.59, 0.6, 0.84, 0.85, 1.0]
    assert "".join(map(shade, weights)) == "  ░░▒▒▓▓██"
    assert legend().count("'") == 10


def test_a_text_heatmap_has_a_row_for_each_token_and_marks_the_one_read_out() -> None:
    weights = np.array([[1.0, 0.0], [0.35, 0.65]], np.float32)
    assert heatmap_lines(weights, ["Max", "("], ["Max", "("], marked=[0]) == [
        "        Max     (",
        ">Max  ██1.0   .00",
        " (    ▒▒.35 ▓▓.65",
    ]
    many = np.full((1, 30), 1 / 30)
    header, row = heatmap_lines(many, ["Max"], list("123456789,") * 3)
    assert "." not in row and len(header) == 5 + 60
    assert "·" not in row and "·" not in legend(16)
    many[0, 7] = 2 / 30
    row = heatmap_lines(many, ["Max"], list("123456789,") * 3)[1]
    assert row.rstrip().endswith("··") and row.count("·") == 2 and "·" in legend(30)


def test_the_overview_is_of_the_row_that_is_read_out_or_of_the_mean() -> None:
    attention = planted_attention()
    header, *rows = overview_lines(attention)
    assert header.split() == TOKENS and len(rows) == 6
    largest = attention.layers[1][2][0].argmax()
    assert shade(attention.layers[1][2][0].max()) * 2 in rows[-1]
    assert len(summary_lines(attention)) == 7
    assert f"'{TOKENS[largest]}' at {largest}" in summary_lines(attention)[-1]
    mean = overview_lines(planted_attention(readout=None))
    assert mean != overview_lines(attention)
