"""The feed-forward layer: two products with an activation between them, or three with a gate."""

from typing import Any

from fastformer import checks
from fastformer.buffers import Apart
from fastformer.kernels.activation import NO_ACTIVATION
from fastformer.kernels.swiglu import swiglu, swiglu_gradient
from fastformer.layers.activation import ACTIVATION_CODES
from fastformer.layers.base import Layer, Seed, initial_stream
from fastformer.layers.dropout import Dropout, DropoutCounter
from fastformer.layers.linear import Linear
from fastformer.parameters import Array
from fastformer.program import Program
from fastformer.tensors import Tensor

GATED = "swiglu"


class FeedForward(Layer):
    """dropout(activation(x W1 + b1) W2 + b2) + residual.

    With "swiglu", (x W1 + b1) * silu(x G + g) stands for the activation, with G and g in `gate`.
    These are half as many weights more; the paper takes two thirds of ffn_dim, for as many as
    before, and leaves the biases out, which all linear layers here have.
    Sources: Vaswani et al. 2017, arXiv:1706.03762, section 3.3; Shazeer 2020, arXiv:2002.05202.
    """

    left = ("expanded", "gated")
    expanded: Array
    gated: Array

    def __init__(
        self,
        embed_dim: int,
        ffn_dim: int,
        *,
        activation: str = "relu",
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
            activation: "relu", "gelu", "mish" or "swiglu".    dropout: of the result, in [0, 1).
            counter: of the dropout.    seed: of the weights, or a stream that they are drawn from.
            backend: "numba" or "reference".    dtype: "float32" or "float64".
            precision: "float32", or "bfloat16", of the operands of products; see `Layer`.
        """
        super().__init__(backend, dtype, precision)
        embed_dim = checks.integer("embed_dim", embed_dim, 1)
        ffn_dim = checks.integer("ffn_dim", ffn_dim, 1)
        checks.table_size("FeedForward", embed_dim=embed_dim, ffn_dim=ffn_dim)
        self._activation_name = checks.choice("activation", activation, (*ACTIVATION_CODES, GATED))
        # Of the product `expand`; a gate has a kernel of its own.
        self.activation = ACTIVATION_CODES.get(activation, NO_ACTIVATION)
        stream = initial_stream(seed)
        own: dict[str, Any] = {"backend": backend, "dtype": dtype, "precision": precision}
        self.expand = Linear(embed_dim, ffn_dim, seed=stream, **own)
        gated = activation == GATED
        self.gate = Linear(embed_dim, ffn_dim, seed=stream, **own) if gated else None
        self.contract = Linear(ffn_dim, embed_dim, seed=stream, **own)
        self.dropout = Dropout(dropout, counter, backend=backend, dtype=dtype)
        self.share()

    def sizes(self) -> dict[str, object]:
        """Return what a person is told of the layer beside its name."""
        return {"activation": self._activation_name}

    def forward(self, x: Array, *, residual: Array | None = None) -> Array:
        """Return (N, C) for x and residual of (N, C), in a buffer."""
        if self.guard.claim():
            checks.matrix("FeedForward", "x", x, None, self.expand.in_features, self.dtype)
            x = self.apart(x)
            if residual is not None:
                checks.same_shape("FeedForward", "residual", residual, x.shape, self.dtype)
                residual = self.apart(residual)
        hidden = self.expand.forward(x, activation=self.activation)
        if self.gate is not None:
            self.__dict__.update(expanded=hidden, gated=self.gate.forward(x))
            hidden = self.buffers.get("hidden", *hidden.shape)
            self.ops.swiglu_forward(self.gated, self.expanded, hidden)
        if self.dropout.active:
            return self.dropout.forward(self.contract.forward(hidden), residual)
        self.dropout.skip()
        return self.contract.forward(hidden, residual=residual)

    def backward(self, dout: Array, *, residual: Array | None = None) -> Array:
        """Add the gradients of the weights, and return that of x plus residual, (N, C)."""
        apart: Apart = (dout, residual) if self.guard.check_left() else ()
        hidden = self.expand.saved
        if apart:
            rows, columns = self.contract.x.shape[0], self.contract.out_features
            checks.matrix("FeedForward.backward", "dout", dout, rows, columns, self.dtype)
            if residual is not None:
                same = rows, columns
                checks.same_shape("FeedForward.backward", "residual", residual, same, self.dtype)
        dout = self.dropout.backward(dout)
        dhidden = self.contract.backward(
            dout,
            activation=self.activation,
            saved=hidden if self.gate is None else None,
            dx=self.scratch.get("feed_forward.dhidden", *hidden.shape, apart=apart),
        )
        dx = self.scratch.get("feed_forward.dx", *dout.shape, apart=apart)
        if self.gate is None:
            return self.expand.backward(dhidden, residual=residual, dx=dx)
        dgated = self.scratch.get("feed_forward.dgated", *hidden.shape, apart=apart)
        # In place: what comes in is the gradient by the product, what goes out that by its factor.
        self.ops.swiglu_backward(dhidden, self.gated, self.expanded, dgated, dhidden)
        dthrough = self.scratch.get("feed_forward.dthrough", *dout.shape, apart=apart)
        self.gate.backward(dgated, residual=residual, dx=dthrough)
        return self.expand.backward(dhidden, residual=dthrough, dx=dx)

    def forward_ops(self, p: Program, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Append the ops of forward."""
        hidden = p.forward(self.expand, x, activation=self.activation)
        if self.gate is not None:
            gate, expanded = p.forward(self.gate, x), hidden
            (hidden,) = p.add(swiglu, gate=gate, x=expanded)
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
        dgate, dexpanded = p.add(swiglu_gradient, dout=dhidden, gate=s.gate, x=s.expanded)
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
