"""Programs: shapes that bind, mistakes in words, memory by lifetime, waits, and growth."""

import os
import re

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastformer as ff
from fastformer import places as places_file
from fastformer.backend import get_backend
from fastformer.kernels._compile import BUILD
from fastformer.kernels.matmul import linear
from fastformer.kernels.op import Operand, op
from fastformer.kernels.program import FIRST_WAIT, LAST_WAIT, NO_SIZE, SEQUENCES, TOKENS
from fastformer.program import Program
from fastformer.tensors import ROWS, SEQUENCE_ROWS, Axis, Tensor
from fastformer.workspace import Workspace

COLUMNS = 64
# Of an op whose first task takes longer than its others.
TURNS = 2 if BUILD == "python" else 300
# So many rows that an op of them has several tasks, and several shards.
LENGTHS = (9, 1, 20, 14, 3, 20, 17, 8) * 4
BATCH = ff.pack([[1] * length for length in LENGTHS])


def mix_reference(x, y, factor, out):
    out[...] = x + factor * (y if y.size else 0)


@op("x[R,C] y?[R,C] factor:float -> out[R,C]", cut="R", cost="C", twin=mix_reference)
def mix(part, x, y, factor, out):
    """Write x + factor y."""
    for i in range(part.first, part.last):
        for j in range(x.shape[1]):
            out[i, j] = x[i, j] + (factor * y[i, j] if y.size > 0 else 0)


def mirror_tasks(threads, x, out):
    return min(7, x.shape[0])


def mirror_reference(x, out):
    out[...] = x[::-1]


@op("x[R,C] -> out[R,C]", tasks=mirror_tasks, twin=mirror_reference)
def mirror(part, x, out):
    """Write the rows in reverse: each of another sequence, so that all of x must be there."""
    rows, tasks = x.shape[0], min(7, x.shape[0])
    for i in range(rows * part.index // tasks, rows * (part.index + 1) // tasks):
        for j in range(x.shape[1]):
            out[i, j] = x[rows - 1 - i, j]


def mirror_unevenly_tasks(threads, x, turns, out):
    return min(7, x.shape[0])


def mirror_unevenly_reference(x, turns, out):
    out[...] = x[::-1]


@op("x[R,C] turns:int -> out[R,C]", tasks=mirror_unevenly_tasks, twin=mirror_unevenly_reference)
def mirror_unevenly(part, x, turns, out):
    """Write the rows in reverse, the first ones long after the others: who does not wait errs."""
    rows, tasks = x.shape[0], min(7, x.shape[0])
    last = turns if part.index == 0 else 1
    for turn in range(last):
        for i in range(rows * part.index // tasks, rows * (part.index + 1) // tasks):
            for j in range(x.shape[1]):
                mirrored = x[rows - 1 - i, j] if turn + 1 == last else 0
                out[i, j] = mirrored + (0 * out[i, j] if turn > 0 else 0)


def raise_reference(x, total):
    total += x


@op("x[R,C] -> +total[R,C]", cut="R", cost="C", twin=raise_reference)
def add_to(part, x, total):
    """Add x to what is there."""
    for i in range(part.first, part.last):
        for j in range(x.shape[1]):
            total[i, j] += x[i, j]


def appended(program, an_op, **fields):
    """Append an op, and return the one tensor that is made."""
    (made,) = program.add(an_op, **fields)
    return made


def new_workspace(program, way="ops", backend="numba", longest=40):
    return Workspace(program, way, ops=get_backend(backend), max_seq_len=longest)


# What an op says of itself.


@pytest.mark.parametrize(
    "text",
    [
        *("x[R,C", "x]R[", "x[]", "x[R,]", "x[2C]", "x:long[R]", "X[R]", "?x[R]"),
        *("x", "x:scratch[R]", "x:float[R]"),
    ],
)
def test_operands_that_cannot_be_read_are_told(text):
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        Operand(text, written=False)


def test_numbers_are_not_written_and_what_is_read_is_not_added_to():
    with pytest.raises(ValueError, match="numbers stand before ->"):
        Operand("count:int", written=True)
    with pytest.raises(ValueError, match="only arrays that are written can be added to"):
        Operand("+x[R]", written=False)


def nothing(part, x, out):
    """Do nothing."""


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("x[R] out[R]", {"cut": "R"}, "operands that are written stand behind ->"),
        ("out[R] -> x[R]", {"cut": "R"}, "are part out x, but its kernel has part x out"),
        ("x[R] -> out[R]", {"cut": "Q"}, "Q is no letter of its operands"),
        ("x[R] -> out[R]", {"cut": "R", "cost": "C"}, "C is no letter of its operands"),
        ("x[R] -> out[R]", {}, "work is cut by rows, or tasks are counted: give one"),
        ("x[R] -> out[R]", {"tasks": lambda x, out: 1}, "but its tasks has x out"),
        ("x[R] -> out[R]", {"cut": "R", "scratch": max}, "scratch and its size belong together"),
        ("x[R] -> out[R] scratch:scratch", {"cut": "R"}, "its kernel has part x out"),
    ],
)  # fmt: skip
def test_what_an_op_says_of_itself_is_checked(text, options, message):
    with pytest.raises(ValueError, match=f"nothing: .*{re.escape(message)}|{re.escape(message)}"):
        op(text, twin=None, **options)(nothing)


