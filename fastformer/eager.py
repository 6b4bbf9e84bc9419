"""Layers that are called on arrays: a program of the layer by itself, made once for each use.

A layer says what it computes in `forward_ops` and `backward_ops`, for a whole model's program. Here
the same ops are run for it alone, each shared by all threads, on arrays that the caller brings.
"""

import inspect
import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastformer import checks
from fastformer.batch import PackedBatch
from fastformer.errors import InvalidTypeError, NotForwardedError
from fastformer.parameters import Array, Parameter
from fastformer.program import Program
from fastformer.tensors import ROWS, SEQUENCE_ROWS, Axis, Tensor
from fastformer.warmup import ensure_compiled
from fastformer.workspace import Workspace

if TYPE_CHECKING:
    from fastformer.layers.base import Layer

# A layer that is called on arrays reads sequences of any length.
ANY_LENGTH = 1 << 40
# A layer of rows of any width has a program for each.
MOST_USES = 64
# Rows of each sequence that are neither its first nor its last, but given by number.
CHOSEN = "chosen"
# Stages of its program.
FORWARD, BACKWARD = (0, 1), (1, 2)


class Use(NamedTuple):
    """A layer's program for one way of calling it.

    Attributes:
        space: of the program.    inputs: the tensors of the arrays that forward is given, by name.
        out: the result.    dout, dx: what backward is given and returns; None where it has none.
        parameters: with the arrays that the program knows them by.
    """

    space: Workspace
    inputs: dict[str, Tensor]
    out: Tensor
    dout: Tensor | None
    dx: Tensor | None
    parameters: tuple[tuple[Parameter, Array], ...]

    @property
    def is_stale(self) -> bool:
        """Whether parameters have moved since, into the flat array of a model."""
        return any(parameter.value is not value for parameter, value in self.parameters)


def forward(layer: "Layer", arguments: tuple[Any, ...], options: dict[str, Any]) -> Array:
    """Run a layer's forward; see `Layer.forward`."""
    owner = type(layer).__name__
    batch, given = _bind(layer, arguments, options)
    chosen = _choose(layer, batch, given)
    arrays, constants = _sort(layer, given)
    first = next(iter(arrays), "")
    shape = np.shape(arrays[first]) if isinstance(arrays.get(first), np.ndarray) else ()
    if layer.elementwise:
        for name, array in arrays.items():
            checks.same_shape(owner, name, array, shape, layer.dtype)
            arrays[name] = array.reshape(-1, 1)
    has_batch = batch is not None
    if batch is None:
        batch = (
            _rows(shape[0] if shape else 1) if not layer.elementwise else _rows(math.prod(shape))
        )
    layer.check_call(batch, **given)
    layer.guard.claim()
    shapes = layer.shapes(**constants)
    for name, array in arrays.items():
        axes = shapes.get(name, (ROWS, None))
        rows = batch.num_tokens if axes[0] == ROWS else batch.num_sequences
        columns = axes[1].factor if axes[1] is not None else _columns(array)
        wanted = rows if has_batch or name != first else None
        checks.matrix(owner, name, array, wanted, columns, layer.dtype)
    use = _use_of(layer, arrays, shapes, constants)
    space = use.space
    ensure_compiled(space.kernels(FORWARD))
    bound = {use.inputs[name]: _apart(array, space) for name, array in arrays.items()}
    numbers = layer.numbers_of(space)
    space.run(batch, stages=FORWARD, numbers=numbers, bound=bound, copied=chosen)
    layer.show(space)
    out = space.array(use.out)
    layer.__dict__.update(_last_use=use, _shape=shape if layer.elementwise else out.shape)
    return out.reshape(shape) if layer.elementwise else out


def backward(layer: "Layer", dout: Array) -> Array | None:
    """Run a layer's backward; see `Layer.backward`."""
    owner = f"{type(layer).__name__}.backward"
    layer.guard.check_left()
    use: Use | None = layer.__dict__.get("_last_use")
    if use is None or use.space.batch is None or layer.__dict__["_shown"] is not use.space:
        raise NotForwardedError(
            f"{owner}: there is no forward of this layer by itself to undo; call its forward first"
        )
    if use.dout is None:
        raise NotImplementedError(
            f"{type(layer).__name__} appends no ops of backward to a program: give it a method "
            "backward_ops(p, dout)"
        )
    space = use.space
    shape = layer.__dict__["_shape"]
    checks.same_shape(owner, "dout", dout, shape, layer.dtype)
    if layer.elementwise:
        dout = dout.reshape(-1, 1)
    ensure_compiled(space.kernels(BACKWARD))
    apart = _apart(dout, space, *(parameter.gradient for parameter, _ in use.parameters))
    space.run(space.batch, stages=BACKWARD, bound={use.dout: apart})
    if use.dx is None:
        return None
    dx: Array = space.array(use.dx)
    return dx.reshape(shape) if layer.elementwise else dx


@lru_cache
def _signature(kind: type) -> inspect.Signature:
    """Return the signature of a layer's forward_ops without itself and the program."""
    signature = inspect.signature(kind.forward_ops)  # type: ignore[attr-defined]
    return signature.replace(parameters=list(signature.parameters.values())[2:])


