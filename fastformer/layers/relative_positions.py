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

# Of the angles' geometric sequence, as in the paper.
ROTARY_BASE = 10000.0


def rotary_tables(
    max_seq_len: int, head_size: int, base: float = ROTARY_BASE, scaling: float = 1.0
) -> tuple[Array, Array]:
    """Return the cosines and sines of rotary positions, (max_seq_len, head_size / 2) float64.

    Column d of row p is of the angle p / scaling / base^(2d / D). Sources: Su et al. 2021,
    arXiv:2104.09864, section 3.2.2; Chen et al. 2023, arXiv:2306.15595, equation 4 (scaling).
    """
    frequencies = base ** (-2 * np.arange(head_size // 2) / head_size)
    angles = (np.arange(max_seq_len) / scaling)[:, None] * frequencies
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
        head_size: int = 0,
        rotary_base: float = ROTARY_BASE,
        rotary_scaling: float = 1.0,
        dtype: str = "float32",
    ) -> None:
        """Make the tables.

        Args:
            kind: "rotary" or "alibi".    embed_dim, num_heads, head_size: of the attention.
            max_seq_len: the longest sequence.
            rotary_base, rotary_scaling: of rotary positions; see `rotary_tables`.
            dtype: "float32" or "float64".
        """
        self.kind = checks.choice("kind", kind, RELATIVE_POSITIONS)
        embed_dim = checks.integer("embed_dim", embed_dim, 1)
        self.num_heads = checks.integer("num_heads", num_heads, 1)
        self.head_size = checks.head_size(embed_dim, self.num_heads, head_size)
        base = checks.number("rotary_base", rotary_base, above=0)
        scaling = checks.number("rotary_scaling", rotary_scaling, above=0)
        self.max_seq_len = checks.integer("max_seq_len", max_seq_len, 1)
        self.dtype = np.dtype(checks.choice("dtype", dtype, DTYPES))
        cosines, sines = np.zeros((2, 0, 0))
        slopes = np.zeros(0)
        if kind == "alibi":
            slopes = alibi_slopes(self.num_heads)
        else:
            size = checks.even_head_size(embed_dim, self.num_heads, head_size)
            checks.table_size("RelativePositions", max_seq_len=self.max_seq_len, head_size=size)
            cosines, sines = rotary_tables(self.max_seq_len, size, base, scaling)
        self.cosines, self.sines = cosines.astype(dtype), sines.astype(dtype)
        self.slopes = slopes.astype(dtype)

    def check(self, batch: PackedBatch) -> None:
        """Raise where a sequence is longer than max_seq_len."""
        check_length(batch, self.max_seq_len)


def check_positions(positions: Any, head_size: int, num_heads: int, dtype: np.dtype[Any]) -> None:
    """Raise where these are not positions for an attention of such sizes."""
    if not isinstance(positions, RelativePositions):
        raise InvalidTypeError(
            f"positions must be RelativePositions or None, got {type(positions).__name__}"
        )
    own = (positions.head_size, positions.num_heads, positions.dtype)
    if own != (head_size, num_heads, dtype):
        checks.fail(
            f"positions must be made for {num_heads} heads of {head_size} and {dtype}, got some "
            f"for {own[1]} heads of {own[0]} and {own[2]}"
        )


def relative_positions(config: ModelConfig, dtype: str) -> RelativePositions | None:
    """Return what a config's attention is told of positions, or None where they are added."""
    if config.positions not in RELATIVE_POSITIONS:
        return None
    return RelativePositions(
        config.positions, config.embed_dim, config.num_heads, config.max_seq_len,
        head_size=config.head_size, rotary_base=config.rotary_base,
        rotary_scaling=config.rotary_scaling, dtype=dtype,
    )  # fmt: skip
