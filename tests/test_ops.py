"""Every op alone: equal to its twin, writing only what it declares, same bits however it is cut."""

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numba
import numpy as np
import pytest
from twins import COMPARED_DTYPES, Out, assert_equals_twin

import fastformer as ff
from fastformer import kernels
from fastformer.backend import get_backend
from fastformer.kernels import activation as activation_file
from fastformer.kernels import attention as attention_file
from fastformer.kernels import cross_entropy as cross_entropy_file
from fastformer.kernels import dropout as dropout_file
from fastformer.kernels import embedding as embedding_file
from fastformer.kernels import gated as gated_file
from fastformer.kernels import gradient as gradient_file
from fastformer.kernels import layernorm as layernorm_file
from fastformer.kernels import matmul as matmul_file
from fastformer.kernels import matmul_bfloat16 as bfloat16_file
from fastformer.kernels import rmsnorm as rmsnorm_file
from fastformer.kernels import rotary as rotary_file
from fastformer.kernels import sequence_rows as sequence_rows_file
from fastformer.kernels import softmax as softmax_file
from fastformer.kernels._compile import BUILD
from fastformer.kernels._rows import count_row_tasks
from fastformer.kernels.activation import EXACT_GELU, GELU, MISH, NO_ACTIVATION, RELU, SILU
from fastformer.kernels.op import Op, op
from fastformer.kernels.program import shard_count
from fastformer.layers.relative_positions import alibi_slopes
from fastformer.program import Program
from fastformer.schedule import SHARDING, is_local
from fastformer.tables import scratch_of
from fastformer.tensors import LONGEST_AXIS, MOST_PARTS, OFFSETS, ROWS, SEQUENCE_ROWS, Axis
from fastformer.workspace import Workspace

# Elements around each array, which no op may touch: whole cache lines, so arrays stay aligned.
GUARD = 64
POISON = {"real": np.nan, "double": np.nan, "int": 2**40 + 1}
LONGEST = 40
SMALL = (3, 1, 5, 2)
# Of several shards, and of several tasks for most ops.
LARGE = 2 * (17, 3, LONGEST, 1, 29, 8, 2, LONGEST, 23, 5, 31, 11, 1, LONGEST, 13, 19)
HEADS, COLUMNS, VOCABULARY = 3, 66, 37


def batch_of(lengths: Sequence[int]) -> ff.PackedBatch:
    rng = np.random.default_rng(len(lengths))
    return ff.pack([rng.integers(0, VOCABULARY, length).tolist() for length in lengths])


BATCHES = {"small": batch_of(SMALL), "large": batch_of(LARGE)}


@dataclass
class Case:
    """An op, the length of each letter, its numbers, and those arrays that are not just random.

    Attributes:
        given: (batch, rng) -> arrays of float64 or int64 by the names of operands.
        absent: optional operands that are not there.
    """

    op: Op
    sizes: dict[str, Axis | int]
    numbers: dict[str, Any] = field(default_factory=dict)
    given: Callable[[ff.PackedBatch, Any], dict[str, np.ndarray]] = lambda batch, rng: {}
    absent: tuple[str, ...] = ()

    def __str__(self) -> str:
        numbers = "".join(f" {name}={value}" for name, value in self.numbers.items())
        return f"{self.op.name}{numbers}" + "".join(f" no {name}" for name in self.absent)

    @property
    def dtypes(self) -> tuple[type, ...]:
        """Return the dtypes that it is compared in: products of bfloat16 are of float32 alone."""
        return (np.float32,) if "bfloat16" in self.op.name else COMPARED_DTYPES

    def axes(self, operand: Any) -> tuple[Axis, ...]:
        """Return the axes of an operand."""
        found = []
        for letters in operand.axes:
            factor, size = 1, 0
            for letter in [letters] if letters.isdigit() else letters:
                axis = int(letter) if letter.isdigit() else self.sizes[letter]
                axis = axis if isinstance(axis, Axis) else Axis(axis)
                factor, size = factor * axis.factor, size or axis.size
            found.append(Axis(factor, size))
        return tuple(found)

    def arguments(self, batch: ff.PackedBatch) -> list[Any]:
        """Return what twin and op are given: arrays, numbers and `Out`, as twins.py has them."""
        rng = np.random.default_rng(7)
        given = self.given(batch, rng)
        found: list[Any] = []
        for operand in operands_of(self.op):
            if not operand.is_array:
                value = self.numbers[operand.name]
                found.append(value.at(sizes_of(batch)) if isinstance(value, Axis) else value)
                continue
            dtype = np.int64 if operand.kind == "int" else np.float64
            if operand.name in self.absent:
                found.append(np.zeros((0,) * len(operand.axes), dtype))
                continue
            shape = tuple(axis.at(sizes_of(batch)) for axis in self.axes(operand))
            values = given.get(operand.name)
            if values is None and (operand.added or not operand.written):
                values = rng.standard_normal(shape)
            if operand.written:
                found.append(Out(shape, np.nan if values is None else values, scale=1.0))
            else:
                assert values is not None
                assert values.shape == shape and values.dtype == dtype, operand.name
                found.append(values)
        return found


