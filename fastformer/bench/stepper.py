"""A training step that can be timed: its batches and weights, the step, and its loss."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastformer.bench.workloads import BATCHES, LEARNING_RATE, Workload

Array = npt.NDArray[Any]


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


def prepared_data(workload: Workload, seed: int) -> StepData:
    """Return random batches, always the same, and the initial weights of a seed."""
    w, random = workload, np.random.default_rng(20240229)
    tokens = random.integers(0, w.V, (BATCHES, w.B, w.T))
    shape = tokens.shape[:2] if w.kind == "encoder" else tokens.shape
    return StepData(tokens, random.integers(0, w.V, shape), _initial_weights(workload, seed))


def _initial_weights(workload: Workload, seed: int) -> dict[str, Any]:
    import fastformer as ff

    config = workload.config()
    if isinstance(config, ff.TransformerConfig):
        return ff.Transformer(config, seed=seed, backend="reference").state_dict()
    return ff.TransformerDecoder(config, seed=seed, backend="reference").state_dict()


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
