"""How long sequences are, and what padding them to one length would cost."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastformer import checks


@dataclass(frozen=True)
class LengthStatistics:
    """Lengths of a set of sequences.

    Attributes:
        sequences: how many.    shortest, longest, mean, deviation: of their lengths.
        tokens: in all of them.    padded_tokens: what they would be, each as long as `padded_to`.
        padded_to: the length that padding would bring all of them to.
    """

    sequences: int
    shortest: int
    longest: int
    mean: float
    deviation: float
    tokens: int
    padded_to: int

    @property
    def padded_tokens(self) -> int:
        """What a padded batch would compute."""
        return self.sequences * self.padded_to

    @property
    def waste(self) -> float:
        """The part of a padded batch, 0 to 1, that would be padding."""
        return 1 - self.tokens / self.padded_tokens


def length_statistics(
    sequences: Sequence[Sequence[int]], padded_to: int | None = None
) -> LengthStatistics:
    """Describe the lengths of sequences.

    Args:
        sequences: at least one, none of them empty.
        padded_to: a length that none exceeds; None for that of the longest.

    Raises:
        ValueError: no sequences, an empty one, or one that is longer than `padded_to`.
    """
    if not sequences:
        checks.fail("there must be at least one sequence to measure, got none")
    lengths = np.array([len(sequence) for sequence in sequences])
    if lengths.min() == 0:
        checks.fail(f"every sequence must have a token; sequence {lengths.argmin()} has none")
    longest = int(lengths.max())
    padded_to = longest if padded_to is None else checks.integer("padded_to", padded_to, longest)
    return LengthStatistics(
        sequences=len(lengths),
        shortest=int(lengths.min()),
        longest=longest,
        mean=float(lengths.mean()),
        deviation=float(lengths.std()),
        tokens=int(lengths.sum()),
        padded_to=padded_to,
    )