def _bind(
    layer: "Layer", arguments: tuple[Any, ...], options: dict[str, Any]
) -> tuple[PackedBatch | None, dict[str, Any]]:
    """Return the batch, where the layer reads one, and all other arguments by name."""
    owner, batch = type(layer).__name__, None
    signature = _signature(type(layer))
    if layer.reads_batch:
        place = sum(p.default is p.empty for p in signature.parameters.values())
        if "batch" in options:
            options = dict(options)
            batch = options.pop("batch")
        elif len(arguments) > place:
            batch = arguments[place]
            arguments = arguments[:place] + arguments[place + 1 :]
        if not isinstance(batch, PackedBatch):
            given = "nothing" if batch is None else type(batch).__name__
            raise InvalidTypeError(
                f"{owner}: batch must be a PackedBatch, got {given}; make one with "
                "fastformer.pack(list of lists of ids), or pack(padded ids, lengths)"
            )
    try:
        return batch, signature.bind(*arguments, **options).arguments
    except TypeError as error:
        raise InvalidTypeError(f"{owner}: {error}") from None


def _choose(layer: "Layer", batch: PackedBatch | None, given: dict[str, Any]) -> dict[str, Array]:
    """Give rows that are chosen by number a name; return these, and their positions."""
    rows = given.get("rows")
    if batch is None or rows is None or isinstance(rows, str):
        return {}
    checks.chosen_rows(type(layer).__name__, rows, batch._offsets)
    given["rows"] = CHOSEN
    return {f"{CHOSEN}_rows": rows, f"{CHOSEN}_positions": batch._positions[rows]}


def _sort(layer: "Layer", given: dict[str, Any]) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return the arrays among the arguments, and the others."""
    named, parameters = layer.shapes(), _signature(type(layer)).parameters
    arrays, constants = {}, {}
    for name, value in given.items():
        required = parameters[name].default is inspect.Parameter.empty
        if required or (value is not None and (name in named or isinstance(value, np.ndarray))):
            arrays[name] = value
        elif value is not None:
            constants[name] = value
    for name in named and arrays.keys() - named.keys():
        raise InvalidTypeError(
            f"{type(layer).__name__}: by itself the layer is given the arrays "
            f"{', '.join(named)}, not {name}"
        )
    return arrays, constants


def _columns(array: Any) -> int:
    """Return the width of a matrix that may have any."""
    return array.shape[-1] if getattr(array, "ndim", 0) == 2 and array.shape[-1] else 1


@lru_cache(maxsize=32)
def _rows(count: int) -> PackedBatch:
    """Return a batch of one sequence, of so many tokens."""
    batch = PackedBatch(np.zeros(max(1, count), np.int64), [0, max(1, count)])
    if count == 0:  # which no batch that a person packs has
        none = np.zeros(0, np.int64)
        batch.__dict__.update(num_tokens=0, longest=0, _tokens=none, _positions=none)
        batch.__dict__.update(_offsets=np.zeros(2, np.int64))
    return batch


def _apart(array: Array, space: Workspace, *others: Array) -> Array:
    """Return an array, or a copy where it lies in what a run writes."""
    if any(np.may_share_memory(array, other) for other in (space.memory, *others)):
        return array.copy()
    return array.view()  # the caller may give its own another shape later


def _use_of(
    layer: "Layer",
    arrays: dict[str, Array],
    shapes: dict[str, tuple[Axis, Axis | None]],
    constants: dict[str, Any],
) -> Use:
    """Return the program for such arguments, which is made on first use."""
    widths = tuple((name, array.shape[1]) for name, array in arrays.items())
    key = widths, tuple(constants.items()), layer.drops
    uses: dict[Any, Use] = layer.__dict__.setdefault("_uses", {})
    found = uses.get(key)
    if found is None or found.is_stale:
        if len(uses) >= MOST_USES:
            uses.clear()
        found = uses[key] = _new_use(layer, widths, shapes, constants)
    return found


def _new_use(
    layer: "Layer",
    widths: tuple[tuple[str, int], ...],
    shapes: dict[str, tuple[Axis, Axis | None]],
    constants: dict[str, Any],
) -> Use:
    program = Program(layer.dtype.name, layer, training=layer.drops)
    program.keeps = True
    if constants.get("rows") == CHOSEN:
        for name in ("rows", "positions"):
            program.copied(f"{CHOSEN}_{name}", SEQUENCE_ROWS, kind="int")
    inputs = {
        name: program.bound(name, shapes.get(name, (ROWS, None))[0], Axis(width))
        for name, width in widths
    }
    out = program.forward(layer, **inputs, **constants)
    if not isinstance(out, Tensor):
        raise InvalidTypeError(
            f"{type(layer).__name__}.forward_ops must return the tensor of its result, "
            f"got {out!r:.60}"
        )
    out.whole.kept = True
    program.end_stage()
    dout = dx = None
    if layer.has_backward:
        dout = program.bound("dout", *out.axes)
        dx = program.backward(layer, dout)
        if dx is not None:
            dx.whole.kept = True
        program.end_stage()
    space = Workspace(program, "ops", ops=layer.ops, max_seq_len=ANY_LENGTH)
    owners = [layer, *(c for c in constants.values() if hasattr(c, "named_parameters"))]
    parameters = tuple((p, p.value) for owner in owners for _, p in owner.named_parameters())
    return Use(space, inputs, out, dout, dx, parameters)
