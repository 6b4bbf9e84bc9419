"""Row A3: gradients, in float64, beside differences of the forward pass.

Of each op the whole Jacobian by each input: differences of the NumPy twin beside the backward pass
of the twin and of the compiled kernel. Of the models each parameter tensor, along a direction.
"""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
from gradients import ATOL, RTOL, jacobian
from models import make_batch, make_model, slope
from twins import Out, run

import fastformer as ff
from fastformer.backend import BACKENDS, get_backend
from fastformer.kernels.activation import EXACT_GELU, GELU, MISH, NO_ACTIVATION, RELU, SILU, SLOPED
from fastformer.layers.relative_positions import rotary_tables
from tests.scorecard.kernel_calls import EMPTY, NONE, offsets_of
from tests.scorecard.rows import Finding, Row, Tier

Array = np.ndarray[Any, Any]
Forward = Callable[..., Array]
Backward = Callable[..., Any]
# A name, the forward pass, the backward pass (dout, *inputs) -> a gradient for each, and inputs.
Op = tuple[str, Forward, Backward, tuple[Array, ...]]
Pair = tuple[str, Array, Array]

TWINS = get_backend("reference")
KEY = np.uint64(5), np.uint64(9)
ACTIVATIONS = {"relu": RELU, "gelu": GELU, "exact gelu": EXACT_GELU, "mish": MISH}


def _call(op: Callable[..., Any], *given: Any) -> list[Array]:
    return run(op, *given, dtype=np.float64)


def _elementwise(ops: Any, rng: Any) -> Iterator[Op]:
    """Yield activations, gates, softmax, and dropout with a residual."""
    x = 2 * rng.standard_normal((4, 5))
    x += np.copysign(0.1, x)  # clear of the kink of ReLU
    for name, code in ACTIVATIONS.items():
        yield (
            name,
            lambda x, code=code: _call(TWINS.activation_forward, x, code, Out(x.shape))[0],
            lambda d, x, code=code: _call(ops.activation_backward, d, x, code, Out(x.shape)),
            (x,),
        )

    for name, code in (("swiglu", SILU), ("geglu", GELU), ("exact geglu", EXACT_GELU)):
        yield (
            name,
            lambda g, x, code=code: _call(TWINS.gated_forward, g, x, code, Out(x.shape))[0],
            lambda d, g, x, code=code: _call(
                ops.gated_backward, d, g, x, code, Out(x.shape), Out(x.shape)
            ),
            (x, rng.standard_normal(x.shape)),
        )

    def softmax(x: Array) -> Array:
        return _call(TWINS.softmax_forward, x, Out(x.shape))[0]

    yield (
        "softmax",
        softmax,
        lambda d, x: _call(ops.softmax_backward, d, softmax(x), Out(x.shape)),
        (x,),
    )
    yield (
        "dropout",
        lambda x, r: _call(TWINS.dropout_forward, x, r, 0.4, *KEY, Out(x.shape))[0],
        lambda d, x, r: (*_call(ops.dropout_backward, d, 0.4, *KEY, Out(x.shape)), d),
        (x, rng.standard_normal(x.shape)),
    )


def _losses(ops: Any, rng: Any) -> Iterator[Op]:
    """Yield the loss with targets that are ignored, with label smoothing and with weights."""
    targets = np.array([2, -1, 0, 4, -1])
    rows = Out(targets.shape)
    for smoothing, classes in ((0.0, 0), (0.2, 0), (0.0, 6), (0.2, 6)):
        own = smoothing, np.linspace(0.5, 3, classes)

        def forward(logits: Array, own: tuple[float, Array] = own) -> list[Array]:
            smoothing, weights = own
            given = logits, targets, smoothing, rows, rows, rows, weights
            *written, _ = _call(TWINS.cross_entropy_forward, *given)
            return written

        def backward(dout: Array, logits: Array, own: tuple[float, Array] = own) -> list[Array]:
            smoothing, weights = own
            _, largest, total = forward(logits, own)
            given = logits, targets, largest, total, smoothing, 1.0, Out(logits.shape), weights
            return [_call(ops.cross_entropy_backward, *given)[0] * dout[:, None]]

        name = f"cross_entropy {smoothing}" + (" with weights" if classes else "")
        inputs = (3 * rng.standard_normal((5, 6)),)
        yield name, lambda x, f=forward: f(x)[0], backward, inputs


