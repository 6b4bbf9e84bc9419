"""A step that costs what llmlearn's costs: a re-implementation, for llmlearn itself is not here.

It does what that NumPy transformer does, in the way it does it: float64, every layer keeps its
inputs, all 20 positions are computed, the embedding's gradient is a double loop in Python, the
attention's backward takes the gradient of Q and K to be that of V, the gradient of the loss goes
through the softmax a second time, and Adam goes array by array with temporaries. So its losses are
not fastformer's, and only its time is measured.
"""

from typing import Any

import numpy as np

from fastformer.bench.stepper import Array, StepData, Stepper
from fastformer.bench.workloads import LEARNING_RATE, Workload

Pair = tuple[Array, Array]


class Linear:
    """y = x W + b."""

    def __init__(self, weight: Array, bias: Array | None = None) -> None:
        """Own float64 copies."""
        self.weight = weight.astype(np.float64)
        self.bias = None if bias is None else bias.astype(np.float64)

    def forward(self, x: Array) -> Array:
        """Keep x."""
        self.x = x
        y: Array = np.matmul(x, self.weight)
        return y if self.bias is None else y + self.bias

    def backward(self, dout: Array) -> Array:
        """Overwrite the gradients."""
        flat_x = self.x.reshape(-1, self.x.shape[-1])
        flat = dout.reshape(-1, dout.shape[-1])
        self.dweight = np.matmul(flat_x.T, flat)
        self.dbias = np.sum(flat, axis=0)
        return np.matmul(dout, self.weight.T)

    def pairs(self) -> list[Pair]:
        """Return (parameter, gradient)."""
        pairs = [(self.weight, self.dweight)]
        return pairs if self.bias is None else [*pairs, (self.bias, self.dbias)]


class LayerNorm:
    """(x - mean) / sqrt(variance + 1e-5) * gamma + beta."""

    def __init__(self, gamma: Array, beta: Array) -> None:
        """Own float64 copies."""
        self.gamma, self.beta = gamma.astype(np.float64), beta.astype(np.float64)

    def forward(self, x: Array) -> Array:
        """Keep what backward needs."""
        self.std = np.sqrt(np.var(x, axis=-1, keepdims=True) + 1e-5)
        self.xhat = (x - np.mean(x, axis=-1, keepdims=True)) / self.std
        return self.gamma * self.xhat + self.beta

    def backward(self, dout: Array) -> Array:
        """Overwrite the gradients."""
        axes = tuple(range(dout.ndim - 1))
        self.dgamma = np.sum(dout * self.xhat, axis=axes)
        self.dbeta = np.sum(dout, axis=axes)
        g = dout * self.gamma
        mean, product = np.mean(g, axis=-1), np.mean(g * self.xhat, axis=-1)
        return (g - mean[..., None] - self.xhat * product[..., None]) / self.std

    def pairs(self) -> list[Pair]:
        """Return (parameter, gradient)."""
        return [(self.gamma, self.dgamma), (self.beta, self.dbeta)]


def softmax(x: Array) -> Array:
    """Return the softmax over the last axis."""
    e = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)