def operands_of(an_op: Op) -> list[Any]:
    """Return the operands that a twin is given."""
    return [operand for operand in an_op.operands if operand.kind != "scratch"]


def sizes_of(batch: ff.PackedBatch) -> list[int]:
    """Return a batch's sizes, in the order of kernels/program.py."""
    tokens, sequences = batch.num_tokens, batch.num_sequences
    return [1, tokens, sequences, sequences + 1, batch.longest]


class Guarded:
    """An array with poison before and after it, and its bits as they were."""

    def __init__(self, values: np.ndarray, dtype: Any, poison: Any) -> None:
        self.memory = np.full(values.size + 2 * GUARD, poison, dtype)
        self.array = self.memory[GUARD : GUARD + values.size].reshape(values.shape)
        self.array[...] = values
        self.before = self.memory.tobytes()

    def assert_kept(self, name: str, written: bool) -> None:
        """Nothing around it has changed, and it itself only where it is declared as written."""
        edge, now = GUARD * self.memory.itemsize, self.memory.tobytes()
        assert now[:edge] == self.before[:edge], f"what lies before {name} was written"
        assert now[-edge:] == self.before[-edge:], f"what lies after {name} was written"
        assert written or now == self.before, f"{name} was written, and is declared as read"


def run_op(case: Case, batch: ff.PackedBatch, arguments: Sequence[Any], way: str) -> list[Any]:
    """Run a program of an op, and return its arrays and numbers after that, guards looked at.

    For "blocks" the op is there twice, on other arrays, so that it can be a part of a segment that
    is cut by sequences; both must give the same.
    """
    real = next(a.dtype for a, o in zip(arguments, operands_of(case.op), strict=True)
                if o.is_array and o.kind == "real" or o.kind == "double")  # fmt: skip
    program = Program(np.dtype(real).name)
    turns, bound = [], {}
    for _ in range(1 if way == "ops" else 2):
        fields: dict[str, Any] = {}
        guarded: list[Any] = []
        for operand, value in zip(operands_of(case.op), arguments, strict=True):
            if not operand.is_array:
                fields[operand.name] = case.numbers[operand.name]
                guarded.append(value)
            elif operand.name in case.absent:
                fields[operand.name] = None
                guarded.append(value)
            else:
                kind, axes = operand.kind, case.axes(operand)
                tensor = program.bound(operand.name, *axes, kind=kind)
                guarded.append(Guarded(value, tensor.dtype, POISON[kind]))
                fields[operand.name], bound[tensor] = tensor, guarded[-1].array
        program.add(case.op, **fields)
        turns.append(guarded)
    workspace = Workspace(program, way, ops=get_backend("numba"), max_seq_len=LONGEST)
    workspace.grow(batch.num_tokens, batch.num_sequences)
    workspace.scratches[:] = np.nan
    workspace.run(batch, bound=bound)
    step = program.steps[0]
    if way == "blocks":
        assert step.sharded == is_local(step)
    assert np.isnan(workspace.scratches[:, scratch_of(workspace, step) :]).all(), (
        "wrote beyond its scratch"
    )
    results = []
    for guarded in turns:
        for operand, value in zip(operands_of(case.op), guarded, strict=True):
            if isinstance(value, Guarded):
                value.assert_kept(operand.name, operand.written)
        results.append([v.array if isinstance(v, Guarded) else v for v in guarded])
    for found in results[1:]:
        for value, other in zip(results[0], found, strict=True):
            np.testing.assert_array_equal(value, other)
    return results[0]


