"""The families of `accuracy_ops` in PyTorch, as its users write them; gradients are autograd's."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from fastformer.kernels.dropout import dropout_forward_reference
from tests.scorecard.accuracy_inputs import Array, Inputs

Tensor = Any
# Two thread pools in one process would wait for each other.
torch.set_num_threads(1)


def _differentiated(
    function: Callable[..., Tensor], dout: Tensor, **inputs: Tensor
) -> dict[str, Tensor]:
    """Return the function's result as `out`, and the gradient of each input as d and its name."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    out = function(*leaves.values())
    gradients = torch.autograd.grad(out, list(leaves.values()), dout)
    return {"out": out} | {f"d{name}": g for name, g in zip(leaves, gradients, strict=True)}


def _linear(a: Inputs) -> dict[str, Tensor]:
    found = _differentiated(
        F.linear, a["dout"], x=a["x"], weight=a["weight"].T.contiguous(), bias=a["bias"]
    )
    return found | {"dweight": found["dweight"].T}


def _grouped(a: Inputs) -> dict[str, Tensor]:
    groups, K, N = a["weight"].shape
    weight = a["weight"].permute(0, 2, 1).reshape(groups * N, K)
    dout = a["dout"].view(groups, -1, N).transpose(0, 1).reshape(-1, groups * N)
    found = _differentiated(F.linear, dout, x=a["x"], weight=weight, bias=a["bias"])
    out = found["out"].view(-1, groups, N).transpose(0, 1).reshape(-1, N)
    dweight = found["dweight"].view(groups, N, K).transpose(1, 2)
    return found | {"out": out, "dweight": dweight}


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _hidden(a: Inputs) -> dict[str, Tensor]:
    weight, found = a["weight"].T.contiguous(), {}
    functions = {"relu": F.relu, "gelu": _gelu, "gelu_exact": F.gelu, "mish": F.mish}
    for name, function in functions.items():
        saved = a["saved"].detach().requires_grad_()
        back = F.linear(function(saved), a["weight"])
        found[name] = function(F.linear(a["x"], weight, a["bias"]) + a["addend"])
        (found[f"d{name}"],) = torch.autograd.grad(back, saved, a["dout"])
    return found


def _distances(a: Inputs, rows: slice) -> Tensor:
    """Return what ALiBi takes from the scores (H, T, T) of a sequence."""
    places = a["positions"][rows]
    distance = (places[:, None] - torch.arange(len(places))).abs()
    return a["slopes"][:, None, None] * distance.to(a["slopes"].dtype)


def _attention(causal: bool) -> Callable[[Inputs], dict[str, Tensor]]:
    def compute(a: Inputs) -> dict[str, Tensor]:
        q, H = a["q"], a["heads"]
        starts = [x.tolist() for x in (a["query_offsets"], a["key_offsets"])]
        longest = [int(np.diff(x).max()) for x in starts]
        weights = torch.zeros((len(starts[0]) - 1, H, *longest), dtype=q.dtype)
        found: dict[str, list[Tensor]] = {name: [] for name in ("out", "dq", "dk", "dv")}
        for b in range(len(starts[0]) - 1):
            rows, keys = (slice(x[b], x[b + 1]) for x in starts)

            def heads(x: Tensor) -> Tensor:
                return x.view(1, len(x), H, -1).transpose(1, 2)

            bend = -_distances(a, rows) if "slopes" in a else None

            def attend(q: Tensor, k: Tensor, v: Tensor, bend: Any = bend) -> Tensor:
                split = (x.view(1, len(x), H, -1).transpose(1, 2) for x in (q, k, v))
                out = F.scaled_dot_product_attention(*split, bend, is_causal=causal)
                return out.transpose(1, 2).reshape(q.shape)

            part = {"q": q[rows], "k": a["k"][keys], "v": a["v"][keys]}
            for name, tensor in _differentiated(attend, a["dout"][rows], **part).items():
                found[name].append(tensor)
            one, other = heads(part["q"])[0], heads(part["k"])[0]
            scores = one @ other.transpose(1, 2) * one.shape[2] ** -0.5
            if "slopes" in a:
                scores = scores + bend
            if causal:
                seen = torch.ones(scores.shape[1:], dtype=torch.bool).tril()
                scores = scores.masked_fill(~seen, -torch.inf)
            weights[b, :, : scores.shape[1], : scores.shape[2]] = torch.softmax(scores, 2)
        return {name: torch.cat(parts) for name, parts in found.items()} | {"weights": weights}

    return compute


def _layernorm(a: Inputs) -> dict[str, Tensor]:
    def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, weight.shape, weight, bias, a["epsilon"])

    return _differentiated(norm, a["dout"], x=a["x"], weight=a["weight"], bias=a["bias"])


def _rmsnorm(a: Inputs) -> dict[str, Tensor]:
    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, a["epsilon"])

    return _differentiated(norm, a["dout"], x=a["x"], weight=a["weight"])


def _gated(a: Inputs) -> dict[str, Tensor]:
    found = {}
    for function, ending in ((F.silu, ""), (_gelu, ", geglu")):
        product = lambda gate, x, function=function: function(gate) * x  # noqa: E731
        results = _differentiated(product, a["dout"], gate=a["gate"], x=a["x"])
        found |= {f"{name}{ending}": result for name, result in results.items()}
    return found


