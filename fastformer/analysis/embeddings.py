"""What an embedding table has learned: norms, cosines, likeness against distance, a map."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastformer import checks
from fastformer.data.vocabulary import NamedTokens
from fastformer.parameters import Array


@dataclass(frozen=True)
class EmbeddingMap:
    """The rows of a table in the plane in which they differ most.

    Attributes:
        tokens: n names.    points: (n, 2).
        explained: the part of the variance, 0 to 1, along each of the two axes.
    """

    tokens: list[str]
    points: Array
    explained: tuple[float, float]


@dataclass(frozen=True)
class DistanceSimilarity:
    """How alike numbers are that lie so far apart.

    Attributes:
        distance: of two digits, 1 to 9.    pairs: how many there are.
        mean: of their cosines.
    """

    distance: int
    pairs: int
    mean: float


@dataclass(frozen=True)
class EmbeddingReport:
    """What is known of one table.

    Attributes:
        norms: the length of each listed token's row.
        digits, others: names; a person's own texts may have no digits.    others_are: "operations"
            or "tokens".
        digit_cosines: (digits, digits).    other_cosines: (others, others).
        by_distance: mean cosine of digits against their distance.
        trend: correlation of cosine and distance over all pairs of digits; negative where near
            numbers are more alike.
        chance: the standard deviation of the cosine of two random rows: less means nothing.
        map: digits and others in two dimensions.
    """

    norms: dict[str, float]
    digits: list[str]
    digit_cosines: Array
    others: list[str]
    other_cosines: Array
    others_are: str
    by_distance: list[DistanceSimilarity]
    trend: float
    chance: float
    map: EmbeddingMap

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "norms": self.norms,
            "digit_cosines": self.digit_cosines.tolist(),
            self.others_are: self.others,
            f"{self.others_are[:-1]}_cosines": self.other_cosines.tolist(),
            "by_distance": [vars(part) for part in self.by_distance],
            "trend": self.trend,
            "chance": self.chance,
            "map": {
                "tokens": self.map.tokens,
                "points": self.map.points.tolist(),
                "explained": list(self.map.explained),
            },
        }


def rows_of(table: Array, tokens: Mapping[str, int]) -> Array:
    """Return the rows (len(tokens), C) of a table, in float64, of tokens with their ids."""
    return np.asarray(table[list(tokens.values())], dtype=np.float64).reshape(-1, table.shape[1])


def norms(rows: Array) -> Array:
    """Return the Euclidean length of each row, (n,)."""
    return np.asarray(np.linalg.norm(rows, axis=1))


def cosine_matrix(rows: Array) -> Array:
    """Return (n, n) cosines of all pairs of rows; 0 where a row is zero, but 1 with itself."""
    lengths = norms(rows)[:, None]
    units = np.divide(rows, lengths, out=np.zeros(rows.shape), where=lengths > 0)
    cosines: Array = np.clip(units @ units.T, -1.0, 1.0)
    np.fill_diagonal(cosines, 1.0)
    return cosines


def similarity_by_distance(cosines: Array) -> list[DistanceSimilarity]:
    """Return the mean cosine of numbers against their distance, over pairs that differ.

    Args:
        cosines: (n, n), of the numbers 0 to n - 1, n >= 2.
    """
    return [
        DistanceSimilarity(
            distance, len(diagonal := np.diagonal(cosines, distance)), float(diagonal.mean())
        )
        for distance in range(1, len(cosines))
    ]


def alike(cosines: Array, names: Sequence[str]) -> list[tuple[str, str, float]]:
    """Return all pairs of rows with their cosine, the most alike first.

    Args:
        cosines: (n, n).    names: n.
    """
    first, second = np.triu_indices(len(cosines), 1)
    order = np.argsort(-cosines[first, second], kind="stable")
    return [
        (names[a], names[b], float(cosines[a, b]))
        for a, b in zip(first[order], second[order], strict=True)
    ]


def near_minus_far(cosines: Array) -> list[float]:
    """Return, for each number, its mean cosine with neighbours minus that with far numbers.

    Neighbours are 1 away, and far ones n / 2 or more: 5 of the 10 digits.

    Args:
        cosines: (n, n), of the numbers 0 to n - 1, n even and >= 4.
    """
    numbers = np.arange(len(cosines))
    distance = np.abs(numbers[:, None] - numbers)
    far = distance >= len(cosines) / 2
    return [
        float(row[near].mean() - row[away].mean())
        for row, near, away in zip(cosines, distance == 1, far, strict=True)
    ]


def distance_trend(cosines: Array) -> float:
    """Return the correlation, -1 to 1, of cosine and distance over all pairs of numbers.

    It is 0 where all cosines are the same, or there are none.
    """
    first, second = np.triu_indices(len(cosines), 1)
    values = cosines[first, second]
    if not values.size or np.ptp(values) == 0:
        return 0.0
    return float(np.corrcoef(values, second - first)[0, 1])


def embedding_map(rows: Array, tokens: Sequence[str]) -> EmbeddingMap:
    """Return the rows' first two principal components, by a singular value decomposition.

    Args:
        rows: (n, C), n >= 2.    tokens: n names.

    Returns:
        The map. Each axis points to where its farthest token is positive, so that equal rows give
        equal maps on any machine.

    Raises:
        ValueError: fewer than two rows, or another number of tokens.
    """
    if len(rows) < 2 or len(rows) != len(tokens):
        checks.fail(
            f"a map needs at least two rows and a token for each, got {len(rows)} rows and "
            f"{len(tokens)} tokens"
        )
    centered = rows - rows.mean(axis=0)
    left, singular, _ = np.linalg.svd(centered, full_matrices=False)
    points = np.zeros((len(rows), 2))
    width = min(2, singular.size)
    points[:, :width] = left[:, :width] * singular[:width]
    farthest = points[np.abs(points).argmax(axis=0), [0, 1]]
    points *= np.where(farthest < 0, -1.0, 1.0)
    total = float((singular**2).sum())
    shares = np.zeros(2)
    if total > 0:
        shares[:width] = singular[:width] ** 2 / total
    return EmbeddingMap(list(tokens), points, (float(shares[0]), float(shares[1])))


def embedding_report(table: npt.NDArray[Any], tokens: NamedTokens) -> EmbeddingReport:
    """Describe a table.

    Args:
        table: (V, C), float32 or float64, a row for each token of the vocabulary.
        tokens: those that are looked at.
    """
    digits, others = rows_of(table, tokens.digits), rows_of(table, tokens.others)
    cosines = cosine_matrix(digits)
    lengths = norms(rows_of(table, tokens.names)).tolist()
    return EmbeddingReport(
        norms=dict(zip(tokens.names, lengths, strict=True)),
        digits=list(tokens.digits),
        digit_cosines=cosines,
        others=list(tokens.others),
        other_cosines=cosine_matrix(others),
        others_are=tokens.others_are,
        by_distance=similarity_by_distance(cosines),
        trend=distance_trend(cosines),
        chance=float(table.shape[1] ** -0.5),
        map=embedding_map(np.concatenate([digits, others]), list(tokens.mapped)),
    )


def learned_changes(tables: Mapping[int, npt.NDArray[Any]]) -> dict[int, Array]:
    """Return what training added to the table until each epoch: the difference to epoch 0.

    Embeddings begin at random, and large; so what was learned is seen in the difference.

    Args:
        tables: (V, C) by epoch.

    Returns:
        (V, C) by epoch, in order, without epoch 0; nothing where epoch 0 is not there.
    """
    if 0 not in tables:
        return {}
    return {epoch: tables[epoch] - tables[0] for epoch in sorted(tables) if epoch}