def as_kernel(case: Case, batch: ff.PackedBatch, way: str) -> Callable[..., None]:
    """Return a function that twins.py can compare with the op's twin."""

    def call(*arguments: Any) -> None:
        found = run_op(case, batch, arguments, way)
        for operand, value, result in zip(operands_of(case.op), arguments, found, strict=True):
            if is_sums(case, operand):
                value[...] = in_one_part(case, batch, way, result)
            elif operand.is_array and operand.written and operand.name not in case.absent:
                value[...] = result

    call.__name__ = f"{case.op.name} by {way}"
    return call


def is_sums(case: Case, operand: Any) -> bool:
    """Tell whether an operand has a row for each part of the work."""
    return case.op.each and operand.axes[0] == "P"


def in_one_part(case: Case, batch: ff.PackedBatch, way: str, sums: np.ndarray) -> np.ndarray:
    """Return sums of parts as the twin has them: all in the first one. No others were written."""
    parts = count_row_tasks(batch.num_tokens, sums.shape[-1])
    if way == "blocks":
        parts = shard_count(batch.num_tokens, batch.num_sequences, *SHARDING[way])
    assert np.isfinite(sums[:parts]).all()
    assert np.isnan(sums[parts:]).all(), "wrote a part that is no part of the work"
    found = np.zeros_like(sums)
    found[0] = sums[:parts].sum(axis=0)
    return found


def attention_given(batch: ff.PackedBatch, rng: Any) -> dict[str, np.ndarray]:
    return {
        "query_offsets": batch._offsets, "key_offsets": batch._offsets,
        "key_starts": batch._offsets[:-1].copy(), "key_ends": batch._offsets[1:].copy(),
        "positions": batch._positions, "slopes": alibi_slopes(HEADS),
    }  # fmt: skip


def one_query_given(batch: ff.PackedBatch, rng: Any) -> dict[str, np.ndarray]:
    return attention_given(batch, rng) | {
        "query_offsets": batch._one_row_offsets, "positions": batch._positions[batch._last_rows],
    }  # fmt: skip


def attention_saved(forward: Case) -> Callable[[ff.PackedBatch, Any], dict[str, np.ndarray]]:
    """Return what gives a gradient of attention what its forward has saved."""

    def given(batch: ff.PackedBatch, rng: Any) -> dict[str, np.ndarray]:
        arguments = [
            np.full(value.shape, value.start) if isinstance(value, Out) else value
            for value in forward.arguments(batch)
        ]
        forward.op.twin(*arguments)
        names = [operand.name for operand in operands_of(forward.op)]
        found = dict(zip(names, arguments, strict=True))
        saved = ("q", "k", "v", "out", "row_max", "row_sum")
        return forward.given(batch, rng) | {name: found[name] for name in saved}

    return given


