"""A register of the machine's vector unit as a Numba type, so that kernels read like mathematics.

In a kernel, `x` is a C-contiguous array of float32 or float64 with any number of axes:

    load(x, i, j)                the lanes(x) elements of row i that begin at column j
    load_first(x, n, i, j)       the first n of them, where n may be more than there are lanes; the
                                 other lanes are 0 and their memory is not touched: a row's tail
    load_padded(x, n, other, i, j)   as load_first, with the scalar `other` in the other lanes
    store(x, v, i, j), store_first(x, n, v, i, j)
    stream_first(x, n, v, i, j)  as store_first, but past the caches, for what another thread reads
                                 next: a line that both have in their caches takes ten times as long
    end_stream(x)                where a task that did so ends, so that others see it
    prefetch(x, i, j)            ask for the memory there, into the second-level cache
    flat(x)                      its elements as an array of one axis
    array_at(x, start, rows, columns)   a part of a flat x as an array of that shape
                                 Both must not outlive x, for they count no references to it.
    stack_array(x, registers)    one of a constant number of registers, which lasts as long as the
                                 function does: from the stack it comes for nothing
    fetch_add(x, i, n)           add to an element of int64 that other threads add to as well, and
                                 return what it was
    load_fresh(x, i)             such an element, and what its writers had written before is seen
    yield_core()                   where a thread waits: let others run on its core
    thread_count()               how many threads a parallel region that begins now has; 2 in the
                                 checked build, which has no threads
    splat(x, s)                  the scalar s in every lane, in the dtype of x
    a + b, a - b, a * b, a / b, a > b, a < b     lane by lane; either side may be a scalar
    -a                           free where it is an operand of fma
    fma(a, b, c)                 a * b + c with one rounding
    select(mask, a, b), sqrt(a), exp(a)
    exp_of_sum(a, b)             e to the power a + b, where b is what the rounding of a left out
    exp_or_zero(a)               exp(a), 0 where that is negligible beside 1
    log(a)                       of numbers > 0, to about one unit in the last place
    maximum(a, b)                a where a > b, else b: of a number and NaN, b
    keep_first(v, n, other)      lane k of v where k < n, the scalar `other` elsewhere
    drop_first(v, n, other)      lane k of v where k >= n, the scalar `other` elsewhere
    sum_lanes(v), max_lanes(v)   a scalar, combined in a fixed tree order

`_simd_reference.py` says what each operation means, in NumPy; tests hold the compiled form to it.
The width is that of what Numba compiles for, which `_target` finds: 512 bits with AVX-512, 256 with
AVX2 and fused multiply-adds, else 128. `FASTFORMER_VECTOR_BITS` forces another (0: a single lane).
Nothing here is reassociated or contracted by the compiler: what is written is what is done, so
the bits of a result do not depend on the code around it. (`EXACT` sees to that.)

It is one long file, for it is one list: a word of the language after the other.
"""

import operator
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, Signature, infer_global, signature
from numba.extending import lower_builtin, models, register_model
from numba.np.arrayobj import make_array, populate_array

from ._compile import BUILD
from ._llvm import (
    EXACT,
    INDEX,
    INT32,
    call_ir,
    element_lanes,
    exp_ir,
    exp_or_zero_ir,
    first_lanes_ir,
    load_ir,
    log_ir,
    masked_load_ir,
    masked_store_ir,
    maximum_ir,
    prefetch_ir,
    splat_ir,
    store_first_ir,
    store_ir,
    stream_ir,
    tree_ir,
)
from ._simd_reference import (
    array_at,
    drop_first,
    end_stream,
    exp,
    exp_of_sum,
    exp_or_zero,
    fetch_add,
    flat,
    fma,
    keep_first,
    lanes,
    load,
    load_first,
    load_fresh,
    load_padded,
    log,
    max_lanes,
    maximum,
    prefetch,
    select,
    splat,
    sqrt,
    stack_array,
    store,
    store_first,
    stream_first,
    sum_lanes,
    thread_count,
    yield_core,
)

__all__ = [
    "array_at",
    "drop_first",
    "end_stream",
    "exp",
    "exp_of_sum",
    "exp_or_zero",
    "fetch_add",
    "flat",
    "fma",
    "yield_core",
    "keep_first",
    "lanes",
    "load",
    "load_first",
    "load_fresh",
    "load_padded",
    "log",
    "max_lanes",
    "maximum",
    "prefetch",
    "select",
    "splat",
    "sqrt",
    "stack_array",
    "store",
    "store_first",
    "stream_first",
    "sum_lanes",
    "thread_count",
]


# ---- the types ----


