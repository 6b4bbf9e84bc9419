"""The ops in PyTorch, as its users write them; gradients are autograd's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch._functorch.config
import torch.nn.functional as F

Tensor = Any


@dataclass
class Plan:
    """What is called on what.

    Attributes:
        function: of `inputs`.    dout: where a gradient is wanted, that of the result.
    """

    function: Callable[..., Any]
    inputs: tuple[Tensor, ...]
    dout: Tensor = None


def _optimizer(kind: type, a: Mapping[str, Tensor], **options: Any) -> Plan:
    parameter = torch.nn.Parameter(a["parameters"])
    parameter.grad = a["gradients"]
    optimizer = kind([parameter], lr=a["lr"], fused=True, **options)
    return Plan(optimizer.step, ())


def _adam(a: Mapping[str, Tensor]) -> Plan:
    betas = (a["beta1"], a["beta2"])
    decay = a["weight_decay"]
    return _optimizer(torch.optim.AdamW, a, betas=betas, eps=a["epsilon"], weight_decay=decay)


def _heads(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    B, T, C, H = shape
    return x.view(B, T, H, C // H).transpose(1, 2)


def _bend(a: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    """Return what causal attention with ALiBi adds to scores (H, T, T)."""
    place = torch.arange(shape[1])
    distance = (place[:, None] - place).to(a["slopes"].dtype)
    return (-a["slopes"][:, None, None] * distance).masked_fill(distance < 0, -torch.inf)


def _attention(a: Mapping[str, Tensor], shape: tuple[int, ...], backward: bool) -> Plan:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads = (_heads(x, shape) for x in (q, k, v))
        if len(a["slopes"]):
            out = F.scaled_dot_product_attention(*heads, attn_mask=_bend(a, shape))
        else:
            out = F.scaled_dot_product_attention(*heads, is_causal=bool(a["causal"]))
        return out.transpose(1, 2).reshape(q.shape)

    return Plan(attend, (a["q"], a["k"], a["v"]), a["dout"] if backward else None)


def _attention_weights(a: Mapping[str, Tensor], shape: tuple[int, ...]) -> Plan:
    def weigh(q: Tensor, k: Tensor) -> Tensor:
        scores = _heads(q, shape) @ _heads(k, shape).transpose(2, 3) * a["scale"]
        if len(a["slopes"]):
            scores = scores + _bend(a, shape)
        elif a["causal"]:
            seen = torch.ones(scores.shape[2:], dtype=torch.bool).tril()
            scores = scores.masked_fill(~seen, -torch.inf)
        return torch.softmax(scores, dim=3)

    return Plan(weigh, (a["q"], a["k"]))


def _turn(a: Mapping[str, Tensor], shape: tuple[int, ...], backward: bool) -> Plan:
    B, T, C, H = shape
    cosines, sines = a["cosines"][:, None], a["sines"][:, None] * (-1 if backward else 1)

    def turn(q: Tensor, k: Tensor) -> list[Tensor]:
        turned = []
        for x in (q, k):
            first, second = x.view(B, T, H, C // H).chunk(2, dim=3)
            halves = first * cosines - second * sines, second * cosines + first * sines
            turned.append(torch.cat(halves, dim=3).view(B * T, C))
        return turned

    return Plan(turn, tuple(a.values())[:2])


def _matmul(a: Mapping[str, Tensor], variant: str) -> Plan:
    x, weight = a["a"], a["b"][0]
    if variant == "bias+gelu":
        return Plan(
            lambda x, w, b: F.gelu(torch.addmm(b, x, w), approximate="tanh"), (x, weight, a["bias"])
        )
    if variant == "bias+residual":
        return Plan(
            lambda x, w, b, r: torch.addmm(b, x, w) + r, (x, weight, a["bias"], a["addend"])
        )
    return Plan(torch.mm, (x, weight))


def _add_products(x: Tensor, dy: Tensor, sums: Tensor, out: Tensor) -> None:
    """Add the gradients of weights and bias."""
    out.addmm_(x.T, dy)
    sums += dy.sum(0)


def _both_gradients(x: Tensor, w: Tensor, dy: Tensor, sums: Tensor, out: Tensor) -> Tensor:
    """Add the gradients of weights and bias, and return that of the input."""
    _add_products(x, dy, sums, out)
    return dy @ w.T


def _rounded(x: Tensor, y: Tensor) -> Tensor:
    """Return the product of operands in bfloat16, as torch.autocast makes it, in float32."""
    return (x.to(torch.bfloat16) @ y.to(torch.bfloat16)).float()


def _rounded_matmul(a: Mapping[str, Tensor], variant: str) -> Plan:
    x, weight = a["a"], a["b"][0]
    if variant == "bias+gelu":
        return Plan(
            lambda x, w, b: F.gelu(_rounded(x, w) + b, approximate="tanh"), (x, weight, a["bias"])
        )
    return Plan(_rounded, (x, weight))


def _add_rounded_products(x: Tensor, dy: Tensor, sums: Tensor, out: Tensor) -> None:
    out += _rounded(x.T, dy)
    sums += dy.sum(0)


def _both_rounded_gradients(x: Tensor, w: Tensor, dy: Tensor, sums: Tensor, out: Tensor) -> Tensor:
    _add_rounded_products(x, dy, sums, out)
    return _rounded(dy, w.T)


def _all_finite(*arrays: Tensor) -> Tensor:
    return torch.stack([torch.isfinite(x).all() for x in arrays]).all()


def _activation(a: Mapping[str, Tensor], variant: str) -> Plan:
    functions = {
        "relu": F.relu,
        "gelu": lambda x: F.gelu(x, approximate="tanh"),
        "gelu_exact": F.gelu,
        "mish": F.mish,
    }
    return Plan(functions[variant], (a["x"],), a.get("dout"))


def _embedding(a: Mapping[str, Tensor]) -> Plan:
    def look_up(table: Tensor, position_table: Tensor) -> Tensor:
        return F.embedding(a["tokens"], table) + F.embedding(a["positions"], position_table)

    return Plan(look_up, (a["table"], a["position_table"]))


def _layernorm(a: Mapping[str, Tensor]) -> Plan:
    bias = a.get("bias", torch.zeros_like(a["weight"]))
    width = a["weight"].shape
    return Plan(
        lambda x, w, b: F.layer_norm(x, width, w, b, 1e-5), (a["x"], a["weight"], bias),
        a.get("dout"),
    )  # fmt: skip


def _rmsnorm(a: Mapping[str, Tensor]) -> Plan:
    width = a["weight"].shape
    return Plan(lambda x, w: F.rms_norm(x, width, w, 1e-5), (a["x"], a["weight"]), a.get("dout"))


def _gated(a: Mapping[str, Tensor], variant: str) -> Plan:
    functions = {"swiglu": F.silu, "geglu": lambda x: F.gelu(x, approximate="tanh")}
    function = functions[variant]
    return Plan(lambda gate, x: function(gate) * x, (a["gate"], a["x"]), a.get("dout"))


def _in_sequences(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return x.view(*shape)


def plan(op: str, variant: str, shape: tuple[int, ...], a: Mapping[str, Tensor]) -> Plan:
    """Return what PyTorch does for an op.

    Args:
        op, variant, shape: the case.    a: the kernel's arguments by name, arrays as tensors.
    """
    plans: dict[str, Callable[[], Plan]] = {
        "activation_forward": lambda: _activation(a, variant),
        "activation_backward": lambda: _activation(a, variant),
        "adam_step": lambda: _adam(a),
        "attention_forward": lambda: _attention(a, shape, backward=False),
        "attention_backward": lambda: _attention(a, shape, backward=True),
        "attention_weights": lambda: _attention_weights(a, shape),
        "cross_entropy_forward": lambda: Plan(
            lambda x: F.cross_entropy(x, a["targets"], reduction="none"), (a["logits"],)
        ),
        "cross_entropy_backward": lambda: Plan(
            lambda x: F.cross_entropy(x, a["targets"]), (a["logits"],), torch.tensor(1.0)
        ),
        "dropout_forward": lambda: Plan(
            lambda x, residual: F.dropout(x, a["rate"]) + residual, (a["x"], a["residual"])
        ),
        "dropout_backward": lambda: Plan(
            lambda x: F.dropout(x, a["rate"]), (torch.ones_like(a["dout"]),), a["dout"]
        ),
        "embedding_forward": lambda: _embedding(a),
        "embedding_backward": lambda: Plan(
            lambda table: F.embedding(a["ids"], table), (a["dtable"],), a["dout"]
        ),
        "gradient_norm": lambda: Plan(torch.linalg.vector_norm, (a["gradients"],)),
        "zero_gradient": lambda: Plan(torch.Tensor.zero_, (a["gradients"],)),
        "add_gradient": lambda: Plan(lambda g: g.add_(a["other"]), (a["gradients"],)),
        "may_step": lambda: Plan(_all_finite, tuple(a.values())),
        "scale_gradient": lambda: Plan(lambda g: g.mul_(a["factor"]), (a["gradients"],)),
        "layernorm_forward": lambda: _layernorm(a),
        "layernorm_backward": lambda: _layernorm(a),
        "matmul": lambda: _matmul(a, variant),
        "matmul_nt": lambda: Plan(lambda x, w: x @ w.T, (a["a"], a["b"][0])),
        "matmul_tn": lambda: Plan(_add_products, (a["a"], a["b"], a["column_sums"], a["out"][0])),
        "matmul_backward": lambda: Plan(
            _both_gradients, (a["a"], a["b"][0], a["dout"], a["column_sums"], a["db"][0])
        ),
        "matmul_bfloat16": lambda: _rounded_matmul(a, variant),
        "matmul_nt_bfloat16": lambda: Plan(lambda x, w: _rounded(x, w.T), (a["a"], a["b"][0])),
        "matmul_tn_bfloat16": lambda: Plan(
            _add_rounded_products, (a["a"], a["b"], a["column_sums"], a["out"][0])
        ),
        "matmul_backward_bfloat16": lambda: Plan(
            _both_rounded_gradients, (a["a"], a["b"][0], a["dout"], a["column_sums"], a["db"][0])
        ),
        "gather_rows": lambda: Plan(lambda x: x[a["rows"]], (a["x"],)),
        "scatter_rows": lambda: Plan(
            lambda dx, dout: dx.index_add_(0, a["rows"], dout), (a["dx"], a["dout"])
        ),
        "mean_forward": lambda: Plan(lambda x: _in_sequences(x, shape).mean(1), (a["x"],)),
        "mean_backward": lambda: Plan(
            lambda dout: (dout / shape[1])[:, None].expand(shape).contiguous(), (a["dout"],)
        ),
        "rmsnorm_forward": lambda: _rmsnorm(a),
        "rmsnorm_backward": lambda: _rmsnorm(a),
        "rotary_forward": lambda: _turn(a, shape, backward=False),
        "rotary_backward": lambda: _turn(a, shape, backward=True),
        "average_step": lambda: Plan(
            lambda average: average.lerp_(a["values"], 1 - a["decay"]), (a["average"],)
        ),
        "sgd_step": lambda: _optimizer(torch.optim.SGD, a, momentum=a["momentum"]),
        "softmax_forward": lambda: Plan(lambda x: torch.softmax(x, 1), (a["x"],)),
        "softmax_backward": lambda: Plan(
            lambda x: torch.softmax(x, 1), (torch.log(a["out"]),), a["dout"]
        ),
        "gated_forward": lambda: _gated(a, variant),
        "gated_backward": lambda: _gated(a, variant),
    }
    return plans[op]()


def build(
    op: str, variant: str, shape: tuple[int, ...], arguments: Mapping[str, Any], compiled: bool
) -> Callable[[], Any]:
    """Return a call that does an op's work once.

    Args:
        op, variant, shape: the case.    arguments: the kernel's arguments by name.
        compiled: whether through torch.compile.
    """
    tensors = {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in arguments.items()
    }
    made = plan(op, variant, shape, tensors)
    function = made.function
    if compiled:
        # A gradient is taken again and again from one forward.
        torch._functorch.config.donated_buffer = False
        torch._dynamo.reset()
        function = torch.compile(function, dynamic=False)
    if made.dout is None:
        torch.set_grad_enabled(False)
        return lambda: function(*made.inputs)
    torch.set_grad_enabled(True)
    inputs = [x.requires_grad_() for x in made.inputs]
    out, dout = function(*inputs), made.dout
    return lambda: torch.autograd.grad(out, inputs, dout, retain_graph=True)
