"""What the accuracy of ops is measured on: regimes of values, and what a family of ops is."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

Array = np.ndarray
Inputs = dict[str, Any]
Random = np.random.Generator
Draw = Callable[..., Array]

# Values of a regime. Where exponentials are taken, the large ones are made smaller: of a softmax
# that is 1 in one place and 0 elsewhere there is nothing to compare.
REGIMES: dict[str, Callable[[Random, tuple[int, ...]], Array]] = {
    "normal": lambda random, shape: random.standard_normal(shape),
    "positive": lambda random, shape: random.random(shape),
    "offset": lambda random, shape: 100 + random.standard_normal(shape),
    "tiny": lambda random, shape: 1e-6 * random.standard_normal(shape),
    "large": lambda random, shape: 1e4 * random.standard_normal(shape),
    "wide": lambda random, shape: np.ldexp(
        random.standard_normal(shape), random.integers(-12, 4, shape)
    ),
    "sparse": lambda random, shape: random.standard_normal(shape) * (random.random(shape) < 0.1),
}
LOGIT_SCALES = {"large": 1e-3}
SCORE_SCALES = {"large": 3e-4, "offset": 0.03}


@dataclass(frozen=True)
class Family:
    """Ops that belong together.

    Attributes:
        shape: random -> the sizes of a case.
        inputs: (draw, random, *sizes) -> arrays and scalars by name; draw(*shape, scales) gives
            values of the case's regime.
        compute: (ops, inputs) -> the outputs by name, in the dtype of the inputs.
    """

    name: str
    shape: Callable[[Random], tuple[int, ...]]
    inputs: Callable[..., Inputs]
    compute: Callable[[SimpleNamespace, Inputs], dict[str, Array]]