class Vector(types.Type):
    """A register of elements of one dtype."""

    def __init__(self, dtype: types.Float) -> None:
        """Make the type for float32 or float64 elements."""
        self.dtype = dtype
        self.lanes = element_lanes(dtype.bitwidth // 8)
        element = ir.FloatType() if dtype is types.float32 else ir.DoubleType()
        self.ir = ir.VectorType(element, self.lanes)
        super().__init__(name=f"vector({dtype}, {self.lanes})")


class Mask(types.Type):
    """One bit for each lane of a register."""

    def __init__(self, lanes: int) -> None:
        """Make the type for a number of lanes."""
        self.lanes = lanes
        self.ir = ir.VectorType(ir.IntType(1), lanes)
        super().__init__(name=f"mask({lanes})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: Vector) -> None:
        super().__init__(manager, fe_type, fe_type.ir)


@register_model(Mask)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: Mask) -> None:
        super().__init__(manager, fe_type, fe_type.ir)


def check_extent_ir(
    context: Any, builder: ir.IRBuilder, array: Any, start: ir.Value, stop: ir.Value
) -> None:
    """In the checked build, raise IndexError unless 0 <= start and stop <= the array's size."""
    if BUILD != "checked":
        return
    below = builder.icmp_signed("<", start, INDEX(0))
    above = builder.icmp_signed(">", stop, array.nitems)
    empty = builder.icmp_signed("<=", stop, start)
    outside = builder.and_(builder.not_(empty), builder.or_(below, above))
    with builder.if_then(outside, likely=False):
        context.call_conv.return_user_exc(builder, IndexError, ("vector access outside its array",))


def _address(
    context: Any,
    builder: ir.IRBuilder,
    kind: Any,
    value: ir.Value,
    index: list[ir.Value],
    count: ir.Value,
) -> ir.Value:
    """Return the address of an element of a C-contiguous array, from which `count` are used."""
    array = make_array(kind)(context, builder, value)
    offset = INDEX(0)
    for position, length in zip(index, cgutils.unpack_tuple(builder, array.shape), strict=True):
        offset = builder.add(builder.mul(offset, length), position)
    check_extent_ir(context, builder, array, offset, builder.add(offset, count))
    return builder.gep(array.data, [offset])


LARGEST_REGISTER = 64  # bytes

# ---- typing rules and code generation ----


def _rule(function: Callable[..., Any], rule: Callable[..., Signature | None]) -> None:
    """Tell Numba the type of a call of `function`: rule(*argument types) -> signature or None."""
    body = {"key": function, "generic": lambda self, args, kws: rule(*args)}
    infer_global(function, types.Function(type(function.__name__, (AbstractTemplate,), body)))


def _is_array(kind: Any) -> bool:
    floats = (types.float32, types.float64)
    return isinstance(kind, types.Array) and kind.layout == "C" and kind.dtype in floats


def _index_types(x: Any, index: tuple[Any, ...]) -> bool:
    return len(index) == x.ndim and all(isinstance(i, types.Integer) for i in index)


def _type_load(x: Any, *index: Any) -> Signature | None:
    if _is_array(x) and _index_types(x, index):
        return signature(Vector(x.dtype), x, *[types.intp] * len(index))
    return None


def _type_load_first(x: Any, count: Any, *index: Any) -> Signature | None:
    if _is_array(x) and _index_types(x, index):
        return signature(Vector(x.dtype), x, types.intp, *[types.intp] * len(index))
    return None


def _type_load_padded(x: Any, count: Any, other: Any, *index: Any) -> Signature | None:
    if _is_array(x) and _index_types(x, index):
        return signature(Vector(x.dtype), x, types.intp, x.dtype, *[types.intp] * len(index))
    return None


def _type_store(x: Any, v: Any, *index: Any) -> Signature | None:
    if _is_array(x) and v == Vector(x.dtype) and _index_types(x, index):
        return signature(types.none, x, v, *[types.intp] * len(index))
    return None


def _type_store_first(x: Any, count: Any, v: Any, *index: Any) -> Signature | None:
    if _is_array(x) and v == Vector(x.dtype) and _index_types(x, index):
        return signature(types.none, x, types.intp, v, *[types.intp] * len(index))
    return None


def _type_prefetch(x: Any, *index: Any) -> Signature | None:
    if _is_array(x) and _index_types(x, index):
        return signature(types.none, x, *[types.intp] * len(index))
    return None


def _type_array_at(x: Any, start: Any, *shape: Any) -> Signature | None:
    if _is_array(x) and x.ndim == 1 and all(isinstance(i, types.Integer) for i in shape):
        return signature(
            types.Array(x.dtype, len(shape), "C"), x, types.intp, *[types.intp] * len(shape)
        )
    return None


def _type_stack_array(x: Any, registers: Any) -> Signature | None:
    if _is_array(x) and isinstance(registers, types.IntegerLiteral):
        return signature(types.Array(x.dtype, 1, "C"), x, registers)
    return None


_rule(stream_first, _type_store_first)
_rule(end_stream, lambda x: signature(types.none, x) if _is_array(x) else None)
_rule(prefetch, _type_prefetch)
_rule(stack_array, _type_stack_array)
_rule(array_at, _type_array_at)
_rule(flat, lambda x: signature(types.Array(x.dtype, 1, "C"), x) if _is_array(x) else None)


def _type_shared(x: Any, i: Any, *value: Any) -> Signature | None:
    integers = all(isinstance(kind, types.Integer) for kind in (i, *value))
    if isinstance(x, types.Array) and x.dtype == types.int64 and x.ndim == 1 and integers:
        return signature(types.int64, x, types.intp, *[types.int64] * len(value))
    return None


_rule(fetch_add, _type_shared)
_rule(load_fresh, _type_shared)
_rule(yield_core, lambda: signature(types.none))
_rule(thread_count, lambda: signature(types.intp))
_rule(lanes, lambda x: signature(types.intp, x) if _is_array(x) else None)
_rule(load, _type_load)
_rule(load_first, _type_load_first)
_rule(load_padded, _type_load_padded)
_rule(store, _type_store)
_rule(store_first, _type_store_first)
_rule(splat, lambda x, s: signature(Vector(x.dtype), x, x.dtype) if _is_array(x) else None)


@lower_builtin(lanes, types.Array)
def _lanes(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
    return INDEX(element_lanes(sig.args[0].dtype.bitwidth // 8))


@lower_builtin(load, types.Array, types.VarArg(types.Integer))
def _load(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
    x, *index = args
    count = INDEX(sig.return_type.lanes)
    address = _address(context, builder, sig.args[0], x, index, count)
    return load_ir(builder, address, sig.return_type.ir)


def _first_ir(
    context: Any, builder: Any, sig: Signature, args: Any, other: ir.Value | None
) -> ir.Value:
    """Load the first lanes, and give the others a value.

    Nearly all loads are whole, and with a mask they would take twice as long.
    """
    x, count, *index = args
    kind = sig.return_type.ir
    used = _at_most(builder, count, kind.count)
    address = _address(context, builder, sig.args[0], x, index, used)
    with builder.if_else(_is_whole(builder, count, kind.count), likely=True) as (then, otherwise):
        with then:
            whole = load_ir(builder, address, kind)
            after_whole = builder.block
        with otherwise:
            mask = first_lanes_ir(builder, count, kind.count)
            part = masked_load_ir(builder, address, kind, mask)
            if other is not None:
                part = builder.select(mask, part, splat_ir(builder, other, kind.count))
            after_part = builder.block
    loaded = builder.phi(kind)
    loaded.add_incoming(whole, after_whole)
    loaded.add_incoming(part, after_part)
    return loaded


@lower_builtin(load_first, types.Array, types.Integer, types.VarArg(types.Integer))
def _load_first(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
    return _first_ir(context, builder, sig, args, None)


@lower_builtin(load_padded, types.Array, types.Integer, types.Float, types.VarArg(types.Integer))
def _load_padded(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
    x, count, other, *index = args
    return _first_ir(context, builder, sig, [x, count, *index], other)


@lower_builtin(store, types.Array, Vector, types.VarArg(types.Integer))
def _store(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
    x, v, *index = args
    address = _address(context, builder, sig.args[0], x, index, INDEX(sig.args[1].lanes))
    store_ir(builder, v, address)
    return context.get_dummy_value()


@lower_builtin(store_first, types.Array, types.Integer, Vector, types.VarArg(types.Integer))
def _store_first(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
    x, count, v, *index = args
    lanes = sig.args[2].lanes
    used = _at_most(builder, count, lanes)
    address = _address(context, builder, sig.args[0], x, index, used)
    with builder.if_else(_is_whole(builder, count, lanes), likely=True) as (then, otherwise):
        with then:
            store_ir(builder, v, address)
        with otherwise:
            store_first_ir(builder, v, address, count)
    return context.get_dummy_value()


@lower_builtin(stream_first, types.Array, types.Integer, Vector, types.VarArg(types.Integer))
def _stream_first(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
    x, count, v, *index = args
    lanes, size = sig.args[2].lanes, sig.args[2].lanes * sig.args[0].dtype.bitwidth // 8
    used = _at_most(builder, count, lanes)
    address = _address(context, builder, sig.args[0], x, index, used)
    offset = builder.and_(builder.ptrtoint(address, INDEX), INDEX(size - 1))
    aligned = builder.icmp_signed("==", offset, INDEX(0))
    streams = builder.and_(_is_whole(builder, count, lanes), aligned)
    with builder.if_else(streams, likely=True) as (then, otherwise):
        with then:
            stream_ir(builder, v, address)
        with otherwise:
            # Also where it is whole: of two stores that differ in nothing but this, the compiler
            # makes a plain one.
            masked_store_ir(builder, v, address, first_lanes_ir(builder, count, lanes))
    return context.get_dummy_value()


@lower_builtin(end_stream, types.Array)
def _end_stream(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
    builder.fence("seq_cst")
    return context.get_dummy_value()


@lower_builtin(prefetch, types.Array, types.VarArg(types.Integer))
def _prefetch(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
    x, *index = args
    prefetch_ir(builder, _address(context, builder, sig.args[0], x, index, INDEX(0)), level=2)
    return context.get_dummy_value()


def borrowed_array(context: Any, builder: Any, kind: Any, data: ir.Value, shape: Any) -> ir.Value:
    """Return an array of a type and shape at an address, which owns nothing."""
    itemsize = kind.dtype.bitwidth // 8
    strides = [INDEX(itemsize)]
    for length in reversed(shape[1:]):
        strides.insert(0, builder.mul(strides[0], length))
    found = make_array(kind)(context, builder)
    populate_array(found, data, shape, strides, itemsize, None)
    return found._getvalue()


@lower_builtin(flat, types.Array)
def _flat(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
    x = make_array(sig.args[0])(context, builder, args[0])
    return borrowed_array(context, builder, sig.return_type, x.data, [x.nitems])


@lower_builtin(array_at, types.Array, types.Integer, types.VarArg(types.Integer))
def _array_at(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
    x, start, *shape = args
    count = INDEX(1)
    for length in shape:
        count = builder.mul(count, length)
    data = _address(context, builder, sig.args[0], x, [start], count)
    return borrowed_array(context, builder, sig.return_type, data, shape)


@lower_builtin(stack_array, types.Array, types.IntegerLiteral)
def _stack_array(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
    dtype = sig.return_type.dtype
    size = sig.args[1].literal_value * element_lanes(dtype.bitwidth // 8)
    with builder.goto_entry_block():
        data = builder.alloca(context.get_value_type(dtype), size)
        data.align = LARGEST_REGISTER
    return borrowed_array(context, builder, sig.return_type, data, [INDEX(size)])


@lower_builtin(thread_count)
def _thread_count(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
    # Numba's own function cannot be kept on disk; the symbol is there once a pool is.
    kind = ir.FunctionType(INDEX, [])
    count = cgutils.get_or_insert_function(builder.module, kind, "get_num_threads")
    return INDEX(2) if BUILD == "checked" else builder.call(count, [])


@lower_builtin(fetch_add, types.Array, types.Integer, types.Integer)
def _fetch_add(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
    x, i, value = args
    address = _address(context, builder, sig.args[0], x, [i], INDEX(1))
    return builder.atomic_rmw("add", address, value, "acq_rel")


@lower_builtin(load_fresh, types.Array, types.Integer)
def _load_fresh(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
    x, i = args
    address = _address(context, builder, sig.args[0], x, [i], INDEX(1))
    return builder.load_atomic(address, "acquire", 8)


@lower_builtin(yield_core)
def _give_way(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
    # What the system's own library calls it.
    name = "SwitchToThread" if sys.platform == "win32" else "sched_yield"
    kind = ir.FunctionType(INT32, [])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [])
    return context.get_dummy_value()


@lower_builtin(splat, types.Array, types.Float)
def _splat(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
    return splat_ir(builder, args[1], sig.return_type.lanes)


def _is_whole(builder: ir.IRBuilder, count: ir.Value, lanes: int) -> ir.Value:
    return builder.icmp_signed(">=", count, INDEX(lanes))


def _at_most(builder: ir.IRBuilder, count: ir.Value, limit: int) -> ir.Value:
    return builder.select(builder.icmp_signed("<", count, INDEX(limit)), count, INDEX(limit))


def _vector_of(*kinds: Any) -> Any:
    """Return the vector type among the operands if the others are it or scalars, else None."""
    vectors = {kind for kind in kinds if isinstance(kind, Vector)}
    scalars = all(isinstance(k, Vector | types.Float | types.Integer) for k in kinds)
    return vectors.pop() if len(vectors) == 1 and scalars else None


def _operands(context: Any, builder: Any, kind: Vector, sig: Signature, args: Any) -> list[Any]:
    """Return the operands as vectors: a scalar goes into every lane, in the vector's dtype."""
    return [
        value
        if isinstance(given, Vector)
        else splat_ir(builder, context.cast(builder, value, given, kind.dtype), kind.lanes)
        for given, value in zip(sig.args, args, strict=True)
    ]


def define(
    function: Callable[..., Any],
    operands: int,
    emit: Callable[[ir.IRBuilder, ir.VectorType, list[ir.Value]], ir.Value],
    result: Callable[[Vector], Any] = lambda kind: kind,
) -> None:
    """Define an operation on vectors, or on vectors and scalars, by the code that it emits."""

    def rule(*kinds: Any) -> Signature | None:
        kind = _vector_of(*kinds) if len(kinds) == operands else None
        return signature(result(kind), *map(types.unliteral, kinds)) if kind else None

    def lower(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
        kind = _vector_of(*sig.args)
        return emit(builder, kind.ir, _operands(context, builder, kind, sig, args))

    _rule(function, rule)
    scalars = (Vector, types.Float, types.Integer)
    for kinds in np.ndindex(*[len(scalars)] * operands):
        if 0 in kinds:
            lower_builtin(function, *[scalars[k] for k in kinds])(lower)


def _mask_of(kind: Vector) -> Mask:
    return Mask(kind.lanes)


define(operator.add, 2, lambda builder, kind, v: builder.fadd(*v, flags=EXACT))
define(operator.sub, 2, lambda builder, kind, v: builder.fsub(*v, flags=EXACT))
define(operator.mul, 2, lambda builder, kind, v: builder.fmul(*v, flags=EXACT))
define(operator.truediv, 2, lambda builder, kind, v: builder.fdiv(*v, flags=EXACT))
define(
    operator.gt, 2, lambda builder, kind, v: builder.fcmp_ordered(">", *v, flags=EXACT), _mask_of
)
define(
    operator.lt, 2, lambda builder, kind, v: builder.fcmp_ordered("<", *v, flags=EXACT), _mask_of
)
define(operator.neg, 1, lambda builder, kind, v: builder.fneg(*v, flags=EXACT))
define(fma, 3, lambda builder, kind, v: call_ir(builder, "llvm.fma", kind, *v))
define(sqrt, 1, lambda builder, kind, v: call_ir(builder, "llvm.sqrt", kind, *v))
define(maximum, 2, maximum_ir)
define(exp, 1, exp_ir)
define(exp_of_sum, 2, exp_ir)
define(exp_or_zero, 1, exp_or_zero_ir)
define(log, 1, log_ir)
define(
    sum_lanes,
    1,
    tree_ir(lambda builder, kind, v: builder.fadd(*v, flags=EXACT)),
    lambda kind: kind.dtype,
)
define(max_lanes, 1, tree_ir(maximum_ir), lambda kind: kind.dtype)


def _type_select(mask: Any, a: Any, b: Any) -> Signature | None:
    kind = _vector_of(a, b)
    if kind and mask == Mask(kind.lanes):
        return signature(kind, mask, types.unliteral(a), types.unliteral(b))
    return None


def _lower_select(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
    values = signature(sig.return_type, *sig.args[1:])
    return builder.select(args[0], *_operands(context, builder, sig.return_type, values, args[1:]))


_rule(select, _type_select)
lower_builtin(select, Mask, Vector, Vector)(_lower_select)
for _scalar in (types.Float, types.Integer):
    lower_builtin(select, Mask, Vector, _scalar)(_lower_select)
    lower_builtin(select, Mask, _scalar, Vector)(_lower_select)


def _type_edge(v: Any, count: Any, other: Any) -> Signature | None:
    return signature(v, v, types.intp, v.dtype) if isinstance(v, Vector) else None


_rule(keep_first, _type_edge)
_rule(drop_first, _type_edge)


@lower_builtin(keep_first, Vector, types.Integer, types.Float)
def _keep_first(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
    v, count, other = args
    lanes = sig.args[0].lanes
    mask = first_lanes_ir(builder, count, lanes)
    return builder.select(mask, v, splat_ir(builder, other, lanes))


@lower_builtin(drop_first, Vector, types.Integer, types.Float)
def _drop_first(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
    v, count, other = args
    lanes = sig.args[0].lanes
    mask = first_lanes_ir(builder, count, lanes)
    return builder.select(mask, splat_ir(builder, other, lanes), v)
