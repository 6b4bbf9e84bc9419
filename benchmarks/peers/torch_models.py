"""fastformer's models in PyTorch, as an expert writes them for a CPU.

The step benchmarks train them, and the tests hold fastformer's logits, gradients and training to
theirs.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fastformer.bench.stepper import Array, StepData, Stepper
from fastformer.bench.workloads import LEARNING_RATE, Workload
from fastformer.models.config import DecoderConfig, ModelConfig, TransformerConfig

Tensor = Any


def _norm(config: ModelConfig) -> nn.Module:
    """Return a norm of the model's rows."""
    width, epsilon = config.embed_dim, config.layernorm_epsilon
    if config.norm_type == "rmsnorm":
        return nn.RMSNorm(width, epsilon)
    return nn.LayerNorm(width, epsilon, bias=config.norm_bias)


class Block(nn.Module):
    """Attention, then feed-forward; norms after or before."""

    def __init__(self, config: ModelConfig, *, causal: bool) -> None:
        """Make the layers."""
        super().__init__()
        C, F_ = config.embed_dim, config.ffn_dim
        self.causal, self.heads = causal, config.num_heads
        self.is_pre_norm, self.activation = config.norm == "pre", config.activation
        self.kv_heads = config.num_kv_heads or self.heads
        self.head_size = config.head_size or C // self.heads
        # Columns of queries, keys and values.
        self.widths = [self.head_size * n for n in (self.heads, self.kv_heads, self.kv_heads)]
        self.qkv = nn.Linear(C, sum(self.widths), bias=config.qkv_bias)
        self.query_norm = self.key_norm = None
        if config.qk_norm:
            self.query_norm, self.key_norm = (
                nn.RMSNorm(self.head_size, config.layernorm_epsilon) for _ in range(2)
            )
        self.output = nn.Linear(self.widths[0], C, bias=config.attention_output_bias)
        self.norm1, self.norm2 = (_norm(config) for _ in range(2))
        bias = config.ffn_bias
        self.expand, self.contract = nn.Linear(C, F_, bias=bias), nn.Linear(F_, C, bias=bias)
        has_gate = self.activation in ("swiglu", "geglu")
        self.gate = nn.Linear(C, F_, bias=bias) if has_gate else None
        self.turns = config.positions == "rotary"
        self.base, self.scaling = config.rotary_base, config.rotary_scaling
        self.slopes: Any = _slopes(self.heads) if config.positions == "alibi" else None

    def attend(self, x: Tensor, seen: Tensor | None) -> Tensor:
        """Return the attention's result."""
        B, T, _ = x.shape
        parts = self.qkv(x).split(self.widths, dim=-1)
        q, k, v = (part.view(B, T, -1, self.head_size) for part in parts)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if self.turns:
            q, k = (_turned(part, self.base, self.scaling) for part in (q, k))
        k, v = (part.repeat_interleave(self.heads // self.kv_heads, dim=2) for part in (k, v))
        heads = (part.transpose(1, 2) for part in (q, k, v))
        causal = self.causal and seen is None
        if self.slopes is not None:
            seen, causal = self.bend(x, seen, causal), False
        out = F.scaled_dot_product_attention(*heads, attn_mask=seen, is_causal=causal)
        return self.output(out.transpose(1, 2).reshape(B, T, -1))

    def bend(self, x: Tensor, seen: Tensor | None, causal: bool) -> Tensor:
        """Return what is added to scores: ALiBi, and -inf where a key is not seen."""
        place = torch.arange(x.shape[1])
        distance = (place[:, None] - place).to(x.dtype)
        added = -self.slopes.to(x.dtype)[:, None, None] * distance.abs()
        if causal:
            return added.masked_fill(distance < 0, -torch.inf)
        return added if seen is None else added.masked_fill(~seen, -torch.inf)

    def feed(self, x: Tensor) -> Tensor:
        """Return the feed-forward layer's result."""
        hidden = self.expand(x)
        if self.gate is not None:
            gate = self.gate(x)
            gate = F.silu(gate) if self.activation == "swiglu" else F.gelu(gate, approximate="tanh")
            return self.contract(gate * hidden)
        if self.activation.startswith("gelu"):
            form = {"gelu": "tanh", "gelu_exact": "none"}[self.activation]
            return self.contract(F.gelu(hidden, approximate=form))
        return self.contract(F.mish(hidden) if self.activation == "mish" else F.relu(hidden))

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        """Return (B, T, C) for x of (B, T, C).

        Args:
            x: the residual stream.    seen: (B, 1, T or 1, T), which keys a query sees, or None.
        """
        if self.is_pre_norm:
            x = x + self.attend(self.norm1(x), seen)
            return x + self.feed(self.norm2(x))
        x = self.norm1(x + self.attend(x, seen))
        return self.norm2(x + self.feed(x))


class Model(nn.Module):
    """The encoder classifier or the causal decoder, at any settings.

    There is no dropout: PyTorch draws other random numbers, so nothing could be compared.
    """

    def __init__(self, config: ModelConfig, length: int, dtype: Any = torch.float32) -> None:
        """Make the layers for sequences that are padded to `length` tokens."""
        super().__init__()
        C, V = config.embed_dim, config.vocab_size
        self.is_decoder = isinstance(config, DecoderConfig)
        self.pooling = config.pooling if isinstance(config, TransformerConfig) else "none"
        is_tied = isinstance(config, DecoderConfig) and config.tied_embeddings
        self.embedding = nn.Embedding(V, C)
        if config.positions == "learned":
            self.positions = nn.Parameter(torch.zeros(length, C))
        elif config.positions in ("rotary", "alibi"):
            self.positions = 0
        else:
            self.register_buffer("positions", torch.from_numpy(_sines(length, C)))
        self.final_norm = _norm(config) if config.norm == "pre" else None
        self.embedding_norm = _norm(config) if config.embedding_norm else None
        self.output: Any = (
            None if is_tied else nn.Linear(C, config.num_logits, bias=config.output_bias)
        )
        self.blocks = nn.ModuleList(
            Block(config, causal=self.is_decoder) for _ in range(config.num_layers)
        )
        self.to(dtype)

    def forward(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return logits: (B, V) of a classifier, a row for each token where nothing is pooled.

        Args:
            tokens: (B, T) ids.    lengths: (B,), how many of each row count, or None for all.
        """
        used = seen = None
        if lengths is not None:
            used = torch.arange(tokens.shape[1]) < lengths[:, None]
            seen = used[:, None, None, :]
            if self.is_decoder:
                seen = seen & torch.ones(2 * used.shape[1:], dtype=torch.bool).tril()
        x = self.embedding(tokens) + self.positions
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        for block in self.blocks:
            x = block(x, seen)
        if self.final_norm is not None:
            x = self.final_norm(x)
        if self.pooling != "none":
            return self.output(self._pool(x, lengths))
        logits = F.linear(x, self.embedding.weight) if self.output is None else self.output(x)
        return logits.view(-1, logits.shape[-1]) if used is None else logits[used]

    def _pool(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """Return the state (B, C) of each sequence."""
        if self.pooling == "first":
            return x[:, 0]
        if lengths is None:
            return x[:, -1] if self.pooling == "last" else x.mean(1)
        if self.pooling == "last":
            return x[torch.arange(len(x)), lengths - 1]
        used = torch.arange(x.shape[1]) < lengths[:, None]
        return (x * used[:, :, None]).sum(1) / lengths[:, None].to(x.dtype)


def _slopes(heads: int) -> Tensor:
    """Return the slopes of ALiBi, as its authors' program has them."""

    def of_power(count: int) -> list[float]:
        start = 2 ** (-(2 ** -(math.log2(count) - 3)))
        return [start * start**i for i in range(count)]

    nearest = 2 ** math.floor(math.log2(heads))
    more = of_power(2 * nearest)[0::2][: heads - nearest]
    return torch.tensor(of_power(nearest) + more, dtype=torch.float64)


def _turned(x: Tensor, base: float, scaling: float) -> Tensor:
    """Return queries or keys (B, T, H, D) with rotary positions."""
    T, half = x.shape[1], x.shape[3] // 2
    frequencies = base ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = (torch.arange(T, dtype=torch.float64) / scaling)[:, None, None] * frequencies
    cosines, sines = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=3)
    halves = first * cosines - second * sines, second * cosines + first * sines
    return torch.cat(halves, dim=3)


def _sines(T: int, C: int) -> Array:
    column = np.arange(C)
    angle = np.arange(T)[:, None] / 10000.0 ** (column // 2 * 2 / C)
    return np.where(column % 2 == 0, np.sin(angle), np.cos(angle))


def named(model: Model) -> Iterator[tuple[Tensor, tuple[str, ...], bool]]:
    """Yield (parameter, names, whether it is transposed) of each parameter.

    The names are fastformer's, several where its parameters are one here, end to end.
    Its linear weights are (in, out), and transposed here.
    """

    def of(layer: Any, *stems: str) -> Iterator[tuple[Tensor, tuple[str, ...], bool]]:
        weights = tuple(f"{stem}.weight" for stem in stems)
        yield layer.weight, weights, isinstance(layer, nn.Linear)
        if getattr(layer, "bias", None) is not None:
            yield layer.bias, tuple(f"{stem}.bias" for stem in stems), False

    yield from of(model.embedding, "embedding")
    if isinstance(model.positions, nn.Parameter):
        yield model.positions, ("positions.weight",), False
    for stem in ("embedding_norm", "final_norm", "output"):
        if getattr(model, stem) is not None:
            yield from of(getattr(model, stem), stem)
    for index, block in enumerate(model.blocks):
        stem = f"blocks.{index}"
        parts = ("query", "key", "value")
        yield from of(block.qkv, *(f"{stem}.attention.{part}" for part in parts))
        yield from of(block.output, f"{stem}.attention.output")
        for norm in ("query_norm", "key_norm"):
            if getattr(block, norm) is not None:
                yield from of(getattr(block, norm), f"{stem}.attention.{norm}")
        for norm in ("norm1", "norm2"):
            yield from of(getattr(block, norm), f"{stem}.{norm}")
        for layer in ("expand", "gate", "contract"):
            if getattr(block, layer) is not None:
                yield from of(getattr(block, layer), f"{stem}.feed_forward.{layer}")


def load(model: Model, weights: Mapping[str, Array]) -> None:
    """Copy fastformer's weights in."""
    with torch.no_grad():
        for parameter, names, is_transposed in named(model):
            arrays = [weights[name].T if is_transposed else weights[name] for name in names]
            parameter.copy_(torch.from_numpy(np.concatenate(arrays)))


def as_fastformer(model: Model, *, gradients: bool = False) -> dict[str, Array]:
    """Return the weights, or their gradients, by fastformer's names and in its shapes."""
    found: dict[str, Array] = {}
    for parameter, names, is_transposed in named(model):
        whole = (parameter.grad if gradients else parameter.detach()).numpy()
        ends = np.cumsum(model.blocks[0].widths)[: len(names) - 1]  # of queries, keys, values
        for name, part in zip(names, np.split(whole, ends), strict=True):
            found[name] = np.array(part.T if is_transposed else part, order="C")
    return found


def build(workload: Workload, data: StepData, *, compiled: bool, tuned: bool = False) -> Stepper:
    """Return PyTorch's step: fused AdamW without decay, which is Adam.

    Args:
        workload: what is trained.    data: on what.
        compiled: whether forward, loss and backward go through torch.compile.
        tuned: whether it may take its time to choose among its own products (2 to 4 % here).
    """
    model = Model(workload.config(), workload.T)
    load(model, data.weights)
    options = {"lr": LEARNING_RATE, "weight_decay": 0.0, "fused": True}
    optimizer = torch.optim.AdamW(model.parameters(), **options)

    def loss_of(tokens: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model(tokens), targets)

    compute_loss = loss_of
    if compiled:
        mode = "max-autotune-no-cudagraphs" if tuned else "default"
        compute_loss = torch.compile(loss_of, fullgraph=True, dynamic=False, mode=mode)

    def prepare(tokens: Array, targets: Array) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(tokens), torch.from_numpy(targets).reshape(-1)

    def train(batch: tuple[Tensor, Tensor]) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = compute_loss(*batch)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def predict(tokens: Array) -> Array:
        with torch.inference_mode():
            return model(torch.from_numpy(tokens)).argmax(1).numpy()

    return Stepper(prepare, train, lambda loss: loss.item(), predict)