def _norms(ops: Any, rng: Any) -> Iterator[Op]:
    """Yield the norms, of several widths."""
    for rows, columns in ((3, 5), (1, 2), (2, 19)):
        saved = Out((rows,))

        def forward(x: Array, weight: Array, bias: Array, saved: Out = saved) -> list[Array]:
            given = x, weight, bias, 1e-5, Out(x.shape), saved, saved
            return _call(TWINS.layernorm_forward, *given)

        def backward(d: Array, x: Array, w: Array, b: Array, forward: Any = forward) -> list[Array]:
            _, mean, rstd = forward(x, w, b)
            sums = Out(w.shape, 0.0), Out(w.shape, 0.0)
            return _call(ops.layernorm_backward, d, x, w, mean, rstd, NONE, Out(x.shape), *sums)

        inputs = 2 * rng.standard_normal((rows, columns)) + 1, *rng.standard_normal((2, columns))
        yield f"layernorm {columns}", lambda *a, f=forward: f(*a)[0], backward, inputs

        def scale(x: Array, weight: Array, saved: Out = saved) -> list[Array]:
            return _call(TWINS.rmsnorm_forward, x, weight, 1e-5, Out(x.shape), saved)

        def unscale(d: Array, x: Array, w: Array, scale: Any = scale) -> list[Array]:
            _, rrms = scale(x, w)
            sums = Out(w.shape, 0.0)
            return _call(ops.rmsnorm_backward, d, x, w, rrms, NONE, Out(x.shape), sums)

        yield f"rmsnorm {columns}", lambda *a, f=scale: f(*a)[0], unscale, inputs[:2]


def _products(ops: Any, rng: Any) -> Iterator[Op]:
    """Yield matrix products with bias and residual, in groups, and through an activation."""
    for groups, shared in ((1, False), (2, False), (2, True)):
        M, K, N = 3, 4, 2

        def forward(x: Array, weight: Array, bias: Array, addend: Array) -> Array:
            given = x, weight, bias, addend, NO_ACTIVATION, Out((0, 0)), Out(addend.shape)
            return _call(TWINS.matmul, *given)[-1]

        def backward(d: Array, x: Array, weight: Array, bias: Array, addend: Array) -> Any:
            (dx,) = _call(ops.matmul_nt, d, weight, NONE, NONE, NO_ACTIVATION, Out(x.shape))
            sums, out = Out(bias.shape, 0.0), Out(weight.shape, 0.0)
            dbias, dweight = _call(ops.matmul_tn, x, d, sums, out)
            return dx, dweight, dbias, d

        x = rng.standard_normal((M if shared else groups * M, K))
        weight, bias = rng.standard_normal((groups, K, N)), rng.standard_normal(groups * N)
        inputs = x, weight, bias, rng.standard_normal((groups * M, N))
        yield f"matmul {groups} {shared}", forward, backward, inputs
    first, second = rng.standard_normal((1, 4, 3)), rng.standard_normal((1, 3, 2))
    for name, code in ACTIVATIONS.items():

        def hidden(x: Array, code: int = code) -> list[Array]:
            saved = Out((len(x), 3) if code in SLOPED else (0, 0))
            return _call(TWINS.matmul, x, first, EMPTY, NONE, code, saved, Out((len(x), 3)))

        def through(d: Array, x: Array, code: int = code, hidden: Any = hidden) -> list[Array]:
            before, out = hidden(x)
            saved = before if code in SLOPED else out
            (dhidden,) = _call(ops.matmul_nt, d, second, saved, NONE, code, Out(out.shape))
            return _call(ops.matmul_nt, dhidden, first, NONE, NONE, NO_ACTIVATION, Out(x.shape))

        product = lambda x, hidden=hidden: hidden(x)[1] @ second[0]  # noqa: E731
        yield f"matmul {name}", product, through, (rng.standard_normal((5, 4)),)


def _tables(ops: Any, rng: Any) -> Iterator[Op]:
    """Yield the embedding with positions, the choice of rows, and means."""
    tokens, positions = np.array([3, 0, 3, 2]), np.array([0, 1, 2, 0])

    def forward(table: Array, places: Array) -> Array:
        return _call(TWINS.embedding_forward, tokens, positions, table, places, Out((4, 3)))[0]

    def backward(d: Array, table: Array, places: Array) -> list[Array]:
        pairs = (tokens, table), (positions, places)
        return [_call(ops.embedding_backward, i, d, Out(t.shape, 0.0))[0] for i, t in pairs]

    inputs = rng.standard_normal((4, 3)), rng.standard_normal((3, 3))
    yield "embedding", forward, backward, inputs
    offsets, rows, x = offsets_of([1, 3, 2]), np.array([5, 0, 3]), rng.standard_normal((6, 2))
    yield (
        "rows",
        lambda x: _call(TWINS.gather_rows, x, rows, Out((3, 2)))[0],
        lambda d, x: _call(ops.scatter_rows, d, rows, Out(x.shape, 0.0)),
        (x,),
    )
    yield (
        "mean",
        lambda x: _call(TWINS.mean_forward, x, offsets, Out((3, 2)))[0],
        lambda d, x: _call(ops.mean_backward, d, offsets, Out(x.shape)),
        (x,),
    )


