"""The ops in JAX, jitted; gradients are those of `jax.vjp`, and what is updated is donated."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Tensor = Any
Call = Callable[[], Any]


def _forward(function: Callable[..., Any], *inputs: Tensor) -> Call:
    jitted = jax.jit(function)
    return lambda: jax.block_until_ready(jitted(*inputs))


def _backward(function: Callable[..., Any], dout: Tensor, *inputs: Tensor) -> Call:
    """Time the pull-back alone: what forward saved is its input."""
    _, pull_back = jax.vjp(jax.jit(function), *inputs)
    jitted = jax.jit(lambda pull_back, dout: pull_back(dout))
    return lambda: jax.block_until_ready(jitted(pull_back, dout))


def _update(function: Callable[..., Any], state: tuple[Tensor, ...], *rest: Tensor) -> Call:
    """Time function(state, *rest) -> state, whose memory is used again."""
    jitted = jax.jit(function, donate_argnums=(0,))
    held = [jax.tree.map(jnp.copy, state)]

    def call() -> Any:
        held[0] = jax.block_until_ready(jitted(held[0], *rest))
        return held[0]

    return call


def _adam(a: Mapping[str, Any]) -> Call:
    def step(state: Any, gradients: Tensor, count: Tensor) -> Any:
        p, m, v = state
        m = a["beta1"] * m + (1 - a["beta1"]) * gradients
        v = a["beta2"] * v + (1 - a["beta2"]) * gradients * gradients
        change = m / (1 - a["beta1"] ** count)
        change = change / (jnp.sqrt(v / (1 - a["beta2"] ** count)) + a["epsilon"])
        return p * (1 - a["lr"] * a["weight_decay"]) - a["lr"] * change, m, v

    state = (a["parameters"], a["exp_avg"], a["exp_avg_sq"])
    return _update(step, state, a["gradients"], jnp.float32(a["step"]))


def _sgd(a: Mapping[str, Any]) -> Call:
    def step(state: Any, gradients: Tensor) -> Any:
        p, velocity = state
        velocity = a["momentum"] * velocity + gradients
        return p - a["lr"] * velocity, velocity

    return _update(step, (a["parameters"], a["velocity"]), a["gradients"])


def _bend(a: Mapping[str, Any], shape: tuple[int, ...]) -> Tensor:
    """Return what ALiBi adds to scores (H, T, T)."""
    if not len(a["slopes"]):
        return jnp.zeros((1, 1, 1))
    place = jnp.arange(shape[1])
    return -a["slopes"][:, None, None] * jnp.abs(place[:, None] - place)


def _attend(a: Mapping[str, Any], shape: tuple[int, ...]) -> Callable[..., Tensor]:
    B, T, C, H = shape

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads = (x.reshape(B, T, H, C // H) for x in (q, k, v))
        bend = _bend(a, shape)[None] if len(a["slopes"]) else None
        out = jax.nn.dot_product_attention(*heads, bend, is_causal=bool(a["causal"]))
        return out.reshape(B * T, C)

    return attend


def _weigh(a: Mapping[str, Any], shape: tuple[int, ...]) -> Callable[..., Tensor]:
    B, T, C, H = shape

    def weigh(q: Tensor, k: Tensor) -> Tensor:
        heads = (x.reshape(B, T, H, C // H) for x in (q, k))
        scores = jnp.einsum("bqhd,bkhd->bhqk", *heads) * a["scale"] + _bend(a, shape)
        if a["causal"]:
            scores = jnp.where(jnp.tri(T, dtype=bool), scores, -jnp.inf)
        return jax.nn.softmax(scores)

    return weigh


def _turn(a: Mapping[str, Any], shape: tuple[int, ...], direction: int) -> Call:
    B, T, C, H = shape
    cosines, sines = a["cosines"][:, None], direction * a["sines"][:, None]

    def turn(*given: Tensor) -> list[Tensor]:
        turned = []
        for x in given:
            first, second = jnp.split(x.reshape(B, T, H, C // H), 2, axis=3)
            halves = first * cosines - second * sines, second * cosines + first * sines
            turned.append(jnp.concatenate(halves, axis=3).reshape(B * T, C))
        return turned

    return _forward(turn, *list(a.values())[:2])


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    chosen = jnp.take_along_axis(logits, targets[:, None], 1)[:, 0]
    return jax.nn.logsumexp(logits, axis=1) - chosen


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean = x.mean(1, keepdims=True)
    variance = jnp.square(x - mean).mean(1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * weight + bias


def _rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * jax.lax.rsqrt(jnp.square(x).mean(1, keepdims=True) + 1e-5) * weight


def _gated(variant: str) -> Callable[[Tensor, Tensor], Tensor]:
    function = {"swiglu": jax.nn.silu, "geglu": jax.nn.gelu}[variant]
    return lambda gate, x: function(gate) * x


def _matmul(a: Mapping[str, Any], variant: str) -> Call:
    x, weight = a["a"], a["b"][0]
    if variant == "bias+gelu":
        return _forward(lambda x, w, b: jax.nn.gelu(x @ w + b), x, weight, a["bias"])
    if variant == "bias+residual":
        return _forward(lambda x, w, b, r: x @ w + b + r, x, weight, a["bias"], a["addend"])
    return _forward(jnp.matmul, x, weight)


def _rounded(x: Tensor, y: Tensor) -> Tensor:
    """Return the product of operands in bfloat16, with sums in float32."""
    x, y = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
    return jnp.matmul(x, y, preferred_element_type=jnp.float32)


def _rounded_matmul(a: Mapping[str, Any], variant: str) -> Call:
    x, weight = a["a"], a["b"][0]
    if variant == "bias+gelu":
        return _forward(lambda x, w, b: jax.nn.gelu(_rounded(x, w) + b), x, weight, a["bias"])
    return _forward(_rounded, x, weight)


def _drop(a: Mapping[str, Any]) -> Callable[[Tensor], Tensor]:
    def drop(x: Tensor) -> Tensor:
        kept = jax.random.bernoulli(jax.random.key(a["seed"]), 1 - a["rate"], x.shape)
        return jnp.where(kept, x / (1 - a["rate"]), 0)

    return drop


def _look_up(table: Tensor, position_table: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
    return table[tokens] + position_table[positions]


def build(
    op: str, variant: str, shape: tuple[int, ...], arguments: Mapping[str, Any]
) -> Callable[[], Any]:
    """Return a call that does an op's work once, and waits for it.

    Args:
        op, variant, shape: the case.    arguments: the kernel's arguments by name.
    """
    a = {k: jnp.asarray(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}
    functions = {
        "relu": jax.nn.relu,
        "gelu": jax.nn.gelu,
        "gelu_exact": lambda x: jax.nn.gelu(x, approximate=False),
        "mish": jax.nn.mish,
    }
    activation = functions.get(variant, jax.nn.relu)
    calls: dict[str, Callable[[], Call]] = {
        "activation_forward": lambda: _forward(activation, a["x"]),
        "activation_backward": lambda: _backward(activation, a["dout"], a["x"]),
        "adam_step": lambda: _adam(a),
        "attention_forward": lambda: _forward(_attend(a, shape), a["q"], a["k"], a["v"]),
        "attention_backward": lambda: _backward(
            _attend(a, shape), a["dout"], a["q"], a["k"], a["v"]
        ),
        "attention_weights": lambda: _forward(_weigh(a, shape), a["q"], a["k"]),
        "cross_entropy_forward": lambda: _forward(_losses, a["logits"], a["targets"]),
        "cross_entropy_backward": lambda: _backward(
            lambda x: _losses(x, a["targets"]).mean(), jnp.float32(1), a["logits"]
        ),
        "dropout_forward": lambda: _forward(
            lambda x, residual: _drop(a)(x) + residual, a["x"], a["residual"]
        ),
        "dropout_backward": lambda: _backward(_drop(a), a["dout"], jnp.ones_like(a["dout"])),
        "embedding_forward": lambda: _forward(
            _look_up, a["table"], a["position_table"], a["tokens"], a["positions"]
        ),
        "embedding_backward": lambda: _backward(
            lambda table: table[a["ids"]], a["dout"], a["dtable"]
        ),
        "gradient_norm": lambda: _forward(jnp.linalg.norm, a["gradients"]),
        "zero_gradient": lambda: _update(jnp.zeros_like, a["gradients"]),
        "may_step": lambda: _forward(
            lambda *x: jnp.stack([jnp.isfinite(y).all() for y in x]).all(),
            *a.values(),
        ),
        "scale_gradient": lambda: _update(lambda g: g * a["factor"], a["gradients"]),
        "add_gradient": lambda: _update(lambda g: g + a["other"], a["gradients"]),
        "layernorm_forward": lambda: _forward(_layer_norm, a["x"], a["weight"], a["bias"]),
        "layernorm_backward": lambda: _backward(
            _layer_norm, a["dout"], a["x"], a["weight"], jnp.zeros_like(a["weight"])
        ),
        "matmul": lambda: _matmul(a, variant),
        "matmul_nt": lambda: _forward(lambda x, w: x @ w.T, a["a"], a["b"][0]),
        "matmul_tn": lambda: _update(
            lambda state, x, dy: (state[0] + x.T @ dy, state[1] + dy.sum(0)),
            (a["out"][0], a["column_sums"]), a["a"], a["b"],
        ),
        "matmul_backward": lambda: _update(
            lambda state, x, w, dy: (state[0] + x.T @ dy, state[1] + dy.sum(0), dy @ w.T),
            (a["db"][0], a["column_sums"], a["da"]), a["a"], a["b"][0], a["dout"],
        ),
        "matmul_bfloat16": lambda: _rounded_matmul(a, variant),
        "matmul_nt_bfloat16": lambda: _forward(lambda x, w: _rounded(x, w.T), a["a"], a["b"][0]),
        "matmul_tn_bfloat16": lambda: _update(
            lambda state, x, dy: (state[0] + _rounded(x.T, dy), state[1] + dy.sum(0)),
            (a["out"][0], a["column_sums"]), a["a"], a["b"],
        ),
        "matmul_backward_bfloat16": lambda: _update(
            lambda state, x, w, dy: (
                state[0] + _rounded(x.T, dy), state[1] + dy.sum(0), _rounded(dy, w.T)
            ),
            (a["db"][0], a["column_sums"], a["da"]), a["a"], a["b"][0], a["dout"],
        ),
        "gather_rows": lambda: _forward(lambda x, rows: x[rows], a["x"], a["rows"]),
        "scatter_rows": lambda: _update(
            lambda dx, rows, dout: dx.at[rows].add(dout), a["dx"], a["rows"], a["dout"]
        ),
        "mean_forward": lambda: _forward(lambda x: x.reshape(shape).mean(1), a["x"]),
        "mean_backward": lambda: _forward(
            lambda dout: jnp.repeat(dout / shape[1], shape[1], axis=0), a["dout"]
        ),
        "rmsnorm_forward": lambda: _forward(_rms_norm, a["x"], a["weight"]),
        "rmsnorm_backward": lambda: _backward(_rms_norm, a["dout"], a["x"], a["weight"]),
        "rotary_forward": lambda: _turn(a, shape, 1),
        "rotary_backward": lambda: _turn(a, shape, -1),
        "average_step": lambda: _update(
            lambda average, values: average + (1 - a["decay"]) * (values - average),
            a["average"], a["values"],
        ),
        "sgd_step": lambda: _sgd(a),
        "softmax_forward": lambda: _forward(jax.nn.softmax, a["x"]),
        "softmax_backward": lambda: _backward(jax.nn.softmax, a["dout"], jnp.log(a["out"])),
        "gated_forward": lambda: _forward(_gated(variant), a["gate"], a["x"]),
        "gated_backward": lambda: _backward(_gated(variant), a["dout"], a["gate"], a["x"]),
    }  # fmt: skip
    return calls[op]()
