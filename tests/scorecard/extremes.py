"""Row D7: extreme values, in every op, give what float64 gives, or what shows that they cannot.

A case is an output of a family of ops (`accuracy_ops.py`), at a shape and a regime of values. The
truth is the NumPy twin in float64 on the same float32 numbers. The policy:

- Where the formula's own steps fit into float32, which is where NumPy's float32 twin reports no
  overflow, every element must be right: finite where the truth is, infinite where that is beyond
  float32. Of the outputs in ALWAYS, which exist for any number, this is so everywhere.
- Elsewhere an element may also be infinite or NaN, which training refuses; never finite and wrong.
- Not cases, where steps do not fit: the families in UNDEFINED. A score or a sum that has left
  float32 downwards is minus infinity, of which a softmax or a ReLU makes 0; and the optimizers
  refuse a gradient whose square is beyond float32.

Right is within what the result moves by where each input moves by half a unit in its last place,
or, of what is a difference of larger terms (`_terms`), within roundings of these.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from models import use_one_thread

from fastformer.backend import get_backend
from tests.scorecard.accuracy import in_double
from tests.scorecard.accuracy_inputs import Array, Family, Inputs
from tests.scorecard.accuracy_positions import FAMILIES
from tests.scorecard.rows import Finding, Row, Tier

LARGEST, LEAST = float(np.finfo(np.float32).max), 2.0**-149
ROUNDING = 2.0**-24
NUDGES, MARGIN = 4, 16
Random = np.random.Generator
Shape = tuple[int, ...]


def _signs(random: Random, shape: Shape) -> Array:
    return random.choice([-1.0, 1.0], shape)


def _any_exponent(random: Random, shape: Shape) -> Array:
    values = np.ldexp(random.standard_normal(shape), random.integers(-149, 127, shape))
    return np.clip(values, -LARGEST, LARGEST)


REGIMES: dict[str, Callable[[Random, Shape], Array]] = {
    "zero": lambda random, shape: np.zeros(shape),
    "minus zero": lambda random, shape: np.full(shape, -0.0),
    "the least numbers": lambda random, shape: LEAST * random.integers(-2, 3, shape),
    "denormal": lambda random, shape: 1e-42 * random.standard_normal(shape),
    "least normal": lambda random, shape: 1.2e-38 * random.standard_normal(shape),
    "equal": lambda random, shape: np.full(shape, 0.7),
    "1e4": lambda random, shape: 1e4 * random.standard_normal(shape),
    "1e9": lambda random, shape: 1e9 * random.standard_normal(shape),
    "1e18": lambda random, shape: 1e18 * random.standard_normal(shape),
    "1e30": lambda random, shape: 1e30 * random.standard_normal(shape),
    "equal and huge": lambda random, shape: np.full(shape, 1e30),
    "the largest": lambda random, shape: np.full(shape, LARGEST),
    "the lowest": lambda random, shape: np.full(shape, -LARGEST),
    "the largest of either sign": lambda random, shape: LARGEST * _signs(random, shape),
    "one in ten huge": lambda random, shape: np.where(
        random.random(shape) < 0.1, 1e38 * _signs(random, shape), random.standard_normal(shape)
    ),
    "any exponent": _any_exponent,
}
# Of each family: sizes of one, and odd ones around a register.
SHAPES: dict[str, tuple[Shape, ...]] = {
    "linear": ((1, 1, 1), (5, 7, 3), (17, 33, 19)),
    "attention": ((1, 1, 1, 1), (2, 5, 2, 9), (2, 19, 1, 17)),
    "rows": ((1, 1), (6, 9), (5, 67)),
    "embedding": ((1, 1, 1, 1), (7, 5, 6, 9), (33, 4, 5, 33)),
    "pooling": ((1, 1, 1), (3, 5, 7), (2, 40, 33)),
    "rotary": ((1, 1, 1, 1), (5, 7, 2, 3), (3, 4, 1, 17)),
    "optimizers": ((1,), (33,), (1000,)),
}
ALWAYS = {("relu", "out"), ("relu", "dx"), ("gelu", "out"), ("gelu", "dx"), ("mish", "out"),
          ("mish", "dx"), ("softmax", "out"),
          ("cross entropy", "losses"), ("cross entropy", "dlogits")}  # fmt: skip
UNDEFINED = ("linear, activated", "attention", "attention, causal", "attention, one row",
             "attention, alibi", "optimizers")  # fmt: skip


@dataclass(frozen=True)
class Case:
    """Inputs of a family at a shape, from a regime."""

    family: Family
    regime: str
    shape: Shape
    seed: int

    def __str__(self) -> str:
        """Return for instance `layernorm 6x9, 1e30`."""
        return f"{self.family.name} {'x'.join(map(str, self.shape))}, {self.regime}"

    def inputs(self) -> Inputs:
        """Draw the float32 inputs."""
        random = np.random.default_rng(self.seed)

        def draw(*shape: int, scales: Any = None) -> Array:
            return np.asarray(REGIMES[self.regime](random, shape).astype(np.float32))

        return self.family.inputs(draw, random, *self.shape)


def cases(rounds: int) -> Iterator[Case]:
    """Yield each family in each regime and shape, so many times."""
    for family in FAMILIES:
        stem = family.name.partition(",")[0]
        for shape in SHAPES.get(stem, SHAPES["rows"]):
            for regime in REGIMES:
                for seed in range(rounds):
                    yield Case(family, regime, shape, seed)


def _copy(inputs: Inputs) -> Inputs:
    return {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in inputs.items()}


def _fits(case: Case, inputs: Inputs) -> bool:
    """Tell whether NumPy's twin computes the case in float32 without an overflow."""
    found: list[str] = []
    call = lambda kind, _: found.append(kind)  # noqa: E731
    with np.errstate(all="ignore", over="call", invalid="call", call=call):
        case.family.compute(get_backend("reference"), _copy(inputs))
    return not found


