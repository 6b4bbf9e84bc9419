"""Cross-entropy between logits and target ids."""

from typing import Any

import numpy as np

from fastformer import checks
from fastformer.backend import get_backend
from fastformer.batch import Ids
from fastformer.errors import InvalidTypeError
from fastformer.layers.calls import Calls, call
from fastformer.parameters import Array


class CrossEntropyLoss:
    """The mean of -log softmax(logits)[target] over the targets that are not ignored.

    With label smoothing, that share of each target is spread evenly over all classes. It is for
    training: losses that are compared and reported, as the trainer's of validation and test, are
    without. Formulas and sources are in kernels/cross_entropy.py.

    Attributes:
        value: the mean loss of the last forward.
    """

    value: float

    def __init__(
        self, *, ignore_index: int = -1, label_smoothing: float = 0.0, backend: str = "numba"
    ) -> None:
        """Make the loss.

        Args:
            ignore_index: a target, < 0, whose row counts neither in the loss nor in its gradient.
            label_smoothing: the share that is spread, 0 to 1, as PyTorch has it.
            backend: "numba" or "reference".
        """
        self.ops = get_backend(backend)
        lowest = int(np.iinfo(np.int64).min)
        self.ignore_index = checks.integer("ignore_index", ignore_index, lowest, -1)
        self.label_smoothing = checks.number(
            "label_smoothing", label_smoothing, at_least=0, at_most=1
        )

    def forward(self, logits: Array, targets: Ids) -> float:
        """Return the mean loss; 0.0 if all targets are ignored.

        Args:
            logits: (N, V) float32 or float64, C-contiguous.
            targets: (N,) integers from 0 to V - 1, or ignore_index.

        Raises:
            TypeError, ValueError: a wrong dtype, shape or layout, or a target that is not an id.
        """
        self.plan_forward(logits, targets, None)
        return self.value

    def plan_forward(self, logits: Array, targets: Ids, calls: Calls | None) -> None:
        """Do what `forward` does, and leave the mean loss in `value` when the calls are made."""
        if not isinstance(logits, np.ndarray) or logits.dtype not in (np.float32, np.float64):
            given = getattr(logits, "dtype", type(logits).__name__)
            raise InvalidTypeError(
                f"CrossEntropyLoss: logits must be an array (N, V) float32 or float64, got {given}"
            )
        if logits.ndim != 2 or 0 in logits.shape:
            checks.fail(
                f"CrossEntropyLoss: logits must be (N, V), N and V >= 1, got {logits.shape}"
            )
        N, V = logits.shape
        checks.matrix("CrossEntropyLoss", "logits", logits, N, V, logits.dtype)
        self.count = checks.target_ids("CrossEntropyLoss", targets, N, V, self.ignore_index)
        self.logits = logits
        # A copy: backward writes by these ids, so nobody may change them after the check.
        self.targets = np.array(targets, np.int64)
        losses = np.empty(N, logits.dtype)
        self.largest = np.empty(N, logits.dtype)
        self.total = np.empty(N, logits.dtype)
        call(
            calls, self._compute, logits, self.targets, self.label_smoothing, losses, self.largest,
            self.total,
        )  # fmt: skip

    def _compute(self, *arguments: Any) -> None:
        self.value = self.ops.cross_entropy_forward(*arguments) / max(1, self.count)

    def backward(self, share: float = 1.0, *, calls: Calls | None = None) -> Array:
        """Return the gradient by the logits, (N, V): 0 in the rows that are ignored.

        Args:
            share: what the loss is multiplied by: that of these targets, of all of a batch which
                is computed in parts.
            calls: see layers/calls.py.
        """
        dlogits = np.empty_like(self.logits)
        scale = share / max(1, self.count)
        call(
            calls,
            self.ops.cross_entropy_backward,
            self.logits,
            self.targets,
            self.largest,
            self.total,
            self.label_smoothing,
            scale,
            dlogits,
        )
        return dlogits
