"""Calls of every public kernel on random arguments of odd sizes, for the rows on memory and races.

An argument is a float64 array (given in the dtype of the case), an array of ids, a scalar as the
layers give it, or an `Out`, which the kernel writes.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from twins import Out

from fastformer.kernels.activation import EXACT_GELU, GELU, MISH, NO_ACTIVATION, RELU, SILU, SLOPED
from fastformer.kernels.attention import attention_forward_reference

# Around the lanes of a register of either dtype, its double, and the heights of tiles.
SIZES = (1, 2, 3, 5, 7, 8, 9, 13, 15, 16, 17, 25, 31, 32, 33, 47)
NONE, EMPTY = np.empty((0, 0)), np.empty(0)

Random = np.random.Generator
Arguments = tuple[Any, ...]


def _size(rng: Random) -> int:
    return int(rng.choice(SIZES))


def _rows(rng: Random) -> int:
    """Return a number of rows, in one of ten cases none."""
    return 0 if rng.random() < 0.1 else _size(rng)


def _real(rng: Random, *shape: int) -> Any:
    return rng.standard_normal(shape)


def _lengths(rng: Random) -> Any:
    return rng.integers(1, 12, int(rng.integers(0, 5)))


def offsets_of(lengths: Any) -> Any:
    """Return where sequences of such lengths begin, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _activation_forward(rng: Random) -> Arguments:
    x = _real(rng, _rows(rng), _size(rng))
    return x, int(rng.choice([RELU, GELU, MISH, EXACT_GELU])), Out(x.shape)


def _activation_backward(rng: Random) -> Arguments:
    x = _real(rng, _rows(rng), _size(rng))
    return _real(rng, *x.shape), x, int(rng.choice([RELU, GELU, MISH, EXACT_GELU])), Out(x.shape)


def _adam_step(rng: Random) -> Arguments:
    size = (_rows(rng) * _size(rng),)
    state = Out(size, _real(rng, *size)), _real(rng, *size), Out(size, _real(rng, *size))
    squares = Out(size, np.abs(_real(rng, *size)))
    largest, penalty = (squares, 0.1) if rng.integers(2) else (EMPTY, 0.0)
    return *state, squares, largest, 1e-3, 0.9, 0.999, 1e-8, 0.01, penalty, 3


def _sgd_step(rng: Random) -> Arguments:
    size = (_rows(rng) * _size(rng),)
    state = Out(size, _real(rng, *size)), _real(rng, *size), Out(size, _real(rng, *size))
    return *state, 0.1, 0.9, bool(rng.integers(2)), float(rng.choice([0.0, 0.1]))


def _average_step(rng: Random) -> Arguments:
    size = (_rows(rng) * _size(rng),)
    return Out(size, _real(rng, *size)), _real(rng, *size), 0.9


def _attention(rng: Random) -> dict[str, Any]:
    """Return queries, keys, values and what goes with them, by name."""
    causal, heads, width = bool(rng.integers(2)), int(rng.integers(1, 4)), _size(rng)
    keys = _lengths(rng)
    queries = rng.integers(1, keys + 1) if len(keys) else keys
    q = _real(rng, int(queries.sum()), heads * width)
    k, v = _real(rng, 2, int(keys.sum()), heads * width)
    places = rng.integers(0, 12, len(q)), np.abs(_real(rng, heads)) if rng.integers(2) else EMPTY
    shared = (offsets_of(queries), offsets_of(keys), *places, causal, width**-0.5)
    saved = np.empty((2, len(q), heads))
    attention_forward_reference(q, k, v, *shared, np.empty_like(q), *saved)
    shape = (len(keys), heads, int(max(queries, default=0)), int(max(keys, default=0)))
    return {"q": q, "k": k, "v": v, "shared": shared, "saved": saved, "weights": shape}


def _attention_forward(rng: Random) -> Arguments:
    a = _attention(rng)
    outs = Out(a["q"].shape), *(Out(x.shape) for x in a["saved"])
    return a["q"], a["k"], a["v"], *a["shared"], *outs


def _attention_backward(rng: Random) -> Arguments:
    a = _attention(rng)
    q, k, v = a["q"], a["k"], a["v"]
    saved = _real(rng, *q.shape), q, k, v, _real(rng, *q.shape), *a["saved"]
    return *saved, *a["shared"], Out(q.shape), Out(k.shape), Out(v.shape)


def _attention_weights(rng: Random) -> Arguments:
    a = _attention(rng)
    return a["q"], a["k"], *a["shared"], Out(a["weights"])


def _logits(rng: Random) -> Any:
    logits = _real(rng, _rows(rng), _size(rng))
    return logits, rng.integers(-1, logits.shape[1], len(logits))


