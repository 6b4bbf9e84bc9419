"""Cross-entropy between logits and target ids."""

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from fastformer import checks
from fastformer.backend import get_backend
from fastformer.batch import Ids
from fastformer.errors import InvalidTypeError, NotForwardedError
from fastformer.fixed import Fixed
from fastformer.parameters import Array

REDUCTIONS = ("mean", "sum", "none")


class _Kept:
    """What a forward keeps for backward."""

    __slots__ = ("count", "divisor", "losses", "row_max", "logits", "targets", "row_sum", "value")

    count: int
    divisor: float
    losses: Array
    row_max: Array
    logits: Array
    targets: Ids
    row_sum: Array
    value: float


class CrossEntropyLoss(Fixed):
    """The mean or sum of -log softmax(logits)[target] over the targets that are not ignored.

    With weights of classes each target counts as much as its class, and the mean is divided by what
    all of them count, as in PyTorch. With label smoothing, that share of each target is spread
    evenly over all classes. It is for training: losses that are compared and reported, as the
    trainer's of validation and test, are without. Formulas and sources are in
    kernels/cross_entropy.py. Each thread of Python has a last forward of its own.
    Logits are not copied: they must stay as they are until backward.
    """

    def __init__(
        self,
        *,
        weight: npt.ArrayLike | None = None,
        ignore_index: int = -1,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
        backend: str = "numba",
    ) -> None:
        """Make the loss.

        Args:
            weight: (V,) numbers >= 0, how much each class counts, an array or a list; it is copied.
                None where all count alike.
            ignore_index: a target, < 0, whose row counts neither in the loss nor in its gradient.
            label_smoothing: the share that is spread, 0 to 1, as PyTorch has it.
            reduction: "mean" or "sum" over the targets; or "none", for the loss of each target: for
                those who call forward and backward themselves.
            backend: "numba" or "reference".

        Raises:
            TypeError, ValueError: an argument that is not allowed.
        """
        self.ops = get_backend(backend)
        lowest = int(np.iinfo(np.int64).min)
        self.ignore_index = checks.integer("ignore_index", ignore_index, lowest, -1)
        self.label_smoothing = checks.number(
            "label_smoothing", label_smoothing, at_least=0, at_most=1
        )
        self.reduction = checks.choice("reduction", reduction, REDUCTIONS)
        self.weight = None if weight is None else checks.class_weights("weight", weight)
        self._of_thread = threading.local()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy the settings; a copy has no last forward."""
        names = ("weight", "ignore_index", "label_smoothing", "reduction")
        return _made, ({name: getattr(self, name) for name in names}, self.ops.name)

    @property
    def value(self) -> float:
        """The loss of this thread's last forward: the mean, or else the sum."""
        return self._last.value

    @property
    def count(self) -> int:
        """The number of targets of this thread's last forward that are not ignored."""
        return self._last.count

    @property
    def divisor(self) -> float:
        """What this thread's last forward divided by: see `divisor_of`; 1 where that is 0."""
        return self._last.divisor

    def divisor_of(self, targets: Ids, count: int) -> float:
        """Return what a sum of losses is divided by, for targets of which `count` are asked.

        That is `count` for a mean, with weights what the targets count, and 1 for a sum.
        """
        if self.reduction != "mean":
            return 1
        if self.weight is None:
            return count
        return float(self.weight[targets[targets >= 0]].sum())

    def weights_for(self, classes: int, dtype: Any) -> Array:
        """Return the weights of so many classes in a dtype; an empty array where there are none.

        Raises:
            ValueError: there are weights of another number of classes.
        """
        if self.weight is None:
            return np.empty(0, dtype)
        if self.weight.size != classes:
            checks.fail(
                f"CrossEntropyLoss: weight must be ({classes},), one for each class of the logits, "
                f"got {self.weight.shape}"
            )
        return self.weight.astype(dtype)

    def _own_weights(self, classes: int, dtype: Any) -> tuple[Array, ...]:
        """Return the last argument of the kernels, where there is one."""
        return () if self.weight is None else (self.weights_for(classes, dtype),)

    @property
    def _last(self) -> _Kept:
        try:
            kept: _Kept = self._of_thread.kept
        except AttributeError:
            raise NotForwardedError(
                "CrossEntropyLoss: there was no forward in this thread; call forward first"
            ) from None
        return kept

    def forward(self, logits: Array, targets: npt.ArrayLike) -> Any:
        """Return the mean or the sum, 0.0 if all targets are ignored; or the losses, (N,).

        A mean over targets whose weights are all 0 is not divided, and so not NaN.

        Args:
            logits: (N, V) float32 or float64, C-contiguous.
            targets: (N,) integers from 0 to V - 1, or ignore_index; an array or a list. Those of
                padded (B, T) arrays are packed as their tokens are: `ff.pack_targets`.

        Raises:
            TypeError, ValueError: a wrong dtype, shape or layout, or a target that is not an id.
        """
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
        weights = self._own_weights(V, logits.dtype)
        kept, ignored = _Kept(), self.ignore_index
        kept.targets, kept.count = checks.target_ids("CrossEntropyLoss", targets, N, V, ignored)
        kept.logits = logits.view()
        kept.losses, kept.row_max, kept.row_sum = np.empty((3, N), logits.dtype)
        total = self.ops.cross_entropy_forward(
            kept.logits, kept.targets, self.label_smoothing,
            kept.losses, kept.row_max, kept.row_sum, *weights,
        )  # fmt: skip
        kept.divisor = self.divisor_of(kept.targets, kept.count) or 1
        kept.value = float(total) / kept.divisor
        self._of_thread.kept = kept
        return kept.losses if self.reduction == "none" else kept.value

    def backward(self, share: npt.ArrayLike = 1.0) -> Array:
        """Return the gradient by the logits, (N, V): 0 in the rows that are ignored.

        Args:
            share: what the loss is multiplied by: that of these targets, of all of a batch which
                is computed in parts. With the reduction "none", also (N,), one for each target:
                the gradient by the losses.

        Raises:
            NotForwardedError: there was no forward in this thread.
            TypeError, ValueError: a share that is not a finite number, or not (N,) of them.
        """
        kept = self._last
        dlogits = np.empty_like(kept.logits)
        each = None
        if self.reduction == "none" and np.ndim(share):
            each, share = checks.numbers("share", share, kept.targets.size, dlogits.dtype), 1.0
        scale = checks.number("share", share) / kept.divisor
        weights = self._own_weights(dlogits.shape[1], dlogits.dtype)
        self.ops.cross_entropy_backward(
            kept.logits, kept.targets, kept.row_max, kept.row_sum, self.label_smoothing,
            scale, dlogits, *weights,
        )  # fmt: skip
        if each is not None:
            dlogits *= each[:, None]
        return dlogits


def _made(options: dict[str, Any], backend: str) -> CrossEntropyLoss:
    return CrossEntropyLoss(**options, backend=backend)