# Shapes.


def test_letters_stand_for_the_lengths_of_axes():
    program = Program("float32")
    x = program.new("x", ROWS, 5)
    weight, bias = program.new("weight", 3, 5, 7), program.new("bias", 21)
    out = appended(program, linear, x=x, weight=weight, bias=bias, activation=0)
    assert str(out) == "out[3N,7]" and out.dtype == np.float32
    assert program.steps[0].sizes == {
        "R": ROWS, "K": Axis(5), "G": Axis(3), "M": Axis(7)
    }  # fmt: skip
    assert program.steps[0].reads == [x, weight, bias] and program.steps[0].writes == [out]


def test_a_letter_is_found_from_a_product_of_letters():
    """Also where the product is named before the letters that it is made of."""

    @op("y[GR,C] x[R,C] -> out[G]", cut="R", twin=None)
    def fold(part, y, x, out):
        """Do nothing."""

    program = Program("float32")
    y, x = program.new("y", Axis(6, TOKENS), 2), program.new("x", Axis(2, TOKENS), 2)
    assert str(appended(program, fold, y=y, x=x)) == "out[3]"
    with pytest.raises(ValueError, match=r"GR is 5N in y\[5N,2\], but R is 2N in x\[2N,2\]"):
        program.add(fold, y=program.new("y", Axis(5, TOKENS), 2), x=x)
    with pytest.raises(ValueError, match=r"GR is 6B in y\[6B,2\], but R is 2N in x\[2N,2\]"):
        program.add(fold, y=program.new("y", Axis(6, SEQUENCES), 2), x=x)


class Named:
    """A layer that appends what it is told to."""

    def __init__(self, append):
        self.forward_ops = append


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ((ROWS, 6), r"C is 6 in y[N,6], but C is 5 in x[N,5]"),
        ((SEQUENCE_ROWS, 5), r"R is B in y[B,5], but R is N in x[N,5]"),
        ((Axis(2, TOKENS), 5), r"R is 2N in y[2N,5], but R is N in x[N,5]"),
        ((3, 5), r"R is 3 in y[3,5], but R is N in x[N,5]"),
        ((ROWS,), r"y[N] is given for y[R,C]"),
    ],
)
def test_shapes_that_do_not_fit_name_both_tensors_the_op_and_the_layer(axes, message):
    program = Program("float32")
    x, y = program.new("x", ROWS, 5), program.new("y", *axes)
    with pytest.raises(ValueError, match=rf"^program: mix: {re.escape(message)}$"):
        program.add(mix, x=x, y=y, factor=1.0)
    layer = Named(lambda p: p.add(mix, x=x, y=y, factor=1.0))
    with pytest.raises(ValueError, match=rf"^Named: mix: {re.escape(message)}$"):
        program.forward(layer)
    assert program.steps == []


