"""Where a training step's time goes: each kernel's share, and Python's own."""

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numba
import numpy as np

from fastformer.backend import OPS, get_backend
from fastformer.bench import machine
from fastformer.bench.stepper import build_ours, prepared_data
from fastformer.bench.timing import time_calls
from fastformer.bench.workloads import WORKLOADS
from fastformer.program_step import Step
from fastformer.workspace import Workspace

STEPS = 200
PEAK_SECONDS = 0.1


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


def _start_clocks(space: Workspace) -> None:
    """Let a workspace's runs stamp each op within the parallel region."""
    columns = len(space.steps) + len(space.segments)
    space.clocks = np.zeros((numba.config.NUMBA_NUM_THREADS, columns), np.int64)


def _arithmetic(step: Step, space: Workspace) -> float:
    """Return the operations of an op's products, of which a multiply-add has two; else 0."""
    sizes = {letter: axis.at(space.sizes) for letter, axis in step.sizes.items()}
    if step.op.name.startswith("linear"):
        return 2.0 * sizes["G"] * sizes["R"] * sizes["K"] * sizes["M"]
    if step.op.name not in ("attention", "attention_gradient") or space.batch is None:
        return 0.0
    lengths = np.diff(space.batch.offsets).astype(float)
    pairs = lengths * lengths
    if sizes["Q"] == lengths.size != lengths.sum():
        pairs = lengths  # one row of each sequence
    elif step.operands["causal"]:
        pairs = lengths * (lengths + 1) / 2
    # Two products forward, five backward, where the weights are computed again.
    return (4 if step.op.name == "attention" else 10) * sizes["C"] * float(pairs.sum())


def _ops_of(space: Workspace, seconds: float, count: int, threads: int) -> dict[str, Any]:
    """Return each kind of op's calls, and its seconds and operations in a step.

    Args:
        seconds: that all runs of the program took.    count: of steps.    threads: of a run.
    """
    cycles, ops = space.clocks.sum(axis=0).astype(float), len(space.steps)
    # A thread works or waits from the first op to the last.
    share = seconds / max(1.0, float(space.clocks.sum(axis=1).max())) / threads / count
    found: dict[str, Any] = {}
    for step, spent in zip(space.steps, cycles, strict=False):
        # Layers of a list are one line.
        layer = ".".join(word for word in step.title.split(".") if not word.isdigit())
        name = f"{layer} {step.op.name}".strip()
        used = found.setdefault(name, {"calls": 0, "seconds": 0.0, "flops": 0.0})
        used["calls"] += 1
        used["seconds"] += spent * share
        used["flops"] += _arithmetic(step, space)
    waits = {"calls": 0, "seconds": float(cycles[ops:].sum()) * share, "flops": 0.0}
    return {**found, "waiting": waits}


def profile_step(workload: str, seconds: float) -> dict[str, Any]:
    """Time a step as it is, then once more with clocks: around kernels, and inside programs.

    Args:
        workload: P1, P2, P4 or P5.    seconds: for the timing.

    Returns:
        step: seconds of a step.
        ops: calls, seconds and operations of each kernel in a step, and of each op of the program.
        peak: operations per second that the machine can do on as many threads.
        outside: seconds a step outside all kernels: layers, checks, buffers, the loop.
        calling: seconds a step that the calls themselves take, were the kernels empty.
    """
    chosen = WORKLOADS[workload]
    data = prepared_data(chosen, seed=1)
    stepper = build_ours(chosen, data, "numba", "float32")
    step = time_calls(stepper.cycle(data), seconds=seconds, least=3).median
    clocks = _watch(get_backend("numba"))
    stepper = build_ours(chosen, data, "numba", "float32")
    watched = stepper.cycle(data)
    for _ in range(3):
        watched()
    (space,) = stepper.model.workspaces
    _start_clocks(space)
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
    threads = numba.get_num_threads()
    program = used.pop("run_program")
    ops: dict[str, Any] = {
        name: {"calls": clock.calls / count, "seconds": clock.nanoseconds / count / 1e9, "flops": 0}
        for name, clock in used.items()
    }
    clocked_call = time_calls(_Clock(lambda: None), seconds=0.05).median
    empty_call = machine.call_cost()
    return {
        "step": step,
        "watched_step": total,
        "calls": calls,
        "ops": ops | _ops_of(space, program.nanoseconds / 1e9, count, threads),
        "peak": threads * machine.fma_flops(np.float32, 1, PEAK_SECONDS),
        "outside": max(0.0, total - inside - calls * clocked_call),
        "calling": calls * empty_call,
    }
