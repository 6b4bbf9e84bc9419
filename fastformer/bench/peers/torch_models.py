"""The models of the step benchmarks in PyTorch, as an expert writes them for a CPU."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fastformer.bench.stepper import Array, StepData, Stepper
from fastformer.bench.workloads import LEARNING_RATE, Workload

Tensor = Any


class Block(nn.Module):
    """Attention without biases, then feed-forward; norms after or before."""

    def __init__(self, workload: Workload) -> None:
        """Make the layers."""
        super().__init__()
        C, F_, self.heads = workload.C, workload.F, workload.H
        self.is_decoder = workload.kind == "decoder"
        self.qkv = nn.Linear(C, 3 * C, bias=False)
        self.output = nn.Linear(C, C, bias=False)
        self.norm1, self.norm2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.expand, self.contract = nn.Linear(C, F_), nn.Linear(F_, C)

    def attend(self, x: Tensor) -> Tensor:
        """Return the attention's result."""
        B, T, C = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.heads, C // self.heads).unbind(2)
        heads = (part.transpose(1, 2) for part in (q, k, v))
        out = F.scaled_dot_product_attention(*heads, is_causal=self.is_decoder)
        return self.output(out.transpose(1, 2).reshape(B, T, C))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, C) for x of (B, T, C)."""
        if self.is_decoder:
            x = x + self.attend(self.norm1(x))
            hidden = F.gelu(self.expand(self.norm2(x)), approximate="tanh")
            return x + self.contract(hidden)
        x = self.norm1(x + self.attend(x))
        return self.norm2(x + self.contract(F.relu(self.expand(x))))


class Model(nn.Module):
    """Either model: an encoder classifier, or a decoder with a tied output."""

    def __init__(self, workload: Workload) -> None:
        """Make the layers."""
        super().__init__()
        C, V, T = workload.C, workload.V, workload.T
        self.is_decoder = workload.kind == "decoder"
        self.embedding = nn.Embedding(V, C)
        if self.is_decoder:
            self.positions = nn.Parameter(torch.zeros(T, C))
            self.final_norm = nn.LayerNorm(C)
        else:
            self.register_buffer("positions", torch.from_numpy(_sines(T, C)))
            self.output = nn.Linear(C, V)
        self.blocks = nn.ModuleList(Block(workload) for _ in range(workload.L))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits: (B, V) of an encoder, (B * T, V) of a decoder."""
        x = self.embedding(tokens) + self.positions
        for block in self.blocks:
            x = block(x)
        if not self.is_decoder:
            return self.output(x[:, 0])
        logits = F.linear(self.final_norm(x), self.embedding.weight)
        return logits.view(-1, logits.shape[-1])


def _sines(T: int, C: int) -> Array:
    column = np.arange(C)
    angle = np.arange(T)[:, None] / 10000.0 ** (column // 2 * 2 / C)
    return np.where(column % 2 == 0, np.sin(angle), np.cos(angle)).astype(np.float32)


def _load(model: Model, data: StepData) -> None:
    """Copy fastformer's weights in; its linear weights are (in, out)."""

    def copy(parameter: Tensor, *names: str) -> None:
        arrays = [data.weights[name] for name in names]
        is_linear = parameter.ndim == 2 and "embedding" not in names[0]
        transposed = is_linear and "positions" not in names[0]
        array = np.concatenate([a.T for a in arrays]) if transposed else arrays[0]
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(array)))

    def copy_layer(layer: Any, name: str) -> None:
        copy(layer.weight, f"{name}.weight")
        if layer.bias is not None:
            copy(layer.bias, f"{name}.bias")

    with torch.no_grad():
        copy(model.embedding.weight, "embedding.weight")
        if model.is_decoder:
            copy(model.positions, "positions.weight")
            copy_layer(model.final_norm, "final_norm")
        else:
            copy_layer(model.output, "output")
        for index, block in enumerate(model.blocks):
            stem = f"blocks.{index}"
            parts = ("query", "key", "value")
            copy(block.qkv.weight, *(f"{stem}.attention.{part}.weight" for part in parts))
            copy_layer(block.output, f"{stem}.attention.output")
            for norm in ("norm1", "norm2"):
                copy_layer(getattr(block, norm), f"{stem}.{norm}")
            for layer in ("expand", "contract"):
                copy_layer(getattr(block, layer), f"{stem}.feed_forward.{layer}")


def build(workload: Workload, data: StepData, *, compiled: bool, tuned: bool = False) -> Stepper:
    """Return PyTorch's step: fused AdamW without decay, which is Adam.

    Args:
        workload: what is trained.    data: on what.
        compiled: whether forward, loss and backward go through torch.compile.
        tuned: whether it may take its time to choose among its own products (2 to 4 % here).
    """
    model = Model(workload)
    _load(model, data)
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
