"""Cases of the ops that go over rows or flat arrays: most are bound by memory."""

from typing import Any

import numpy as np

from fastformer.bench.spec import Arguments, Output, Shape, Sizes, Spec, normal
from fastformer.kernels.activation import EXACT_GELU, GELU, MISH, RELU, SILU
from fastformer.kernels.cross_entropy import cross_entropy_forward_reference
from fastformer.kernels.layernorm import layernorm_forward_reference
from fastformer.kernels.rmsnorm import rmsnorm_forward_reference
from fastformer.kernels.softmax import softmax_forward_reference
from fastformer.layers.relative_positions import rotary_tables

Random = np.random.Generator


def _wide_rows(s: Sizes) -> list[Shape]:
    return [(s.N, s.F)]


def _rows(s: Sizes) -> list[Shape]:
    return [(s.N, s.C)]


def _logits(s: Sizes) -> list[Shape]:
    return [(s.B if s.name == "digits" else s.N, s.V)]


def _block_parameters(s: Sizes) -> list[Shape]:
    """Return the parameters of one transformer block."""
    return [(4 * s.C * s.C + 2 * s.C * s.F,)]


def _sequences(s: Sizes) -> list[Shape]:
    return [(s.B, s.T, s.C)]


def _offsets(B: int, T: int) -> Any:
    return np.arange(B + 1, dtype=np.int64) * T


def _activation(random: Random, code: int, N: int, F: int) -> Arguments:
    return {"x": normal(random, N, F), "activation": code, "out": Output((N, F))}


def _activation_gradient(random: Random, code: int, N: int, F: int) -> Arguments:
    return {
        "dout": normal(random, N, F),
        "x": normal(random, N, F),
        "activation": code,
        "dx": Output((N, F)),
    }


def _adam(random: Random, P: int) -> Arguments:
    return {
        "parameters": Output((P,), normal(random, P)),
        "gradients": normal(random, P),
        "exp_avg": Output((P,), 0.1 * normal(random, P)),
        "exp_avg_sq": Output((P,), 0.1 + normal(random, P) ** 2),
        "max_exp_avg_sq": np.empty(0),
        "lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.01,
        "penalty": 0.0, "step": 10,
    }  # fmt: skip


def _cross_entropy(random: Random, N: int, V: int) -> Arguments:
    return {
        "logits": normal(random, N, V),
        "targets": random.integers(0, V, N),
        "smoothing": 0.0,
        "losses": Output((N,)),
        "row_max": Output((N,)),
        "row_sum": Output((N,)),
    }


def _cross_entropy_gradient(random: Random, N: int, V: int) -> Arguments:
    logits, targets = normal(random, N, V), random.integers(0, V, N)
    losses, row_max, row_sum = np.empty(N), np.empty(N), np.empty(N)
    cross_entropy_forward_reference(logits, targets, 0.0, losses, row_max, row_sum)
    return {
        "logits": logits,
        "targets": targets,
        "row_max": row_max,
        "row_sum": row_sum,
        "smoothing": 0.0,
        "scale": 1 / N,
        "dlogits": Output((N, V)),
    }


def _dropout(random: Random, N: int, C: int) -> Arguments:
    return {
        "x": normal(random, N, C),
        "residual": normal(random, N, C),
        "rate": 0.1, "seed": np.uint64(7), "call": np.uint64(3),
        "out": Output((N, C)),
    }  # fmt: skip


def _dropout_gradient(random: Random, N: int, C: int) -> Arguments:
    return {
        "dout": normal(random, N, C),
        "rate": 0.1, "seed": np.uint64(7), "call": np.uint64(3),
        "dx": Output((N, C)),
    }  # fmt: skip


def _embedding(random: Random, B: int, T: int, V: int, C: int) -> Arguments:
    return {
        "tokens": random.integers(0, V, B * T),
        "positions": np.tile(np.arange(T), B),
        "table": normal(random, V, C),
        "position_table": normal(random, T, C),
        "out": Output((B * T, C)),
    }


def _embedding_gradient(random: Random, B: int, T: int, V: int, C: int) -> Arguments:
    return {
        "ids": random.integers(0, V, B * T),
        "dout": normal(random, B * T, C),
        "dtable": Output((V, C), 0.0),
    }


def _checked(random: Random, P: int) -> Arguments:
    names = ("parameters", "gradients", "first_state", "second_state")
    return {name: normal(random, P) for name in names}


def _scale(random: Random, P: int) -> Arguments:
    # Near 1: the array is scaled again and again while it is timed.
    return {"gradients": Output((P,), normal(random, P)), "factor": 1 - 2.0**-23}


def _layernorm(random: Random, N: int, C: int) -> Arguments:
    return {
        "x": normal(random, N, C),
        "weight": normal(random, C),
        "bias": normal(random, C),
        "epsilon": 1e-5,
        "out": Output((N, C)),
        "mean": Output((N,)),
        "rstd": Output((N,)),
    }


