"""The training steps that are measured.

Each is a whole step: forward, loss, backward, Adam. All systems start from the same weights and
are given the same batches, and their first losses must agree before a step is timed.
"""

from dataclasses import dataclass
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
        Workload("P7", "GPT-2, 124 million", "decoder", 4, 64, 768, 12, 12, 3072, 50257),
    )
}
