"""What PyTorch computes, kept in a file, so that the rows beside it have a number without it.

Make it anew, where PyTorch is installed, with

    python -m tests.scorecard.peers_table

whenever inputs change, or PyTorch's version. Errors are kept as whole multiples of UNIT, a
hundredth of a rounding. Before they are kept, PyTorch in float64 must agree with the NumPy twins in
float64, which are the truth of every error.
"""

import importlib.util
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
from parity import STEPS, TRAINED, Run, config_of, distance, train_ours, train_torch

from tests.scorecard.accuracy import (
    UNKNOWN,
    Case,
    Errors,
    cases,
    digest,
    errors,
    in_double,
)

PATH = Path(__file__).with_name("torch_table.json")
NIGHTLY_ROUNDS = 100
UNIT = 2.0**-31
SAMPLES = 12
COMMAND = "python -m tests.scorecard.peers_table"


def has_torch() -> bool:
    """Tell whether PyTorch is installed."""
    return importlib.util.find_spec("torch") is not None


def torch_computes(case: Case) -> Any:
    """Return how PyTorch computes a case."""
    from tests.scorecard import accuracy_torch

    return lambda inputs: accuracy_torch.compute(case.family.name, inputs)


def read() -> dict[str, Any]:
    """Return the kept table."""
    return dict(json.loads(PATH.read_text()))


def kept_errors(table: dict[str, Any], case: Case, names: list[str]) -> Errors:
    """Return PyTorch's errors of a case from the table.

    Args:
        table: from `read`.    case: which.    names: of its outputs.

    Raises:
        ValueError: the case's inputs are not those that the table was made with.
    """
    name = case.family.name
    if case.number < len(table["digests"]) and table["digests"][name] != digest(case):
        raise ValueError(f"{case}: other inputs than when {PATH.name} was made; run {COMMAND}")
    kept = np.array(table["errors"][case.number]).reshape(-1, 2) * UNIT
    return {output: tuple(pair) for output, pair in zip(sorted(names), kept, strict=True)}


def torch_errors(case: Case) -> Errors:
    """Return the errors of PyTorch in float32.

    Raises:
        ValueError: PyTorch in float64 does not agree with the truth.
    """
    compute = torch_computes(case)
    found, double, sensitivity = errors(case, compute, lambda inputs: compute(in_double(inputs)))
    for name, (error, _) in double.items():
        # float64 has 2^29 times the precision, so what it agrees on is far below float32's error.
        allowed = max(1e-9, 1e-3 * found[name][0])
        if sensitivity[name][0] < UNKNOWN and not error <= allowed:
            raise ValueError(f"{case}: PyTorch and the twin differ by {error:.1e} in {name}")
    return found


def sampled(gradients: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a few elements of each gradient, spread over it."""
    found = {}
    for name, gradient in gradients.items():
        places = np.linspace(0, gradient.size - 1, min(SAMPLES, gradient.size)).astype(int)
        found[name] = gradient.reshape(-1)[places]
    return found


def record(run: Run, truth: Run) -> dict[str, Any]:
    """Return what is kept of PyTorch's training.

    Args:
        run: in float32.    truth: the same in float64.
    """
    return {
        "largest": max(float(np.max(np.abs(g))) for g in run.gradients.values()),
        "distance": distance(run.weights, truth.weights),
        "losses": [float(f"{loss:.9g}") for loss in run.losses],
        "gradients": {
            name: [float(f"{value:.9g}") for value in values]
            for name, values in sampled(run.gradients).items()
        },
    }


def make(rounds: int = NIGHTLY_ROUNDS) -> dict[str, Any]:
    """Return the table, computed by PyTorch."""
    import torch

    kept, digests = [], {}
    for case in cases(rounds):
        found = torch_errors(case)
        digests.setdefault(case.family.name, digest(case))
        pairs = [found[name] for name in sorted(found)]
        kept.append([round(min(error, 1e9) / UNIT) for pair in pairs for error in pair])
    training = {}
    for name, (kind, options) in TRAINED.items():
        config = config_of(kind, **options)
        truth = train_ours(config, STEPS, dtype="float64")
        training[name] = record(train_torch(config, STEPS), truth)
    about = {"torch": torch.__version__, "machine": platform.machine(), "command": COMMAND}
    return about | {"digests": digests, "training": training, "errors": kept}


def main() -> None:
    """Write the table, a line for each case and each training."""
    table = make()
    compact = {"separators": (",", ":")}
    lines = []
    for key, value in table.items():
        text = json.dumps(value, **compact)
        if key == "errors":
            text = "[\n" + ",\n".join(json.dumps(row, **compact) for row in value) + "\n]"
        elif key == "training":
            rows = (f"{json.dumps(k)}:{json.dumps(v, **compact)}" for k, v in value.items())
            text = "{\n" + ",\n".join(rows) + "\n}"
        lines.append(f"{json.dumps(key)}:{text}")
    PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