def _layernorm_gradient(random: Random, N: int, C: int) -> Arguments:
    x, weight, mean, rstd = normal(random, N, C), normal(random, C), np.empty(N), np.empty(N)
    layernorm_forward_reference(x, weight, np.zeros(C), 1e-5, np.empty((N, C)), mean, rstd)
    return {
        "dout": normal(random, N, C),
        "x": x,
        "weight": weight,
        "mean": mean,
        "rstd": rstd,
        "residual": np.zeros((0, 0)),
        "dx": Output((N, C)),
        "dweight": Output((C,), 0.0),
        "dbias": Output((C,), 0.0),
    }


def _rmsnorm(random: Random, N: int, C: int) -> Arguments:
    return {
        "x": normal(random, N, C),
        "weight": normal(random, C),
        "epsilon": 1e-5,
        "out": Output((N, C)),
        "rrms": Output((N,)),
    }


def _rmsnorm_gradient(random: Random, N: int, C: int) -> Arguments:
    x, weight, rrms = normal(random, N, C), normal(random, C), np.empty(N)
    rmsnorm_forward_reference(x, weight, 1e-5, np.empty((N, C)), rrms)
    return {
        "dout": normal(random, N, C),
        "x": x,
        "weight": weight,
        "rrms": rrms,
        "residual": np.zeros((0, 0)),
        "dx": Output((N, C)),
        "dweight": Output((C,), 0.0),
    }


def _gated(random: Random, activation: int, N: int, F: int) -> Arguments:
    return {
        "gate": normal(random, N, F),
        "x": normal(random, N, F),
        "activation": activation,
        "out": Output((N, F)),
    }


def _gated_gradient(random: Random, activation: int, N: int, F: int) -> Arguments:
    return {
        "dout": normal(random, N, F),
        "gate": normal(random, N, F),
        "x": normal(random, N, F),
        "activation": activation,
        "dgate": Output((N, F)),
        "dx": Output((N, F)),
    }


def _gather(random: Random, B: int, T: int, C: int) -> Arguments:
    return {"x": normal(random, B * T, C), "rows": _offsets(B, T)[:-1], "out": Output((B, C))}


def _scatter(random: Random, B: int, T: int, C: int) -> Arguments:
    rows = _offsets(B, T)[:-1]
    return {"dout": normal(random, B, C), "rows": rows, "dx": Output((B * T, C), 0.0)}


def _mean(random: Random, B: int, T: int, C: int) -> Arguments:
    return {"x": normal(random, B * T, C), "offsets": _offsets(B, T), "out": Output((B, C))}


def _mean_gradient(random: Random, B: int, T: int, C: int) -> Arguments:
    return {"dout": normal(random, B, C), "offsets": _offsets(B, T), "dx": Output((B * T, C))}