def _attention(ops: Any, rng: Any) -> Iterator[Op]:
    """Yield attention, causal or not, with as many queries as keys or fewer."""
    for causal in (False, True):
        for queries, keys, slopes in (
            ([3, 1, 2], [3, 1, 2], EMPTY),
            ([1, 2], [3, 4], EMPTY),
            ([1, 3], [4, 3], np.array([0.5, 0.0625])),
        ):
            places = np.arange(sum(queries)) % 4, slopes
            offsets = offsets_of(queries), offsets_of(keys), *places, causal, 3**-0.5

            def forward(q: Array, k: Array, v: Array, shared: Any = offsets) -> list[Array]:
                outs = Out(q.shape), Out((len(q), 2)), Out((len(q), 2))
                return _call(TWINS.attention_forward, q, k, v, *shared, *outs)

            def backward(d: Array, q: Array, k: Array, v: Array, shared: Any = offsets,
                         forward: Any = forward) -> list[Array]:  # fmt: skip
                outs = Out(q.shape), Out(k.shape), Out(v.shape)
                saved = d, q, k, v, *forward(q, k, v)
                return _call(ops.attention_backward, *saved, *shared, *outs)

            q = rng.standard_normal((sum(queries), 6))
            inputs = q, *rng.standard_normal((2, sum(keys), 6))
            yield (
                f"attention {causal} {keys} {slopes}",
                lambda *a, f=forward: f(*a)[0],
                backward,
                inputs,
            )


def _turns(ops: Any, rng: Any) -> Iterator[Op]:
    """Yield rotary positions of queries and of keys."""
    positions, tables = (np.array([3, 0, 1]), np.array([2, 4])), rotary_tables(5, 4)

    def turn(op: Any, q: Array, k: Array) -> list[Array]:
        return _call(op, Out(q.shape, q), Out(k.shape, k), *positions, *tables)

    q, k = rng.standard_normal((3, 8)), rng.standard_normal((2, 8))
    for name, which in (("queries", 0), ("keys", 1)):

        def forward(q: Array, k: Array, which: int = which) -> Array:
            return turn(TWINS.rotary_forward, q, k)[which]

        def backward(d: Array, q: Array, k: Array, which: int = which) -> list[Array]:
            given = np.zeros_like(q), np.zeros_like(k)
            given[which][...] = d
            return turn(ops.rotary_backward, *given)

        yield f"rotary {name}", forward, backward, (q, k)


FAMILIES = (_elementwise, _losses, _norms, _products, _tables, _attention, _turns)


def of_ops(ops: SimpleNamespace, seed: int) -> Iterator[Pair]:
    """Yield each input's Jacobian: the gradient's, and that of differences."""
    for family in FAMILIES:
        for name, forward, backward, inputs in family(ops, np.random.default_rng((3, seed))):
            shape = forward(*inputs).shape
            directions = np.eye(int(np.prod(shape))).reshape(-1, *shape)
            rows = [backward(dout, *inputs) for dout in directions]
            for which in range(len(inputs)):
                found = np.stack([np.ravel(gradients[which]) for gradients in rows])
                label = f"{name} by input {which}, {ops.name}"
                yield label, found, jacobian(forward, inputs, which)