def test_layers_are_named_as_they_are_in_the_model():
    model = ff.TransformerDecoder(
        ff.DecoderConfig(
            vocab_size=5, embed_dim=4, num_heads=1, num_layers=1, ffn_dim=8, max_seq_len=6
        )
    )
    program = Program("float32", model)
    x = program.new("x", ROWS, 6)
    expected = r"^blocks\.0\.norm1: layernorm: C is 4 in blocks\.0\.norm1\.weight\[4\]"
    with pytest.raises(ValueError, match=expected):
        program.forward(model.blocks[0].norm1, x)


def test_a_number_of_an_axis_must_be_that_number():
    @op("x[R,3] -> out[R,3]", cut="R", twin=None)
    def three(part, x, out):
        """Do nothing."""

    program = Program("float32")
    assert str(appended(program, three, x=program.new("x", ROWS, 3))) == "out[N,3]"
    with pytest.raises(ValueError, match=r"an axis of x\[N,4\] is 4, where it must be 3"):
        program.add(three, x=program.new("x", ROWS, 4))


# Operands.


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "unknown: none, missing: x factor"),
        ({"x": None, "factor": 1.0}, "unknown: none, missing: x"),
        ({"factor": None}, "unknown: none, missing: x factor"),
        ({"x": 0, "z": 0, "factor": 1.0}, "unknown: z, missing: none"),
        ({"factor": 1.0, "a": 0, "b": 0}, "unknown: a b, missing: x"),
    ],
)
def test_unknown_and_missing_operands_are_named(fields, message):
    expected = f"^program: mix has the operands x y factor out; {message}$"
    with pytest.raises(TypeError, match=expected):
        Program("float32").add(mix, **fields)


def test_operands_of_another_kind_or_dtype_are_told():
    program = Program("float32")
    x, ids = program.new("x", ROWS, 5), program.new("ids", ROWS, 5, kind="int")
    for fields, message in [
        ({"x": 5, "factor": 1.0}, "x must be given an array of float32, got 5"),
        ({"x": ids, "factor": 1.0}, r"x must be given an array .*, got ids\[N,5\] of int64"),
        ({"x": x, "factor": x}, r"factor must be given a number, got x\[N,5\] of float32"),
        ({"x": x, "factor": "1"}, "factor must be given a number, got '1'"),
    ]:  # fmt: skip
        with pytest.raises(TypeError, match=f"^program: mix: {message}$"):
            program.add(mix, **fields)
    weight = program.new("weight", 1, 5, 7)
    with pytest.raises(TypeError, match="activation must be given an integer, got 0.5"):
        program.add(linear, x=x, weight=weight, activation=0.5)
    array = np.zeros((5, 5))
    with pytest.raises(TypeError, match=r"got other\[5,5\] of float64"):
        program.add(mix, x=program.outside("other", array), factor=1.0)
    assert program.steps == []


def test_a_length_that_nothing_tells_is_named():
    program = Program("float32")

    @op("x[R,C] -> out[R,H]", cut="R", twin=None)
    def heads(part, x, out):
        """Do nothing."""

    with pytest.raises(ValueError, match="heads: no operand that is given tells how long H is"):
        program.add(heads, x=program.new("x", ROWS, 5))
    assert program.steps == []


def test_parts_of_a_tensor_lie_one_after_the_other():
    sizes = [1, 7, 2, 3]
    whole = Tensor("qkv", (Axis(3, TOKENS), Axis(4)), np.dtype(np.float32))
    parts = whole.split(3)
    assert [str(part) for part in parts] == ["qkv.0[N,4]", "qkv.1[N,4]", "qkv.2[N,4]"]
    assert [part.start().at(sizes) for part in parts] == [0, 7 * 4 * 4, 2 * 7 * 4 * 4]
    assert all(part.whole is whole and part.nbytes(sizes) == 7 * 4 * 4 for part in parts)
    plain = Tensor("weight", (Axis(6), Axis(5)), np.dtype(np.float64)).split(2)
    assert [part.start().at(sizes) for part in plain] == [0, 3 * 5 * 8]
    with pytest.raises(ValueError, match=r"qkv\[3N,4\] has no 2 parts of equal length"):
        whole.split(2)
    with pytest.raises(ValueError, match=r"qkv\.1\[N,4\] cannot be split, for it is a part"):
        parts[1].split(1)
    bound = Program("float32").bound("logits", Axis(2, TOKENS))
    with pytest.raises(ValueError, match=r"cannot be split, for each run brings it"):
        bound.split(2)


