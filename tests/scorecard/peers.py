"""A1 and A5: the kernels' accuracy and whole trainings, beside PyTorch's.

PyTorch runs where it is installed; elsewhere its kept results are used (`peers_table.py`).
"""

import dataclasses
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
from models import use_one_thread
from parity import (
    STEPS,
    TRAINED,
    DecaysAll,
    NoBiasCorrection,
    config_of,
    distance,
    gradient_errors,
    initial_weights,
    train_ours,
    train_torch,
)

import fastformer as ff
from fastformer.backend import get_backend
from fastformer.kernels.activation import GELU
from tests.scorecard.accuracy import (
    UNKNOWN,
    WORST_RATIO,
    Case,
    Errors,
    cases,
    errors,
    ratios,
    with_ops,
)
from tests.scorecard.peers_table import (
    NIGHTLY_ROUNDS,
    has_torch,
    kept_errors,
    read,
    record,
    sampled,
    torch_computes,
)
from tests.scorecard.rows import Finding, Row, Tier

FAST_ROUNDS = 10
# A fault is looked for in a round with each regime of values.
PLANT_ROUNDS = 7

FIRST_LOSSES, GRADIENTS, DISTANCE = 1e-5, 1e-6, 1.0
MOST_FAILURES = 12


# ---- A1 ----


def compare(
    case: Case, table: dict[str, Any] | None, ops: SimpleNamespace | None = None
) -> tuple[Errors, Errors]:
    """Return the ratios of a case's errors to PyTorch's: above a rounding, and for the worst.

    Args:
        case: which.    table: PyTorch's kept errors, or None to run it.
        ops: what computes in place of the kernels.
    """
    ours = with_ops(case, ops)
    if table is None:
        found, theirs, sensitivity = errors(case, ours, torch_computes(case))
    else:
        found, sensitivity = errors(case, ours)
        theirs = kept_errors(table, case, list(found))
    known = [name for name in found if sensitivity[name][0] < UNKNOWN]
    found = {name: found[name] for name in known}
    return ratios(found, theirs), ratios(found, theirs, sensitivity)


def _without_bias_correction(p: Any, g: Any, m: Any, v: Any, *settings: Any) -> None:
    get_backend("numba").adam_step(p, g, m, v, *settings[:-1], 1_000_000)


def _other_epsilon(x: Any, weight: Any, bias: Any, epsilon: float, *outputs: Any) -> None:
    get_backend("numba").layernorm_forward(x, weight, bias, 1.1 * epsilon, *outputs)


def _variance_in_one_pass(
    x: Any, weight: Any, bias: Any, epsilon: float, out: Any, mean: Any, rstd: Any
) -> None:
    mean[...] = x.mean(axis=1)
    variance = np.maximum((x * x).mean(axis=1) - mean * mean, 0)
    rstd[...] = 1 / np.sqrt(variance + np.float32(epsilon))
    out[...] = (x - mean[:, None]) * rstd[:, None] * weight + bias


def _without_the_mean(x: Any, weight: Any, epsilon: float, out: Any, rrms: Any) -> None:
    """Take the mean off first, as a layer norm does."""
    centred = np.ascontiguousarray(x - x.mean(axis=1, keepdims=True))
    get_backend("numba").rmsnorm_forward(centred, weight, epsilon, out, rrms)


def _mean_in_a_chain(x: Any, offsets: Any, out: Any) -> None:
    for b in range(offsets.size - 1):
        rows = x[offsets[b] : offsets[b + 1]]
        out[b] = np.add.accumulate(rows, axis=0)[-1] / np.float32(len(rows))


def _gelu_of_another_form(x: Any, activation: int, out: Any) -> None:
    get_backend("numba").activation_forward(x, activation, out)
    if activation == GELU:
        out[...] = x / (1 + np.exp(np.float32(-1.702) * x))


def _softmax_without_shift(x: Any, out: Any) -> None:
    out[...] = np.exp(x)
    out /= out.sum(axis=1, keepdims=True)


def _attention_of_half_precision(q: Any, k: Any, v: Any, *others: Any) -> None:
    less = (np.ascontiguousarray(x.astype(np.float16).astype(np.float32)) for x in (q, k))
    get_backend("numba").attention_forward(*less, v, *others)


