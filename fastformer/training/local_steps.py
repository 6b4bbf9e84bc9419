"""Local steps: each process trains by itself for some steps, then all agree on one model.

This is DiLoCo, for slow networks: Douillard et al. 2023, "DiLoCo: Distributed Low-Communication
Training of Language Models", algorithm 1. The mean of how far the processes have gone is the
gradient of an outer step, by SGD with Nesterov's momentum. Unlike there, the moments of the inner
optimizers are averaged too, as in Cheng and Glasgow 2025, "Convergence of Distributed Adaptive
Optimization with Local Updates": all processes are alike then, and one checkpoint has all.
"""

import numpy as np

from fastformer.batch import Ids, PackedBatch
from fastformer.parameters import Array
from fastformer.training.optimizers import SGD, Optimizer
from fastformer.training.ranks import Ranks
from fastformer.training.shards import cut


def own_part(batch: PackedBatch, targets: Ids, ranks: Ranks) -> tuple[PackedBatch, Ids]:
    """Return the sequences of a batch that a process trains on, and their targets.

    Args:
        batch: all of it.    targets: one for each sequence, or for each token.
        ranks: who share it; each has all of a batch that has fewer sequences than there are ranks.
    """
    if batch.num_sequences < ranks.size:
        return batch, targets
    bounds = batch.num_sequences * np.arange(ranks.size + 1) // ranks.size
    return cut(batch, targets, bounds[ranks.rank], bounds[ranks.rank + 1])


class OuterStep:
    """What makes one model of those that processes have trained by themselves.

    Attributes:
        optimizer: of the outer steps.
    """

    def __init__(
        self, inner: Optimizer, ranks: Ranks, learning_rate: float, momentum: float
    ) -> None:
        """Begin with the parameters as they are, which are the same in all processes.

        Args:
            inner: the optimizer of the local steps.    ranks: who train.
            learning_rate, momentum: of the outer steps.
        """
        self.optimizer = SGD(inner.parameters, learning_rate, momentum, nesterov=momentum > 0)
        self._inner, self._ranks = inner, ranks
        self._begun = inner.parameters.values.copy()

    def begin(self) -> None:
        """Begin again with the parameters as they are, as after a checkpoint was loaded."""
        self._begun[...] = self._inner.parameters.values

    def make(self) -> None:
        """Make an outer step. All processes must call it; the gradients are overwritten.

        Raises:
            NotFiniteError: as of an optimizer's step.
        """
        flat = self._inner.parameters
        with flat.guard.lock:
            np.subtract(self._begun, flat.values, out=flat.gradients)
            self._average()
            flat.values[...] = self._begun
            self.optimizer.step()
            self.begin()
            self._inner.change_state(self._average_of)

    def _average(self) -> None:
        """Leave the mean of all processes' gradients in the gradients."""
        flat, size = self._inner.parameters, self._ranks.size
        # As many leaves as a tree has in which each process has one.
        self._ranks.add_up(flat.gradients, 1 << (size - 1).bit_length(), flat.ops.add_gradient)
        flat.ops.scale_gradient(flat.gradients, 1 / size)

    def _average_of(self, array: Array) -> None:
        """Make an array the mean of all processes' ones, by way of the gradients."""
        gradients = self._inner.parameters.gradients
        gradients[...] = array
        self._average()
        array[...] = gradients
