"""Linear layers: y = x W + b, with an activation or a residual sum in the same pass."""

from typing import Any, NamedTuple

import numpy as np

from fastformer import checks
from fastformer.batch import PackedBatch
from fastformer.kernels.activation import EXACT_GELU, GELU, MISH, NO_ACTIVATION, RELU, SLOPED
from fastformer.kernels.matmul import (
    linear,
    linear_input_gradient,
    linear_weight_gradient,
)
from fastformer.kernels.matmul_bfloat16 import (
    linear_bfloat16,
    linear_input_gradient_bfloat16,
    linear_weight_gradient_bfloat16,
)
from fastformer.kernels.op import Op
from fastformer.layers.base import Layer, Seed, initial_stream
from fastformer.layers.embedding import Embedding
from fastformer.parameters import Array, Parameter
from fastformer.program import Program
from fastformer.tensors import ROWS, Axis, Tensor

ACTIVATIONS = {
    "NO_ACTIVATION": NO_ACTIVATION, "RELU": RELU, "GELU": GELU, "MISH": MISH,
    "EXACT_GELU": EXACT_GELU,
}  # fmt: skip


class Products(NamedTuple):
    """The ops of a linear layer: its result, and the gradients of its input and of its weight."""

    forward: Op
    input_gradient: Op
    weight_gradient: Op


# By the precision of what is multiplied.
PRODUCTS = {
    "float32": Products(linear, linear_input_gradient, linear_weight_gradient),
    "bfloat16": Products(
        linear_bfloat16, linear_input_gradient_bfloat16, linear_weight_gradient_bfloat16
    ),
}


def xavier_uniform(random: np.random.Generator, fan_in: int, fan_out: int) -> Array:
    """Return (fan_in, fan_out) float64 weights, uniform in +-sqrt(6 / (fan_in + fan_out)).

    Source: Glorot & Bengio 2010, equation 16.
    """
    limit = np.sqrt(6 / (fan_in + fan_out))
    return random.uniform(-limit, limit, (fan_in, fan_out))


