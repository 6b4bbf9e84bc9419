"""What a case of a kernel is: an op, its shape, its inputs, its arithmetic and memory traffic."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastformer.backend import get_backend

ITEMSIZE = 4
Shape = tuple[int, ...]
Arguments = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """What a model gives its kernels: B sequences of T tokens, C wide, H heads, F and V."""

    name: str
    B: int
    T: int
    C: int
    H: int
    F: int
    V: int

    @property
    def N(self) -> int:
        """The number of tokens."""
        return self.B * self.T


SIZES = (
    Sizes("digits", 32, 8, 64, 4, 256, 20),
    Sizes("char", 12, 64, 128, 4, 512, 65),
    Sizes("baby", 8, 256, 384, 6, 1536, 65),
    Sizes("gpt2", 4, 64, 768, 12, 3072, 50257),
    Sizes("tails", 5, 13, 39, 3, 101, 31),
)


@dataclass(frozen=True)
class Output:
    """An argument that the kernel writes: overwritten (it begins as NaN), or added to."""

    shape: Shape
    start: Any = np.nan

    @property
    def accumulates(self) -> bool:
        """Whether what it begins with counts."""
        return not (isinstance(self.start, float) and math.isnan(self.start))


@dataclass(frozen=True)
class Spec:
    """One op in one variant.

    Attributes:
        op: its name in `fastformer.backend.OPS`.    axes: the letters of its shape.
        shapes: the shapes of a model's sizes.
        make: (random, *shape) -> the kernel's arguments by name, in order; floats in float64.
        flops: (*shape) -> arithmetic operations.
        traffic: (*shape) -> elements that must be read or written once; None for the sum of all
            arguments, those that are added to counted twice.
        variant: what the arguments ask for, where the op can do several things.
    """

    op: str
    axes: str
    shapes: Callable[[Sizes], Iterable[Shape]]
    make: Callable[..., Arguments]
    flops: Callable[..., float]
    traffic: Callable[..., float] | None = None
    variant: str = ""


@dataclass(frozen=True)
class Case:
    """One op, one variant, one shape: what is checked and timed."""

    spec: Spec
    shape: Shape

    @property
    def op(self) -> str:
        """The op's name."""
        return self.spec.op

    def __str__(self) -> str:
        """Return for instance `matmul/gelu 768x128x512`."""
        variant = f"/{self.spec.variant}" if self.spec.variant else ""
        return f"{self.op}{variant} {'x'.join(map(str, self.shape))}"

    def given(self) -> Arguments:
        """Return the arguments by name: float64 arrays, ids, scalars, and `Output` marks.

        Nobody may write to them; `realize` gives copies.
        """
        return _made(self)

    @functools.cached_property
    def flops(self) -> float:
        """Arithmetic operations of one call; a multiply-add is two."""
        return float(self.spec.flops(*self.shape))

    @functools.cached_property
    def traffic(self) -> float:
        """Bytes of one call: each input read once, each output written once."""
        if self.spec.traffic is not None:
            return ITEMSIZE * float(self.spec.traffic(*self.shape))
        return float(
            sum(
                _bytes(value) * (1 + (isinstance(value, Output) and value.accumulates))
                for value in self.given().values()
            )
        )

    @functools.cached_property
    def footprint(self) -> float:
        """Bytes of distinct memory that one call touches: what must fit into a cache."""
        return min(self.traffic, sum(_bytes(value) for value in self.given().values()))


def _bytes(value: Any) -> float:
    """Return the bytes of an argument in float32."""
    if isinstance(value, Output):
        return math.prod(value.shape) * ITEMSIZE
    if isinstance(value, np.ndarray):
        return value.size * (ITEMSIZE if value.dtype.kind == "f" else value.itemsize)
    return 0


@functools.lru_cache(maxsize=1)
def _made(case: Case) -> Arguments:
    return case.spec.make(np.random.default_rng([20240229, *case.shape]), *case.shape)


def realize(given: Mapping[str, Any], dtype: Any) -> Arguments:
    """Return fresh arguments in a dtype: floats converted, outputs made, the rest copied."""
    from fastformer.parameters import aligned_zeros

    arguments: Arguments = {}
    for name, value in given.items():
        if isinstance(value, Output):
            array = aligned_zeros(math.prod(value.shape), dtype).reshape(value.shape)
            array[...] = value.start
        elif isinstance(value, np.ndarray):
            kind = dtype if value.dtype.kind == "f" else value.dtype
            array = aligned_zeros(value.size, kind).reshape(value.shape)
            array[...] = value
        else:
            array = value
        arguments[name] = array
    return arguments


def kernel_and_twin(op: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return an op's compiled kernel and its NumPy twin."""
    return getattr(get_backend("numba"), op), getattr(get_backend("reference"), op)


def normal(random: np.random.Generator, *shape: int) -> npt.NDArray[np.float64]:
    """Return standard normal numbers."""
    return random.standard_normal(shape)
