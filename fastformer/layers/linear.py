"""Linear layers: y = x W + b, with an activation or a residual sum in the same pass."""

from typing import NamedTuple

import numpy as np

from fastformer import checks
from fastformer.kernels.activation import GELU, MISH, NO_ACTIVATION, RELU, SLOPED
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
from fastformer.tensors import Tensor

ACTIVATIONS = {"NO_ACTIVATION": NO_ACTIVATION, "RELU": RELU, "GELU": GELU, "MISH": MISH}


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

    left = ("x", "saved")
    x: Array
    saved: Array

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

    def forward(
        self,
        x: Array,
        *,
        residual: Array | None = None,
        activation: int = NO_ACTIVATION,
        out: Array | None = None,
    ) -> Array:
        """Return activation(x W + b + residual).

        Args:
            x: (N, in).    residual: (N, out) or None.
            activation: NO_ACTIVATION, RELU, GELU or MISH of fastformer.kernels.activation.
            out: (N, out), where to write, apart from what is read; a buffer unless given.

        Returns:
            out.
        """
        given = out
        by_itself = self.guard.claim()
        if by_itself:
            checks.one_of("Linear", "activation", activation, ACTIVATIONS)
            checks.matrix("Linear", "x", x, None, self.in_features, self.dtype)
            x = self.apart(x)
        out = self.prepare(x, activation, out)
        if residual is not None:
            checks.same_shape("Linear", "residual", residual, out.shape, self.dtype)
        if by_itself:
            residual = None if residual is None else self.apart(residual)
            if given is not None:
                own = {"weight": self.weight.value, "bias": self.bias.value}
                own |= {"saved": self.saved} if activation in SLOPED else {}
                checks.apart("Linear", "out", out, x=x, residual=residual, **own)
        self.ops.matmul(
            self.x,
            self.weight.value,
            self.bias.value,
            self.nothing if residual is None else residual,
            activation,
            self.saved if activation in SLOPED else self.nothing,
            out,
        )
        return out

    def prepare(self, x: Array, activation: int = NO_ACTIVATION, out: Array | None = None) -> Array:
        """Keep x for backward, and return where the result goes, (N, out): a buffer, or out."""
        checks.matrix("Linear", "x", x, None, self.in_features, self.dtype)
        if out is None:
            out = self.buffers.get("out", x.shape[0], self.out_features)
        else:
            checks.matrix("Linear", "out", out, x.shape[0], self.out_features, self.dtype)
        # What the activation's derivative needs: ReLU's output, else the derivative itself.
        kept = self.__dict__
        kept["saved"] = self.buffers.get("slope", *out.shape) if activation in SLOPED else out
        kept["x"] = x
        return out

    def backward(
        self,
        dout: Array,
        *,
        residual: Array | None = None,
        activation: int = NO_ACTIVATION,
        saved: Array | None = None,
        dx: Array | None = None,
    ) -> Array:
        """Add the gradients of W and b, and return that of x.

        Args:
            dout: (N, out), the gradient by x W + b.
            residual: (N, in), added to the gradient of x, or None.
            activation, saved: the activation that made x, and what it saved, (N, in): then the
                gradient by the activation's input is returned.
            dx: (N, in), where to write, apart from what is read; a shared buffer unless given.

        Returns:
            dx.
        """
        by_itself = self.guard.check_left()
        where, rows = "Linear.backward", self.x.shape[0]
        checks.matrix(where, "dout", dout, rows, self.out_features, self.dtype)
        for name, array in (("dx", dx), ("residual", residual), ("saved", saved)):
            if array is not None:
                checks.matrix(where, name, array, rows, self.in_features, self.dtype)
        if dx is None:
            apart = (dout, residual, saved) if by_itself else ()
            dx = self.scratch.get("linear.dx", rows, self.in_features, apart=apart)
        if by_itself:
            checks.one_of(where, "activation", activation, ACTIVATIONS)
            if (saved is None) != (activation == NO_ACTIVATION):
                checks.fail(
                    f"{where}: activation and saved go together: the activation that made x, and "
                    f"what it saved; got {activation=} with{'out' if saved is None else ''} saved"
                )
            gradients = {"gradient": self.weight.gradient, "bias": self.bias.gradient}
            read = {"dout": dout, "residual": residual, "saved": saved, "x": self.x}
            checks.apart(where, "dx", dx, **read, weight=self.weight.value, **gradients)
            checks.apart(where, "dout", dout, **gradients)
        self.ops.matmul_backward(
            self.x,
            self.weight.value,
            dout,
            self.nothing if saved is None else saved,
            self.nothing if residual is None else residual,
            activation,
            dx,
            self.weight.gradient,
            self.bias.gradient,
        )
        return dx

    def forward_ops(
        self,
        p: Program,
        x: Tensor,
        residual: Tensor | None = None,
        activation: int = NO_ACTIVATION,
        out: Tensor | None = None,
    ) -> Tensor:
        """Append the ops of forward."""
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
    x: Array

    def __init__(self, embedding: Embedding, *, precision: str = "float32") -> None:
        """Share the table of an embedding, its backend and its dtype; precision: see `Layer`."""
        super().__init__(embedding.ops.name, embedding.dtype.name, precision)
        self.weight = embedding.weight

    def sizes(self) -> dict[str, object]:
        """Return what a person is told of the layer beside its name."""
        vocab_size, embed_dim = self.weight.value.shape
        return {"embed_dim": embed_dim, "vocab_size": vocab_size}

    def forward(self, x: Array, *, out: Array | None = None) -> Array:
        """Return (N, V) for x of (N, C): in out of that shape, or a buffer."""
        vocab_size, embed_dim = self.weight.value.shape
        checks.matrix("TiedLinear", "x", x, None, embed_dim, self.dtype)
        by_itself = self.guard.claim()
        if by_itself:
            x = self.apart(x)
        if out is None:
            out = self.buffers.get("out", x.shape[0], vocab_size)
        else:
            checks.matrix("TiedLinear", "out", out, x.shape[0], vocab_size, self.dtype)
            if by_itself:
                checks.apart("TiedLinear", "out", out, x=x, weight=self.weight.value)
        self.__dict__["x"] = x
        nothing = self.nothing
        self.ops.matmul_nt(self.x, self.weight.value[None], nothing, nothing,
            NO_ACTIVATION, out,
        )  # fmt: skip
        return out

    def backward(self, dout: Array) -> Array:
        """Add the table's gradient, and return that of x, (N, C), a shared buffer."""
        by_itself = self.guard.check_left()
        (vocab_size, embed_dim), where = self.weight.value.shape, "TiedLinear.backward"
        checks.matrix(where, "dout", dout, self.x.shape[0], vocab_size, self.dtype)
        if by_itself:
            checks.apart(where, "dout", dout, gradient=self.weight.gradient)
        gradient = self.weight.gradient[None]
        self.ops.matmul_tn(dout, self.x, self.no_vector, gradient)
        dx = self.scratch.get(
            "linear.dx", self.x.shape[0], embed_dim, apart=(dout,) if by_itself else ()
        )
        self.ops.matmul(dout, self.weight.value[None], self.no_vector, self.nothing,
            NO_ACTIVATION, self.nothing, dx,
        )  # fmt: skip
        return dx

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
