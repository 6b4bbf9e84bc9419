"""What every system of a step benchmark gives: a step, its loss, and how to wait for it."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastformer.bench.workloads import BATCHES, LEARNING_RATE, Workload
from fastformer.errors import InvalidValueError

Array = npt.NDArray[Any]
_WEIGHT = "weight/"


@dataclass(frozen=True)
class StepData:
    """What all systems are given.

    Attributes:
        tokens: (batches, B, T) int64.    targets: (batches, B), or (batches, B, T) of a decoder.
        weights: initial weights by fastformer's names; linear weights are (in, out).
    """

    tokens: Array
    targets: Array
    weights: Mapping[str, Array]

    def save(self, path: Path) -> None:
        """Write all to a file."""
        named: dict[str, Any] = {_WEIGHT + name: array for name, array in self.weights.items()}
        np.savez(path, tokens=self.tokens, targets=self.targets, **named)

    @classmethod
    def load(cls, path: str) -> "StepData":
        """Read what `save` wrote."""
        with np.load(path) as file:
            weights = {
                name.removeprefix(_WEIGHT): file[name] for name in file if name.startswith(_WEIGHT)
            }
            return cls(file["tokens"], file["targets"], weights)


@dataclass(frozen=True)
class Stepper:
    """A system that trains.

    Attributes:
        prepare: (tokens (B, T), targets) -> the batch as the system wants it.
        train: makes a training step on a prepared batch; returns a handle of its loss.
        loss: waits for the step of a handle, and returns the loss.
        predict: (B, T) ids -> class ids (B,), of a peer's encoder.
        model: fastformer's own.
    """

    prepare: Callable[[Array, Array], Any]
    train: Callable[[Any], Any]
    loss: Callable[[Any], float]
    predict: Callable[[Array], Array] | None = None
    model: Any = None

    def cycle(self, data: StepData) -> Callable[[], Any]:
        """Return a call that makes a step on the next batch, all of them prepared before."""
        pairs = zip(data.tokens, data.targets, strict=True)
        batches = itertools.cycle([self.prepare(*pair) for pair in pairs])
        return lambda: self.train(next(batches))


def draw_batches(workload: Workload, random: np.random.Generator) -> tuple[Array, Array]:
    """Return random tokens and targets of a workload."""
    w = workload
    tokens = random.integers(0, w.V, (BATCHES, w.B, w.T))
    shape = tokens.shape[:2] if w.kind == "encoder" else tokens.shape
    return tokens, random.integers(0, w.V, shape)


def build_ours(workload: Workload, data: StepData, backend: str, dtype: str) -> Stepper:
    """Return fastformer's step, written as in its README."""
    import fastformer as ff

    config = workload.config()
    model: ff.Transformer | ff.TransformerDecoder
    if isinstance(config, ff.TransformerConfig):
        model = ff.Transformer(config, backend=backend, dtype=dtype)
    else:
        model = ff.TransformerDecoder(config, backend=backend, dtype=dtype)
    model.load_state_dict(data.weights)
    optimizer = ff.Adam(model.parameters(), lr=LEARNING_RATE)
    loss_fn = ff.CrossEntropyLoss(backend=backend)

    def prepare(tokens: Array, targets: Array) -> tuple[ff.PackedBatch, Array]:
        lengths = np.full(len(tokens), tokens.shape[1])
        return ff.pack(tokens, lengths), targets.reshape(-1)

    def train(prepared: tuple[ff.PackedBatch, Array]) -> float:
        batch, targets = prepared
        model.zero_grad()
        loss, _ = ff.accumulate_gradients(model, batch, targets, loss_fn)
        optimizer.step()
        return loss

    return Stepper(prepare, train, float, model=model)


def build(system: str, workload: Workload, data: StepData, *, tuned: bool = True) -> Stepper:
    """Return a system's step.

    Args:
        system: its name.    workload: what is trained.    data: on what.
        tuned: whether a compiler may take its time; not where the time to start is measured.

    Raises:
        ValueError: an unknown system.
    """
    if system in ("numba", "numba-1", "numba-all"):
        return build_ours(workload, data, "numba", "float32")
    if system == "reference":
        return build_ours(workload, data, "reference", "float32")
    if system in ("torch", "compile"):
        from fastformer.bench.peers import torch_models

        return torch_models.build(workload, data, compiled=system == "compile", tuned=tuned)
    if system == "jax":
        from fastformer.bench.peers import jax_models

        return jax_models.build(workload, data)
    if system == "llmlearn":
        from fastformer.bench.peers import llmlearn_like

        return llmlearn_like.build(workload, data)
    raise InvalidValueError(f"there is no system {system!r}")
