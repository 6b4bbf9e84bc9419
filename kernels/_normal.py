"""The tail of the normal distribution on registers, of which GELU in its exact form is made.

    Phi(-a) = e^(-a^2 / 2) T(a),    T(a) = (MIDDLE + series(t)) / (a + 1),    t = (a - 5) / (a + 5)

T falls from 1/2 like 1 / (a sqrt(2 pi)), and so T (a + 1) is between 0.41 and 0.53 for all a >= 0.
The series is an eighth of that or less, so what its roundings leave out counts for little.

Source: Shepherd & Laframboise 1981, "Chebyshev Approximation of (1 + 2x) exp(x^2) erfc(x) in
0 <= x < infinity", Mathematics of Computation 36, pages 249 to 253. The coefficients are those of
polynomials of least error, found by Remez's exchange in 50 digits: with them T is right to 2^-27 in
float32 for a <= 14.5 and to 2^-55 in float64 for a <= 38.75, beyond which Phi(-a) is 0.
"""

from typing import Any

import numpy as np

from ._compile import kernel
from ._llvm import polynomial_ir
from ._rows import sum_in_two
from ._simd import define, fma

# A number of few bits, in the middle of what T (a + 1) is.
MIDDLE = 0.46875
SERIES = {
    "float": (
        -0.0072341709, -0.0915522821, 0.0310304637, 0.0100023916, -0.0264029697, 0.0245355357,
        -0.015157041, 0.00653650738, -0.0017108369, -4.32169099e-5, 0.000203491254,
    ),
    "double": (
        -0.00723417014996222708, -0.0915522818340088438, 0.0310303684259638717,
        0.0100023523852083153, -0.0264010429663278645, 0.0245369632443570214,
        -0.015170415401840054, 0.00652200065780149891, -0.00167607235521203082,
        7.79167780708889248e-6, 0.000182334237903360321, -5.36079671658922423e-5,
        -9.89658532666096565e-6, 9.060966001866203e-6, -6.87337983735152334e-8,
        -1.30949185346501779e-6, 1.24496568681744281e-7, 1.98274176669119263e-7,
        -2.19223427129208269e-8, -3.15714476290865057e-8, 4.65084001758099716e-10,
        3.87265828377401445e-9, 7.0282491697754259e-10,
    ),
}  # fmt: skip


def series(t: Any) -> Any:
    """Return the series of a register; `define` has its compiled form."""
    found = np.zeros_like(t)
    for coefficient in reversed(SERIES["float" if t.dtype == np.float32 else "double"]):
        found = found * t + t.dtype.type(coefficient)
    return found


define(series, 1, lambda builder, kind, v: polynomial_ir(builder, v[0], SERIES[str(kind.element)]))


@kernel
def tail_ratio(a):
    """Return T of a register of numbers from 0 to some hundred, and what its rounding left out."""
    below, below_low = sum_in_two(a, 1.0)
    end = a + 5.0
    # One division serves both quotients.
    inverse = 1.0 / (below * end)
    t = (a - 5.0) * (inverse * below)
    # Once more for what is missing to a - 5 = t (a + 5), written so that small a keep their digits.
    t = fma(fma(-t, a, fma(t + 1.0, -5.0, a)), inverse * below, t)
    part = series(t)
    top = MIDDLE + part
    top_low = part - (top - MIDDLE)
    inverse = inverse * end
    value = top * inverse
    rest = fma(-value, below, top) + top_low
    return value, fma(-value, below_low, rest) * inverse
