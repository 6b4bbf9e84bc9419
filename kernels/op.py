"""What makes a kernel an op of a program: operands with names and shapes, and how work is cut.

    @op("x[R,C] factor[C] power:float -> out[R,C]", cut="R", twin=scale_reference)
    def scale(part, x, factor, power, out):
        for i in range(part.first, part.last):
            ...

A serial kernel is given a `Part` of the work, and then its operands in the order in which the op
names them. Letters are sizes, and the same letter is the same size. Operands are arrays of the
program's dtype, or of others that stand after a colon:

    x[R,C], ids:int[R], sums:double[P,C]    arrays of the program's dtype, int64, float64
    q[GR,C], x[R,3]                         G times R rows; three columns
    bias?[C]                                may be absent, and then has size 0
    +dweight[C]                             is added to, or changed in place
    causal:int, epsilon:float               numbers
    scratch:scratch                               elements of the dtype that are this thread's own

Those before the arrow are read, those after it are written: no kernel may write others.

An op is called by its address and finds its operands in a record: an int64 for the address and for
each axis of an array, and one for a number, in order. So the driver in program.py calls any op, and
an op is compiled once for a dtype, whatever models there are.
"""

import functools
import re
import types as python_types
from collections import namedtuple
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ._compile import BUILD, kernel
from ._simd import borrowed_array

# Which part of the work, and of how many threads. Rows first to last are given by the driver where
# the op is cut by rows; first is -1 for a task by number, of an op that counts its tasks itself.
Part = namedtuple("Part", "index first last threads")

ITEM = re.compile(
    r"(\+?)([a-z]\w*)(\?)?(?::(int|double|float|scratch))?(?:\[((?:\d+|[A-Z]+)(?:,(?:\d+|[A-Z]+))*)\])?"
)
INT64 = ir.IntType(64)
NUMBA_DTYPES = {"float32": types.float32, "float64": types.float64}


class Operand:
    """A name in an op's list of operands.

    Attributes:
        name: its name.    kind: "real", "int", "double", "float" or "scratch".
        axes: for each axis the letters, or digits, whose product is its length; None of a number.
        optional: whether it may be absent.    written, added: whether it is written, and added to.
    """

    def __init__(self, text: str, written: bool) -> None:
        """Read one item, such as "+dweight[C]"."""
        match = ITEM.fullmatch(text)
        if match is None:
            raise ValueError(f"an operand looks like x[R,C] or causal:int, got {text!r}")
        added, self.name, optional, kind, axes = match.groups()
        self.axes = None if axes is None else axes.split(",")
        self.kind = kind or "real"
        self.optional, self.written, self.added = bool(optional), written, bool(added)
        wants_axes = {"real": True, "double": True, "float": False, "scratch": False}.get(self.kind)
        if wants_axes not in (None, self.is_array):
            raise ValueError(f"an array has axes, and a number none, got {text!r}")
        if self.added and not (written and self.is_array):
            raise ValueError(f"only arrays that are written can be added to, got {text!r}")
        if written and not self.is_array and self.kind != "scratch":
            raise ValueError(f"numbers stand before ->, for none is written, got {text!r}")

    @property
    def is_array(self) -> bool:
        """Whether it is an array that the program knows."""
        return self.axes is not None

    @property
    def words(self) -> int:
        """How many numbers a record has for it."""
        return 1 + len(self.axes or ()) + (self.is_array and self.added)


