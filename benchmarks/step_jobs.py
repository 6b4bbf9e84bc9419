"""Jobs on whole training steps, in the process of one system."""

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.arithmetic import resized
from benchmarks.steppers import build, load_data, save_data
from benchmarks.systems import LABELS
from fastformer import threads
from fastformer.bench.equivalence import NotEqualError
from fastformer.bench.stepper import build_ours, prepared_data
from fastformer.bench.timing import time_calls
from fastformer.bench.workloads import WORKLOADS, Workload

CHECKED_LOSSES = 3
# Between systems in float32 and the twins in float64, over the first steps; a wrong model is off
# by a hundredth.
LOSS_TOLERANCE = 2e-4


def _workload(given: Any) -> Workload:
    """Return a workload from its name, or from its fields."""
    return WORKLOADS[given] if isinstance(given, str) else Workload(**given)


def prepare(
    workload: Any, path: str, checks: int = CHECKED_LOSSES, seed: int = 1
) -> dict[str, Any]:
    """Draw a workload's batches and weights into a file.

    Args:
        workload: its name or fields.    path: of the file.
        checks: how many losses to compute.    seed: of the weights.

    Returns:
        losses: of the first steps, by the NumPy twins in float64: what every system must find.
    """
    chosen = _workload(workload)
    data = prepared_data(chosen, seed)
    save_data(data, Path(path))
    losses: list[float] = []
    if checks:
        step = build_ours(chosen, data, "reference", "float64").cycle(data)
        losses = [step() for _ in range(checks)]
    return {"losses": losses}


def _status(name: str) -> int | None:
    """Return a size of this process in bytes, as Linux tells it."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def resident_bytes() -> int:
    """Return the memory that this process has now, or the largest it has had."""
    return _status("VmRSS") or peak_bytes()


def peak_bytes() -> int:
    """Return the largest resident memory that this process has had."""
    # Not ru_maxrss on Linux: a child inherits there what its parent had.
    found = _status("VmHWM")
    if found:
        return found
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def require_equal_losses(
    system: str, name: str, found: Sequence[float], expected: Sequence[float]
) -> None:
    """Raise unless a system's first losses are those of the twins.

    Raises:
        NotEqualError: it does not compute the same model.
    """
    for step, (loss, wanted) in enumerate(zip(found, expected, strict=True), start=1):
        # Not `> LOSS_TOLERANCE`: a loss may be NaN.
        if not abs(loss - wanted) <= LOSS_TOLERANCE * abs(wanted):
            raise NotEqualError(
                f"{LABELS[system]} is not equal to the NumPy twins on {name}: its loss at step "
                f"{step} is {loss:.7g} and should be {wanted:.7g}; nothing was timed"
            )


def time_steps(
    system: str,
    data: Mapping[str, str],
    seconds: float,
    expected: Mapping[str, Sequence[float]],
    workload: Any = None,
) -> dict[str, Any]:
    """Time the steps of some workloads, one after the other.

    Args:
        system: whose steps.    data: the file of each workload by its name.
        seconds: for each workload.    expected: the first losses of those that are checked.
        workload: its fields, where it is none of the named ones.

    Returns:
        For each workload its first losses, timing, and the process's peak memory after it.

    Raises:
        NotEqualError: the system computes something else; it is not timed then.
    """
    if system == "numba-all":
        threads.configure(threads.configure())  # a number that is given stays
    results: dict[str, Any] = {}
    for name, path in data.items():
        given = load_data(path)
        if workload is not None:
            _load_kernels(system, _workload(workload))
        before = resident_bytes()
        stepper = build(system, _workload(workload or name), given)
        # Copies of the weights are no part of what a step needs.
        given = replace(given, weights={})
        step = stepper.cycle(given)
        losses = [stepper.loss(step()) for _ in range(CHECKED_LOSSES)]
        if name in expected:
            require_equal_losses(system, name, losses, expected[name])
        del given
        timing = time_calls(step, seconds=seconds, least=3, finish=stepper.loss)
        memory = {"peak_bytes": peak_bytes(), "bytes_before": before}
        results[name] = {"losses": losses, **timing.as_dict(), **memory}
    return results


def _load_kernels(system: str, workload: Workload) -> None:
    """Make a step of the smallest batch, so that what it takes is not counted as the model's."""
    small = resized(workload, B=1, T=8, C=workload.H, F=1)
    data = prepared_data(small, seed=0)
    stepper = build(system, small, data)
    stepper.loss(stepper.cycle(data)())


def time_start(system: str, data: str, started: float) -> dict[str, Any]:
    """Make the first step of the digit encoder.

    Args:
        system: whose.    data: the file of P2.
        started: `time.monotonic()` when the process was started; the clock is the machine's.

    Returns:
        seconds: from the start of the process to the end of its first optimiser step.
    """
    given = load_data(data)
    stepper = build(system, WORKLOADS["P2"], given, tuned=False)
    loss = stepper.loss(stepper.cycle(given)())
    return {"seconds": time.monotonic() - started, "loss": loss}
