"""How numbers and names are written: alike in the terminal, in pictures and on pages.

Shares are rounded down, so that 100 % and 1.00 are the whole only.
"""

import math
from typing import Final

ROUNDING: Final[float] = 5e-7
"""What float32 may lack of a share: a sum of 0.9999999 is the whole. One of a million is more."""


def rounded_down(share: float, decimals: int) -> float:
    """Return a share, 0 to 1, rounded down to some decimals; NaN stays NaN."""
    scale = 10**decimals
    return math.floor((share + ROUNDING) * scale) / scale if math.isfinite(share) else share


def percent(share: float, decimals: int = 1) -> str:
    """Write a share, 0 to 1, as a percentage. It is 100 % only for the whole."""
    return f"{rounded_down(share, decimals + 2) * 100:.{decimals}f} %"


def hundredths(share: float) -> str:
    """Write a share, 0 to 1, with two decimals: a weight, or an entropy by its maximum."""
    return f"{rounded_down(share, 2):.2f}"


def interval(low: float, high: float) -> str:
    """Write an interval of shares as percentages that hold all of it: it is never empty."""
    return f"{percent(low)} to {percent(-rounded_down(-high, 3))}"


def signed(value: float) -> str:
    """Write a cosine or a correlation, -1 to 1, with its sign and two decimals; 0 is +0.00."""
    return f"{round(value, 2) + 0.0:+.2f}"


def loss(value: float) -> str:
    """Write a loss."""
    return f"{value:.4f}"


def printable(text: object) -> str:
    """Write a name as text on one line: what a terminal would obey or cannot show is escaped.

    A name from elsewhere may hold the codes that move a cursor or set a title, line ends, and bytes
    of another encoding.
    """
    return "".join(
        character if character.isprintable() else repr(character)[1:-1] for character in str(text)
    )
