"""Where a training step's time goes: each kernel's share, and Python's own."""

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastformer.backend import OPS, get_backend
from fastformer.bench import machine
from fastformer.bench.step_jobs import prepared_data
from fastformer.bench.stepper import build
from fastformer.bench.timing import time_calls
from fastformer.bench.workloads import WORKLOADS

STEPS = 200


class _Clock:
    """The calls of one op, and the nanoseconds within them."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.calls, self.nanoseconds = function, 0, 0

    def __call__(self, *arguments: Any) -> Any:
        begin = time.perf_counter_ns()
        result = self.function(*arguments)
        self.nanoseconds += time.perf_counter_ns() - begin
        self.calls += 1
        return result


def _watch(ops: SimpleNamespace) -> dict[str, _Clock]:
    """Put a clock around each op of a backend; models that are made later call through it."""
    names = [op for group in OPS.values() for op in group] + ["run_program"]
    clocks = {op: _Clock(getattr(ops, op)) for op in names}
    for op, clock in clocks.items():
        setattr(ops, op, clock)
    return clocks


def profile_step(system: str, workload: str, seconds: float) -> dict[str, Any]:
    """Time a step as it is, then once more with a clock around each kernel.

    Args:
        system: "numba" or "numba-1".    workload: P1, P2, P4 or P5.    seconds: for the timing.

    Returns:
        step: seconds of a step.    ops: calls a step, and microseconds a step of each kernel.
        outside: seconds a step outside all kernels: layers, checks, buffers, the loop.
        calling: seconds a step that the calls themselves take, were the kernels empty.
    """
    chosen = WORKLOADS[workload]
    data = prepared_data(chosen, seed=1)
    stepper = build(system, chosen, data)
    step = time_calls(stepper.cycle(data), seconds=seconds, least=3).median
    clocks = _watch(get_backend("numba"))
    watched = build(system, chosen, data).cycle(data)
    for _ in range(3):
        watched()
    for clock in clocks.values():
        clock.calls = clock.nanoseconds = 0
    count = max(3, min(STEPS, round(seconds / step)))
    totals = []
    for _ in range(count):
        begin = time.perf_counter_ns()
        watched()
        totals.append(time.perf_counter_ns() - begin)
    used = {op: clock for op, clock in clocks.items() if clock.calls}
    inside = sum(clock.nanoseconds for clock in used.values()) / count / 1e9
    calls = sum(clock.calls for clock in used.values()) / count
    total = float(np.mean(totals)) / 1e9
    clocked_call = time_calls(_Clock(lambda: None), seconds=0.05).median
    empty_call = machine.call_cost()
    return {
        "step": step,
        "watched_step": total,
        "calls": calls,
        "ops": {
            op: {"calls": clock.calls / count, "seconds": clock.nanoseconds / count / 1e9}
            for op, clock in used.items()
        },
        "outside": max(0.0, total - inside - calls * clocked_call),
        "calling": calls * empty_call,
    }
