"""Dropout of a sub-layer's output, and the counter that its random numbers come from."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import numpy as np

from fastformer import checks
from fastformer.fixed import Fixed
from fastformer.kernels.dropout import dropout
from fastformer.layers.base import Layer
from fastformer.parameters import Array
from fastformer.program import Program
from fastformer.tensors import Tensor

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

    left = ("shape", "call")
    shape: tuple[int, ...]
    call: int

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
        self._dropped = False

    def sizes(self) -> dict[str, object]:
        """Return what a person is told of the layer beside its name."""
        return {"rate": self.rate}

    @property
    def active(self) -> bool:
        """Whether forward drops anything."""
        return self.rate > 0 and self.counter.training

    def forward(self, x: Array, residual: Array | None = None) -> Array:
        """Return dropout(x) + residual, of x's shape, in a buffer; x itself if there is neither."""
        checks.same_shape("Dropout", "x", x, np.shape(x), self.dtype)
        if residual is not None:
            checks.same_shape("Dropout", "residual", residual, x.shape, self.dtype)
        by_itself = self.guard.claim()
        kept = self.__dict__
        dropped = kept["_dropped"] = self.active
        kept["shape"] = x.shape
        if not dropped and residual is None:
            return x
        if by_itself:
            x, residual = self.apart(x), None if residual is None else self.apart(residual)
        out = self.buffers.get("out", *x.shape)
        kept["call"] = self.counter.forwards * self.counter.places + self.place
        rate = self.rate if dropped else 0.0
        added = x[:0] if residual is None else residual
        self.ops.dropout_forward(x, added, rate, *self._key(), out)
        return out

    def skip(self) -> None:
        """Do what a forward does that drops nothing, where its result is known already."""
        self.__dict__["_dropped"] = False

    def backward(self, dout: Array) -> Array:
        """Return the gradient by x, in a shared buffer, or dout itself if nothing was dropped."""
        self.guard.check_left()
        if not self._dropped:
            return dout
        checks.same_shape("Dropout.backward", "dout", dout, self.shape, self.dtype)
        dx = self.scratch.get("dropout.dx", *dout.shape, apart=(dout,))
        self.ops.dropout_backward(dout, self.rate, *self._key(), dx)
        return dx

    def _key(self) -> tuple[np.uint64, np.uint64]:
        return np.uint64(self.counter.seed), np.uint64(self.call)

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