def attention_cases() -> list[Case]:
    found = []
    for one_query, causal, key_columns, absent in [
        (False, 0, COLUMNS, ("positions", "slopes")),
        (False, 1, COLUMNS, ()),
        (False, 1, COLUMNS // HEADS, ("positions", "slopes")),
        (True, 0, COLUMNS // HEADS, ()),
    ]:
        sizes = {
            "Q": SEQUENCE_ROWS if one_query else ROWS, "N": ROWS, "C": COLUMNS, "H": HEADS,
            "P": OFFSETS, "B": SEQUENCE_ROWS, "E": key_columns,
        }  # fmt: skip
        numbers = {"longest": LONGEST_AXIS, "heads": HEADS, "causal": causal, "scale": 0.2}
        given = one_query_given if one_query else attention_given
        forward = Case(attention_file.attention, sizes, numbers, given, absent)
        found.append(forward)
        saved = attention_saved(forward)
        found.append(Case(attention_file.attention_gradient, sizes, numbers, saved, absent))
    return found


def kept_rows(batch: ff.PackedBatch, rng: Any) -> dict[str, np.ndarray]:
    return {"rows": rng.permutation(900)[: batch.num_tokens]}


def norm_saved(batch: ff.PackedBatch, rng: Any) -> dict[str, np.ndarray]:
    rows = batch.num_tokens
    return {
        "mean": rng.standard_normal(rows), "rstd": rng.uniform(0.5, 2, rows),
        "rrms": rng.uniform(0.5, 2, rows),
    }  # fmt: skip


def targets(batch: ff.PackedBatch, rng: Any) -> dict[str, np.ndarray]:
    return {"targets": rng.integers(-1, VOCABULARY, batch.num_tokens)}


def rotation_tables(batch: ff.PackedBatch, rng: Any) -> dict[str, np.ndarray]:
    angles = rng.uniform(0, 7, (LONGEST, COLUMNS // HEADS // 2))
    return {"positions": batch._positions, "cosines": np.cos(angles), "sines": np.sin(angles)}


def probabilities(batch: ff.PackedBatch, rng: Any) -> dict[str, np.ndarray]:
    return {"out": rng.dirichlet(np.ones(VOCABULARY), batch.num_tokens)}


def chosen_rows(batch: ff.PackedBatch, rng: Any) -> dict[str, np.ndarray]:
    return {"rows": batch._last_rows}


def with_and_without(case: Case, *names: str) -> list[Case]:
    """Return a case, and the same without its optional operands."""
    return [case, Case(case.op, case.sizes, case.numbers, case.given, names)]


WIDE = {"R": ROWS, "C": COLUMNS}
GATED = {"R": ROWS, "F": COLUMNS + 1}
NORMED = {**WIDE, "P": MOST_PARTS}
PRODUCT = {"R": ROWS, "K": 19, "M": COLUMNS + 1, "G": 1}
THREE_PRODUCTS = PRODUCT | {"G": 3}
POOLED = {"N": ROWS, "B": SEQUENCE_ROWS, "C": COLUMNS}
EPSILON = {"epsilon": 1e-5}


def product_cases(file: Any, ending: str) -> list[Case]:
    """Return the cases of the products of a file, whose names have an ending."""
    forward, input_gradient, weight_gradient = (
        getattr(file, name + ending)
        for name in ("linear", "linear_input_gradient", "linear_weight_gradient")
    )
    plain = {"activation": NO_ACTIVATION}
    return [
        Case(forward, THREE_PRODUCTS, plain, absent=("slope",)),
        Case(forward, THREE_PRODUCTS, plain, absent=("slope", "bias", "residual")),
        Case(forward, PRODUCT, {"activation": GELU}),
        Case(forward, PRODUCT, {"activation": EXACT_GELU}),
        Case(forward, PRODUCT, {"activation": RELU}, absent=("slope", "residual")),
        Case(input_gradient, PRODUCT, {"activation": GELU}),
        Case(input_gradient, THREE_PRODUCTS, plain, absent=("saved",)),
        Case(input_gradient, THREE_PRODUCTS, plain, absent=("saved", "residual")),
        Case(weight_gradient, THREE_PRODUCTS, {"overwrites": 0}),
        Case(weight_gradient, THREE_PRODUCTS, {"overwrites": 1}),
        Case(weight_gradient, THREE_PRODUCTS, {"overwrites": 0}, absent=("dbias",)),
    ]


CASES = [
    *(
        Case(an_op, WIDE, {"activation": activation})
        for an_op in (activation_file.activated, activation_file.activated_gradient)
        for activation in (RELU, GELU, MISH, EXACT_GELU)
    ),
    *attention_cases(),
    *(
        Case(
            cross_entropy_file.cross_entropy, {"R": ROWS, "V": VOCABULARY},
            {"smoothing": smoothing, "scale": 0.3}, targets, absent,
        )
        for smoothing in (0.0, 0.1)
        for absent in ((), ("weights",))
    ),
    Case(cross_entropy_file.sum_of_losses, {"R": ROWS}),
    *with_and_without(
        Case(dropout_file.dropout, WIDE, {"rate": 0.3, "seed": 5, "call": 3, "place": 2}),
        "residual",
    ),
    *with_and_without(
        Case(
            embedding_file.embedding, WIDE | {"V": VOCABULARY, "T": LONGEST},
            given=lambda batch, rng: {"tokens": batch._tokens, "positions": batch._positions},
        ),
        "position_table",
    ),
    *(
        Case(
            embedding_file.embedding_gradient, WIDE | {"V": VOCABULARY}, {"overwrites": overwrites},
            lambda batch, rng: {"ids": batch._tokens},
        )
        for overwrites in (0, 1)
    ),
    *(
        Case(an_op, GATED, {"activation": activation})
        for an_op in (gated_file.gated, gated_file.gated_gradient)
        for activation in (SILU, GELU, EXACT_GELU)
    ),
    Case(gradient_file.add_gradient_copies, {"S": 5, "P": 70_001}, {"shards": 3}),
    *with_and_without(Case(layernorm_file.layernorm, WIDE, EPSILON), "bias"),
    *with_and_without(Case(layernorm_file.layernorm_gradient, NORMED, {}, norm_saved), "residual"),
    *(
        Case(
            layernorm_file.add_layernorm_gradient, NORMED,
            {"rows": ROWS, "shards": shards, "overwrites": overwrites}, absent=absent,
        )
        for shards, overwrites in [(0, 0), (9, 0), (9, 1)]
        for absent in ((), ("dbias",))
    ),
    *product_cases(matmul_file, ""),
    *product_cases(bfloat16_file, "_bfloat16"),
    Case(sequence_rows_file.gather, POOLED, given=chosen_rows),
    Case(sequence_rows_file.scatter, POOLED, given=chosen_rows),
    Case(sequence_rows_file.keep_rows, WIDE | {"N": 900}, given=kept_rows),
    Case(
        sequence_rows_file.mean_of_rows, POOLED | {"P": OFFSETS},
        given=lambda batch, rng: {"offsets": batch._offsets},
    ),
    Case(
        sequence_rows_file.mean_of_rows_gradient, POOLED | {"P": OFFSETS},
        given=lambda batch, rng: {"offsets": batch._offsets},
    ),
    Case(rmsnorm_file.rmsnorm, WIDE, EPSILON),
    *with_and_without(Case(rmsnorm_file.rmsnorm_gradient, NORMED, {}, norm_saved), "residual"),
    *(
        Case(
            rmsnorm_file.add_rmsnorm_gradient, NORMED,
            {"rows": ROWS, "shards": shards, "overwrites": overwrites},
        )
        for shards, overwrites in [(0, 0), (9, 0), (9, 1)]
    ),
    *(
        Case(
            rotary_file.rotary, WIDE | {"T": LONGEST, "D": COLUMNS // HEADS // 2},
            {"direction": direction}, rotation_tables,
        )
        for direction in (1.0, -1.0)
    ),
    Case(softmax_file.softmax, {"R": ROWS, "V": VOCABULARY}),
    Case(softmax_file.softmax_gradient, {"R": ROWS, "V": VOCABULARY}, given=probabilities),
]  # fmt: skip


def all_ops() -> list[Op]:
    """Return the ops of all kernel files."""
    names = [module.name for module in pkgutil.iter_modules(kernels.__path__)]
    modules = [importlib.import_module(f"fastformer.kernels.{name}") for name in names]
    found = {
        value for module in modules for value in vars(module).values() if isinstance(value, Op)
    }
    return sorted(found, key=lambda an_op: an_op.name)


def missing_cases(ops: Sequence[Op], cases: Sequence[Case]) -> list[str]:
    """Return the ops without a case, and optional operands that are never there or never absent."""
    missing = []
    for an_op in ops:
        absent = [set(case.absent) for case in cases if case.op is an_op]
        if not absent:
            missing.append(an_op.name)
            continue
        for name in [operand.name for operand in an_op.operands if operand.optional]:
            if {name in names for names in absent} != {True, False}:
                missing.append(f"{an_op.name}: {name}")
    return missing


def test_every_op_has_cases_with_and_without_its_optional_operands():
    assert len(all_ops()) >= 20
    assert not missing_cases(all_ops(), CASES)


def test_missing_cases_are_found():
    without = [case for case in CASES if case.op.name != "gather"]
    assert missing_cases(all_ops(), without) == ["gather"]
    always = [case for case in CASES if case.op.name != "dropout" or not case.absent]
    assert missing_cases(all_ops(), always) == ["dropout: residual"]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_twin_and_writes_what_it_declares(case):
    batch = BATCHES["small"]
    arguments, kernel = case.arguments(batch), as_kernel(case, batch, "ops")
    assert_equals_twin(kernel, case.op.twin, *arguments, dtypes=case.dtypes)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_of_many_rows_equals_twin_however_it_is_cut(case):
    batch = BATCHES["large"]
    arguments = case.arguments(batch)
    for way in ("ops", "blocks"):
        kernel = as_kernel(case, batch, way)
        assert_equals_twin(kernel, case.op.twin, *arguments, dtypes=case.dtypes)


WAYS_AND_THREADS = [
    *(("ops", threads) for threads in (2, 3, 4)),
    *(("blocks", threads) for threads in (1, 2, 3)),
]


def bits_of(case: Case, dtype: type, way: str, threads: int) -> dict[str, bytes]:
    """Return what an op leaves in each array when it runs on so many threads."""
    batch = BATCHES["large"]
    arguments: list[Any] = []
    for value in case.arguments(batch):
        if isinstance(value, Out):
            value = np.array(np.broadcast_to(value.start, value.shape))
        is_real = isinstance(value, np.ndarray) and value.dtype == np.float64
        arguments.append(value.astype(dtype) if is_real else value)
    if BUILD == "production":
        numba.set_num_threads(threads)
    found = run_op(case, batch, arguments, way)
    return {
        f"{operand.name} by {way}" if is_sums(case, operand) else operand.name: value.tobytes()
        for operand, value in zip(operands_of(case.op), found, strict=True)
        if operand.is_array
    }


def assert_same_bits_however_cut(case: Case) -> None:
    """Run an op on one to four threads, and by sequences; all that it writes must be the same.

    Sums of parts are other sums where the parts are shards: these are compared for one way each.
    """
    for dtype in case.dtypes:
        expected = bits_of(case, dtype, "blocks", 1) | bits_of(case, dtype, "ops", 1)
        for way, threads in WAYS_AND_THREADS:
            for name, bits in bits_of(case, dtype, way, threads).items():
                assert bits == expected[name], (
                    f"{case}, {dtype.__name__}: {name} has other bits by {way} on {threads} threads"
                )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_bits_for_any_threads_and_any_way(case):
    assert_same_bits_however_cut(case)


SUMS = [case for case in CASES if case.op.sums and case.numbers.get("overwrites") != 1]


def sums_by_copies(case: Case, batch: ff.PackedBatch, dtype: type, threads: int) -> list[Any]:
    """Return what an op gave that adds to a copy for each shard, and what its twin gives.

    Its results lie in one array of all gradients, at the beginning, with what is not its between.
    """
    arguments = case.arguments(batch)
    count = shard_count(batch.num_tokens, batch.num_sequences, *SHARDING["whole"])
    shapes = [value.shape for value in arguments if isinstance(value, Out)]
    gradients = np.zeros(sum(int(np.prod(shape)) + GUARD for shape in shapes), dtype)
    program = Program(np.dtype(dtype).name)
    fields: dict[str, Any] = {}
    bound, outputs, truth, place = {}, [], [], 0
    for operand, value in zip(operands_of(case.op), arguments, strict=True):
        if isinstance(value, Out):
            size = int(np.prod(value.shape))
            outputs.append(gradients[place : place + size].reshape(value.shape))
            outputs[-1][...] = value.start
            fields[operand.name] = program.outside(operand.name, outputs[-1])
            truth.append(np.array(value.start))
            place += size + GUARD
        elif operand.is_array and operand.name not in case.absent:
            tensor = program.bound(operand.name, *case.axes(operand), kind=operand.kind)
            fields[operand.name], bound[tensor] = tensor, value.astype(tensor.dtype)
            truth.append(value)
        else:
            fields[operand.name] = case.numbers.get(operand.name)
            truth.append(count if operand.name == "shards" else value)
    if "shards" in fields:
        fields["shards"] = count
    program.add(case.op, **fields)
    workspace = Workspace(
        program, "whole", ops=get_backend("numba"), max_seq_len=LONGEST, gradients=gradients
    )
    assert program.steps[0].copies and program.steps[0].sharded and count > 2
    numba.set_num_threads(threads)
    workspace.copies.memory[...] = np.nan if "overwrites" in fields else 0
    workspace.run(batch, bound=bound)
    case.op.twin(*truth)
    return [outputs, [t for t, v in zip(truth, arguments, strict=True) if isinstance(v, Out)]]


@pytest.mark.skipif(BUILD != "production", reason="compares numbers of threads")
@pytest.mark.parametrize("case", SUMS, ids=str)
def test_sums_by_copies_for_each_shard_equal_twin_with_the_same_bits_for_any_threads(case):
    dtype = case.dtypes[0]
    tolerance = {np.float64: 1e-12, np.float32: 1e-4}[dtype]
    expected = None
    for threads in (1, 2, 3):
        found, truth = sums_by_copies(case, BATCHES["large"], dtype, threads)
        for output, twin in zip(found, truth, strict=True):
            np.testing.assert_allclose(output, twin, rtol=tolerance, atol=tolerance)
        bits = [output.tobytes() for output in found]
        assert bits == (expected or bits)
        expected = bits


# Ops with faults, which the checks above must find.


# Other builds check bounds by themselves.
FAULT = AssertionError if BUILD == "production" else IndexError


def copy_reference(x, out):
    out[...] = x


@op("x[R,C] -> out[R,C]", cut="R", cost="C", twin=copy_reference)
def copy(part, x, out):
    """Copy rows."""
    for i in range(part.first, part.last):
        for j in range(x.shape[1]):
            out[i, j] = x[i, j]


@op("x[R,C] -> out[R,C]", cut="R", cost="C", twin=copy_reference)
def copy_and_spoil(part, x, out):
    """Copy rows, and write to what is read: to a row that has been copied."""
    for i in range(part.first, part.last):
        for j in range(x.shape[1]):
            out[i, j] = x[i, j]
        x[i, 0] = -x[i, 0]


@op("x[R,C] -> out[R,C]", cut="R", cost="C", twin=copy_reference)
def copy_too_far(part, x, out):
    """Copy rows, and write one element past the end."""
    for i in range(part.first, part.last):
        for j in range(x.shape[1]):
            out[i, j] = x[i, j]
        if i + 1 == x.shape[0]:
            out[i, x.shape[1]] = 0


@op(
    "x[R,C] -> out[R,C] scratch:scratch",
    cut="R",
    twin=copy_reference,
    scratch=lambda s, longest, lanes: 2,
)
def copy_beyond_its_scratch(part, x, out, scratch):
    """Copy rows, and write to more elements than its scratch is said to have."""
    for i in range(part.first, part.last):
        for j in range(x.shape[1]):
            scratch[i % 3] = x[i, j]
            out[i, j] = scratch[i % 3]


@op("x[R,C] -> out[R,C]", cut="R", cost="C", twin=copy_reference)
def copy_by_tasks(part, x, out):
    """Copy rows, but for the last of each task: a result that depends on where work is cut."""
    for i in range(part.first, part.last):
        for j in range(x.shape[1]):
            out[i, j] = x[i, j] if i + 1 < part.last else 0


def check_alone(an_op: Op) -> None:
    case, batch = Case(an_op, WIDE), BATCHES["large"]
    assert_equals_twin(
        as_kernel(case, batch, "ops"), an_op.twin, *case.arguments(batch), dtypes=[np.float32]
    )


def test_an_op_without_faults_passes():
    check_alone(copy)
    assert_same_bits_however_cut(Case(copy, WIDE))


def test_an_op_that_writes_what_it_only_reads_is_found():
    with pytest.raises(AssertionError, match="x was written, and is declared as read"):
        check_alone(copy_and_spoil)


def test_an_op_that_writes_past_the_end_is_found():
    with pytest.raises(FAULT, match="what lies after out was written|out of bounds"):
        check_alone(copy_too_far)


def test_an_op_that_needs_more_scratch_than_it_says_is_found():
    with pytest.raises(FAULT, match="wrote beyond its scratch|out of bounds"):
        check_alone(copy_beyond_its_scratch)


def test_an_op_whose_result_depends_on_where_it_is_cut_is_found():
    with pytest.raises(AssertionError, match="error"):
        check_alone(copy_by_tasks)
    with pytest.raises(AssertionError, match="other bits by blocks"):
        assert_same_bits_however_cut(Case(copy_by_tasks, WIDE))
