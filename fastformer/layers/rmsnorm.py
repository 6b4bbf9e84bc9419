"""Root mean square normalisation with a learned weight."""

from fastformer.kernels.rmsnorm import add_rmsnorm_gradient, rmsnorm, rmsnorm_gradient
from fastformer.layers.row_norm import RowNorm
from fastformer.parameters import Array
from fastformer.program import Program
from fastformer.tensors import MOST_PARTS, Tensor


class RMSNorm(RowNorm):
    """x / sqrt(mean(x^2) + epsilon) * weight; see kernels/rmsnorm.py."""

    left = ("x", "rrms")
    rrms: Array

    def forward(self, x: Array) -> Array:
        """Return (N, C) for x of (N, C), in a buffer."""
        x = self.begin(x)
        out = self.prepare(x)
        self.__dict__["rrms"] = self.buffers.get("rrms", x.shape[0])
        weight = self.weight.value
        self.ops.rmsnorm_forward(x, weight, self.epsilon, out, self.rrms)
        return out

    def backward(
        self,
        dout: Array,
        *,
        residual: Array | None = None,
        dx: Array | None = None,
    ) -> Array:
        """Add the gradient of the weight, and return that of x.

        Args:
            dout: (N, C).    residual: (N, C), added to the gradient of x, or None.
            dx: (N, C), where to write; a shared buffer unless given.

        Returns:
            dx.
        """
        added, dx = self.prepare_backward(dout, residual, dx)
        weight = self.weight
        self.ops.rmsnorm_backward(dout, self.x, weight.value, self.rrms, added, dx,
            weight.gradient,
        )  # fmt: skip
        return dx

    def forward_ops(self, p: Program, x: Tensor) -> Tensor:
        """Append the ops of forward."""
        out, rrms = p.add(rmsnorm, x=x, weight=p.value(self.weight), epsilon=self.epsilon)
        p.save(x=x, rrms=rrms)
        return out

    def backward_ops(
        self,
        p: Program,
        dout: Tensor,
        residual: Tensor | None = None,
        dx: Tensor | None = None,
    ) -> Tensor:
        """Append the ops of backward, into dx, which may be dout, where one is given."""
        s, totals = p.saved, p.new("totals", MOST_PARTS, self.embed_dim, kind="double")
        dx = p.new("dx", *dout.axes) if dx is None else dx
        p.add(
            rmsnorm_gradient, dout=dout, x=s.x, weight=p.value(self.weight), rrms=s.rrms,
            residual=residual, dx=dx, totals=totals,
        )  # fmt: skip
        p.add(
            add_rmsnorm_gradient, totals=totals, rows=dout.axes[0], shards=0, overwrites=0,
            dweight=p.gradient(self.weight),
        )  # fmt: skip
        return dx
