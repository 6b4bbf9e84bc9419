"""Row A4: on small integers every sum is exact in float32, so not one bit may differ."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastformer.backend import get_backend
from fastformer.kernels.activation import NO_ACTIVATION, RELU
from tests.scorecard.kernel_calls import offsets_of
from tests.scorecard.rows import Finding, Row, Tier

# The edges of registers, panels, tiles and blocks.
DIMENSIONS = (0, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 257)
LIMIT = 2**23
Array = np.ndarray[Any, Any]
Results = Iterator[tuple[Array, Array]]


class Case:
    """Random small integers and sizes, and the kernels."""

    def __init__(self, seed: int, ops: Any = None) -> None:
        """Draw from a seed; other kernels are given to plant faults."""
        self.random = np.random.default_rng((4, seed))
        self.ops = ops or get_backend("numba")
        self.dtype = np.float32 if self.random.random() < 0.8 else np.float64
        self.none, self.empty = np.zeros((0, 0), self.dtype), np.zeros(0, self.dtype)

    def size(self, least: int = 0) -> int:
        """Draw a dimension."""
        return int(self.random.choice([d for d in DIMENSIONS if d >= least]))

    def integers(self, *shape: int) -> Array:
        """Draw integers, whose products and sums are exact in float32, and so in float64."""
        return self.random.integers(-4, 5, shape).astype(np.float64)

    def real(self, integers: Array) -> Array:
        """Return them in the dtype of the case, in memory of their own."""
        return np.array(integers, self.dtype, order="C")

    def unwritten(self, *shape: int) -> Array:
        """Return an output full of NaN."""
        return np.full(shape, np.nan, self.dtype)


def matmul(case: Case) -> Results:
    """Check the product with groups, bias, addend and ReLU."""
    G, M, K, N = int(case.random.integers(1, 4)), case.size(), case.size(), case.size(1)
    shared = bool(case.random.integers(2))
    x, weight = case.integers(M if shared else G * M, K), case.integers(G, K, N)
    bias, addend = case.integers(G * N), case.integers(G * M, N)
    activation = int(case.random.choice([NO_ACTIVATION, RELU]))
    has_bias, has_addend = case.random.integers(0, 2, 2)
    out = case.unwritten(G * M, N)
    case.ops.matmul(
        case.real(x), case.real(weight), case.real(bias) if has_bias else case.empty,
        case.real(addend) if has_addend else case.none, activation, case.none, out,
    )  # fmt: skip
    stacked = x.reshape(1 if shared else G, M, K)
    expected = stacked @ weight + has_bias * bias.reshape(G, 1, N)
    expected = expected.reshape(G * M, N) + has_addend * addend
    yield out, np.maximum(expected, 0) if activation == RELU else expected


def matmul_nt(case: Case) -> Results:
    """Check the input's gradient, with groups that are summed up or not, an addend and ReLU."""
    G, M, K, N = int(case.random.integers(1, 4)), case.size(), case.size(), case.size(1)
    summed, has_addend, relu = (bool(flag) for flag in case.random.integers(0, 2, 3))
    rows = M if summed else G * M
    dout, weight = case.integers(G * M, K), case.integers(G, N, K)
    addend, saved = case.integers(rows, N), np.maximum(case.integers(rows, N), 0)
    out = case.unwritten(rows, N)
    case.ops.matmul_nt(
        case.real(dout), case.real(weight), case.real(saved) if relu else case.none,
        case.real(addend) if has_addend else case.none, RELU if relu else NO_ACTIVATION, out,
    )  # fmt: skip
    product = dout.reshape(G, M, K) @ weight.transpose(0, 2, 1)
    expected = (product.sum(axis=0) if summed else product.reshape(rows, N)) + has_addend * addend
    yield out, np.where(saved > 0, expected, 0) if relu else expected


def matmul_tn(case: Case) -> Results:
    """Check the weights' gradient and the sums over rows, both added to what is there."""
    G, M, K, N = int(case.random.integers(1, 4)), case.size(), case.size(1), case.size(1)
    shared = bool(case.random.integers(2))
    x, dout = case.integers(M if shared else G * M, K), case.integers(G * M, N)
    before, sums_before = case.integers(G, K, N), case.integers(G * N)
    out, sums = case.real(before), case.real(sums_before)
    case.ops.matmul_tn(case.real(x), case.real(dout), sums, out)
    stacked = dout.reshape(G, M, N)
    left = x.reshape(1 if shared else G, M, K).transpose(0, 2, 1)
    yield out, before + left @ stacked
    yield sums, sums_before + stacked.sum(axis=1).ravel()


def rounded(case: Case) -> Results:
    """Check the products of operands that are rounded to bfloat16, which holds the integers."""
    case.dtype = np.float32
    case.none, case.empty = np.zeros((0, 0), np.float32), np.zeros(0, np.float32)
    names = ("matmul", "matmul_nt", "matmul_tn")
    case.ops = SimpleNamespace(**{name: getattr(case.ops, f"{name}_bfloat16") for name in names})
    product = case.random.choice([matmul, matmul_nt, matmul_tn])
    yield from product(case)


