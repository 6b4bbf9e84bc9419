"""Root mean square normalisation with a learned weight."""

from fastformer.kernels.rmsnorm import add_rmsnorm_gradient, rmsnorm, rmsnorm_gradient
from fastformer.layers.row_norm import RowNorm
from fastformer.program import Program
from fastformer.tensors import MOST_PARTS, Tensor


class RMSNorm(RowNorm):
    """x / sqrt(mean(x^2) + epsilon) * weight; see kernels/rmsnorm.py."""

    left = ("x", "rrms")

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
