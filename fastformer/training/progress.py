"""Where a run stands."""

from dataclasses import dataclass


@dataclass
class Progress:
    """Where a run stands: all that a checkpoint holds besides weights and moments.

    Attributes:
        epoch: epochs that are finished.    step: optimizer steps made.
        batch: batches of the current epoch that are done.
        loss_sum, targets, correct, asked, seen, norm_sum, norm_steps: sums over the current epoch:
            of losses, and of the targets that they are of; of right answers, and of those that are
            asked for; of examples; of the norms of gradients, and of those.
        since_best: epochs since the best validation accuracy.
        stopped_early: whether training is over before its last epoch.
    """

    epoch: int = 0
    step: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    targets: int = 0
    correct: int = 0
    asked: int = 0
    seen: int = 0
    norm_sum: float = 0.0
    norm_steps: int = 0
    since_best: int = 0
    stopped_early: bool = False

    def begin_epoch(self) -> None:
        """Forget the sums of the epoch before."""
        self.batch = self.targets = self.correct = self.asked = self.seen = self.norm_steps = 0
        self.loss_sum = self.norm_sum = 0.0