def embedding(case: Case) -> Results:
    """Check the look-up with positions, and the scatter of gradients with repeated ids."""
    N, V, T, C = case.size(), case.size(1), case.size(1), case.size(1)
    tokens, positions = case.random.integers(0, V, N), case.random.integers(0, T, N)
    table, places = case.integers(V, C), case.integers(T, C)
    has_positions = bool(case.random.integers(2))
    out = case.unwritten(N, C)
    given = case.real(places) if has_positions else case.none
    case.ops.embedding_forward(tokens, positions, case.real(table), given, out)
    yield out, table[tokens] + has_positions * places[positions]
    dout, before = case.integers(N, C), case.integers(V, C)
    dtable = case.real(before)
    case.ops.embedding_backward(tokens, case.real(dout), dtable)
    expected = before.copy()
    np.add.at(expected, tokens, dout)
    yield dtable, expected


def rows(case: Case) -> Results:
    """Check the choice of rows, its gradient, and means of 1, 2, 4 or 8 rows."""
    C = case.size(1)
    offsets = offsets_of(2 ** case.random.integers(0, 4, case.size() % 40))
    N, B = int(offsets[-1]), offsets.size - 1
    x, dout = 8 * case.integers(N, C), 8 * case.integers(B, C)
    chosen = offsets[:-1].copy()
    out, dx_before = case.unwritten(B, C), case.integers(N, C)
    case.ops.gather_rows(case.real(x), chosen, out)
    yield out, x[chosen]
    dx = case.real(dx_before)
    case.ops.scatter_rows(case.real(dout), chosen, dx)
    expected = dx_before.copy()
    expected[chosen] += dout
    yield dx, expected
    lengths = np.diff(offsets)
    mean = case.unwritten(B, C)
    case.ops.mean_forward(case.real(x), offsets, mean)
    yield mean, np.add.reduceat(x, chosen, axis=0) // lengths[:, None] if B else x[:0]
    dx = case.unwritten(N, C)
    case.ops.mean_backward(case.real(dout), offsets, dx)
    yield dx, np.repeat(dout // lengths[:, None], lengths, axis=0)


def flat(case: Case) -> Results:
    """Check ReLU, scaling by 2, a step of SGD without fractions, and a norm that is whole."""
    shape = case.size(), case.size(1)
    x, dout = case.integers(*shape), case.integers(*shape)
    out, dx = case.unwritten(*shape), case.unwritten(*shape)
    case.ops.activation_forward(case.real(x), RELU, out)
    yield out, np.maximum(x, 0)
    case.ops.activation_backward(case.real(dout), case.real(x), RELU, dx)
    yield dx, np.where(x > 0, dout, 0)
    parameters, velocity = case.real(x.ravel()), case.real(dout.ravel())
    case.ops.sgd_step(parameters, case.real(x.ravel()), velocity, 2.0, 3.0, False, 0.0)
    yield velocity, 3 * dout.ravel() + x.ravel()
    yield parameters, x.ravel() - 2 * (3 * dout.ravel() + x.ravel())
    case.ops.scale_gradient(velocity, 2.0)
    yield velocity, 2 * (3 * dout.ravel() + x.ravel())
    squares = int((x**2).sum())
    # One more element makes the sum a square.
    more = squares // 2 if squares % 2 else 0
    norm = case.ops.gradient_norm(case.real(np.append(x.ravel(), more)))
    yield np.array([norm]), np.array([np.sqrt(np.float64(squares + more**2))])


FAMILIES: tuple[Callable[[Case], Results], ...] = (
    *(matmul, matmul_nt, matmul_tn, matmul, matmul_nt, matmul_tn, embedding, rows, flat, rounded),
)


def differs(family: Callable[[Case], Results], seed: int, ops: Any = None) -> bool:
    """Tell whether any bit of any result of a case is not that of integer arithmetic."""
    case = Case(seed, ops)
    for found, expected in family(case):
        if not np.abs(expected).max(initial=0) < LIMIT:
            raise ValueError(f"{family.__name__}: the sums are too large to be exact")
        # Equal numbers with other bits: a zero's sign, which no sum of integers can tell.
        if found.shape != expected.shape or (found != expected).any():
            return True
    return False


def _planted() -> list[bool]:
    """Tell for each planted fault whether some case notices it."""
    true = get_backend("numba")

    def off_by_a_bit(a: Any, b: Any, bias: Any, addend: Any, code: int, pre: Any, out: Any) -> None:
        true.matmul(a, b, bias, addend, code, pre, out)
        if out.size:
            out.flat[-1] += np.spacing(out.flat[-1])

    def overwrites(ids: Any, dout: Any, dtable: Any) -> None:
        dtable[ids] += dout

    def forgets_sums(a: Any, b: Any, sums: Any, out: Any) -> None:
        true.matmul_tn(a, b, sums[:0], out)

    found = []
    for family, name, wrong in (
        (matmul, "matmul", off_by_a_bit),
        (embedding, "embedding_backward", overwrites),
        (matmul_tn, "matmul_tn", forgets_sums),
        (rounded, "matmul_bfloat16", off_by_a_bit),
    ):
        ops = type(true)(**{**vars(true), name: wrong})
        found.append(any(differs(family, seed, ops) for seed in range(50)))
    return found


def measure(tier: Tier, cases: int | None = None) -> Finding:
    """Compare results of random sizes with integer arithmetic."""
    count = cases or (20_000 if tier == "fast" else 200_000)
    wrong = []
    for seed in range(count):
        family = FAMILIES[seed % len(FAMILIES)]
        if differs(family, seed):
            wrong.append(f"{family.__name__}, case {seed}")
    planted = _planted()
    return Finding(
        count - len(wrong), count, sum(planted), len(planted), failures=tuple(wrong[:10])
    )


ROW = Row(
    "A4",
    "exact where exact is possible: small integers at all edges of tiles",
    "0 differing bits in 20,000 cases",
    measure,
)