def _turned(random: Random, names: str, B: int, T: int, C: int, H: int) -> Arguments:
    positions = np.tile(np.arange(T), B)
    cosines, sines = rotary_tables(T, C // H)
    marks = {name: Output((B * T, C), normal(random, B * T, C)) for name in names.split()}
    return marks | {
        "query_positions": positions, "key_positions": positions, "cosines": cosines,
        "sines": sines,
    }  # fmt: skip


def _turned_shapes(s: Sizes) -> list[Shape]:
    # A head of the sizes with tails has an odd number of columns: it has some more here.
    return [(s.B, s.T, s.C + (s.H if s.C // s.H % 2 else 0), s.H)]


def _sgd(random: Random, P: int) -> Arguments:
    return {
        "parameters": Output((P,), normal(random, P)),
        "gradients": normal(random, P),
        "velocity": Output((P,), normal(random, P)),
        "lr": 1e-3,
        "momentum": 0.9,
        "nesterov": False,
        "penalty": 0.0,
    }


def _average(random: Random, P: int) -> Arguments:
    return {
        "average": Output((P,), normal(random, P)),
        "values": normal(random, P),
        "decay": 0.999,
    }


def _softmax(random: Random, N: int, V: int) -> Arguments:
    return {"x": normal(random, N, V), "out": Output((N, V))}


def _softmax_gradient(random: Random, N: int, V: int) -> Arguments:
    out = np.empty((N, V))
    softmax_forward_reference(normal(random, N, V), out)
    return {"dout": normal(random, N, V), "out": out, "dx": Output((N, V))}


def _activations() -> list[Spec]:
    # An exponential counts 12 operations: its polynomial.
    costs = {
        "relu": (RELU, 1, 1), "gelu": (GELU, 20, 30), "gelu_exact": (EXACT_GELU, 31, 33),
        "mish": (MISH, 19, 33),
    }  # fmt: skip
    specs = []
    for name, (code, forward, backward) in costs.items():
        specs += [
            Spec(
                "activation_forward", "NF", _wide_rows,
                lambda random, N, F, code=code: _activation(random, code, N, F),
                lambda N, F, cost=forward: cost * N * F, variant=name,
            ),
            Spec(
                "activation_backward", "NF", _wide_rows,
                lambda random, N, F, code=code: _activation_gradient(random, code, N, F),
                lambda N, F, cost=backward: cost * N * F, variant=name,
            ),
        ]  # fmt: skip
    return specs


def _gates() -> list[Spec]:
    costs = {"swiglu": (SILU, 16, 22), "geglu": (GELU, 21, 33)}
    specs = []
    for name, (code, forward, backward) in costs.items():
        specs += [
            Spec(
                "gated_forward", "NF", _wide_rows,
                lambda random, N, F, code=code: _gated(random, code, N, F),
                lambda N, F, cost=forward: cost * N * F, variant=name,
            ),
            Spec(
                "gated_backward", "NF", _wide_rows,
                lambda random, N, F, code=code: _gated_gradient(random, code, N, F),
                lambda N, F, cost=backward: cost * N * F, variant=name,
            ),
        ]  # fmt: skip
    return specs


def _embedding_shapes(s: Sizes) -> list[Shape]:
    return [(s.B, s.T, s.V, s.C)]


ROWS = (
    *_activations(),
    Spec("adam_step", "P", _block_parameters, _adam, lambda P: 14 * P),
    Spec("cross_entropy_forward", "NV", _logits, _cross_entropy, lambda N, V: 15 * N * V),
    Spec("cross_entropy_backward", "NV", _logits, _cross_entropy_gradient, lambda N, V: 14 * N * V),
    # Philox is integer work and counts as none.
    Spec("dropout_forward", "NC", _rows, _dropout, lambda N, C: 2 * N * C),
    Spec("dropout_backward", "NC", _rows, _dropout_gradient, lambda N, C: N * C),
    Spec(
        "embedding_forward", "BTVC", _embedding_shapes, _embedding,
        lambda B, T, V, C: B * T * C,
        # The rows that are looked up, not the table.
        traffic=lambda B, T, V, C: 3 * B * T * C + 4 * B * T,
    ),
    Spec(
        "embedding_backward", "BTVC", _embedding_shapes, _embedding_gradient,
        lambda B, T, V, C: B * T * C,
        traffic=lambda B, T, V, C: 3 * B * T * C + 2 * B * T,
    ),
    Spec(
        "gradient_norm", "P", _block_parameters,
        lambda random, P: {"gradients": normal(random, P)}, lambda P: 2 * P,
    ),
    Spec("may_step", "P", _block_parameters, _checked, lambda P: 5 * P),
    Spec(
        "zero_gradient", "P", _block_parameters,
        lambda random, P: {"gradients": Output((P,), 1.0)}, lambda P: 0,
    ),
    Spec(
        "add_gradient", "P", _block_parameters,
        lambda random, P: {"gradients": Output((P,), 1.0), "other": normal(random, P)},
        lambda P: P,
    ),
    Spec("scale_gradient", "P", _block_parameters, _scale, lambda P: P),
    Spec("average_step", "P", _block_parameters, _average, lambda P: 3 * P),
    Spec("layernorm_forward", "NC", _rows, _layernorm, lambda N, C: 8 * N * C),
    Spec("layernorm_backward", "NC", _rows, _layernorm_gradient, lambda N, C: 16 * N * C),
    Spec("gather_rows", "BTC", _sequences, _gather, lambda B, T, C: 0,
         traffic=lambda B, T, C: 2 * B * C),
    Spec("scatter_rows", "BTC", _sequences, _scatter, lambda B, T, C: B * C,
         traffic=lambda B, T, C: 3 * B * C),
    Spec("mean_forward", "BTC", _sequences, _mean, lambda B, T, C: B * T * C),
    Spec("mean_backward", "BTC", _sequences, _mean_gradient, lambda B, T, C: B * C),
    Spec("rmsnorm_forward", "NC", _rows, _rmsnorm, lambda N, C: 4 * N * C),
    Spec("rmsnorm_backward", "NC", _rows, _rmsnorm_gradient, lambda N, C: 13 * N * C),
    # Two products and two sums for each pair of columns, of queries and of keys.
    Spec("rotary_forward", "BTCH", _turned_shapes,
         lambda random, *shape: _turned(random, "q k", *shape),
         lambda B, T, C, H: 6 * B * T * C),
    Spec("rotary_backward", "BTCH", _turned_shapes,
         lambda random, *shape: _turned(random, "dq dk", *shape),
         lambda B, T, C, H: 6 * B * T * C),
    Spec("sgd_step", "P", _block_parameters, _sgd, lambda P: 4 * P),
    Spec("softmax_forward", "NV", _logits, _softmax, lambda N, V: 16 * N * V),
    Spec("softmax_backward", "NV", _logits, _softmax_gradient, lambda N, V: 4 * N * V),
    *_gates(),
)  # fmt: skip