class Attention:
    """Multi-head attention, whose backward is the simplified one."""

    def __init__(self, weights: list[Array], heads: int) -> None:
        """Make W_q, W_k, W_v, W_o."""
        self.q, self.k, self.v, self.o = (Linear(weight) for weight in weights)
        self.heads = heads

    def _split(self, x: Array) -> Array:
        B, T, C = x.shape
        heads = x.reshape(B, T, self.heads, C // self.heads).transpose(0, 2, 1, 3)
        return heads.reshape(B * self.heads, T, C // self.heads)

    def _join(self, x: Array, shape: tuple[int, ...]) -> Array:
        B, T, C = shape
        heads = x.reshape(B, self.heads, T, C // self.heads)
        return heads.transpose(0, 2, 1, 3).reshape(B, T, C)

    def forward(self, x: Array) -> Array:
        """Keep the weights."""
        q, k, v = (self._split(layer.forward(x)) for layer in (self.q, self.k, self.v))
        scores = np.matmul(q, k.transpose(0, 2, 1)) / np.sqrt(q.shape[-1])
        self.weights = softmax(scores)
        return self.o.forward(self._join(np.matmul(self.weights, v), x.shape))

    def backward(self, dout: Array) -> Array:
        """Take the gradient of Q and K to be that of V."""
        dattended = self._split(self.o.backward(dout))
        dv = self._join(np.matmul(self.weights.transpose(0, 2, 1), dattended), dout.shape)
        return self.q.backward(dv) + self.k.backward(dv) + self.v.backward(dv)

    def pairs(self) -> list[Pair]:
        """Return (parameter, gradient)."""
        return [pair for layer in (self.q, self.k, self.v, self.o) for pair in layer.pairs()]


class Block:
    """a = x + MHA(x); h = LN1(a); b = h + FFN(h); out = LN2(b)."""

    def __init__(self, weights: dict[str, Array], stem: str, heads: int) -> None:
        """Make the layers."""
        parts = ("query", "key", "value", "output")
        self.attention = Attention([weights[f"{stem}.attention.{p}.weight"] for p in parts], heads)
        self.norm1, self.norm2 = (
            LayerNorm(weights[f"{stem}.{norm}.weight"], weights[f"{stem}.{norm}.bias"])
            for norm in ("norm1", "norm2")
        )
        self.expand, self.contract = (
            Linear(weights[f"{layer}.weight"], weights[f"{layer}.bias"])
            for layer in (f"{stem}.feed_forward.expand", f"{stem}.feed_forward.contract")
        )

    def forward(self, x: Array) -> Array:
        """Keep what backward needs."""
        h = self.norm1.forward(x + self.attention.forward(x))
        self.hidden = self.expand.forward(h)
        return self.norm2.forward(h + self.contract.forward(np.maximum(0, self.hidden)))

    def backward(self, dout: Array) -> Array:
        """Undo forward."""
        dsum = self.norm2.backward(dout)
        dhidden = self.contract.backward(dsum) * (self.hidden > 0)
        dsum = self.norm1.backward(dsum + self.expand.backward(dhidden))
        return dsum + self.attention.backward(dsum)

    def pairs(self) -> list[Pair]:
        """Return (parameter, gradient)."""
        layers = (self.attention, self.norm1, self.expand, self.contract, self.norm2)
        return [pair for layer in layers for pair in layer.pairs()]


class Model:
    """Embedding, sines, blocks, the state of position 0, a linear layer, softmax."""

    def __init__(self, workload: Workload, weights: dict[str, Array]) -> None:
        """Make the layers."""
        self.table = weights["embedding.weight"].astype(np.float64)
        column = np.arange(workload.C)
        angle = np.arange(workload.T)[:, None] / 10000.0 ** (column // 2 * 2 / workload.C)
        self.positions = np.where(column % 2 == 0, np.sin(angle), np.cos(angle))
        self.blocks = [Block(weights, f"blocks.{i}", workload.H) for i in range(workload.L)]
        self.output = Linear(weights["output.weight"], weights["output.bias"])

    def forward(self, tokens: Array) -> Array:
        """Return probabilities (B, V)."""
        self.tokens = tokens
        x = self.table[tokens] + self.positions
        for block in self.blocks:
            x = block.forward(x)
        self.shape = x.shape
        self.probabilities = softmax(self.output.forward(x[:, 0, :]))
        return self.probabilities

    def backward(self, dout: Array) -> None:
        """Go through the softmax, then through the layers."""
        p = self.probabilities
        dlogits = p * (dout - np.sum(dout * p, axis=-1, keepdims=True))
        dx = np.zeros(self.shape)
        dx[:, 0, :] = self.output.backward(dlogits)
        for block in reversed(self.blocks):
            dx = block.backward(dx)
        self.dtable = np.zeros_like(self.table)
        for b in range(self.tokens.shape[0]):
            for t in range(self.tokens.shape[1]):
                self.dtable[self.tokens[b, t]] += dx[b, t]

    def pairs(self) -> list[Pair]:
        """Return (parameter, gradient)."""
        pairs = [pair for block in self.blocks for pair in block.pairs()]
        return [(self.table, self.dtable), *pairs, *self.output.pairs()]


class Adam:
    """Array by array, with temporaries."""

    def __init__(self) -> None:
        """Start without moments."""
        self.moments: list[Pair] = []
        self.t = 0

    def step(self, pairs: list[Pair]) -> None:
        """Update the parameters in place."""
        self.moments = self.moments or [(np.zeros_like(p), np.zeros_like(p)) for p, _ in pairs]
        self.t += 1
        for i, (parameter, gradient) in enumerate(pairs):
            m, v = self.moments[i]
            m = 0.9 * m + (1 - 0.9) * gradient
            v = 0.999 * v + (1 - 0.999) * gradient**2
            self.moments[i] = (m, v)
            corrected_m, corrected_v = m / (1 - 0.9**self.t), v / (1 - 0.999**self.t)
            parameter -= LEARNING_RATE * corrected_m / (np.sqrt(corrected_v) + 1e-8)


def build(workload: Workload, data: StepData) -> Stepper:
    """Return a step on an encoder's batches."""
    weights: dict[str, Any] = dict(data.weights)
    model, optimizer = Model(workload, weights), Adam()

    def train(batch: Pair) -> float:
        tokens, targets = batch
        probabilities = model.forward(tokens)
        chosen = np.clip(probabilities, 1e-15, 1 - 1e-15)[np.arange(targets.size), targets]
        loss = float(-np.mean(np.log(chosen)))
        np.mean(np.argmax(probabilities, axis=1) == targets)
        dlogits = probabilities.copy()
        dlogits[np.arange(targets.size), targets] -= 1
        model.backward(dlogits / targets.size)
        optimizer.step(model.pairs())
        return loss

    return Stepper(lambda tokens, targets: (tokens, targets), train, float)