class Op:
    """A serial kernel with its operands, its twin, and how its work is cut.

    Attributes:
        name: of the kernel.    function: the kernel.    twin: its NumPy form, of operands alone.
        operands: all of them, in order.
        cut: the letter of the rows by which it is cut, "sequences", or None: not by rows.
        times: a letter: an op that is cut by sequences has so many rows for each of them.
        cost: a letter or number: elements of a row, by which rows are dealt out.
        tasks: a kernel that counts the tasks where it is the only op of its segment; None: by cost.
        sums: whether its result is a sum over all rows, which cannot be cut without copies.
        each: whether it is called for each shard by itself, for it writes a part of its own.
        scratch: (sizes by letter, longest sequence, lanes) -> elements of a thread's own; or None.
        load: what is called before it is compiled or comes from disk.
    """

    def __init__(
        self, function, operands, *, twin, cut, times, cost, tasks, sums, each, scratch, load
    ):  # fmt: skip
        """See `op`."""
        self.name, self.twin = function.__name__, twin
        before, arrow, after = operands.partition("->")
        if not arrow:
            raise ValueError(f"{self.name}: operands that are written stand behind ->")
        self.reads = [Operand(text, False) for text in before.split()]
        self.writes = [Operand(text, True) for text in after.split()]
        self.operands = [*self.reads, *self.writes]
        self.by_name = {operand.name: operand for operand in self.operands}
        self._check_names("kernel", function, "part")
        self._check_names("tasks", tasks, "threads")
        self._check_letters(cut, times, cost)
        if cut is None and tasks is None:
            raise ValueError(f"{self.name}: work is cut by rows, or tasks are counted: give one")
        if (scratch is None) == any(operand.kind == "scratch" for operand in self.operands):
            raise ValueError(
                f"{self.name}: an operand scratch:scratch and its size belong together"
            )
        self.cut, self.times, self.sums, self.each, self.scratch = cut, times, sums, each, scratch
        self.cost, self.load, self.python_function = cost, load, function
        self.python_tasks = tasks
        self.function = kernel(function, allocates=False)
        self.tasks = None if tasks is None else kernel(tasks, allocates=False)
        self._called: Any = None if BUILD == "python" else self._adapter(function)
        self._compiled: dict[str, tuple[int, Any]] = {}

    @property
    def path(self) -> str:
        """Where it is found: the last name of its module, and its own."""
        return f"{self.python_function.__module__.rpartition('.')[2]}.{self.name}"

    @property
    def is_known(self) -> bool:
        """Whether it is one of these kernels, which any process finds by its path."""
        return bool(self.python_function.__module__.rpartition(".")[0] == __package__)

    def __repr__(self) -> str:
        """Name it."""
        return f"<op {self.name}>"

    def _check_names(self, what, function, first):
        """Raise where a function's arguments are not the operands, in their order."""
        if function is None:
            return
        names = [first, *(operand.name for operand in self.operands)]
        code = function.__code__
        found = list(code.co_varnames[: code.co_argcount])
        if found != names:
            raise ValueError(
                f"{self.name}: the operands are {' '.join(names)}, but its {what} has "
                f"{' '.join(found)}"
            )
        if len(set(names)) < len(names):
            raise ValueError(f"{self.name}: two operands have one name: {' '.join(names)}")

    def _check_letters(self, cut, times, cost):
        """Raise where work is cut by what is no letter of an operand."""
        known = {letter for o in self.operands for letters in o.axes or () for letter in letters}
        for letters in (cut if cut != "sequences" else None, times, cost):
            unknown = [x for x in letters or () if x not in known and not x.isdigit()]
            if unknown:
                raise ValueError(f"{self.name}: {unknown[0]} is no letter of its operands")

    def _adapter(self, function):
        """Return the function that a driver calls: it makes arrays of a record's numbers.

        It has the code of a template and the file of the kernel, by which it is kept on disk.
        """
        template = _run if self.tasks is None else _run_or_count
        name = f"{self.name}_op"
        own = {"FUNCTION": self.function, "TASKS": self.tasks, "Part": Part, "np": np}
        own["OPERANDS"] = _operands_intrinsic(self.operands)
        own["__name__"] = function.__module__
        code = template.__code__.replace(
            co_filename=function.__code__.co_filename,
            co_firstlineno=function.__code__.co_firstlineno,
            co_name=name,
            co_qualname=name,
        )
        adapter = python_types.FunctionType(code, own, name)
        adapter.__module__, adapter.__qualname__ = function.__module__, name
        return kernel(adapter, once=True, allocates=False, by_address=True)

    def address(self, dtype: str) -> int:
        """Return where its machine code is, for a program of a dtype; it is compiled if need be."""
        if dtype not in self._compiled:
            if self.load is not None:
                self.load()
            self._called.compile(called_signature(dtype))
            compiled = self._called.overloads[called_signature(dtype).args]
            pointer = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
            self._compiled[dtype] = pointer, compiled
        return self._compiled[dtype][0]


def op(
    operands, *, twin, cut=None, times=None, cost=None, tasks=None, sums=False, each=False,
    scratch=None, load=None,
):  # fmt: skip
    """Make an op of a serial kernel; see the head of this file for `operands`, and `Op`.

    Returns:
        A decorator, which returns the `Op`.
    """
    return functools.partial(
        Op, operands=operands, twin=twin, cut=cut, times=times, cost=cost, tasks=tasks, sums=sums,
        each=each, scratch=scratch, load=load,
    )  # fmt: skip


@functools.cache
def called_signature(dtype):
    """Return the Numba type of an op as it is called, for a dtype.

    Arguments: its record, the number of the part, first and last row, threads, and the scratch.
    """
    return types.int64(types.CPointer(NUMBA_DTYPES[dtype]), *[types.int64] * 5)


# What templates find in the globals of an op's own copy of them.
FUNCTION: Any = None
TASKS: Any = None
OPERANDS: Any = None


def _run(record, index, first, last, threads, scratch):
    FUNCTION(Part(index, first, last, threads), *OPERANDS(record, index, scratch))
    return 0


def _run_or_count(record, index, first, last, threads, scratch):
    if index < 0:
        return TASKS(threads, *OPERANDS(record, np.int64(0), scratch))
    FUNCTION(Part(index, first, last, threads), *OPERANDS(record, index, scratch))
    return 0


def _operands_intrinsic(operands):
    """Return the function of a kernel that gives it the operands of a record, as a tuple."""

    def kinds(real):
        dtypes = {"real": real, "int": types.int64, "double": types.float64}
        for operand in operands:
            if operand.is_array:
                yield types.Array(dtypes[operand.kind], len(operand.axes), "C")
            elif operand.kind == "scratch":
                yield types.Array(real, 1, "C")
            else:
                yield types.float64 if operand.kind == "float" else types.int64

    def typing(typingctx, record, index, scratch):
        found = types.Tuple(list(kinds(record.dtype)))

        def generate(context, builder, signature, args):
            words = builder.bitcast(args[0], INT64.as_pointer())
            place, values = 0, []
            for operand, kind in zip(operands, found, strict=True):
                word = [
                    builder.load(builder.gep(words, [INT64(place + i)]))
                    for i in range(operand.words)
                ]
                place += operand.words
                if operand.is_array:
                    address, *shape = word
                    if operand.added:
                        # Copies of what shards add to are so far apart, in bytes.
                        address = builder.add(address, builder.mul(args[1], shape.pop()))
                    values.append(_array(context, builder, kind, address, shape))
                elif operand.kind == "scratch":
                    values.append(_array(context, builder, kind, args[2], word))
                elif operand.kind == "float":
                    values.append(builder.bitcast(word[0], ir.DoubleType()))
                else:
                    values.append(word[0])
            return context.make_tuple(builder, found, values)

        return found(record, types.int64, types.int64), generate

    return intrinsic(typing)


def _array(context, builder, kind, address, shape):
    pointer = builder.inttoptr(address, context.get_data_type(kind.dtype).as_pointer())
    return borrowed_array(context, builder, kind, pointer, shape)
