"""Where tokens stand, told to the attention and not to the embedding: rotary positions, ALiBi."""

from typing import Any

import numpy as np

from fastformer import checks
from fastformer.batch import PackedBatch
from fastformer.errors import InvalidTypeError
from fastformer.fixed import Fixed
from fastformer.layers.base import DTYPES
from fastformer.layers.positional_encoding import check_length
from fastformer.models.config import RELATIVE_POSITIONS, ModelConfig
from fastformer.parameters import Array


def rotary_tables(max_seq_len: int, head_size: int) -> tuple[Array, Array]:
    """Return the cosines and sines of rotary positions, (max_seq_len, head_size / 2) float64.

    Column d of row p is of the angle p / 10000^(2d / D). Source: Su et al. 2021, arXiv:2104.09864,
    section 3.2.2.
    """
    frequencies = 10000.0 ** (-2 * np.arange(head_size // 2) / head_size)
    angles = np.arange(max_seq_len)[:, None] * frequencies
    return np.cos(angles), np.sin(angles)


def alibi_slopes(num_heads: int) -> Array:
    """Return the slopes of ALiBi, (num_heads,) float64.

    Head i, from 1 on, of a power of two has 2^(-8 i / H); of another number, those of the next
    lower power of two, and then every second one of the next higher. Source: Press et al. 2022,
    arXiv:2108.12409, section 3, and for other numbers the authors' program that it refers to.
    """
    power = 1 << (num_heads.bit_length() - 1)
    slopes = 2.0 ** (-8 * np.arange(1, power + 1) / power)
    between = 2.0 ** (-4 * np.arange(1, 2 * power, 2) / power)
    return np.concatenate([slopes, between[: num_heads - power]])


class RelativePositions(Fixed):
    """What attention is told of positions. The layers of a model share one.

    Attributes:
        cosines, sines: (max_seq_len, D / 2), of rotary positions; else (0, 0).
        slopes: (H,), of ALiBi; else (0,).
    """

    def __init__(
        self,
        kind: str,
        embed_dim: int,
        num_heads: int,
        max_seq_len: int,
        *,
        dtype: str = "float32",
    ) -> None:
        """Make the tables.

        Args:
            kind: "rotary" or "alibi".    embed_dim, num_heads: of the attention.
            max_seq_len: the longest sequence.    dtype: "float32" or "float64".
        """
        self.kind = checks.choice("kind", kind, RELATIVE_POSITIONS)
        self.embed_dim = checks.integer("embed_dim", embed_dim, 1)
        self.num_heads = checks.integer("num_heads", num_heads, 1)
        self.max_seq_len = checks.integer("max_seq_len", max_seq_len, 1)
        self.dtype = np.dtype(checks.choice("dtype", dtype, DTYPES))
        if embed_dim % num_heads:
            checks.fail(f"num_heads must divide {embed_dim=}, got {num_heads}")
        cosines, sines = np.zeros((2, 0, 0))
        slopes = np.zeros(0)
        if kind == "alibi":
            slopes = alibi_slopes(self.num_heads)
        else:
            size = checks.even_head_size(self.embed_dim, self.num_heads)
            checks.table_size("RelativePositions", max_seq_len=self.max_seq_len, head_size=size)
            cosines, sines = rotary_tables(self.max_seq_len, size)
        self.cosines, self.sines = cosines.astype(dtype), sines.astype(dtype)
        self.slopes = slopes.astype(dtype)

    def check(self, batch: PackedBatch) -> None:
        """Raise where a sequence is longer than max_seq_len."""
        check_length(batch, self.max_seq_len)


def check_positions(positions: Any, embed_dim: int, num_heads: int, dtype: np.dtype[Any]) -> None:
    """Raise where these are not positions for an attention of such sizes."""
    if not isinstance(positions, RelativePositions):
        raise InvalidTypeError(
            f"positions must be RelativePositions or None, got {type(positions).__name__}"
        )
    own = (positions.embed_dim, positions.num_heads, positions.dtype)
    if own != (embed_dim, num_heads, dtype):
        checks.fail(
            f"positions must be made for embed_dim={embed_dim}, num_heads={num_heads} and "
            f"{dtype}, got some for {own[0]}, {own[1]} and {own[2]}"
        )


def relative_positions(config: ModelConfig, dtype: str) -> RelativePositions | None:
    """Return what a config's attention is told of positions, or None where they are added."""
    if config.positions not in RELATIVE_POSITIONS:
        return None
    return RelativePositions(
        config.positions, config.embed_dim, config.num_heads, config.max_seq_len, dtype=dtype
    )
