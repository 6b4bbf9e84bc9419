"""An exponential moving average of a model's weights, to evaluate and to keep."""

import contextlib
from collections.abc import Iterator, Mapping

from fastformer import checks
from fastformer.fixed import Fixed
from fastformer.layers.base import Layer
from fastformer.parameters import Array, aligned_zeros
from fastformer.training.optimizers import MOST_STEPS, NotFiniteError


class EMA(Fixed):
    """The average of the weights of all steps, of which those of old ones fade.

        ema = ff.EMA(model, decay=0.999)
        for ...:
            ff.train_step(model, batch, targets, loss_fn, optimizer)
            ema.update()
        with ema.applied():
            ff.evaluate(model, inputs, answers, loss_fn)

    It begins with the weights that the model has when it is made. Formula and sources are in
    kernels/moving_average.py. It is copied together with its model: copy.deepcopy((model, ema)).

    Attributes:
        decay: what stays of the average in an update.
        warmup: whether the first updates keep less.
        updates: how many were made.
    """

    def __init__(self, model: Layer, decay: float = 0.999, *, warmup: bool = False) -> None:
        """Begin with the weights as they are; they are copied.

        Args:
            model: a model or a layer that stands alone.
            decay: of the average, in [0, 1).
            warmup: with it, update n, from 0, keeps min(decay, (1 + n) / (10 + n)), as TensorFlow's
                ExponentialMovingAverage does, so that the first weights are soon forgotten.

        Raises:
            TypeError, ValueError: an argument that is not allowed.
        """
        checks.instance("EMA", "model", model, Layer)
        self.decay = checks.number("decay", decay, at_least=0, below=1)
        self.warmup = checks.boolean("warmup", warmup)
        self.parameters = model.parameters()
        self.updates = 0
        values = self.parameters.values
        self._average, self._is_applied = aligned_zeros(values.size, values.dtype), False
        self._average[...] = values

    def update(self) -> None:
        """Take the weights of this step in; call it after each step of the optimizer.

        Raises:
            ValueError: the average is applied, or this was copied without its model.
            NotFiniteError: a weight is not finite; the average is as it was.
        """
        self._refuse_applied("update")
        self.parameters.check_used("EMA")
        ops, values, nothing = self.parameters.ops, self.parameters.values, self._average[:0]
        decay, n = self.decay, self.updates
        if self.warmup:
            decay = min(decay, (1 + n) / (10 + n))
        with self.parameters.guard.lock:
            if not ops.may_step(values, nothing, nothing, nothing):
                raise NotFiniteError(
                    f"EMA: a weight is not finite at update {n + 1}; the average was not changed"
                )
            ops.average_step(self._average, values, decay)
            self.__dict__["updates"] += 1

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within it the model has the average for its weights, and afterwards its own again.

        What is trained within is lost.

        Raises:
            ValueError: the average is applied already.
        """
        self._refuse_applied("applied")
        parameters = self.parameters
        with parameters.guard.lock:
            own = parameters.values.copy()
            parameters.values[...] = self._average
            self._is_applied = True
        try:
            yield
        finally:
            with parameters.guard.lock:
                parameters.values[...] = own
                self._is_applied = False

    def _refuse_applied(self, method: str) -> None:
        if self._is_applied:
            checks.fail(
                f"EMA.{method}: the average is the model's weights now; leave `with ema.applied()` "
                "first"
            )

    def state_dict(self) -> dict[str, Array]:
        """Return a copy of the average, by the names of the parameters, as of the model's own."""
        return {name: view.copy() for name, view in self.parameters.views_of(self._average)}

    def load_state_dict(self, state: Mapping[str, Array], updates: int) -> None:
        """Copy an average in, and the number of updates made; nothing is changed unless all fit.

        Raises:
            TypeError, ValueError: a name that is missing or unknown, a shape that differs, or a
                value that is not finite.
        """
        updates = checks.integer("updates", updates, 0, MOST_STEPS)
        owned = dict(self.parameters.views_of(self._average))
        arrays = checks.fitting_arrays("EMA", "state", owned, state)
        with self.parameters.guard.lock:
            for name, view in owned.items():
                view[...] = arrays[name]
            self.__dict__["updates"] = updates