# The fault, the family whose cases must notice it, and the op that is replaced.
FAULTS: dict[str, tuple[str, str, Callable[..., None]]] = {
    "no bias correction": ("optimizers", "adam_step", _without_bias_correction),
    "another epsilon": ("layernorm", "layernorm_forward", _other_epsilon),
    "a variance in one pass": ("layernorm", "layernorm_forward", _variance_in_one_pass),
    "a mean that is taken off": ("rmsnorm", "rmsnorm_forward", _without_the_mean),
    "a mean in a float32 chain": ("pooling", "mean_forward", _mean_in_a_chain),
    "GELU's sigmoid form": ("gelu", "activation_forward", _gelu_of_another_form),
    "a softmax without shift": ("softmax", "softmax_forward", _softmax_without_shift),
    "scores in half precision": ("attention", "attention_forward", _attention_of_half_precision),
}


def notices(fault: str, table: dict[str, Any] | None) -> bool:
    """Tell whether a fault is found in the cases of its family."""
    family, op, function = FAULTS[fault]
    ops = SimpleNamespace(**vars(get_backend("numba")) | {op: function})
    for case in cases(PLANT_ROUNDS):
        if case.family.name != family:
            continue
        _, worst = compare(case, table, ops)
        # Not `ratio > WORST_RATIO`, which a NaN would pass.
        if any(not ratio <= WORST_RATIO for pair in worst.values() for ratio in pair):
            return True
    return False


def measure_kernels(
    rounds: int, table: dict[str, Any] | None, faults: tuple[str, ...] = tuple(FAULTS)
) -> Finding:
    """Compare each output's errors with PyTorch's; the mean over all is one more case."""
    use_one_thread()
    logarithms: list[float] = []
    found: list[tuple[float, str]] = []
    for case in cases(rounds):
        plain, worst = compare(case, table)
        for name, pair in worst.items():
            logarithms += np.log(plain[name]).tolist()
            found.append((max(pair), f"{case}: {name}"))
    geomean = float(np.exp(np.mean(logarithms)))
    found.sort(reverse=True)
    beyond = [(ratio, name) for ratio, name in found if not ratio <= WORST_RATIO]
    failures = [f"{ratio:.2f} times PyTorch's error: {name}" for ratio, name in beyond]
    if not geomean <= 1:
        failures.insert(0, f"the geometric mean is {geomean:.3f} of PyTorch's error")
    peer = "PyTorch" if table is None else f"kept PyTorch {table['torch']}"
    return Finding(
        held=len(found) + 1 - len(failures),
        cases=len(found) + 1,
        planted=sum(notices(fault, table) for fault in faults),
        plants=len(faults),
        number=f"{peer}: geomean {geomean:.2f}, worst {found[0][0]:.2f} ({found[0][1]})",
        failures=tuple(failures[:MOST_FAILURES]),
    )


# ---- A5 ----


@dataclasses.dataclass(frozen=True)
class Training:
    """A training beside PyTorch's.

    Attributes:
        losses: (steps,) absolute differences.    gradient: the largest difference at step 0,
            relative to the largest gradient.
        distance: of the trained weights from those of float64, in PyTorch's such distance.
    """

    losses: np.ndarray
    gradient: float
    distance: float

    def faults(self) -> Iterator[str]:
        """Yield what is not as it must be, but for the distance: that is for the mean of all."""
        if not self.losses[:10].max() <= FIRST_LOSSES:
            yield f"a loss of the first ten steps differs by {self.losses[:10].max():.1e}"
        if not self.gradient <= GRADIENTS:
            yield f"a gradient differs by {self.gradient:.1e} of the largest"


