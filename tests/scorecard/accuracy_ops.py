"""The ops whose accuracy is measured: for each its shapes, its inputs, and how kernels compute it.

A family is what belongs together: forward, and from what that saved each gradient. Its `compute`
takes a backend's ops and float arrays of any dtype, so the NumPy twins in float64 say what is true.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastformer.kernels.activation import EXACT_GELU, GELU, MISH, NO_ACTIVATION, RELU, SILU, SLOPED
from tests.scorecard.accuracy_inputs import (
    LOGIT_SCALES,
    SCORE_SCALES,
    Array,
    Draw,
    Family,
    Inputs,
    Random,
)


def _size(random: Random, most: int, least: int = 1) -> int:
    """Return a size, all powers of two equally likely, so mostly an odd one."""
    return int(least * (most / least) ** random.random() + 0.5)


def _empty(like: Array, *shape: int) -> Array:
    return np.full(shape, np.nan, like.dtype)


def _nothing(like: Array) -> Array:
    return np.zeros((0, 0), like.dtype)


# ---- products ----


def _linear_shape(random: Random) -> tuple[int, ...]:
    return _size(random, 700), _size(random, 700), _size(random, 300)


def _linear_inputs(draw: Draw, random: Random, M: int, K: int, N: int) -> Inputs:
    return {"x": draw(M, K), "weight": draw(K, N), "bias": draw(N), "dout": draw(M, N)}


def _grouped_inputs(draw: Draw, random: Random, M: int, K: int, N: int) -> Inputs:
    shapes = {"x": (M, K), "weight": (3, K, N), "bias": (3 * N,), "dout": (3 * M, N)}
    return {name: draw(*shape) for name, shape in shapes.items()}


def _products(
    ops: SimpleNamespace, x: Array, weight: Array, bias: Array, dout: Array, at_once: bool
) -> Any:
    """Return the linear layer of G weights (G, K, N), and its gradients, in one call or in two."""
    groups, K, N = weight.shape
    out, dx = _empty(x, groups * len(x), N), _empty(x, *x.shape)
    dweight, dbias, nothing = np.zeros_like(weight), np.zeros_like(bias), _nothing(x)
    ops.matmul(x, weight, bias, nothing, NO_ACTIVATION, nothing, out)
    if at_once:
        ops.matmul_backward(x, weight, dout, nothing, nothing, NO_ACTIVATION, dx, dweight, dbias)
    else:
        ops.matmul_nt(dout, weight, nothing, nothing, NO_ACTIVATION, dx)
        ops.matmul_tn(x, dout, dbias, dweight)
    return {"out": out, "dx": dx, "dweight": dweight, "dbias": dbias}


def _linear(ops: SimpleNamespace, a: Inputs) -> dict[str, Array]:
    found = _products(ops, a["x"], a["weight"][None], a["bias"], a["dout"], at_once=False)
    return found | {"dweight": found["dweight"][0]}


def _grouped(ops: SimpleNamespace, a: Inputs) -> dict[str, Array]:
    return _products(ops, a["x"], a["weight"], a["bias"], a["dout"], at_once=True)


def _hidden_inputs(draw: Draw, random: Random, M: int, K: int, N: int) -> Inputs:
    scale = {"scales": SCORE_SCALES}
    return {
        "x": draw(M, K, **scale),
        "weight": draw(K, N, **scale) / np.float32(K**0.5),
        "bias": draw(N, **scale),
        "addend": draw(M, N, **scale),
        "dout": draw(M, K),
        "saved": draw(M, N, **scale),
    }


def _hidden(ops: SimpleNamespace, a: Inputs) -> dict[str, Array]:
    """Return the feed-forward layer's inner half, for each activation."""
    weight, nothing, found = a["weight"][None], _nothing(a["x"]), {}
    back = np.ascontiguousarray(weight.transpose(0, 2, 1))
    codes = {"relu": RELU, "gelu": GELU, "gelu_exact": EXACT_GELU, "mish": MISH}
    for name, code in codes.items():
        out, dx, inner = (_empty(a["x"], *a["addend"].shape) for _ in range(3))
        ops.matmul(a["x"], weight, a["bias"], a["addend"], code, inner, out)
        saved = a["saved"]
        if code in SLOPED:
            saved = _empty(saved, *saved.shape)
            ops.activation_backward(np.ones_like(saved), a["saved"], code, saved)
        ops.matmul_nt(a["dout"], back, saved, nothing, code, dx)
        found |= {name: out, f"d{name}": dx}
    return found


