"""The feed-forward layer: two products with an activation between them, or three with a gate."""

from typing import Any

from fastformer import checks
from fastformer.kernels.activation import GELU, NO_ACTIVATION, SILU
from fastformer.kernels.gated import gated, gated_gradient
from fastformer.layers.activation import ACTIVATION_CODES
from fastformer.layers.base import Layer, Seed, initial_stream
from fastformer.layers.dropout import Dropout, DropoutCounter
from fastformer.layers.linear import Linear
from fastformer.program import Program
from fastformer.tensors import ROWS, Axis, Tensor

# What a gate is given to.
GATES = {"swiglu": SILU, "geglu": GELU}


class FeedForward(Layer):
    """dropout(activation(x W1 + b1) W2 + b2) + residual.

    With "swiglu", (x W1 + b1) * silu(x G + g) stands for the activation, with G and g in `gate`,
    and with "geglu" (x W1 + b1) * gelu(x G + g), of GELU's tanh form. These are half as many
    weights more; the paper takes two thirds of ffn_dim, for as many as before, and leaves the
    biases out, which all linear layers here have.
    Sources: Vaswani et al. 2017, arXiv:1706.03762, section 3.3; Shazeer 2020, arXiv:2002.05202.
    """

    def __init__(
        self,
        embed_dim: int,
        ffn_dim: int,
        *,
        activation: str = "relu",
        bias: bool = True,
        dropout: float = 0.0,
        counter: DropoutCounter | None = None,
        seed: Seed = 0,
        backend: str = "numba",
        dtype: str = "float32",
        precision: str = "float32",
    ) -> None:
        """Make the layer.

        Args:
            embed_dim: C, the width of x and of the result.    ffn_dim: F, the width between.
            activation: "relu", "gelu", "gelu_exact", "mish", "swiglu" or "geglu".
            bias: whether the linear layers have some.
            dropout: of the result, in [0, 1).
            counter: of the dropout.    seed: of the weights, or a stream that they are drawn from.
            backend: "numba" or "reference".    dtype: "float32" or "float64".
            precision: "float32", or "bfloat16", of the operands of products; see `Layer`.
        """
        super().__init__(backend, dtype, precision)
        embed_dim = checks.integer("embed_dim", embed_dim, 1)
        ffn_dim = checks.integer("ffn_dim", ffn_dim, 1)
        checks.table_size("FeedForward", embed_dim=embed_dim, ffn_dim=ffn_dim)
        self._activation_name = checks.choice("activation", activation, (*ACTIVATION_CODES, *GATES))
        # Of the product `expand`; a gate has a kernel of its own.
        self.activation = ACTIVATION_CODES.get(activation, NO_ACTIVATION)
        self.gate_activation = GATES.get(activation, NO_ACTIVATION)
        stream = initial_stream(seed)
        own: dict[str, Any] = {"backend": backend, "dtype": dtype, "precision": precision}
        own["bias"] = checks.boolean("bias", bias)
        self.expand = Linear(embed_dim, ffn_dim, seed=stream, **own)
        has_gate = activation in GATES
        self.gate = Linear(embed_dim, ffn_dim, seed=stream, **own) if has_gate else None
        self.contract = Linear(ffn_dim, embed_dim, seed=stream, **own)
        self.dropout = Dropout(dropout, counter, backend=backend, dtype=dtype)
        self.share()

    def sizes(self) -> dict[str, object]:
        """Return what a person is told of the layer beside its name."""
        return {"activation": self._activation_name}

    def shapes(self, **options: Any) -> dict[str, tuple[Axis, Axis | None]]:
        """Return the shapes of what forward is given."""
        width = Axis(self.expand.in_features)
        return {"x": (ROWS, width), "residual": (ROWS, width)}

    def forward_ops(self, p: Program, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Append the ops of forward."""
        hidden = p.forward(self.expand, x, activation=self.activation)
        if self.gate is not None:
            gate, expanded = p.forward(self.gate, x), hidden
            (hidden,) = p.add(gated, gate=gate, x=expanded, activation=self.gate_activation)
            p.save(gate=gate, expanded=expanded)
        return drop_and_add(p, self.contract, self.dropout, hidden, residual)

    def backward_ops(self, p: Program, dout: Tensor, residual: Tensor | None = None) -> Tensor:
        """Append the ops of backward."""
        dout = p.backward(self.dropout, dout)
        if self.gate is None:
            saved = p.saved_of(self.expand).saved
            dhidden = p.backward(self.contract, dout, activation=self.activation, saved=saved)
            return p.backward(self.expand, dhidden, residual=residual)
        dhidden, s = p.backward(self.contract, dout), p.saved
        dgate, dexpanded = p.add(
            gated_gradient, dout=dhidden, gate=s.gate, x=s.expanded,
            activation=self.gate_activation,
        )  # fmt: skip
        through = p.backward(self.gate, dgate, residual=residual)
        return p.backward(self.expand, dexpanded, residual=through)


def drop_and_add(
    p: Program, linear: Linear, dropout: Dropout, x: Tensor, residual: Tensor | None
) -> Tensor:
    """Append a linear layer, dropout, and a residual sum, in as few ops as there can be."""
    if p.training and dropout.rate > 0:
        return p.forward(dropout, p.forward(linear, x), residual)
    p.forward(dropout, x)
    return p.forward(linear, x, residual=residual)
