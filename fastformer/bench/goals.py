"""The targets: what must be reached, what is hoped for, and whether a measurement does."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastformer.bench.processes import Spread


@dataclass(frozen=True)
class Goal:
    """One target.

    Attributes:
        row: its name.    title: what is measured.    unit: "x" for a ratio of times, "s" for
            seconds, "share" for a share of the peer's memory, "times" for how many times as long
            as the peer's.
        must, goal: the value to reach.    peers: what it is measured beside.
    """

    row: str
    title: str
    unit: str
    must: float
    goal: float
    peers: tuple[str, ...]

    @property
    def more_is_better(self) -> bool:
        """Whether larger values are better: ratios."""
        return self.unit == "x"

    def verdict(self, value: float | None) -> str:
        """Return "goal", "must", "missed", or "not measured"."""
        if value is None:
            return "not measured"
        for name, wanted in (("goal", self.goal), ("must", self.must)):
            if value >= wanted if self.more_is_better else value <= wanted:
                return name
        return "missed"


_FRAMEWORKS = ("torch", "compile", "jax")
GOALS = {
    goal.row: goal
    for goal in (
        Goal("P1", "digit encoder, 20 tokens", "x", 2.8, 3.6, _FRAMEWORKS),
        Goal("P2", "digit encoder, 8 tokens, peers given 8", "x", 4, 7, _FRAMEWORKS),
        Goal("P3", "digit encoder, 8 tokens, peers padded to 20", "x", 8, 14, _FRAMEWORKS),
        Goal("P4", "nanoGPT's CPU recipe", "x", 1.6, 2, _FRAMEWORKS),
        Goal("P5", "baby GPT, float32", "x", 1.3, 1.5, _FRAMEWORKS),
        Goal("P8", "matrix products, geometric mean", "x", 1.1, 1.25, ("numpy", "torch")),
        Goal("P8 worst", "matrix products, the worst", "x", 0.95, 1.0, ("numpy", "torch")),
        Goal("P9", "beside a step that costs what llmlearn's does", "x", 20, 30, ("llmlearn",)),
        Goal("P10", "cold start to the first step", "s", 20, 10, ("compile",)),
        Goal("P11", "warm start to the first step", "s", 1.5, 0.8, ("torch",)),
        Goal("P12", "largest resident memory of P5", "share", 0.6, 0.4, ("torch",)),
        Goal("P13", "from the first step to 99 % of unseen inputs", "s", 2, 0.7, ("torch", "jax")),
        Goal("P14", "busy cores, beside the best fixed threads", "times", 1.25, 1.1, ("torch",)),
        Goal("P14 quiet", "the same on quiet cores", "times", 1.02, 1.0, ("torch",)),
    )
}


def target_row(
    goal: Goal,
    value: Spread | None,
    ours: Spread | None,
    peers: Mapping[str, Mapping[str, Any]],
    best: str | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Describe a target's measurement.

    Args:
        goal: the target.    value: what is held to it, or None where no peer was there.
        ours: our own time or memory.
        peers: for each peer its own, and the ratio to ours.    best: the best peer.
        more: what else is worth keeping.
    """
    return {
        "suite": "targets",
        "row": goal.row,
        "title": goal.title,
        "unit": goal.unit,
        "must": goal.must,
        "goal": goal.goal,
        "value": value.as_dict() if value else None,
        "ours": ours.as_dict() if ours else None,
        "peers": {name: dict(peer) for name, peer in peers.items()},
        "best_peer": best,
        "reached": goal.verdict(value.median if value else None),
        **more,
    }