def test_arrays_that_lie_elsewhere_are_contiguous_and_one_tensor_each():
    program, array = Program("float32"), np.zeros((4, 6), np.float32)
    first, second = program.outside("x", array), program.outside("y", array)
    assert first is second and str(first) == "x[4,6]"
    other = program.outside("z", array[None])
    assert other.whole is first and str(other) == "x[1,4,6]"
    assert program.outside("none", array[:0]) is None
    with pytest.raises(ValueError, match="t: the array must be C-contiguous"):
        program.outside("t", array.T)


# Runs.


def mixed(way="ops", backend="numba"):
    """Return (workspace, x, y, out) of a program that adds so many times y to x."""
    program = Program("float64")
    x, y, out = (program.bound(name, ROWS, Axis(3)) for name in ("x", "y", "out"))
    program.add(mix, x=x, y=y, factor=program.number("factor"), out=out)
    return new_workspace(program, way, backend, longest=20), x, y, out


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("factor", [2, 2.0, np.float32(2), np.int64(2)], ids=repr)
def test_numbers_are_set_for_each_run_whatever_their_type(backend, factor):
    workspace, x, y, out = mixed(backend=backend)
    arrays = [np.full((BATCH.num_tokens, 3), value, np.float64) for value in (1, 10, np.nan)]
    bound = dict(zip((x, y, out), arrays, strict=True))
    workspace.run(BATCH, numbers={"factor": factor}, bound=bound)
    np.testing.assert_array_equal(arrays[2], 21)
    workspace.run(BATCH, numbers={"factor": 0.5})
    np.testing.assert_array_equal(arrays[2], 6)


def test_mistakes_in_a_run_are_told():
    workspace, x, y, out = mixed()
    rows = BATCH.num_tokens
    bound = {tensor: np.zeros((rows, 3)) for tensor in (x, y, out)}
    shape = re.escape(f"({rows}, 3)")
    for wrong, message in [
        (np.zeros((rows, 4)), re.escape(f"got float64 ({rows}, 4)")),
        (np.zeros((rows - 1, 3)), re.escape(f"got float64 ({rows - 1}, 3)")),
        (np.zeros((rows, 3), np.float32), f"got float32 {shape}"),
        (np.zeros((3, rows)).T, f"got float64 {shape}, not C-contiguous"),
    ]:
        expected = rf"^y\[N,3\] must be bound to a C-contiguous array, float64 {shape}, {message}$"
        with pytest.raises(ValueError, match=expected):
            workspace.run(BATCH, bound=bound | {y: wrong})
    with pytest.raises(ValueError, match=r"^out\[N,3\] must be bound .*, got none$"):
        fresh, x, y, out = mixed()
        fresh.run(BATCH, bound={x: np.zeros((rows, 3)), y: np.zeros((rows, 3))})
    with pytest.raises(ValueError, match="the program's numbers are: factor; got 'scale'"):
        workspace.run(BATCH, numbers={"scale": 1.0}, bound=bound)
    with pytest.raises(ValueError, match="a sequence has 21 tokens, and the program is for 20"):
        workspace.run(ff.pack([[1] * 21]))


def test_an_array_of_another_run_must_fit_the_batch_of_this_one():
    workspace, *tensors = mixed()
    workspace.run(BATCH, bound={t: np.zeros((BATCH.num_tokens, 3)) for t in tensors})
    with pytest.raises(ValueError, match=r"x\[N,3\] must be bound to .* \(2, 3\), got"):
        workspace.run(ff.pack([[1, 2]]))


def test_a_program_has_one_workspace():
    """Two would write to each other's tables: addresses are kept with the program's tensors."""
    workspace, *_ = mixed()
    with pytest.raises(ValueError, match="the program has a workspace"):
        new_workspace(workspace.program, "blocks")


