"""Lengths of sequences, and what padding would waste."""

import numpy as np
import pytest

from fastformer.data.lengths import length_statistics
from fastformer.errors import InvalidValueError


@pytest.mark.smoke
def test_lengths_and_waste_of_a_few_sequences() -> None:
    found = length_statistics([[1, 2], [3], [4, 5, 6, 7], [8, 9]])
    assert (found.sequences, found.shortest, found.longest, found.tokens) == (4, 1, 4, 9)
    assert found.mean == 2.25
    assert found.deviation == pytest.approx(np.std([2, 1, 4, 2]))
    assert (found.padded_to, found.padded_tokens) == (4, 16)
    assert found.waste == pytest.approx(7 / 16)


def test_padding_to_a_given_length_wastes_more() -> None:
    assert length_statistics([[1] * 8] * 5, 20).waste == pytest.approx(12 / 20)
    assert length_statistics([[1] * 8] * 5).waste == 0


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="at least one sequence to measure, got none"):
        length_statistics([])
    with pytest.raises(InvalidValueError, match="sequence 1 has none"):
        length_statistics([[1], []])
    with pytest.raises(InvalidValueError, match="padded_to must be an integer >= 2, got 1"):
        length_statistics([[1, 2]], 1)
