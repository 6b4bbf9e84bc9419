"""Where a run stands, also as a checkpoint says it: a file from elsewhere may say anything."""

from dataclasses import dataclass, fields
from typing import Any, Final

from fastformer import checks

SUMS: Final = ("loss_sum", "targets", "correct", "asked", "seen", "norm_sum", "norm_steps")
"""What is added up over an epoch."""


@dataclass
class Progress:
    """Where a run stands: all that a checkpoint holds besides weights and moments.

    Attributes:
        epoch: epochs that are finished.    step: optimizer steps made.
        batch: batches of the current epoch that are done.
        loss_sum, targets, correct, asked, seen, norm_sum, norm_steps: sums over the current epoch:
            of losses, and of what the targets that they are of count; of right answers, and of
            those that are asked for; of examples; of the norms of gradients, and of those.
        since_best: epochs since the best validation accuracy.
        stopped_early: whether training is over before its last epoch.
    """

    epoch: int = 0
    step: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    targets: float = 0.0
    correct: int = 0
    asked: int = 0
    seen: int = 0
    norm_sum: float = 0.0
    norm_steps: int = 0
    since_best: int = 0
    stopped_early: bool = False

    def add(self, other: "Progress") -> None:
        """Add the sums of another one."""
        for name in SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def begin_epoch(self) -> None:
        """Forget the sums of the epoch before."""
        self.batch = self.correct = self.asked = self.seen = self.norm_steps = 0
        self.loss_sum = self.targets = self.norm_sum = 0.0


def checked_progress(
    given: Any, *, num_batches: int, steps_per_epoch: int, accumulation_steps: int
) -> Progress:
    """Return the progress that a checkpoint holds, if a run of these sizes can stand there.

    Args:
        given: a JSON value.    num_batches: of an epoch.    steps_per_epoch: optimizer steps.
        accumulation_steps: batches of a step.

    Raises:
        ValueError, TypeError: it is none.
    """
    checks.instance("checkpoint", "progress", given, dict)
    checks.known_keys("progress", given, [field.name for field in fields(Progress)])
    found = Progress(**given)
    for field in fields(found):
        value = getattr(found, field.name)
        if isinstance(field.default, bool):
            checks.boolean(field.name, value)
        elif isinstance(field.default, int):
            checks.integer(field.name, value, 0)
        else:
            checks.number(field.name, value, at_least=0)
    steps = found.epoch * steps_per_epoch + -(-found.batch // accumulation_steps)
    # After an epoch's last batch it is validated; what was seen of it is then divided by.
    nothing_seen = found.batch > 0 and not (found.seen and found.norm_steps)
    if found.batch > num_batches or found.step != steps or nothing_seen:
        checks.fail(
            f"step {found.step} cannot be after batch {found.batch} of epoch {found.epoch + 1}, of "
            f"which {found.seen} examples were seen: an epoch has {num_batches} batches and "
            f"{steps_per_epoch} steps"
        )
    return found