def train(name: str, table: dict[str, Any] | None, **changes: Any) -> Training:
    """Train a config of TRAINED beside PyTorch.

    Args:
        name: of the config.    table: PyTorch's kept results, or None to run it.
        changes: arguments of `train_ours`, faults; `config` changes settings.
    """
    kind, options = TRAINED[name]
    config = config_of(kind, **options)
    truth = train_ours(config, STEPS, dtype="float64")
    faulty = dataclasses.replace(config, **changes.pop("config", {}))
    ours = train_ours(faulty, STEPS, **changes)
    gradients, theirs = ours.gradients, None
    if table is None:
        run = train_torch(config, STEPS)
        theirs, expected = record(run, truth), run.gradients
    else:
        theirs = table["training"][name]
        gradients = sampled(gradients)
        expected = {key: np.array(values) for key, values in theirs["gradients"].items()}
    return Training(
        losses=np.abs(ours.losses - np.array(theirs["losses"])),
        gradient=max(gradient_errors(gradients, expected, theirs["largest"]).values()),
        distance=distance(ours.weights, truth.weights) / theirs["distance"],
    )


class HalfWeights(ff.AdamW):
    """Keeps its weights in half precision."""

    def step(self) -> None:
        """Change the parameters, and round them."""
        super().step()
        self.parameters.values[...] = self.parameters.values.astype(np.float16)


def _transposed(config: Any) -> dict[str, np.ndarray]:
    weights, name = initial_weights(config), "blocks.0.attention.key.weight"
    return weights | {name: np.ascontiguousarray(weights[name].T)}


TRAINING_FAULTS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "no bias correction": lambda config: {"optimizer_class": NoBiasCorrection},
    "biases decay": lambda config: {"optimizer_class": DecaysAll},
    "weights in half precision": lambda config: {"optimizer_class": HalfWeights},
    "another epsilon": lambda config: {"config": {"layernorm_epsilon": 1e-6}},
    "a transposed weight": lambda config: {"weights": _transposed(config)},
}


def training_notices(fault: str, table: dict[str, Any] | None, name: str) -> bool:
    """Tell whether a fault in a training is found."""
    kind, options = TRAINED[name]
    found = train(name, table, **TRAINING_FAULTS[fault](config_of(kind, **options)))
    return any(found.faults()) or not found.distance <= 2 * DISTANCE


def measure_training(
    names: tuple[str, ...],
    table: dict[str, Any] | None,
    faults: tuple[str, ...] = tuple(TRAINING_FAULTS),
) -> Finding:
    """Train each config beside PyTorch; the mean distance is one more case."""
    found = {name: train(name, table) for name in names}
    failures = [f"{name}: {fault}" for name, one in found.items() for fault in one.faults()]
    held = sum(not any(one.faults()) for one in found.values())
    mean = float(np.exp(np.mean([np.log(one.distance) for one in found.values()])))
    if not mean <= DISTANCE:
        failures.append(f"the trained weights are {mean:.3f} times as far from float64's")
    first = max(one.losses[:10].max() for one in found.values())
    every = max(one.losses.max() for one in found.values())
    gradient = max(one.gradient for one in found.values())
    peer = "PyTorch" if table is None else f"kept PyTorch {table['torch']}"
    return Finding(
        held=held + (mean <= DISTANCE),
        cases=len(found) + 1,
        planted=sum(training_notices(fault, table, names[0]) for fault in faults),
        plants=len(faults),
        number=(
            f"{peer}: losses of 10 steps {first:.1e}, of {STEPS} {every:.1e}; gradients "
            f"{gradient:.1e}; distance to float64 {mean:.3f} of PyTorch's"
        ),
        failures=tuple(failures[:MOST_FAILURES]),
    )


def _table() -> dict[str, Any] | None:
    return None if has_torch() else read()


def _measure_kernels(tier: Tier) -> Finding:
    return measure_kernels(FAST_ROUNDS if tier == "fast" else NIGHTLY_ROUNDS, _table())


def _measure_training(tier: Tier) -> Finding:
    return measure_training(tuple(TRAINED), _table())


ROWS = (
    Row(
        "A1",
        "kernels are as accurate as PyTorch's, forward and each gradient",
        f"error ratio: geomean at most 1.0, worst {WORST_RATIO}",
        _measure_kernels,
    ),
    Row(
        "A5",
        f"{len(TRAINED)} models trained for {STEPS} steps of AdamW as PyTorch trains them",
        f"losses of ten steps within {FIRST_LOSSES:.0e}, gradients {GRADIENTS:.0e}, "
        "no further from float64",
        _measure_training,
    ),
)