def _class_weights(rng: Random, logits: Any) -> Any:
    return np.abs(_real(rng, logits.shape[1])) if rng.integers(2) else EMPTY


def _cross_entropy_forward(rng: Random) -> Arguments:
    logits, targets = _logits(rng)
    rows = Out(targets.shape)
    smoothing = float(rng.choice([0.0, 0.1]))
    return logits, targets, smoothing, rows, rows, rows, _class_weights(rng, logits)


def _cross_entropy_backward(rng: Random) -> Arguments:
    logits, targets = _logits(rng)
    largest, total = logits.max(axis=1), 1 + np.abs(_real(rng, len(logits)))
    smoothing, weights = float(rng.choice([0.0, 0.1])), _class_weights(rng, logits)
    return logits, targets, largest, total, smoothing, 0.25, Out(logits.shape), weights


def _dropout_forward(rng: Random) -> Arguments:
    x = _real(rng, _rows(rng), _size(rng))
    residual = _real(rng, *x.shape) if rng.integers(2) else NONE
    return x, residual, 0.3, np.uint64(rng.integers(2**63)), np.uint64(7), Out(x.shape)


def _dropout_backward(rng: Random) -> Arguments:
    dout = _real(rng, _rows(rng), _size(rng))
    return dout, 0.3, np.uint64(rng.integers(2**63)), np.uint64(7), Out(dout.shape)


def _embedding_forward(rng: Random) -> Arguments:
    N, V, C, T = _rows(rng), _size(rng), _size(rng), int(rng.choice([0, 5]))
    tokens, positions = rng.integers(0, V, N), rng.integers(0, max(T, 1), N)
    return tokens, positions, _real(rng, V, C), _real(rng, T, C), Out((N, C))


def _embedding_backward(rng: Random) -> Arguments:
    N, V, C = _rows(rng), _size(rng), _size(rng)
    return rng.integers(0, V, N), _real(rng, N, C), Out((V, C), _real(rng, V, C))


def _gradient_norm(rng: Random) -> Arguments:
    return (_real(rng, _rows(rng) * _size(rng)),)


def _may_step(rng: Random) -> Arguments:
    (gradients,) = _gradient_norm(rng)
    size = gradients.size
    second = _real(rng, size) if rng.integers(2) else EMPTY
    return _real(rng, size), gradients, _real(rng, size), second


def _scale_gradient(rng: Random) -> Arguments:
    (gradients,) = _gradient_norm(rng)
    return Out(gradients.shape, gradients), 0.37


def _add_gradient(rng: Random) -> Arguments:
    (gradients,) = _gradient_norm(rng)
    return Out(gradients.shape, gradients), gradients[::-1].copy()


def _zero_gradient(rng: Random) -> Arguments:
    return _scale_gradient(rng)[:1]


def _layernorm_forward(rng: Random) -> Arguments:
    N, C = _rows(rng), _size(rng)
    return (
        *(_real(rng, N, C), _real(rng, C), _real(rng, C), 1e-5),
        *(Out((N, C)), Out((N,)), Out((N,))),
    )


def _layernorm_backward(rng: Random) -> Arguments:
    N, C = _rows(rng), _size(rng)
    residual = _real(rng, N, C) if rng.integers(2) else NONE
    saved = _real(rng, N, C), _real(rng, N, C), _real(rng, C), _real(rng, N), _real(rng, N)
    parameters = Out((C,), _real(rng, C)), Out((C,), _real(rng, C))
    return *saved, residual, Out((N, C)), *parameters


def _rmsnorm_forward(rng: Random) -> Arguments:
    N, C = _rows(rng), _size(rng)
    return _real(rng, N, C), _real(rng, C), 1e-5, Out((N, C)), Out((N,))


def _rmsnorm_backward(rng: Random) -> Arguments:
    N, C = _rows(rng), _size(rng)
    residual = _real(rng, N, C) if rng.integers(2) else NONE
    saved = _real(rng, N, C), _real(rng, N, C), _real(rng, C), _real(rng, N)
    return *saved, residual, Out((N, C)), Out((C,), _real(rng, C))


def _gated_forward(rng: Random) -> Arguments:
    gate = _real(rng, _rows(rng), _size(rng))
    return gate, _real(rng, *gate.shape), int(rng.choice([SILU, GELU, EXACT_GELU])), Out(gate.shape)


def _gated_backward(rng: Random) -> Arguments:
    dout = _real(rng, _rows(rng), _size(rng))
    inputs = _real(rng, *dout.shape), _real(rng, *dout.shape)
    activation = int(rng.choice([SILU, GELU, EXACT_GELU]))
    return dout, *inputs, activation, Out(dout.shape), Out(dout.shape)