def _terms(case: Case, inputs: Inputs) -> dict[str, float]:
    """Return the size of the terms of outputs whose true value may be a small difference of them.

    Of Adam: what a first moment that is less than the least number would change. Of a smoothed
    loss: the shares of its targets, and of a norm that scales rows: its scaled gradient.
    """
    if case.family.name == "cross entropy, smoothed":
        return {"dlogits": 1.0}
    if case.family.name == "rmsnorm":
        x, epsilon = inputs["x"].astype(np.float64), inputs["epsilon"]
        scales = 1 / np.sqrt((x * x).mean(axis=1, keepdims=True) + epsilon)
        return {"dx": float(np.abs(scales * inputs["dout"] * np.float64(inputs["weight"])).max())}
    if case.family.name == "optimizers":
        return {"adam": LEAST / inputs["epsilon"] / ROUNDING}
    if not case.family.name.startswith("attention"):
        return {}
    most = {k: float(np.abs(inputs[k]).max()) for k in ("q", "k", "v", "dout")}
    width = inputs["q"].shape[1] / inputs["heads"]
    changes = most["dout"] * most["v"] * width**0.5
    return {"dq": changes * most["k"], "dk": changes * most["q"]}


def _nudged(inputs: Inputs, random: Random) -> Inputs:
    """Return float64 inputs, each moved by half a float32 unit in its last place."""
    moved = in_double(inputs)
    for name, value in moved.items():
        if getattr(value, "dtype", None) == np.float64:
            other = value * (1 + ROUNDING * _signs(random, value.shape))
            other += LEAST / 2 * _signs(random, value.shape)
            moved[name] = np.maximum(other, 0) if name == "exp_avg_sq" else other
    return moved


def _allowed(case: Case, inputs: Inputs, truth: dict[str, Array]) -> dict[str, float]:
    """Return how far each output may be off."""
    random, found = np.random.default_rng(0), {}
    others = [
        case.family.compute(get_backend("reference"), _nudged(inputs, random))
        for _ in range(NUDGES)
    ]
    terms = _terms(case, inputs)
    for name, true in truth.items():
        shifts = np.array([np.abs(other[name] - true) for other in others])
        moved = float(shifts[np.isfinite(shifts)].max(initial=0))
        size = float(np.abs(true[np.abs(true) <= LARGEST]).max(initial=terms.get(name, 0)))
        found[name] = MARGIN * (moved + ROUNDING * size + LEAST)
    return found


