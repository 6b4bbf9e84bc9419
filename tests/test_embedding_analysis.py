"""Norms, cosines, maps and records of embeddings, against what is known of planted tables."""

import numpy as np
import pytest

from fastformer.analysis.embeddings import (
    alike,
    cosine_matrix,
    distance_trend,
    embedding_map,
    embedding_report,
    near_minus_far,
    rows_of,
    similarity_by_distance,
)
from fastformer.data import DIGIT_TOKENS
from fastformer.data.vocabulary import DIGITS, NamedTokens

TWO = NamedTokens.of(DIGIT_TOKENS, ["Max", "Min"])


def test_rows_are_those_of_the_tokens() -> None:
    table = np.arange(40, dtype=np.float32).reshape(20, 2)
    np.testing.assert_array_equal(rows_of(table, {"0": 2, "9": 11, "Max": 15}), table[[2, 11, 15]])


def test_cosines_are_those_of_the_angles() -> None:
    rows = np.array([[3.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    half = np.sqrt(0.5)
    expected = [
        [1, 0, -1, half, 0],
        [0, 1, 0, half, 0],
        [-1, 0, 1, -half, 0],
        [half, half, -half, 1, 0],
        [0, 0, 0, 0, 1],
    ]
    np.testing.assert_allclose(cosine_matrix(rows), expected, atol=1e-12)


def test_likeness_against_distance_is_the_mean_over_pairs() -> None:
    cosines = np.array([[1.0, 0.5, 0.1], [0.5, 1.0, 0.3], [0.1, 0.3, 1.0]])
    found = similarity_by_distance(cosines)
    assert [(part.distance, part.pairs) for part in found] == [(1, 2), (2, 1)]
    np.testing.assert_allclose([part.mean for part in found], [0.4, 0.1])
    first, second = np.meshgrid(np.arange(10), np.arange(10))
    line = 1 - 0.2 * np.abs(first - second)
    assert distance_trend(line) == pytest.approx(-1)
    assert distance_trend(-line) == pytest.approx(1)
    assert distance_trend(np.ones((10, 10))) == 0.0


def test_pairs_come_most_alike_first_and_neighbours_are_told_from_far_ones() -> None:
    cosines = np.array([[1.0, 0.5, -0.1], [0.5, 1.0, 0.3], [-0.1, 0.3, 1.0]])
    assert alike(cosines, "abc") == [("a", "b", 0.5), ("b", "c", 0.3), ("a", "c", -0.1)]
    first, second = np.meshgrid(np.arange(10), np.arange(10))
    line = 1 - 0.2 * np.abs(first - second)
    gains = near_minus_far(line)
    # 0 has one neighbour, 0.8, and far ones from 5 to 9, whose mean distance is 7.
    assert gains[0] == pytest.approx(0.8 - (1 - 0.2 * 7))
    assert gains[5] == pytest.approx(0.8 - (1 - 0.2 * 5))
    assert near_minus_far(-line) == pytest.approx([-gain for gain in gains])


def test_a_map_finds_the_plane_that_points_lie_in(rng: np.random.Generator) -> None:
    flat = rng.standard_normal((12, 2)) * [5.0, 2.0]
    axes = np.linalg.qr(rng.standard_normal((16, 2)))[0].T
    rows = flat @ axes + 3.0
    found = embedding_map(rows, [str(n) for n in range(12)])
    distances = np.linalg.norm(flat[:, None] - flat, axis=2)
    on_map = np.linalg.norm(found.points[:, None] - found.points, axis=2)
    np.testing.assert_allclose(on_map, distances, atol=1e-9)
    assert sum(found.explained) == pytest.approx(1)
    variances = np.var(found.points, axis=0)
    np.testing.assert_allclose(found.explained, variances / variances.sum())
    # Each axis points to its farthest token; the signs of the decomposition do not show.
    farthest = np.abs(found.points).argmax(axis=0)
    assert (found.points[farthest, [0, 1]] > 0).all()
    again = embedding_map(rows[::-1], [str(n) for n in range(12)][::-1])
    np.testing.assert_allclose(again.points[::-1], found.points, atol=1e-9)


def test_a_map_of_equal_rows_is_one_point_and_one_row_has_none() -> None:
    found = embedding_map(np.ones((3, 4)), ["a", "b", "c"])
    assert not found.points.any() and found.explained == (0.0, 0.0)
    np.testing.assert_allclose(embedding_map(np.array([[0.0], [2.0]]), ["a", "b"]).points[:, 1], 0)
    with pytest.raises(ValueError, match="at least two rows and a token for each, got 1 rows"):
        embedding_map(np.ones((1, 4)), ["a"])


def test_a_report_finds_a_planted_order_of_numbers() -> None:
    table = np.zeros((len(DIGIT_TOKENS), 4), np.float32)
    angles = np.linspace(0, np.pi / 2, 10)
    table[[DIGIT_TOKENS.index(digit) for digit in DIGITS], 0] = 2 * np.cos(angles)
    table[[DIGIT_TOKENS.index(digit) for digit in DIGITS], 1] = 2 * np.sin(angles)
    table[DIGIT_TOKENS.index("Max"), 2], table[DIGIT_TOKENS.index("Min"), 2] = 1.0, -3.0
    report = embedding_report(table, TWO)
    assert report.norms["7"] == pytest.approx(2) and report.norms["Min"] == 3.0
    assert report.other_cosines.tolist() == [[1.0, -1.0], [-1.0, 1.0]]
    means = [part.mean for part in report.by_distance]
    np.testing.assert_allclose(means, np.cos(np.arange(1, 10) * np.pi / 18), atol=1e-6)
    assert report.trend < -0.9 and report.chance == 0.5
    assert report.map.tokens == [*DIGITS, "Max", "Min"]
    assert len(report.as_json()["map"]["points"]) == 12
