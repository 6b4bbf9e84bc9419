"""The models of the step benchmarks in JAX: one jitted step, whose state is donated."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fastformer.bench.stepper import Array, StepData, Stepper
from fastformer.bench.workloads import LEARNING_RATE, Workload

Tensor = Any
Parameters = dict[str, Any]


def _sines(T: int, C: int) -> Array:
    column = np.arange(C)
    angle = np.arange(T)[:, None] / 10000.0 ** (column // 2 * 2 / C)
    return np.where(column % 2 == 0, np.sin(angle), np.cos(angle)).astype(np.float32)


def _parameters(workload: Workload, data: StepData) -> Parameters:
    """Return the weights; query, key and value are one matrix."""
    weights = {name: jnp.asarray(array) for name, array in data.weights.items()}
    for index in range(workload.L):
        stem = f"blocks.{index}.attention"
        parts = [weights.pop(f"{stem}.{part}.weight") for part in ("query", "key", "value")]
        weights[f"{stem}.qkv"] = jnp.concatenate(parts, axis=1)
    return weights


def _norm(p: Parameters, name: str, x: Tensor) -> Tensor:
    mean = x.mean(-1, keepdims=True)
    variance = jnp.square(x - mean).mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]


def _attend(p: Parameters, stem: str, workload: Workload, x: Tensor) -> Tensor:
    B, T, C = x.shape
    qkv = (x @ p[f"{stem}.qkv"]).reshape(B, T, 3, workload.H, C // workload.H)
    q, k, v = (qkv[:, :, part] for part in range(3))
    out = jax.nn.dot_product_attention(q, k, v, is_causal=workload.kind == "decoder")
    return out.reshape(B, T, C) @ p[f"{stem}.output.weight"]


def _feed_forward(p: Parameters, stem: str, x: Tensor, activation: Any) -> Tensor:
    hidden = activation(x @ p[f"{stem}.expand.weight"] + p[f"{stem}.expand.bias"])
    return hidden @ p[f"{stem}.contract.weight"] + p[f"{stem}.contract.bias"]


def _logits(p: Parameters, workload: Workload, tokens: Tensor) -> Tensor:
    decoder = workload.kind == "decoder"
    positions = p["positions.weight"] if decoder else _sines(workload.T, workload.C)
    x = p["embedding.weight"][tokens] + positions
    for index in range(workload.L):
        stem = f"blocks.{index}"
        if decoder:
            x = x + _attend(p, f"{stem}.attention", workload, _norm(p, f"{stem}.norm1", x))
            normed = _norm(p, f"{stem}.norm2", x)
            x = x + _feed_forward(p, f"{stem}.feed_forward", normed, jax.nn.gelu)
        else:
            x = _norm(p, f"{stem}.norm1", x + _attend(p, f"{stem}.attention", workload, x))
            hidden = _feed_forward(p, f"{stem}.feed_forward", x, jax.nn.relu)
            x = _norm(p, f"{stem}.norm2", x + hidden)
    if decoder:
        return _norm(p, "final_norm", x) @ p["embedding.weight"].T
    return x[:, 0] @ p["output.weight"] + p["output.bias"]


def _loss(p: Parameters, workload: Workload, tokens: Tensor, targets: Tensor) -> Tensor:
    logits = _logits(p, workload, tokens)
    chosen = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    return (jax.nn.logsumexp(logits, axis=-1) - chosen).mean()


@partial(jax.jit, static_argnums=(1,), donate_argnums=(0,))
def _step(state: Any, workload: Workload, tokens: Tensor, targets: Tensor) -> Any:
    """Make one step of Adam."""
    p, m, v, count = state
    loss, gradients = jax.value_and_grad(_loss)(p, workload, tokens, targets)
    count = count + 1
    m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, gradients)
    v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, gradients)
    rate, correction = LEARNING_RATE / (1 - 0.9**count), 1 / (1 - 0.999**count)
    p = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v * correction) + 1e-8), p, m, v)
    return (p, m, v, count), loss


@partial(jax.jit, static_argnums=(1,))
def _predict(p: Parameters, workload: Workload, tokens: Tensor) -> Tensor:
    return _logits(p, workload, tokens).argmax(1)


def build(workload: Workload, data: StepData) -> Stepper:
    """Return JAX's step."""
    parameters = _parameters(workload, data)
    zeros = jax.tree.map(jnp.zeros_like, parameters)
    state = [(parameters, zeros, jax.tree.map(jnp.copy, zeros), jnp.float32(0))]

    def prepare(tokens: Array, targets: Array) -> tuple[Tensor, Tensor]:
        return jnp.asarray(tokens.astype(np.int32)), jnp.asarray(targets.astype(np.int32))

    def train(batch: tuple[Tensor, Tensor]) -> Tensor:
        state[0], loss = _step(state[0], workload, *batch)
        return loss

    def wait(loss: Tensor) -> float:
        jax.block_until_ready(state[0])
        return float(loss)

    def predict(tokens: Array) -> Array:
        return np.asarray(_predict(state[0][0], workload, tokens.astype(np.int32)))

    return Stepper(prepare, train, wait, predict)