def fault(name: str, found: Array, truth: Array, allowed: float, fits: bool) -> str:
    """Return what is wrong with an output, or "".

    Args:
        found: float32.    truth: float64.    allowed: how far it may be off.
        fits: whether nothing on the way leaves float32.
    """
    with np.errstate(all="ignore"):
        found = found.astype(np.float64)
        close = np.abs(found - truth) <= allowed
        beyond = found == np.sign(truth) * np.inf
        right = np.where(np.abs(truth) <= LARGEST, close, beyond)
        # Within a rounding of the largest number, either is right.
        margin = max(allowed, ROUNDING * LARGEST)
        right |= (np.abs(np.abs(truth) - LARGEST) <= margin) & (close | beyond)
        right |= np.isnan(truth) & np.isnan(found)
        if not fits:
            right |= ~np.isfinite(found)
    if right.all():
        return ""
    index = tuple(int(i) for i in np.argwhere(~right)[0])
    return f"{name}{list(index)} is {found[index]:.6g}, in truth {truth[index]:.6g}"


def results(case: Case, ops: Any) -> Iterator[tuple[bool, str]]:
    """Yield for each output whether it must be right everywhere, and its fault."""
    with np.errstate(all="ignore"):
        inputs = case.inputs()
        fits = _fits(case, inputs)
        if case.family.name in UNDEFINED and not fits:
            return
        truth = case.family.compute(get_backend("reference"), in_double(inputs))
        allowed = _allowed(case, inputs, truth)
    found = case.family.compute(ops, _copy(inputs))
    for name, true in truth.items():
        strict = fits or (case.family.name, name) in ALWAYS
        yield strict, fault(name, found[name], true, allowed[name], strict)


def _softmax_without_shift(x: Array, out: Array) -> None:
    with np.errstate(all="ignore"):
        out[...] = np.exp(x)
        out /= out.sum(axis=1, keepdims=True)


def _loss_without_shift(
    logits: Array, targets: Array, smoothing: float, losses: Array, *saved: Array
) -> None:
    get_backend("numba").cross_entropy_forward(logits, targets, smoothing, losses, *saved)
    chosen = np.take_along_axis(logits, np.maximum(targets, 0)[:, None], axis=1)[:, 0]
    with np.errstate(all="ignore"):
        losses[...] = np.where(targets >= 0, np.log(np.exp(logits).sum(axis=1)) - chosen, 0)


def _flushes(x: Array, activation: int, out: Array) -> None:
    get_backend("numba").activation_forward(x, activation, out)
    out[np.abs(out) < np.finfo(np.float32).tiny] = 0


def _saturates(x: Array, activation: int, out: Array) -> None:
    get_backend("numba").activation_forward(x, activation, out)
    np.clip(out, -1e30, 1e30, out=out)


# The fault: the family that must notice it, the op, and what is put in its place.
FAULTS: dict[str, tuple[str, str, Callable[..., None]]] = {
    "a softmax without shift": ("softmax", "softmax_forward", _softmax_without_shift),
    "a loss without shift": ("cross entropy", "cross_entropy_forward", _loss_without_shift),
    "denormals are flushed": ("relu", "activation_forward", _flushes),
    "large numbers are clipped": ("gelu", "activation_forward", _saturates),
}


def notices(name: str) -> bool:
    """Tell whether a planted fault is found."""
    family, op, function = FAULTS[name]
    ops = SimpleNamespace(**vars(get_backend("numba")) | {op: function})
    return any(
        problem
        for case in cases(1)
        if case.family.name == family
        for _, problem in results(case, ops)
    )


def measure(tier: Tier, rounds: int | None = None) -> Finding:
    """Compute all cases on the compiled kernels; a warning is a failure of the row."""
    use_one_thread()
    found: list[tuple[bool, str]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for case in cases(rounds or (2 if tier == "fast" else 20)):
            for strict, problem in results(case, get_backend("numba")):
                found.append((strict, f"{case}: {problem}" if problem else ""))
    failures = tuple(problem for _, problem in found if problem)
    strict_cases = sum(strict for strict, _ in found)
    return Finding(
        held=len(found) - len(failures),
        cases=len(found),
        planted=sum(notices(name) for name in FAULTS),
        plants=len(FAULTS),
        number=f"{strict_cases:,} right everywhere, the others right or visibly not finite",
        failures=failures[:20],
    )


ROW = Row(
    "D7",
    "extreme values (denormals, -0.0, 1e4 to the largest number, all equal) give what float64 "
    "gives, in every op",
    "all right; where steps of the formula leave float32, right or visibly not finite",
    measure,
)
