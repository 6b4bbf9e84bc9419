"""How numbers and names are written: never more than there is, nothing that terminals obey."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastformer import writing
from fastformer.training.metrics import wilson_interval

SHARES = st.floats(min_value=0, max_value=1)


@pytest.mark.parametrize("decimals", [0, 1, 2])
def test_a_percentage_that_is_round_stays_as_it_is_also_in_float32(decimals: int) -> None:
    whole = 10 ** (decimals + 2)
    for part in range(whole + 1):
        wanted = f"{part / 10**decimals:.{decimals}f} %"
        assert writing.percent(part / whole, decimals) == wanted
        assert writing.percent(float(np.float32(part / whole)), decimals) == wanted


@given(SHARES)
def test_a_share_is_rounded_down_and_is_the_whole_for_the_whole_only(share: float) -> None:
    assert float(writing.percent(share, 2)[:-2]) / 100 <= share + writing.ROUNDING
    assert (writing.percent(share) == "100.0 %") == (share >= 1 - writing.ROUNDING)
    assert writing.percent(share)[:-4] == writing.percent(share, 0)[:-2]
    assert writing.hundredths(share)[-2:] == f"{int(writing.percent(share, 0)[:-2]) % 100:02d}"


def test_one_wrong_of_a_million_is_not_the_whole() -> None:
    assert writing.percent(1 - 1e-6) == "99.9 %"
    assert writing.percent(float(np.float32(0.9999999))) == "100.0 %"
    assert writing.percent(math.nan) == "nan %"


@pytest.mark.parametrize("total", [1, 10, 434, 10_000, 1_000_000])
def test_the_interval_of_none_and_of_all_is_not_empty_and_holds_its_ends(total: int) -> None:
    for correct in {0, 1, total // 2, total}:
        low, high = wilson_interval(correct, total)
        ends = [float(end[:-2]) / 100 for end in writing.interval(low, high).split(" to ")]
        assert ends[0] < ends[1]
        assert ends[0] <= low + writing.ROUNDING and high <= ends[1] + writing.ROUNDING
        assert 0 <= ends[0] and ends[1] <= 1
    assert writing.interval(*wilson_interval(0, 1_000_000)) == "0.0 % to 0.1 %"
    assert writing.interval(*wilson_interval(10_000, 10_000)) == "99.9 % to 100.0 %"


def test_a_cosine_has_its_sign_and_no_negative_zero() -> None:
    assert list(map(writing.signed, (-0.001, 0.0, -1.0, 0.126, -0.126))) == [
        *("+0.00", "+0.00", "-1.00", "+0.13", "-0.13")
    ]


@given(st.text(st.characters(), max_size=20))
def test_names_are_printable_and_their_own_line(text: str) -> None:
    shown = writing.printable(text)
    assert shown.isprintable()
    assert shown == text or not text.isprintable()


def test_what_a_terminal_would_obey_is_escaped() -> None:
    assert writing.printable("a\x1b]0;x\x07\x9b1m\n\u202e\udcff b") == (
        r"a\x1b]0;x\x07\x9b1m\n\u202e\udcff b"
    )