# ---- attention ----


def _attention_shape(random: Random) -> tuple[int, ...]:
    B, T = _size(random, 4), _size(random, 500)
    return B, T, _size(random, 4), _size(random, 80)


def _attention_inputs(draw: Draw, random: Random, B: int, T: int, H: int, D: int) -> Inputs:
    lengths = random.integers(max(1, T // 2), T + 1, B)
    N, scales = int(lengths.sum()), {"scales": SCORE_SCALES}
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return {
        "q": draw(N, H * D, **scales), "k": draw(N, H * D, **scales), "v": draw(N, H * D),
        "dout": draw(N, H * D), "query_offsets": offsets, "key_offsets": offsets, "heads": H,
    }  # fmt: skip


def _one_row_inputs(draw: Draw, random: Random, B: int, T: int, H: int, D: int) -> Inputs:
    made = _attention_inputs(draw, random, B, T, H, D)
    q, dout = draw(B, H * D, scales=SCORE_SCALES), draw(B, H * D)
    return made | {"q": q, "dout": dout, "query_offsets": np.arange(B + 1)}


def _attention(causal: bool) -> Callable[[SimpleNamespace, Inputs], dict[str, Array]]:
    def compute(ops: SimpleNamespace, a: Inputs) -> dict[str, Array]:
        q, k, v, H = a["q"], a["k"], a["v"], a["heads"]
        offsets = (a["query_offsets"], a["key_offsets"])
        places = (a.get("positions", np.zeros(0, np.int64)), a.get("slopes", _empty(q, 0)))
        scale = (q.shape[1] // H) ** -0.5
        out, largest, total = _empty(q, *q.shape), _empty(q, len(q), H), _empty(q, len(q), H)
        dq, dk, dv = (_empty(q, *x.shape) for x in (q, k, v))
        longest = [int(np.diff(o).max()) for o in offsets]
        weights = _empty(q, offsets[0].size - 1, H, *longest)
        shared = (*offsets, *places, causal, scale)
        ops.attention_forward(q, k, v, *shared, out, largest, total)
        ops.attention_backward(a["dout"], q, k, v, out, largest, total, *shared, dq, dk, dv)
        ops.attention_weights(q, k, *shared, weights)
        return {"out": out, "dq": dq, "dk": dk, "dv": dv, "weights": weights}

    return compute


# ---- rows ----


def _rows_shape(random: Random) -> tuple[int, ...]:
    return _size(random, 3000), _size(random, 1500)


def _layernorm_inputs(draw: Draw, random: Random, N: int, C: int) -> Inputs:
    shapes = {"x": (N, C), "weight": (C,), "bias": (C,), "dout": (N, C)}
    return {name: draw(*shape) for name, shape in shapes.items()} | {"epsilon": 1e-5}


def _layernorm(ops: SimpleNamespace, a: Inputs) -> dict[str, Array]:
    x, weight = a["x"], a["weight"]
    out, dx = _empty(x, *x.shape), _empty(x, *x.shape)
    mean, rstd = _empty(x, len(x)), _empty(x, len(x))
    dweight, dbias = np.zeros_like(weight), np.zeros_like(weight)
    ops.layernorm_forward(x, weight, a["bias"], a["epsilon"], out, mean, rstd)
    ops.layernorm_backward(a["dout"], x, weight, mean, rstd, _nothing(x), dx, dweight, dbias)
    return {"out": out, "dx": dx, "dweight": dweight, "dbias": dbias}


def _rmsnorm(ops: SimpleNamespace, a: Inputs) -> dict[str, Array]:
    x, weight = a["x"], a["weight"]
    out, dx, rrms = _empty(x, *x.shape), _empty(x, *x.shape), _empty(x, len(x))
    dweight = np.zeros_like(weight)
    ops.rmsnorm_forward(x, weight, a["epsilon"], out, rrms)
    ops.rmsnorm_backward(a["dout"], x, weight, rrms, _nothing(x), dx, dweight)
    return {"out": out, "dx": dx, "dweight": dweight}


def _gated_inputs(draw: Draw, random: Random, N: int, C: int) -> Inputs:
    return {"gate": draw(N, C, scales=SCORE_SCALES), "x": draw(N, C), "dout": draw(N, C)}


def _gated(ops: SimpleNamespace, a: Inputs) -> dict[str, Array]:
    """Return the results of SwiGLU, and those of GEGLU."""
    found = {}
    for code, ending in ((SILU, ""), (GELU, ", geglu")):
        out, dgate, dx = (_empty(a["x"], *a["x"].shape) for _ in range(3))
        ops.gated_forward(a["gate"], a["x"], code, out)
        ops.gated_backward(a["dout"], a["gate"], a["x"], code, dgate, dx)
        found |= {f"out{ending}": out, f"dgate{ending}": dgate, f"dx{ending}": dx}
    return found


def _activation_inputs(draw: Draw, random: Random, N: int, C: int) -> Inputs:
    return {"x": draw(N, C, scales=SCORE_SCALES), "dout": draw(N, C)}


def _activation(code: int) -> Callable[[SimpleNamespace, Inputs], dict[str, Array]]:
    def compute(ops: SimpleNamespace, a: Inputs) -> dict[str, Array]:
        out, dx = _empty(a["x"], *a["x"].shape), _empty(a["x"], *a["x"].shape)
        ops.activation_forward(a["x"], code, out)
        ops.activation_backward(a["dout"], a["x"], code, dx)
        return {"out": out, "dx": dx}

    return compute


def _logits_shape(random: Random) -> tuple[int, ...]:
    V = _size(random, 50_000)
    return _size(random, max(1, 400_000 // V), 1) if V > 200 else _size(random, 2000), V


def _softmax_inputs(draw: Draw, random: Random, N: int, V: int) -> Inputs:
    return {"x": draw(N, V, scales=LOGIT_SCALES), "dout": draw(N, V)}


def _softmax(ops: SimpleNamespace, a: Inputs) -> dict[str, Array]:
    out, dx = _empty(a["x"], *a["x"].shape), _empty(a["x"], *a["x"].shape)
    ops.softmax_forward(a["x"], out)
    ops.softmax_backward(a["dout"], out, dx)
    return {"out": out, "dx": dx}


def _cross_entropy_inputs(draw: Draw, random: Random, N: int, V: int) -> Inputs:
    targets = random.integers(0, V, N)
    targets[random.random(N) < 0.1] = -1
    return {"logits": draw(N, V, scales=LOGIT_SCALES), "targets": targets}


def _smoothed_inputs(draw: Draw, random: Random, N: int, V: int) -> Inputs:
    return _cross_entropy_inputs(draw, random, N, V) | {"smoothing": 0.1}


def _cross_entropy(ops: SimpleNamespace, a: Inputs) -> dict[str, Array]:
    logits, targets, smoothing = a["logits"], a["targets"], a.get("smoothing", 0.0)
    losses, largest, total = (_empty(logits, len(logits)) for _ in range(3))
    dlogits, scale = _empty(logits, *logits.shape), 1 / max(1, int((targets >= 0).sum()))
    ops.cross_entropy_forward(logits, targets, smoothing, losses, largest, total)
    ops.cross_entropy_backward(logits, targets, largest, total, smoothing, scale, dlogits)
    return {"losses": losses, "dlogits": dlogits}


def _embedding_shape(random: Random) -> tuple[int, ...]:
    return _size(random, 3000), _size(random, 300), _size(random, 60), _size(random, 300)


def _embedding_inputs(draw: Draw, random: Random, N: int, V: int, T: int, C: int) -> Inputs:
    ids = {"tokens": random.integers(0, V, N), "positions": random.integers(0, T, N)}
    return ids | {"table": draw(V, C), "position_table": draw(T, C), "dout": draw(N, C)}


def _embedding(ops: SimpleNamespace, a: Inputs) -> dict[str, Array]:
    out = _empty(a["dout"], *a["dout"].shape)
    dtable = np.zeros_like(a["table"])
    ops.embedding_forward(a["tokens"], a["positions"], a["table"], a["position_table"], out)
    ops.embedding_backward(a["tokens"], a["dout"], dtable)
    return {"out": out, "dtable": dtable}


def _sequences_shape(random: Random) -> tuple[int, ...]:
    return _size(random, 30), _size(random, 1000), _size(random, 300)


def _pooling_inputs(draw: Draw, random: Random, B: int, T: int, C: int) -> Inputs:
    offsets = np.concatenate([[0], np.cumsum(random.integers(max(1, T // 2), T + 1, B))])
    shape = (int(offsets[-1]), C)
    return {"x": draw(*shape), "dx": draw(*shape), "dout": draw(B, C), "offsets": offsets}


def _pooling(ops: SimpleNamespace, a: Inputs) -> dict[str, Array]:
    x, dout, rows = a["x"], a["dout"], a["offsets"][1:] - 1
    mean, dmean = _empty(x, *dout.shape), _empty(x, *x.shape)
    gathered, scattered = _empty(x, *dout.shape), a["dx"].copy()
    ops.mean_forward(x, a["offsets"], mean)
    ops.mean_backward(dout, a["offsets"], dmean)
    ops.gather_rows(x, rows, gathered)
    ops.scatter_rows(dout, rows, scattered)
    return {"mean": mean, "dmean": dmean, "gathered": gathered, "scattered": scattered}


# ---- flat arrays ----


def _flat_shape(random: Random) -> tuple[int, ...]:
    return (_size(random, 200_000, 10),)


def _optimizer_inputs(draw: Draw, random: Random, P: int) -> Inputs:
    exp_avg = draw(P) / np.float32(10)
    step = _size(random, 5000)
    return {
        "parameters": draw(P), "gradients": draw(P), "exp_avg": exp_avg,
        # No second moment is less than the square of the first.
        "exp_avg_sq": exp_avg * exp_avg + draw(P) ** 2 + np.float32(1e-16),
        "lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.01,
        "step": step, "momentum": 0.9, "factor": 0.37,
    }  # fmt: skip


def _optimizers(ops: SimpleNamespace, a: Inputs) -> dict[str, Array]:
    p, m, v = (a[name].copy() for name in ("parameters", "exp_avg", "exp_avg_sq"))
    settings = [a[name] for name in ("lr", "beta1", "beta2", "epsilon", "weight_decay")]
    ops.adam_step(p, a["gradients"], m, v, p[:0], *settings, 0.0, a["step"])
    moved, velocity, scaled = a["parameters"].copy(), a["exp_avg"].copy(), a["gradients"].copy()
    ops.sgd_step(moved, a["gradients"], velocity, a["lr"], a["momentum"], False, 0.0)
    ops.scale_gradient(scaled, a["factor"])
    ops.add_gradient(scaled, a["parameters"])
    return {
        "adam": p, "exp_avg": m, "exp_avg_sq": v, "sgd": moved, "velocity": velocity,
        "scaled": scaled, "norm": np.array([ops.gradient_norm(a["gradients"])]),
    }  # fmt: skip


def _dropout_inputs(draw: Draw, random: Random, N: int, C: int) -> Inputs:
    rate, seed = float(random.uniform(0.05, 0.6)), int(random.integers(1 << 40))
    arrays = {name: draw(N, C) for name in ("x", "residual", "dout")}
    return arrays | {"rate": rate, "seed": seed}


def _dropout(ops: SimpleNamespace, a: Inputs) -> dict[str, Array]:
    out, dx = _empty(a["x"], *a["x"].shape), _empty(a["x"], *a["x"].shape)
    ops.dropout_forward(a["x"], a["residual"], a["rate"], a["seed"], 3, out)
    ops.dropout_backward(a["dout"], a["rate"], a["seed"], 3, dx)
    return {"out": out, "dx": dx}


FAMILIES = (
    Family("linear", _linear_shape, _linear_inputs, _linear),
    Family("linear, grouped", _linear_shape, _grouped_inputs, _grouped),
    Family("linear, activated", _linear_shape, _hidden_inputs, _hidden),
    Family("attention", _attention_shape, _attention_inputs, _attention(causal=False)),
    Family("attention, causal", _attention_shape, _attention_inputs, _attention(causal=True)),
    Family("attention, one row", _attention_shape, _one_row_inputs, _attention(causal=False)),
    Family("layernorm", _rows_shape, _layernorm_inputs, _layernorm),
    Family("rmsnorm", _rows_shape, _layernorm_inputs, _rmsnorm),
    Family("relu", _rows_shape, _activation_inputs, _activation(RELU)),
    Family("gelu", _rows_shape, _activation_inputs, _activation(GELU)),
    Family("mish", _rows_shape, _activation_inputs, _activation(MISH)),
    Family("gated", _rows_shape, _gated_inputs, _gated),
    Family("softmax", _logits_shape, _softmax_inputs, _softmax),
    Family("cross entropy", _logits_shape, _cross_entropy_inputs, _cross_entropy),
    Family("cross entropy, smoothed", _logits_shape, _smoothed_inputs, _cross_entropy),
    Family("embedding", _embedding_shape, _embedding_inputs, _embedding),
    Family("pooling", _sequences_shape, _pooling_inputs, _pooling),
    Family("optimizers", _flat_shape, _optimizer_inputs, _optimizers),
    Family("dropout", _rows_shape, _dropout_inputs, _dropout),
)