@pytest.mark.parametrize("way", ["ops", "blocks"])
@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_rows_may_be_a_number_whatever_the_batch(way, backend):
    """An op of so many rows, and not of the batch's, is cut by itself, beside others too."""
    program = Program("float64")
    x, y = np.arange(15.0).reshape(5, 3), np.ones((5, 3))
    fixed = appended(program, mix, x=program.outside("x", x), y=program.outside("y", y), factor=2.0)
    tokens = program.bound("tokens", ROWS, Axis(3))
    kept = appended(
        program, mix, x=appended(program, mix, x=tokens, factor=1.0), y=tokens, factor=1.0
    )
    out = program.bound("out", Axis(5), Axis(3))
    program.add(mix, x=fixed, factor=1.0, out=out)
    workspace = new_workspace(program, way, backend)
    for batch in (ff.pack([[1, 2]]), BATCH):
        found, rows = np.full((5, 3), np.nan), np.ones((batch.num_tokens, 3))
        workspace.run(batch, bound={out: found, tokens: rows})
        np.testing.assert_array_equal(found, x + 2)
        np.testing.assert_array_equal(workspace.array(kept), 2)


# Programs at random.


class Drawn:
    """A program of ops at random on rows of all tokens, and its result, computed in order.

    Moves are (kind, one operand, another, whether a section ends before it).
    """

    def __init__(self, moves: list[tuple[str, int, int, bool]]) -> None:
        self.program = Program("float64")
        self.x = self.program.bound("x", ROWS, Axis(COLUMNS))
        self.out = self.program.bound("out", ROWS, Axis(COLUMNS))
        tensors: list[Tensor] = [self.x]
        self.moves = []
        for kind, first, second, ends in moves:
            if ends:
                self.program.new_section()
            a, b = tensors[first % len(tensors)], tensors[second % len(tensors)]
            if kind == "add_to" and (a is b or b is self.x):
                kind = "mirror"
            self.moves.append((kind, first % len(tensors), second % len(tensors)))
            if kind == "mix":
                tensors.append(appended(self.program, mix, x=a, y=b, factor=0.5))
            elif kind == "mirror":
                tensors.append(appended(self.program, mirror, x=a))
            elif kind == "slow":
                tensors.append(appended(self.program, mirror_unevenly, x=a, turns=TURNS))
            else:
                self.program.add(add_to, x=a, total=b)
        self.program.add(mix, x=tensors[-1], y=tensors[len(tensors) // 2], factor=0.5, out=self.out)

    def expected(self, x: np.ndarray) -> np.ndarray:
        values = [x]
        for kind, a, b in self.moves:
            if kind == "mix":
                values.append(values[a] + 0.5 * values[b])
            elif kind in ("mirror", "slow"):
                values.append(values[a][::-1])
            else:
                values[b] = values[b] + values[a]
        return values[-1] + 0.5 * values[len(values) // 2]

    def run(self, workspace: Workspace, x: np.ndarray, batch: ff.PackedBatch = BATCH) -> np.ndarray:
        """Run it in a poisoned workspace."""
        workspace.grow(batch.num_tokens, batch.num_sequences)
        workspace.memory[...] = np.nan
        found = np.full(x.shape, np.nan)
        workspace.run(batch, bound={self.x: x, self.out: found})
        return found


MOVES = st.lists(
    st.tuples(
        st.sampled_from(["mix", "mix", "mirror", "slow", "add_to"]),
        st.integers(0, 30), st.integers(0, 30), st.booleans(),
    ),
    min_size=1, max_size=25,
)  # fmt: skip
SLACKS = st.sampled_from([0, 1, 6])


@pytest.fixture(scope="module")
def values():
    return np.random.default_rng(3).standard_normal((BATCH.num_tokens, COLUMNS))


def grown(drawn: Drawn, way: str, slack: int) -> Workspace:
    """Return a workspace that gives memory that is free to others after so many segments."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(places_file, "SLACK", slack)
        workspace = new_workspace(drawn.program, way)
        workspace.grow(BATCH.num_tokens, BATCH.num_sequences)
    return workspace


def places(workspace: Workspace) -> dict[Tensor, tuple[int, int]]:
    """Return the first byte of each tensor of the workspace, and the one after its last."""
    found = {}
    for step in workspace.steps:
        for tensor in {*step.reads, *step.writes}:
            whole = tensor.whole
            if whole.memory is None:
                found[whole] = whole.place, whole.place + whole.nbytes(workspace.capacity)
    return found


def faults_of_places(workspace: Workspace) -> list[tuple[str, str]]:
    """Return pairs of tensors that share bytes, and are both used in some segments or between."""
    lives: dict[Tensor, list[tuple[int, int]]] = {}
    for number, step in enumerate(workspace.steps):
        for tensor in (*step.reads, *step.writes):
            lives.setdefault(tensor.whole, []).append((step.segment, number))
    found = places(workspace)
    assert all(end <= workspace.memory.nbytes for _, end in found.values())

    def meet(one: Tensor, other: Tensor) -> bool:
        unit = 0
        segments = {segment for segment, _ in lives[one] + lives[other]}
        if len(segments) == 1 and one.axes == other.axes and one.dtype == other.dtype:
            # A thread takes its own rows of both through the ops of a sharded segment in order.
            unit = int(workspace.segments[segments.pop()][0].sharded)
        first = max(min(use[unit] for use in lives[tensor]) for tensor in (one, other))
        return first <= min(max(use[unit] for use in lives[tensor]) for tensor in (one, other))

    return [
        (str(one), str(other))
        for one in found
        for other in found
        if one is not other
        and max(found[one][0], found[other][0]) < min(found[one][1], found[other][1])
        and meet(one, other)
    ]


def missing_waits(workspace: Workspace) -> list[tuple[int, int]]:
    """Return pairs of segments that use the same bytes, one writing, of which neither waits.

    What a segment waits for, those have waited for too.
    """
    found = places(workspace)

    def used(tensors):
        for tensor in tensors:
            # An array that lies elsewhere shares bytes with itself alone.
            start, end = found.get(tensor.whole, (id(tensor.whole), id(tensor.whole) + 1))
            yield tensor.whole.memory is None, start, end

    def meet(some, others):
        return any(a[0] == b[0] and max(a[1], b[1]) < min(a[2], b[2]) for a in some for b in others)

    reads = [list(used(t for step in s for t in step.reads)) for s in workspace.segments]
    writes = [list(used(t for step in s for t in step.writes)) for s in workspace.segments]
    done: list[set[int]] = []
    missing = []
    for later, waits in enumerate(workspace.waits):
        done.append(set(waits).union(*(done[earlier] for earlier in waits)))
        for earlier in range(later):
            conflict = meet(writes[later], reads[earlier] + writes[earlier]) or meet(
                reads[later], writes[earlier]
            )
            if conflict and earlier not in done[later]:
                missing.append((earlier, later))
    return missing


@settings(max_examples=60)
@given(moves=MOVES, way=st.sampled_from(["ops", "blocks"]), slack=SLACKS)
def test_no_two_tensors_that_live_at_once_share_bytes_and_all_conflicts_wait(moves, way, slack):
    workspace = grown(Drawn(moves), way, slack)
    assert not faults_of_places(workspace)
    assert not missing_waits(workspace)


CHAIN = [("mirror", step, 0, True) for step in range(12)]


def test_memory_is_shared_by_those_whose_lifetimes_do_not_meet():
    workspace = grown(Drawn(CHAIN), "ops", 0)
    assert workspace.memory.nbytes < workspace.unshared / 3
    assert not faults_of_places(workspace)


def test_tensors_at_one_place_and_waits_left_out_are_found():
    workspace = grown(Drawn(CHAIN), "ops", 0)
    assert sum(map(len, workspace.waits)) >= 12
    for number, waits in enumerate(workspace.waits):
        for wait in list(waits):
            waits.remove(wait)
            assert (wait, number) in missing_waits(workspace)
            waits.append(wait)
    assert not missing_waits(workspace)
    for tensor in places(workspace):
        tensor.place = 0
    assert faults_of_places(workspace)


def test_nobody_waits_for_what_was_waited_for():
    workspace = grown(Drawn(CHAIN), "ops", 6)
    assert workspace.waits == [[], *([number] for number in range(12))]


@settings(max_examples=25)
@given(moves=MOVES, way=st.sampled_from(["ops", "blocks"]), slack=SLACKS)
def test_many_threads_in_a_poisoned_workspace_compute_what_is_computed_in_order(
    values, moves, way, slack
):
    drawn = Drawn(moves)
    workspace = grown(drawn, way, slack)
    bits = None
    for threads in (1, 2, 4, 3):
        if BUILD == "production":
            numba.set_num_threads(threads)
        for _ in range(3):
            found = drawn.run(workspace, values)
            np.testing.assert_allclose(found, drawn.expected(values), rtol=1e-12, atol=1e-12)
            assert found.tobytes() == (bits or found.tobytes())
            bits = found.tobytes()
    twins = Drawn(moves)
    found = twins.run(new_workspace(twins.program, way, "reference"), values)
    np.testing.assert_array_equal(found, drawn.expected(values))


@pytest.mark.skipif(BUILD != "production", reason="another build has no threads")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one thread at a time waits for nobody")
def test_segments_that_do_not_wait_are_noticed(values):
    numba.set_num_threads(2)
    program = Program("float64")
    x, out = (program.bound(name, ROWS, Axis(COLUMNS)) for name in ("x", "out"))
    middle = appended(program, mirror_unevenly, x=x, turns=100 * TURNS)
    program.add(mirror_unevenly, x=middle, turns=1, out=out)
    workspace = new_workspace(program)

    def run():
        found = np.zeros(values.shape)
        workspace.memory[...] = 0
        workspace.run(BATCH, bound={x: values, out: found})
        return found

    for _ in range(5):
        np.testing.assert_array_equal(run(), values)
    workspace.tables.segments[1, LAST_WAIT] = workspace.tables.segments[1, FIRST_WAIT]
    assert any((run() != values).any() for _ in range(100))


# Capacity.


@pytest.mark.parametrize("way", ["ops", "blocks"])
def test_a_workspace_grows_and_gives_the_same_bits(values, way):
    """More tokens, or more sequences, than there was scratch for; and fewer again."""
    kinds = [("mix", 0, 0), ("mirror", 1, 0), ("mix", 1, 2), ("mix", 3, 1)]
    moves = [(*kind, number == 2) for number, kind in enumerate(kinds)]
    batches = [
        ff.pack([[1, 2, 3]]), ff.pack([[1] * 20, [2] * 20]), ff.pack([[1]] * 9), BATCH,
        ff.pack([[3] * 11, [4]]),
    ]  # fmt: skip
    drawn = Drawn(moves)
    kept = new_workspace(drawn.program, way)
    memories = []
    for batch in batches:
        x = values[: batch.num_tokens].copy()
        found = np.full(x.shape, np.nan)
        kept.run(batch, bound={drawn.x: x, drawn.out: found})
        np.testing.assert_allclose(found, drawn.expected(x), rtol=1e-12, atol=1e-12)
        memories.append(kept.memory.nbytes)
        other = Drawn(moves)
        fresh = other.run(new_workspace(other.program, way), x, batch)
        assert fresh.tobytes() == found.tobytes()
    assert memories == sorted(memories) and memories[0] < memories[-1] == memories[-2]
    assert kept.capacity[TOKENS] == BATCH.num_tokens and kept.capacity[NO_SIZE] == 1


def test_each_stage_can_be_run_by_itself(values):
    """What one stage left is read by the next one, in another run."""
    program = Program("float64")
    x, out = (program.bound(name, ROWS, Axis(COLUMNS)) for name in ("x", "out"))
    middle = appended(program, mirror, x=appended(program, mix, x=x, factor=1.0))
    program.end_stage()
    program.add(mix, x=middle, y=middle, factor=1.0, out=out)
    program.end_stage()
    workspace = new_workspace(program)
    workspace.run(BATCH, stages=(0, 1), bound={x: values})
    found = np.full(values.shape, np.nan)
    workspace.run(BATCH, stages=(1, 2), bound={out: found})
    np.testing.assert_array_equal(found, 2 * values[::-1])