def _matmul(rng: Random) -> Arguments:
    G, M, K, N = int(rng.integers(1, 4)), _rows(rng), _size(rng), _size(rng)
    activation = int(rng.choice([NO_ACTIVATION, RELU, GELU, MISH, EXACT_GELU]))
    a = _real(rng, M if rng.integers(2) else G * M, K)
    bias = _real(rng, G * N) if rng.integers(2) else EMPTY
    addend = _real(rng, G * M, N) if rng.integers(2) else NONE
    slope = Out((G * M, N) if activation in SLOPED else (0, 0))
    return a, _real(rng, G, K, N), bias, addend, activation, slope, Out((G * M, N))


def _matmul_nt(rng: Random) -> Arguments:
    G, M, K, N = int(rng.integers(1, 4)), _rows(rng), _size(rng), _size(rng)
    activation = int(rng.choice([NO_ACTIVATION, RELU, GELU, MISH, EXACT_GELU]))
    shape = (M if rng.integers(2) else G * M, N)
    saved = _real(rng, *shape) if activation != NO_ACTIVATION else NONE
    addend = _real(rng, *shape) if rng.integers(2) else NONE
    return _real(rng, G * M, K), _real(rng, G, N, K), saved, addend, activation, Out(shape)


def _matmul_backward(rng: Random) -> Arguments:
    dout, b, saved, addend, activation, da = _matmul_nt(rng)
    groups, N, K = b.shape
    sums = Out((groups * K,), _real(rng, groups * K)) if rng.integers(2) else Out((0,))
    a, db = _real(rng, *da.shape), Out(b.shape, _real(rng, *b.shape))
    return a, b, dout, saved, addend, activation, da, db, sums


def _matmul_tn(rng: Random) -> Arguments:
    G, M, K, N = int(rng.integers(1, 4)), _rows(rng), _size(rng), _size(rng)
    a = _real(rng, M if rng.integers(2) else G * M, K)
    sums = Out((G * N,), _real(rng, G * N)) if rng.integers(2) else Out((0,))
    return a, _real(rng, G * M, N), sums, Out((G, K, N), _real(rng, G, K, N))


def _matmul_bfloat16(rng: Random) -> Arguments:
    return _matmul(rng)


def _matmul_nt_bfloat16(rng: Random) -> Arguments:
    return _matmul_nt(rng)


def _matmul_backward_bfloat16(rng: Random) -> Arguments:
    return _matmul_backward(rng)


def _matmul_tn_bfloat16(rng: Random) -> Arguments:
    return _matmul_tn(rng)


def _gather_rows(rng: Random) -> Arguments:
    N, B, C = _size(rng), _rows(rng), _size(rng)
    return _real(rng, N, C), rng.integers(0, N, B), Out((B, C))


def _scatter_rows(rng: Random) -> Arguments:
    N, C = _size(rng), _size(rng)
    rows = rng.permutation(N)[: int(rng.integers(0, N + 1))]
    return _real(rng, len(rows), C), rows, Out((N, C), _real(rng, N, C))


def _mean_forward(rng: Random) -> Arguments:
    offsets, C = offsets_of(_lengths(rng)), _size(rng)
    return _real(rng, int(offsets[-1]), C), offsets, Out((offsets.size - 1, C))


def _mean_backward(rng: Random) -> Arguments:
    offsets, C = offsets_of(_lengths(rng)), _size(rng)
    return _real(rng, offsets.size - 1, C), offsets, Out((int(offsets[-1]), C))


def _rotary_forward(rng: Random) -> Arguments:
    heads, half, longest = int(rng.integers(1, 4)), _size(rng), _size(rng)
    q, k = (_real(rng, _rows(rng), heads * 2 * half) for _ in range(2))
    positions = (rng.integers(0, longest, len(x)) for x in (q, k))
    return (*(Out(x.shape, x) for x in (q, k)), *positions, *_real(rng, 2, longest, half))


def _rotary_backward(rng: Random) -> Arguments:
    return _rotary_forward(rng)


def _softmax_forward(rng: Random) -> Arguments:
    x = _real(rng, _rows(rng), _size(rng))
    return x, Out(x.shape)


def _softmax_backward(rng: Random) -> Arguments:
    x = _real(rng, _rows(rng), _size(rng))
    return x, np.abs(_real(rng, *x.shape)) / x.shape[1], Out(x.shape)


DRAWS: dict[str, Callable[[Random], Arguments]] = {
    name.removeprefix("_"): draw
    for name, draw in list(globals().items())
    if getattr(draw, "__annotations__", {}).get("return") is Arguments
}


def takes(name: str, dtype: Any) -> bool:
    """Tell whether a kernel takes a dtype: what rounds to bfloat16 takes float32 alone."""
    return dtype is np.float32 or not name.endswith("_bfloat16")
