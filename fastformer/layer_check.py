"""Proof of a layer: compiled code against twins, gradients against differences, and both timed."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np

from fastformer import checks
from fastformer.batch import PackedBatch
from fastformer.errors import EquivalenceError
from fastformer.layers.base import Layer
from fastformer.parameters import Array
from fastformer.random import generator

# Largest errors, relative to the largest element: of float64 beside its twins, of float32 beside
# the twins in float64, and of gradients beside differences over four points.
TOLERANCES = {"float64": 1e-10, "float32": 1e-4, "differences": 1e-6}
STEP = 2.0**-13


@dataclass(frozen=True)
class LayerReport:
    """What `check_layer` found: all is within TOLERANCES.

    Attributes:
        float64, float32: largest relative errors of compiled results beside the twins' in float64.
        differences: largest relative error of a slope beside that by differences.
        seconds, reference_seconds: of forward and backward in float32, compiled and by the twins.
    """

    float64: float
    float32: float
    differences: float
    seconds: float
    reference_seconds: float

    def __str__(self) -> str:
        """Say it in four lines."""
        return (
            f"compiled beside twins: float64 {self.float64:.1e}, float32 {self.float32:.1e}\n"
            f"gradients beside differences: {self.differences:.1e}\n"
            f"forward and backward: {1e6 * self.seconds:.0f} us, "
            f"twins {1e6 * self.reference_seconds:.0f} us, "
            f"{self.reference_seconds / self.seconds:.1f} times as fast"
        )


def check_layer(
    make: Callable[..., Layer],
    width: int,
    *,
    rows: int = 64,
    batch: PackedBatch | None = None,
    seed: int = 0,
) -> LayerReport:
    """Check a layer that turns (N, C) into an array, and time it.

    Compiled results are held to those of the NumPy twins, on one thread and on all, and the
    gradients of the input and of each parameter to differences of forward in float64.

    Args:
        make: make(backend=..., dtype=...) -> the layer, with the same parameters each time.
        width: C, of its input.    rows: N, where no batch is given.
        batch: for a layer that reads one: N is the number of its tokens.    seed: of the input.

    Raises:
        EquivalenceError: something differs by more than TOLERANCES; the message names it.
        TypeError, ValueError: an argument that is not allowed.
    """
    width, rows = checks.integer("width", width, 1), checks.integer("rows", rows, 1)
    if batch is not None:
        checks.instance("check_layer", "batch", batch, PackedBatch)
        rows = batch.num_tokens
    random = generator(checks.integer("seed", seed, 0), "check_layer")
    x = random.standard_normal((rows, width))
    more = () if batch is None else (batch,)
    truth = _Case(make, "reference", "float64", x, more)
    expected = truth.results()
    found = {
        dtype: max(
            _Case(make, "numba", dtype, x, more).compare(expected, TOLERANCES[dtype], threads)
            for threads in sorted({1, numba.get_num_threads()})
        )
        for dtype in ("float64", "float32")
    }
    differences = truth.slopes(expected, random)
    times = [
        _Case(make, backend, "float32", x, more).seconds() for backend in ("numba", "reference")
    ]
    return LayerReport(found["float64"], found["float32"], differences, *times)


class _Case:
    """A layer of one backend and dtype, with its input."""

    def __init__(
        self, make: Callable[..., Layer], backend: str, dtype: str, x: Array, more: tuple[Any, ...]
    ) -> None:
        self.layer = make(backend=backend, dtype=dtype)
        checks.instance("check_layer", "what make returns", self.layer, Layer)
        self.layer.parameters()
        self.x, self.more = x.astype(dtype), more
        shape = self.layer.forward(self.x, *more).shape
        self.dout = generator(1, "check_layer").standard_normal(shape).astype(dtype)

    def results(self) -> dict[str, Array]:
        """Return copies of the output and of all gradients, by name."""
        self.layer.zero_grad()
        found = {"output": self.layer.forward(self.x, *self.more).copy()}
        found["gradient of the input"] = self.layer.backward(self.dout).copy()
        gradients = self.layer.grad_dict().items()
        return found | {f"gradient of {name}": gradient for name, gradient in gradients}

    def compare(self, expected: dict[str, Array], tolerance: float, threads: int) -> float:
        """Return the largest error beside the twins' results."""
        before = numba.get_num_threads()
        numba.set_num_threads(threads)
        try:
            found, worst = self.results(), 0.0
        finally:
            numba.set_num_threads(before)
        for name, value in expected.items():
            if found[name].shape != value.shape:
                raise EquivalenceError(
                    f"{name} is {found[name].shape}, and {value.shape} by the twins"
                )
            error = _error(found[name], value)
            if not error <= tolerance:
                raise EquivalenceError(
                    f"{name} of {self.layer.dtype} compiled differs from the twins' by "
                    f"{error:.1e} of its largest element, more than {tolerance:.0e}"
                )
            worst = max(worst, error)
        return worst

    def slopes(self, gradients: dict[str, Array], random: np.random.Generator) -> float:
        """Hold gradients to differences along random directions; return the largest error."""
        worst = 0.0
        values = {"input": self.x} | {name: value for name, value, _ in self.layer.parameters()}
        for name, value in values.items():
            direction = random.standard_normal(value.shape)
            direction /= np.linalg.norm(direction)
            slope = float(np.vdot(gradients[self._gradient_of(name)], direction))
            expected = self._difference(value, direction)
            scale = max(abs(expected), float(np.linalg.norm(gradients[self._gradient_of(name)])))
            error = abs(slope - expected) / scale if scale else 0.0
            if not error <= TOLERANCES["differences"]:
                raise EquivalenceError(
                    f"{self._gradient_of(name)} has the slope {slope:.6g} along a random "
                    f"direction, and differences of forward give {expected:.6g}"
                )
            worst = max(worst, error)
        return worst

    def _gradient_of(self, name: str) -> str:
        return "gradient of the input" if name == "input" else f"gradient of {name}"

    def _difference(self, value: Array, direction: Array) -> float:
        """Return the slope of the sum of dout * output; its error falls with STEP^4."""
        before = value.copy()

        def at(shift: float) -> float:
            value[...] = before + shift * STEP * direction
            return float(np.vdot(self.dout, self.layer.forward(self.x, *self.more)))

        near, far = at(1) - at(-1), at(2) - at(-2)
        value[...] = before
        return (8 * near - far) / (12 * STEP)

    def seconds(self) -> float:
        """Return the median time of forward and backward."""
        return statistics.median(self._times())

    def _times(self) -> Iterator[float]:
        self.results()
        ends = time.perf_counter() + 0.2
        while time.perf_counter() < ends:
            started = time.perf_counter()
            self.layer.forward(self.x, *self.more)
            self.layer.backward(self.dout)
            yield time.perf_counter() - started


def _error(found: Array, expected: Array) -> float:
    """Return the largest difference, relative to the largest element."""
    if not expected.size:
        return 0.0
    scale = float(np.abs(expected).max()) or 1.0
    return float(np.abs(found.astype(np.float64) - expected).max()) / scale
