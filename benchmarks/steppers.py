"""The step of each system, and the file that gives all of them the same batches and weights."""

from pathlib import Path
from typing import Any

import numpy as np

from fastformer.bench.stepper import StepData, Stepper, build_ours
from fastformer.bench.workloads import Workload
from fastformer.errors import InvalidValueError

_WEIGHT = "weight/"


def save_data(data: StepData, path: Path) -> None:
    """Write batches and weights to a file."""
    named: dict[str, Any] = {_WEIGHT + name: array for name, array in data.weights.items()}
    np.savez(path, tokens=data.tokens, targets=data.targets, **named)


def load_data(path: str) -> StepData:
    """Read what `save_data` wrote."""
    with np.load(path) as file:
        weights = {
            name.removeprefix(_WEIGHT): file[name] for name in file if name.startswith(_WEIGHT)
        }
        return StepData(file["tokens"], file["targets"], weights)


def build(system: str, workload: Workload, data: StepData, *, tuned: bool = True) -> Stepper:
    """Return a system's step.

    Args:
        system: its name.    workload: what is trained.    data: on what.
        tuned: whether a compiler may take its time; not where the time to start is measured.

    Raises:
        ValueError: an unknown system.
    """
    # A peer's module imports the peer, so it is imported in that peer's own process only.
    if system in ("numba", "numba-1", "numba-all"):
        return build_ours(workload, data, "numba", "float32")
    if system == "reference":
        return build_ours(workload, data, "reference", "float32")
    if system in ("torch", "compile"):
        from benchmarks.peers import torch_models

        return torch_models.build(workload, data, compiled=system == "compile", tuned=tuned)
    if system == "jax":
        from benchmarks.peers import jax_models

        return jax_models.build(workload, data)
    if system == "llmlearn":
        from benchmarks.peers import llmlearn_like

        return llmlearn_like.build(workload, data)
    raise InvalidValueError(f"there is no system {system!r}")
