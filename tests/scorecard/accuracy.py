"""How far float32 results are from the true ones: fastformer's kernels, and PyTorch's.

The truth is the NumPy twin in float64 on the same float32 numbers. Two errors are taken of each
output: the largest one relative to the largest true value, and the Euclidean norm of all relative
to that of the true values. A case is drawn again until its smallest output has had MOST_LUCK
elements (or all outputs MOST_ELEMENTS), for the largest of a few errors is a matter of luck.

Two errors are compared by their ratio, each raised to a floor first, below which it is chance
whose error is smaller:

- One rounding (ROUNDING), half a unit in the last place of the largest value: the true values,
  rounded to float32, may be that far off, and where all of them are alike so may be their norm.
- For the worst ratio also what the result changes by where each input changes by half a unit in
  its last place. Where a result is a small difference of large terms, that is much, and what either
  library's last digits are is luck; the mean over many cases averages luck, the worst picks it.
  Where such a change moves the result by a tenth, no digit of it is known: that is no case
  (the gradient by a score that is alone in its softmax, for instance: it is 0). Nor is it one
  where the true result is 0 throughout, relative to which nothing can be said.
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from fastformer.backend import get_backend
from tests.scorecard.accuracy_inputs import REGIMES, Array, Family, Inputs
from tests.scorecard.accuracy_positions import FAMILIES

SEED = 20240229
MOST_LUCK, MOST_DRAWS, MOST_ELEMENTS = 8192, 64, 1 << 19
ROUNDING = 2.0**-24
UNKNOWN = 0.1
WORST_RATIO = 1.5

Outputs = dict[str, Array]
Compute = Callable[[Inputs], Outputs]
# Of each output, its two errors.
Errors = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Case:
    """A family of ops, at one shape and one regime of values.

    Attributes:
        number: of the draw; a case is the same in every tier, and on every machine.
    """

    family: Family
    regime: str
    number: int

    def __str__(self) -> str:
        """Return for instance `layernorm 768x128 tiny`."""
        return f"{self.family.name} {'x'.join(map(str, self.shape))} {self.regime}"

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes, which the number decides."""
        return self.family.shape(np.random.default_rng([SEED, self.number]))

    def inputs(self, draw_number: int) -> Inputs:
        """Return the float32 inputs of one draw."""
        random = np.random.default_rng([SEED, self.number, draw_number])

        def draw(*shape: int, scales: dict[str, float] | None = None) -> Array:
            values = REGIMES[self.regime](random, shape) * (scales or {}).get(self.regime, 1.0)
            return values.astype(np.float32)

        return self.family.inputs(draw, random, *self.shape)


def cases(rounds: int) -> Iterator[Case]:
    """Yield each family in that many rounds: with each regime in turn, each time in a new shape."""
    for number in range(rounds * len(FAMILIES)):
        turn, which = divmod(number, len(FAMILIES))
        # Families are at different regimes in a round, so that a few rounds have seen all.
        yield Case(FAMILIES[which], list(REGIMES)[(turn + which) % len(REGIMES)], number)


def in_double(inputs: Inputs) -> Inputs:
    """Return the same numbers in float64."""
    return {
        name: value.astype(np.float64) if getattr(value, "dtype", None) == np.float32 else value
        for name, value in inputs.items()
    }


def digest(case: Case) -> int:
    """Return a checksum of a case's first inputs, to see that they are drawn as they were."""
    checksum = 0
    for value in case.inputs(0).values():
        if isinstance(value, np.ndarray):
            checksum = zlib.crc32(np.ascontiguousarray(value), checksum)
    return checksum


def with_ops(case: Case, ops: SimpleNamespace | None = None) -> Compute:
    """Return how fastformer computes a case; with other ops, where they are given."""
    chosen = ops or get_backend("numba")
    return lambda inputs: case.family.compute(chosen, inputs)


def nudged(inputs: Inputs, random: np.random.Generator) -> Inputs:
    """Return float64 inputs, each moved up or down by half a float32 unit in its last place."""
    return {
        name: value * (1 + 2.0**-24 * random.choice([-1.0, 1.0], value.shape))
        if getattr(value, "dtype", None) == np.float64
        else value
        for name, value in inputs.items()
    }


def errors(case: Case, *computes: Compute) -> list[Errors]:
    """Return the errors of each way to compute a case, and last those of nudged inputs."""
    true = with_ops(case, get_backend("reference"))
    random = np.random.default_rng(case.number)
    found = [_Sums() for _ in range(len(computes) + 1)]
    for number in range(MOST_DRAWS):
        inputs = case.inputs(number)
        truth = true(in_double(inputs))
        found[-1].add(true(nudged(in_double(inputs), random)), truth)
        for compute, sums in zip(computes, found, strict=False):
            with np.errstate(all="ignore"):  # of faults, which are made on purpose, too
                sums.add(compute(inputs), truth)
        sizes = [(number + 1) * value.size for value in truth.values()]
        if min(sizes) >= MOST_LUCK or sum(sizes) >= MOST_ELEMENTS:
            break
    *pairs, sensitivity = (sums.errors() for sums in found)
    zeros = [name for name, (_, true) in found[-1].largest.items() if true == 0]
    return [*pairs, sensitivity | dict.fromkeys(zeros, (np.inf, np.inf))]


class _Sums:
    """Errors over several draws, as if they were one."""

    def __init__(self) -> None:
        self.largest: dict[str, np.ndarray] = {}
        self.squares: dict[str, np.ndarray] = {}

    def add(self, found: Outputs, truth: Outputs) -> None:
        """Take in what one draw gave."""
        if found.keys() != truth.keys():
            raise ValueError(f"outputs {sorted(found)} must be {sorted(truth)}")
        for name, true in truth.items():
            error = found[name].astype(np.float64).reshape(true.shape) - true
            # A NaN is an error without bound.
            error[np.isnan(error)] = np.inf
            both = (error, true)
            largest = np.array([np.max(np.abs(x), initial=0.0) for x in both])
            squares = np.array([np.vdot(x, x) for x in both])
            self.largest[name] = np.maximum(self.largest.get(name, 0.0), largest)
            self.squares[name] = self.squares.get(name, 0.0) + squares

    def errors(self) -> Errors:
        """Return the two errors of each output."""
        found = {}
        for name, (error, true) in self.largest.items():
            square, true_square = self.squares[name]
            found[name] = (float(error / (true or 1)), float((square / (true_square or 1)) ** 0.5))
        return found


def ratios(ours: Errors, theirs: Errors, sensitivity: Errors | None = None) -> Errors:
    """Return the ratios of the two errors of each output, above one rounding.

    Args:
        ours, theirs, sensitivity: from `errors`; with the last, above what that says, too.
    """
    found = {}
    for name, pair in ours.items():
        floors = np.maximum(ROUNDING, sensitivity[name] if sensitivity else 0.0)
        maximum, norm = np.maximum(pair, floors) / np.maximum(theirs[name], floors)
        found[name] = (float(maximum), float(norm))
    return found