def _cross_entropy(a: Inputs) -> dict[str, Tensor]:
    options = {"ignore_index": -1, "label_smoothing": a.get("smoothing", 0.0)}
    losses = F.cross_entropy(a["logits"], a["targets"], reduction="none", **options)
    if not bool((a["targets"] >= 0).any()):
        return {"losses": losses, "dlogits": torch.zeros_like(a["logits"])}
    found = _differentiated(
        lambda logits: F.cross_entropy(logits, a["targets"], **options), None, logits=a["logits"]
    )
    return {"losses": losses, "dlogits": found["dlogits"]}


def _embedding(a: Inputs) -> dict[str, Tensor]:
    def look_up(table: Tensor) -> Tensor:
        return F.embedding(a["tokens"], table)

    found = _differentiated(look_up, a["dout"], table=a["table"])
    positions = F.embedding(a["positions"], a["position_table"])
    return found | {"out": found["out"] + positions}


def _pooling(a: Inputs) -> dict[str, Tensor]:
    starts, rows = a["offsets"].tolist(), a["offsets"][1:] - 1
    parts = [
        _differentiated(lambda x: x.mean(0), a["dout"][b], x=a["x"][starts[b] : starts[b + 1]])
        for b in range(len(starts) - 1)
    ]
    return {
        "mean": torch.stack([part["out"] for part in parts]),
        "dmean": torch.cat([part["dx"] for part in parts]),
        "gathered": a["x"][rows],
        "scattered": a["dx"].index_add(0, rows, a["dout"]),
    }


def _stepped(kind: type, a: Inputs, state: dict[str, Tensor], **options: Any) -> Tensor:
    parameter = torch.nn.Parameter(a["parameters"].clone())
    parameter.grad = a["gradients"].clone()
    optimizer = kind([parameter], lr=a["lr"], **options)
    optimizer.state[parameter].update(state)
    optimizer.step()
    return parameter.detach()


def _optimizers(a: Inputs) -> dict[str, Tensor]:
    moments = {name: a[name].clone() for name in ("exp_avg", "exp_avg_sq")}
    options = {"betas": (a["beta1"], a["beta2"]), "eps": a["epsilon"]}
    state = moments | {"step": torch.tensor(float(a["step"] - 1))}
    adam = _stepped(torch.optim.AdamW, a, state, weight_decay=a["weight_decay"], **options)
    velocity = a["exp_avg"].clone()
    state = {"momentum_buffer": velocity}
    sgd = _stepped(torch.optim.SGD, a, state, momentum=a["momentum"])
    norm = torch.linalg.vector_norm(a["gradients"]).reshape(1)
    scaled = a["gradients"] * a["factor"]
    return {
        "adam": adam,
        "sgd": sgd,
        "velocity": velocity,
        "scaled": scaled,
        "norm": norm,
    } | moments


def _dropout(a: Inputs) -> dict[str, Tensor]:
    ones = np.ones(tuple(a["x"].shape))
    kept = np.empty_like(ones)
    # PyTorch draws other numbers, so it is given the mask that fastformer draws.
    dropout_forward_reference(ones, np.zeros((0, 0)), a["rate"], a["seed"], 3, kept)
    noise = torch.from_numpy(kept > 0).to(a["x"].dtype).div_(1 - a["rate"])
    return {"out": a["x"] * noise + a["residual"], "dx": a["dout"] * noise}


def _rotary(a: Inputs) -> dict[str, Tensor]:
    cosines, sines = (a[name][a["positions"]][:, None] for name in ("cosines", "sines"))
    half = cosines.shape[2]

    def turn(q: Tensor, k: Tensor) -> Tensor:
        turned = []
        for x in (q, k):
            first, second = x.view(len(x), -1, 2 * half).chunk(2, dim=2)
            halves = first * cosines - second * sines, second * cosines + first * sines
            turned.append(torch.cat(halves, dim=2).reshape(x.shape))
        return torch.stack(turned)

    found = _differentiated(turn, torch.stack((a["dq"], a["dk"])), q=a["q"], k=a["k"])
    q, k = found.pop("out")
    return found | {"q": q, "k": k}


COMPUTE: dict[str, Callable[[Inputs], dict[str, Tensor]]] = {
    "linear": _linear,
    "linear, grouped": _grouped,
    "linear, activated": _hidden,
    "attention": _attention(causal=False),
    "attention, causal": _attention(causal=True),
    "attention, one row": _attention(causal=False),
    "layernorm": _layernorm,
    "rmsnorm": _rmsnorm,
    "relu": lambda a: _differentiated(F.relu, a["dout"], x=a["x"]),
    "gelu": lambda a: _differentiated(_gelu, a["dout"], x=a["x"]),
    "mish": lambda a: _differentiated(F.mish, a["dout"], x=a["x"]),
    "gated": _gated,
    "softmax": lambda a: _differentiated(lambda x: torch.softmax(x, 1), a["dout"], x=a["x"]),
    "cross entropy": _cross_entropy,
    "cross entropy, smoothed": _cross_entropy,
    "embedding": _embedding,
    "pooling": _pooling,
    "optimizers": _optimizers,
    "dropout": _dropout,
    "rotary": _rotary,
    "attention, alibi": _attention(causal=False),
}


def compute(family: str, inputs: Inputs) -> dict[str, Array]:
    """Return the outputs of a family by name, in the dtype of the inputs."""
    tensors = {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in inputs.items()
    }
    return {name: x.detach().numpy() for name, x in COMPUTE[family](tensors).items()}
