"""Dropout of a sub-layer's output, and the counter that its random numbers come from."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

from fastformer import checks
from fastformer.fixed import Fixed
from fastformer.kernels.dropout import dropout
from fastformer.layers.base import Layer
from fastformer.program import Program
from fastformer.tensors import ROWS, Axis, Tensor

# With any number of layers, all are numbered within 64 bits.
MOST_FORWARDS = 1 << 48


class DropoutCounter(Fixed):
    """Names the random numbers of each call by (seed, number of the forward pass, place).

    Attributes:
        training: whether anything is dropped.
        forwards: how many training forward passes began; set it to go on from there.
    """

    settable: ClassVar[Mapping[str, Callable[[Any], Any]]] = {
        "training": partial(checks.boolean, "training"),
        "forwards": partial(checks.integer, "forwards", minimum=0, maximum=MOST_FORWARDS),
    }

    def __init__(self, seed: int = 0) -> None:
        """Begin at the first forward pass, not training."""
        self.seed = checks.integer("seed", seed, 0, 2**64 - 1)
        self.training = False
        self.forwards = 0
        self._places = 0

    @property
    def places(self) -> int:
        """How many layers drop."""
        return self._places

    def count(self) -> None:
        """Begin another forward pass, which counts in training."""
        if self.training:
            self.__dict__["forwards"] += 1  # which is checked where others set it

    def new_place(self) -> int:
        """Return the number of another layer that drops."""
        self._places += 1
        return self._places - 1


class Dropout(Layer):
    """x * mask / (1 - rate), and the residual sum in the same pass; see kernels/dropout.py."""

    elementwise = True

    def __init__(
        self,
        rate: float,
        counter: DropoutCounter | None = None,
        *,
        backend: str = "numba",
        dtype: str = "float32",
    ) -> None:
        """Make the layer.

        Args:
            rate: the share of elements that is zeroed in training, in [0, 1).
            counter: shared by the layers of a model; one of its own unless given.
            backend: "numba" or "reference".    dtype: "float32" or "float64".
        """
        super().__init__(backend, dtype)
        self.rate = checks.number("rate", rate, at_least=0, below=1)
        if counter is not None:
            checks.instance("Dropout", "counter", counter, DropoutCounter)
        self.counter = counter or DropoutCounter()
        self.place = self.counter.new_place()

    def sizes(self) -> dict[str, object]:
        """Return what a person is told of the layer beside its name."""
        return {"rate": self.rate}

    def shapes(self, **options: Any) -> dict[str, tuple[Axis, Axis | None]]:
        """Return what forward is given: arrays of any shape."""
        return {"x": (ROWS, None), "residual": (ROWS, None)}

    @property
    def active(self) -> bool:  # type: ignore[override]
        """Whether forward drops anything."""
        return self.rate > 0 and self.counter.training

    def forward_ops(self, p: Program, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Append the ops of forward: x itself where nothing is dropped or added."""
        drops = p.training and self.rate > 0
        p.save(drops=drops)
        if not drops and residual is None:
            return x
        return self._append(p, x, residual, self.rate if drops else 0.0)

    def backward_ops(self, p: Program, dout: Tensor) -> Tensor:
        """Append the ops of backward."""
        return self._append(p, dout, None, self.rate) if p.saved.drops else dout

    def _append(self, p: Program, x: Tensor, residual: Tensor | None, rate: float) -> Tensor:
        (found,) = p.add(
            dropout, x=x, residual=residual, rate=rate, seed=self.counter.seed,
            call=p.number("dropout call"), place=self.place,
        )  # fmt: skip
        return found
