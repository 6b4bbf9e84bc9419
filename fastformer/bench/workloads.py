"""The training steps that are measured, and their arithmetic.

Each is a whole step: forward, loss, backward, Adam. All systems start from the same weights and
are given the same batches, and their first losses must agree before a step is timed.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastformer.models.config import DecoderConfig, TransformerConfig

LEARNING_RATE = 1e-3
BATCHES = 4


@dataclass(frozen=True)
class Workload:
    """A model and the shape of its batches.

    Attributes:
        kind: "encoder" (post-norm, ReLU, sines, reads out the first token) or "decoder" (pre-norm,
            GELU, learned positions, tied output).
        B, T: sequences and tokens of each.    C, H, L, F, V: width, heads, layers, hidden width,
            vocabulary.
    """

    name: str
    title: str
    kind: str
    B: int
    T: int
    C: int
    H: int
    L: int
    F: int
    V: int

    def config(self) -> "TransformerConfig | DecoderConfig":
        """Return fastformer's settings of the model."""
        from fastformer.models.config import DecoderConfig, TransformerConfig

        sizes: dict[str, Any] = {
            "vocab_size": self.V,
            "embed_dim": self.C,
            "num_heads": self.H,
            "num_layers": self.L,
            "ffn_dim": self.F,
        }
        if self.kind == "encoder":
            return TransformerConfig(**sizes, max_seq_len=50)
        return DecoderConfig(**sizes, max_seq_len=self.T)

    def resized(self, **sizes: int) -> "Workload":
        """Return the workload with other sizes, named after them."""
        name = ", ".join(f"{key}={value}" for key, value in sizes.items())
        return replace(self, name=f"{self.name} {name}", **sizes)  # type: ignore[arg-type]

    @property
    def tokens(self) -> int:
        """Tokens of a batch."""
        return self.B * self.T


_DIGITS: dict[str, Any] = {"kind": "encoder", "B": 32, "C": 64, "H": 4, "L": 2, "F": 256, "V": 20}
WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("P1", "digit encoder, 20 tokens", T=20, **_DIGITS),
        Workload("P2", "digit encoder, 8 tokens", T=8, **_DIGITS),
        Workload("P4", "nanoGPT's CPU recipe", "decoder", 12, 64, 128, 4, 4, 512, 65),
        Workload("P5", "baby GPT", "decoder", 8, 256, 384, 6, 6, 1536, 65),
    )
}


def step_flops(workload: Workload, *, reads_one_row: bool) -> float:
    """Return the operations of the products of one training step; a multiply-add is two.

    A product's backward has two of its kind. Attention's has five where its forward has two:
    the weights are computed again.

    Args:
        workload: the model and its batch.
        reads_one_row: whether an encoder's last block computes only the row that is read out, as
            fastformer does; its keys and values need all rows.
    """
    w = workload
    attention_pairs = w.B * (w.T * (w.T + 1) // 2 if w.kind == "decoder" else w.T * w.T)
    block = 2 * w.tokens * (4 * w.C * w.C + 2 * w.C * w.F) * 3 + 14 * attention_pairs * w.C
    last = block
    if w.kind == "encoder" and reads_one_row:
        keys_and_values = 2 * w.tokens * 2 * w.C * w.C * 3
        last = keys_and_values + 2 * w.B * (2 * w.C * w.C + 2 * w.C * w.F) * 3
        last += 14 * w.B * w.T * w.C
    read_out_rows = w.B if w.kind == "encoder" else w.tokens
    return float(block * (w.L - 1) + last + 2 * read_out_rows * w.C * w.V * 3)


def useful_flops(system: str, workload: Workload) -> float:
    """Return the operations of a system's step: only fastformer leaves out what nobody reads."""
    ours = system in ("numba", "numba-1", "reference")
    return step_flops(workload, reads_one_row=ours)
