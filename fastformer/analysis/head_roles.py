"""What heads seem to do over a whole data set, each claim with the share that supports it.

A row of weights supports a role if its largest weight is on a token of that role. Nothing more is
claimed: a head that looks at the largest number need not be why the answer is right.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from fastformer.analysis.attention import (
    batch_attention,
    kind_of,
    readout_position,
    relative_entropy,
    visible_tokens,
)
from fastformer.analysis.token_roles import (
    FIXED,
    PART_ROLES,
    PLACE_ROLE,
    TOKEN_ROLES,
    Flags,
    RoleSequence,
    role_sequence,
)
from fastformer.batch import Ids, pack
from fastformer.data.asked import Asked
from fastformer.models.base import Model
from fastformer.parameters import Array
from fastformer.writing import percent

CLEAR_FROM: Final[float] = 0.5
"""How far beyond chance, of 1, the support must be for what a head is said to do."""

_BATCH = 256
_SHIFTS = {"the previous token": -1, "the next token": 1, "itself": 0}


@dataclass(frozen=True)
class Support:
    """How much supports each role, and the one that most does.

    Attributes:
        shares: the share, 0 to 1, for each role that is possible; "a fixed position" is the
            position that has the largest weight most often.
        chance: the share that each would have if the largest weight were anywhere: half of the
            tokens are punctuation.
        position: that fixed position, from 0.
    """

    shares: dict[str, float]
    chance: dict[str, float]
    position: int

    def beyond_chance(self, role: str) -> float:
        """Return 1 for a share of 1, and 0 for the share that chance would give."""
        left = 1 - self.chance[role]
        return (self.shares[role] - self.chance[role]) / left if left > 0 else 0.0

    @property
    def best(self) -> str:
        """The role most beyond chance; among equals the rarest, then the earliest of `ROLES`."""
        return max(self.shares, key=lambda role: (self.beyond_chance(role), -self.chance[role]))

    @property
    def share(self) -> float:
        """The share that supports the best role."""
        return self.shares[self.best]

    @property
    def clear(self) -> bool:
        """Whether the best role is at least half way from chance to always."""
        return self.beyond_chance(self.best) >= CLEAR_FROM

    @property
    def name(self) -> str:
        """The best role; a fixed position with its number."""
        return f"position {self.position}" if self.best == FIXED else self.best

    def text(self) -> str:
        """Say what is looked at, in a few words. It is 100 % only for all of the rows."""
        words = f"{self.name} {percent(self.share, 0)}"
        return words if self.clear else f"nothing clear ({words})"

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        own = {"best": self.name, "share": self.share, "clear": self.clear}
        return {**own, **asdict(self)}


@dataclass(frozen=True)
class HeadRole:
    """What one head does over a data set.

    Attributes:
        layer, head: counted from 1.
        entropy: relative to its maximum, mean over all rows that reach the answer.
        kind: "focused", "mixed" or "distributed".
        readout: of the examples, seen from the token that the answer is read from, of a decoder
            from each after which it writes a digit; None where it is read from all of them.
        by_group: the same for the examples of each operation or class; empty where readout is None.
        tokens: of all rows of all examples; None in a last layer of which only what is read out
            reaches the answer.
    """

    layer: int
    head: int
    entropy: float
    kind: str
    readout: Support | None
    by_group: dict[str, Support]
    tokens: Support | None

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "layer": self.layer,
            "head": self.head,
            "entropy": self.entropy,
            "kind": self.kind,
            "readout": self.readout and self.readout.as_json(),
            "by_group": {name: s.as_json() for name, s in self.by_group.items()},
            "tokens": self.tokens and self.tokens.as_json(),
        }


def head_roles(model: Model, asked: Sequence[Asked]) -> list[HeadRole]:
    """Return what each head of a model seems to do, layer by layer.

    Args:
        model: a classifier or a decoder.
        asked: at least one expression; usually those that it was never trained on.
    """
    sequences = [role_sequence(one) for one in asked]
    parts = [
        _look(model, sequences[first : first + _BATCH])
        for first in range(0, len(sequences), _BATCH)
    ]
    looks = [np.concatenate(part) for part in zip(*(part[0] for part in parts), strict=True)]
    entropies = np.concatenate([part[1] for part in parts])
    rows = _Rows(model, sequences, [one.group for one in asked])
    roles = []
    for place, look in enumerate(looks):
        layer, head = divmod(place, model.config.num_heads)
        last = layer == model.config.num_layers - 1
        readout = rows.readout
        only_readout = last and readout is not None
        entropy = float(entropies[rows.chosen(only_readout), layer, head].mean())
        by_group = {}
        if readout is not None:
            by_group = {
                name: rows.support(look, readout & (rows.groups == name))
                for name in dict.fromkeys(rows.groups.tolist())
            }
        roles.append(
            HeadRole(
                layer=layer + 1,
                head=head + 1,
                entropy=entropy,
                kind=kind_of(entropy),
                readout=None if readout is None else rows.support(look, readout),
                by_group=by_group,
                tokens=None if only_readout else rows.support(look, rows.chosen(False)),
            )
        )
    return roles


def _look(model: Model, sequences: Sequence[RoleSequence]) -> tuple[list[Ids], Array]:
    """Return, for each head, where each token looks most, (N,), and the entropies, (N, L, H).

    N counts the tokens of all sequences.
    """
    batch = pack([sequence.ids for sequence in sequences])
    lengths = np.diff(batch.offsets)
    causal = model.blocks[0].attention.causal
    real = np.arange(batch.longest) < lengths[:, None]
    visible = np.concatenate([visible_tokens(int(length), causal) for length in lengths])
    looks, entropies = [], []
    for weights in batch_attention(model, batch):
        rows = weights.transpose(0, 2, 1, 3)[real].astype(np.float64)  # (N, H, T)
        looks += list(rows.argmax(axis=2).T)
        entropies.append(relative_entropy(rows, visible[:, None]))
    return looks, np.stack(entropies, axis=1)


class _Rows:
    """All tokens of all sequences, one row each, and which roles their targets would play."""

    def __init__(
        self, model: Model, sequences: Sequence[RoleSequence], groups: Sequence[str]
    ) -> None:
        causal = model.blocks[0].attention.causal
        lengths = np.array([len(sequence.tokens) for sequence in sequences])
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        self.flags = np.concatenate([sequence.flags for sequence in sequences], axis=1)
        self.adds = np.concatenate([sequence.adds for sequence in sequences])
        self.starts = np.repeat(starts, lengths)
        self.positions = np.arange(self.starts.size) - self.starts
        # What a row can look at: itself and what is before it, or all.
        self.lengths = self.positions + 1 if causal else np.repeat(lengths, lengths)
        before = np.cumsum(self.flags, axis=1, dtype=np.int64)
        last = self.starts + self.lengths - 1
        first = before[:, self.starts] - self.flags[:, self.starts]
        self.parts = (before[:, last] - first) / self.lengths
        self.groups = np.repeat(groups, lengths)
        self.readout: Flags | None = None
        places = [readout_position(model, sequence.given) for sequence in sequences]
        if None not in places:
            first_read = np.repeat(np.array(places), lengths)
            self.readout = self.positions == first_read
            if causal:
                self.readout = self.positions >= first_read

    def chosen(self, only_readout: bool) -> Flags:
        """Return the rows that are read out, or all."""
        if only_readout and self.readout is not None:
            return self.readout
        return np.ones(self.starts.size, np.bool_)

    def support(self, look: Ids, rows: Flags) -> Support:
        """Return what the chosen rows support, where row n looks at look[n] of its sequence."""
        at = look[rows]
        played = self.flags[:, self.starts[rows] + at]
        names = (*TOKEN_ROLES, *PART_ROLES)
        shares = dict(zip(names, played.mean(axis=1).tolist(), strict=True))
        chance = dict(zip(names, self.parts[:, rows].mean(axis=1).tolist(), strict=True))
        # Texts of a person's own have none of these roles, and some tasks have no parts.
        for role in names if not self.flags.any() else PART_ROLES:
            if not self.flags[names.index(role)].any():
                del shares[role], chance[role]
        one_of = 1 / self.lengths[rows]
        for role, shift in _SHIFTS.items():
            wanted = self.positions[rows] + shift
            possible = (wanted >= 0) & (wanted < self.lengths[rows])
            if possible.any():
                shares[role] = float((at == wanted)[possible].mean())
                chance[role] = float(one_of.mean())
        adds = self.adds[rows]
        adding = adds[:, 0] >= 0
        if adding.mean() > 0.5:  # else it would be said of all tokens what holds for few
            shares[PLACE_ROLE] = float((at[:, None] == adds)[adding].any(axis=1).mean())
            chance[PLACE_ROLE] = float((2 * one_of)[adding].mean())
        counts = np.bincount(at)
        shares[FIXED], chance[FIXED] = float(counts.max() / at.size), float(one_of.mean())
        return Support(shares, chance, int(counts.argmax()))