class Linear(Layer):
    """y = x W + b, with W of shape (in, out)."""

    left = ("x",)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        seed: Seed = 0,
        backend: str = "numba",
        dtype: str = "float32",
        precision: str = "float32",
    ) -> None:
        """Make the layer with Xavier-uniform weights and a zero bias.

        Args:
            in_features, out_features: widths of x and y, >= 1.
            bias: whether there is a b.
            seed: of the weights, or a stream that they are drawn from.
            backend: "numba" or "reference".    dtype: "float32" or "float64".
            precision: "float32", or "bfloat16", of the operands of products; see `Layer`.
        """
        super().__init__(backend, dtype, precision)
        self.in_features = checks.integer("in_features", in_features, 1)
        self.out_features = checks.integer("out_features", out_features, 1)
        checks.boolean("bias", bias)
        checks.table_size("Linear", in_features=in_features, out_features=out_features)
        weight = xavier_uniform(initial_stream(seed), in_features, out_features)
        # One group of the batched product.
        self.weight = Parameter(weight[None].astype(self.dtype), parts=("weight",), decays=True)
        self.bias = Parameter(np.zeros(out_features if bias else 0, self.dtype))

    def sizes(self) -> dict[str, object]:
        """Return what a person is told of the layer beside its name."""
        bias = {} if self.bias.value.size else {"bias": False}
        return {"in_features": self.in_features, "out_features": self.out_features, **bias}

    def shapes(self, **options: Any) -> dict[str, tuple[Axis, Axis | None]]:
        """Return the shapes of what forward is given."""
        x, residual = Axis(self.in_features), Axis(self.out_features)
        return {"x": (ROWS, x), "residual": (ROWS, residual)}

    def check_call(self, batch: PackedBatch, **given: Any) -> None:
        """Raise for what only a program can be told."""
        for name in given.keys() - {"x", "residual"}:
            checks.fail(
                f"Linear: {name} is for forward_ops, in a program; by itself, a Linear is given x "
                "and residual, and activations are layers: fastformer.GELU and others"
            )

    def forward_ops(
        self,
        p: Program,
        x: Tensor,
        residual: Tensor | None = None,
        activation: int = NO_ACTIVATION,
        out: Tensor | None = None,
    ) -> Tensor:
        """Append the ops of forward.

        Args:
            x: (N, in).    residual: (N, out), added before the activation, or None.
            activation: NO_ACTIVATION, RELU, GELU or others of fastformer.kernels.activation, which
                the layer behind this one undoes in backward.
            out: (N, out), where the result goes; a place of its own unless given.
        """
        checks.one_of("Linear", "activation", activation, ACTIVATIONS)
        slope = None
        if activation in SLOPED:
            slope = p.new("slope", x.axes[0], self.out_features)
        if out is None:
            out = p.new("out", x.axes[0], self.out_features)
        p.add(
            PRODUCTS[self.precision].forward, x=x, weight=p.value(self.weight),
            bias=p.value(self.bias, "bias"),
            residual=residual, activation=activation, slope=slope, out=out,
        )  # fmt: skip
        p.save(x=x, saved=out if slope is None else slope)
        return out

    def backward_ops(
        self,
        p: Program,
        dout: Tensor,
        residual: Tensor | None = None,
        activation: int = NO_ACTIVATION,
        saved: Tensor | None = None,
    ) -> Tensor:
        """Append the ops of backward; activation and saved are those of the layer before."""
        checks.one_of("Linear.backward", "activation", activation, ACTIVATIONS)
        if (saved is None) != (activation == NO_ACTIVATION):
            checks.fail(
                "Linear.backward: activation and saved go together: the activation that made x, "
                f"and what it saved; got {activation=} with{'out' if saved is None else ''} saved"
            )
        (dx,) = p.add(
            PRODUCTS[self.precision].input_gradient, dout=dout,
            weight=p.value(self.weight), saved=saved,
            residual=residual, activation=activation,
        )  # fmt: skip
        p.add(
            PRODUCTS[self.precision].weight_gradient, x=p.saved.x, dout=dout, overwrites=0,
            dweight=p.gradient(self.weight), dbias=p.gradient(self.bias, "bias"),
        )  # fmt: skip
        return dx


class TiedLinear(Layer):
    """y = x E^T with the rows of an embedding table E as weights.

    Source: Press & Wolf 2017, arXiv:1608.05859.
    """

    left = ("x",)

    def __init__(self, embedding: Embedding, *, precision: str = "float32") -> None:
        """Share the table of an embedding, its backend and its dtype; precision: see `Layer`."""
        super().__init__(embedding.ops.name, embedding.dtype.name, precision)
        self.weight = embedding.weight

    def sizes(self) -> dict[str, object]:
        """Return what a person is told of the layer beside its name."""
        vocab_size, embed_dim = self.weight.value.shape
        return {"embed_dim": embed_dim, "vocab_size": vocab_size}

    def shapes(self, **options: Any) -> dict[str, tuple[Axis, Axis | None]]:
        """Return the shape of what forward is given."""
        return {"x": (ROWS, Axis(self.weight.value.shape[1]))}

    def forward_ops(self, p: Program, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Append the ops of forward."""
        table = p.outside("table", self.weight.value[None])
        if out is None:
            out = p.new("logits", x.axes[0], len(self.weight.value))
        product = PRODUCTS[self.precision].input_gradient
        p.add(product, dout=x, weight=table, activation=NO_ACTIVATION, dx=out)
        p.save(x=x)
        return out

    def backward_ops(self, p: Program, dout: Tensor) -> Tensor:
        """Append the ops of backward."""
        table = p.outside("table", self.weight.value[None])
        products = PRODUCTS[self.precision]
        (dx,) = p.add(products.forward, x=dout, weight=table, activation=NO_ACTIVATION)
        gradient = p.outside("table gradient", self.weight.gradient[None])
        p.add(products.weight_gradient, x=dout, dout=p.saved.x, overwrites=0, dweight=gradient)
        return dx