Spoil = Callable[[Any], None]
MODELS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("encoder", {}),
    (
        "encoder",
        {"activation": "gelu", "pooling": "mean", "qkv_bias": True, "attention_output_bias": True},
    ),
    ("encoder", {"norm": "pre", "activation": "gelu", "pooling": "last", "positions": "learned"}),
    ("encoder", {"norm": "pre", "activation": "gelu_exact", "dropout": 0.3}),
    ("encoder", {"norm": "pre", "norm_type": "rmsnorm", "activation": "swiglu", "dropout": 0.2}),
    ("decoder", {}),
    ("decoder", {"norm_type": "rmsnorm", "activation": "mish"}),
    ("decoder", {"norm_type": "rmsnorm", "activation": "geglu"}),
    ("decoder", {"tied_embeddings": False, "qkv_bias": True, "attention_output_bias": True}),
    ("decoder", {"dropout": 0.3}),
    ("decoder", {"norm": "post", "positions": "sinusoidal", "dropout": 0.2}),
    ("encoder", {"positions": "rotary"}),
    ("decoder", {"positions": "rotary", "tied_embeddings": False}),
    ("encoder", {"positions": "alibi", "pooling": "last"}),
    ("encoder", {"pooling": "none", "num_classes": 4}),
    ("decoder", {"positions": "alibi"}),
)


def of_models(
    backend: str, seed: int, spoil: Callable[[Any], None] | None = None
) -> Iterator[Pair]:
    """Yield each parameter tensor's slope along a direction: by the gradient, by differences.

    The loss is cross-entropy, and every third target is ignored. `spoil` plants a fault in the
    gradients.
    """
    for kind, options in MODELS:
        model = make_model(kind, backend=backend, seed=seed, **options).train()
        batch, loss_fn = make_batch(seed=seed), ff.CrossEntropyLoss(backend=backend)
        rows, classes = model.rows_of(batch), model.config.num_logits
        targets = np.random.default_rng(seed).integers(0, classes, rows)
        targets[1::3] = -1

        def loss(model: Any = model, batch: Any = batch, fn: Any = loss_fn, ids: Any = targets
                 ) -> float:  # fmt: skip
            model.dropout_counter.forwards = 5
            return fn.forward(model.forward(batch), ids)

        loss()
        model.zero_grad()
        model.backward(loss_fn.backward())
        if spoil:
            spoil(model)
        for name, value, gradient in model.parameters():
            direction = np.random.default_rng((6, seed)).standard_normal(value.shape)
            direction /= np.linalg.norm(direction)
            found, expected = np.vdot(gradient, direction), slope(loss, value, direction)
            label = f"{kind} {options} {name}, {backend}"
            yield label, np.array(found), np.array(expected)


def wrong(pairs: Iterator[Pair]) -> tuple[int, list[str]]:
    """Return how many pairs there are, and a line about each that differs by too much."""
    count, lines = 0, []
    for label, found, expected in pairs:
        count += 1
        excess = np.abs(found - expected) / (ATOL + RTOL * np.abs(expected))
        if not excess.max(initial=0) <= 1:
            lines.append(f"{label}: {excess.max():.1f} times the tolerance")
    return count, lines


def _notices(pairs: Iterator[Pair]) -> bool:
    """Tell whether any pair differs by too much, and look at none after the first that does."""
    return any(wrong(iter([pair]))[1] for pair in pairs)


def _planted() -> list[bool]:
    """Tell for each planted fault whether it is noticed."""
    true = get_backend("numba")

    def scaled(factor: float) -> Callable[..., None]:
        def attention_backward(*given: Any) -> None:
            true.attention_backward(*given)
            given[14][...] *= factor

        return attention_backward

    def keeps_ignored(logits: Any, targets: Any, *rest: Any) -> None:
        true.cross_entropy_backward(logits, np.maximum(targets, 0), *rest)

    found = []
    for name, fault in (
        ("attention_backward", scaled(-1)),
        ("attention_backward", scaled(1 + 1e-5)),
        ("cross_entropy_backward", keeps_ignored),
    ):
        ops = SimpleNamespace(**{**vars(true), name: fault})
        found.append(_notices(of_ops(ops, 0)))

    def drops_tied(model: Any) -> None:
        weight = model.embedding.weight
        weight.gradient[...] *= 1 + 1e-5

    found.append(_notices(of_models("numba", 0, drops_tied)))
    return found


def measure(tier: Tier, seeds: int | None = None) -> Finding:
    """Compare gradients on both backends, for some seeds."""
    cases, failures = 0, []
    for seed in range(seeds or (2 if tier == "fast" else 50)):
        for backend in BACKENDS:
            for pairs in (of_ops(get_backend(backend), seed), of_models(backend, seed)):
                count, lines = wrong(pairs)
                cases, failures = cases + count, failures + lines
    planted = _planted()
    held = cases - len(failures)
    return Finding(held, cases, sum(planted), len(planted), failures=tuple(failures[:10]))


ROW = Row(
    "A3",
    "gradients are right: every input of every op, every parameter tensor of both models",
    "rtol 1e-6, atol 1e-9",
    measure,
)
