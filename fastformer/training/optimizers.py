"""SGD, Adam and AdamW over all parameters of a model at once."""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, NoReturn, TypeVar

import numpy as np

from fastformer import checks
from fastformer.errors import FastformerError, InvalidTypeError
from fastformer.fixed import Fixed
from fastformer.parameters import Array, Owner, Parameters, aligned_zeros

# More than anybody makes, and few enough for kernels, which count them in 64 bits.
MOST_STEPS = 1 << 53
OptimizerT = TypeVar("OptimizerT", bound="Optimizer")


class NotFiniteError(FastformerError, ArithmeticError):
    """A step would bring NaN or infinity into the parameters; nothing was changed."""


class Optimizer(Fixed):
    """Changes parameters by their gradients, and refuses to where anything is not finite.

    It is copied together with its model, copy.deepcopy((model, optimizer)), and not pickled.

    Weight decay acts on matrices, and not on biases and norms: in PyTorch they are another group.

    Attributes:
        learning_rate: of the next step, >= 0; a schedule sets it. `lr` is another name of it, here
            and where an optimizer is made.
        steps: how many steps were made.
    """

    settable: ClassVar[Mapping[str, Callable[[Any], Any]]] = {
        "learning_rate": partial(checks.number, "learning_rate", at_least=0),
        "steps": partial(checks.integer, "steps", minimum=0, maximum=MOST_STEPS),
    }
    state_names: tuple[str, ...]

    def __init__(
        self, parameters: Parameters, lr: float | None, learning_rate: float | None, usual: float
    ) -> None:
        """Make the state, zeros.

        Args:
            parameters: what `model.parameters()` gives.
            lr, learning_rate: the learning rate, > 0, by one of its names; None for the usual one.

        Raises:
            TypeError: anything else than Parameters.
            ValueError: a learning rate that is not a finite number > 0.
        """
        if not isinstance(parameters, Parameters):
            raise InvalidTypeError(
                f"{type(self).__name__}: parameters must be what model.parameters() returns, "
                f"got {type(parameters).__name__}"
            )
        if lr is not None and learning_rate is not None:
            checks.fail("lr and learning_rate are two names of one number; give one of them")
        name = "lr" if learning_rate is None else "learning_rate"
        given = lr if learning_rate is None else learning_rate
        self.parameters = parameters
        self.learning_rate = checks.number(name, usual if given is None else given, above=0)
        self.steps = 0
        self._state = {
            name: aligned_zeros(parameters.values.size, parameters.values.dtype)
            for name in self.state_names
        }
        self._state_was_given = False

    @property
    def lr(self) -> float:
        """Another name of `learning_rate`."""
        return self.learning_rate

    @lr.setter
    def lr(self, value: float) -> None:
        self.learning_rate = value

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled: what comes back would train no model."""
        raise InvalidTypeError(
            f"{type(self).__name__} cannot be pickled or copied without its model; save "
            "state_dict() and steps, or use copy.deepcopy((model, optimizer))"
        )

    def __deepcopy__(self: OptimizerT, memo: dict[int, Any]) -> OptimizerT:
        """Return a copy for the copy of the model, which is made in the same call."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        with self.parameters.guard.lock:
            vars(copied).update({k: copy.deepcopy(v, memo) for k, v in vars(self).items()})
        return copied

    def check_trains(self, model: Owner) -> None:
        """Raise where the parameters are not those of a model.

        Raises:
            ValueError: they are another model's.
        """
        if self.parameters is not model.parameters():
            checks.fail(
                f"{type(self).__name__}: it was made for the parameters of another model, or of a "
                "copy, and would not train this one; make it with model.parameters(), and copy "
                "both at once: copy.deepcopy((model, optimizer))"
            )

    @property
    def state(self) -> Mapping[str, Array]:
        """The arrays of the state, by their names, as they are: each (P,).

        Whoever has them may write into them, so that each step looks at them from then on.
        Otherwise they are finite, for the squares of all gradients are.
        """
        self._state_was_given = True
        return MappingProxyType(self._state)

    def step(self) -> None:
        """Change the parameters; the gradients stay as they are.

        Raises:
            ValueError: it was copied without its model, so that nothing would be trained.
            NotFiniteError: a parameter, a gradient or the state is not finite, or a gradient is so
                large that its square is not. The message names it, and nothing is changed.
        """
        self.parameters.check_used(type(self).__name__)
        with self.parameters.guard.lock:
            where = self.first_not_finite()
            if where is not None:
                raise NotFiniteError(
                    f"{type(self).__name__}: {where} is not finite at step {self.steps + 1}; "
                    "nothing was changed. Look at the loss before the step, or try a lower "
                    "learning rate"
                )
            self.__dict__["steps"] += 1
            self._update()

    def _update(self) -> None:
        raise NotImplementedError

    def _parts(self, weight_decay: float) -> list[tuple[slice, float]]:
        """Return the parts of the flat arrays, and how much each of them decays."""
        size, decaying = self.parameters.values.size, self.parameters.decaying
        if weight_decay == 0:
            return [(slice(0, size), 0.0)]
        return [(slice(0, decaying), weight_decay), (slice(decaying, size), 0.0)]

    def first_not_finite(self, *, gradients: bool = True) -> str | None:
        """Return the first tensor that is not finite, such as "the gradient of x", or None.

        One pass over each flat array; tensors are looked at only where something is wrong.
        With gradients, as before a step, the state is looked at only where it was given away.
        """
        values, gradient = self.parameters.values, self.parameters.gradients
        nothing = gradient[:0]
        looked_at = self._state if self._state_was_given or not gradients else {}
        states = [*looked_at.values(), nothing, nothing]
        if not gradients:
            gradient = nothing
        may_step = self.parameters.ops.may_step
        if may_step(values, gradient, *states[:2]) and all(
            may_step(state, nothing, nothing, nothing) for state in states[2:]
        ):
            return None
        kinds = [("the parameter ", values, np.inf)]
        kinds += [(f"{name} of ", flat, np.inf) for name, flat in self._state.items()]
        # Moments are of squares.
        limit = float(np.finfo(gradient.dtype).max) ** 0.5
        kinds.append(("the gradient of ", gradient, limit))
        for kind, flat, limit in kinds:
            if not (np.abs(flat) < limit).all():
                return kind + self._worst(flat)
        return None

    def _worst(self, flat: Array) -> str:
        """Return the tensor with NaN, or else the one with the largest number."""
        sizes = {
            name: float(np.nan_to_num(np.abs(view), nan=np.inf, posinf=np.inf).max(initial=0))
            for name, view in self.parameters.views_of(flat)
        }
        return max(sizes, key=lambda name: sizes[name])

    def change_state(self, change: Callable[[Array], None]) -> None:
        """Let a function change each array of the state, (P,), in place; it must stay finite."""
        for array in self._state.values():
            change(array)

    def state_dict(self) -> dict[str, Array]:
        """Return a copy of the state: for each of its arrays and each parameter `array.name`."""
        return {
            f"{state_name}.{name}": view.copy()
            for state_name, flat in self._state.items()
            for name, view in self.parameters.views_of(flat)
        }

    def load_state_dict(self, state: Mapping[str, Array], steps: int) -> None:
        """Copy a state in, and the number of steps made; nothing is changed unless all fit.

        Raises:
            ValueError: a name that is missing or unknown, a shape that differs, or a value that
                is not finite.
        """
        steps = checks.integer("steps", steps, 0, MOST_STEPS)
        owned = {
            f"{state_name}.{name}": view
            for state_name, flat in self._state.items()
            for name, view in self.parameters.views_of(flat)
        }
        arrays = checks.fitting_arrays(type(self).__name__, "state", owned, state)
        with self.parameters.guard.lock:
            for name, view in owned.items():
                view[...] = arrays[name]
            self.steps = steps


class SGD(Optimizer):
    """velocity = momentum * velocity + gradient; parameter -= lr * velocity.

    Formulas and sources are in kernels/sgd.py.
    """

    state_names = ("velocity",)

    def __init__(
        self,
        parameters: Parameters,
        lr: float | None = None,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        *,
        nesterov: bool = False,
        learning_rate: float | None = None,
    ) -> None:
        """Make the optimiser.

        Args:
            parameters: what `model.parameters()` gives.
            lr, learning_rate: two names of the learning rate, > 0; 0.01 unless given.
            momentum: in [0, 1).
            weight_decay: times the weight is added to its gradient, >= 0: L2 regularisation.
            nesterov: whether a step looks ahead: it is by gradient + momentum * velocity.

        Raises:
            TypeError, ValueError: an argument that is not allowed, or nesterov without momentum.
        """
        super().__init__(parameters, lr, learning_rate, 0.01)
        self.momentum = checks.number("momentum", momentum, at_least=0, below=1)
        self.weight_decay = checks.number("weight_decay", weight_decay, at_least=0)
        self.nesterov = checks.boolean("nesterov", nesterov)
        if self.nesterov and self.momentum == 0:
            checks.fail("nesterov=True needs a momentum > 0, got momentum=0; give one, such as 0.9")
        # The squares of gradients tell nothing of what weights add to them.
        self._state_was_given = self.weight_decay > 0

    def _update(self) -> None:
        for part, decay in self._parts(self.weight_decay):
            self.parameters.ops.sgd_step(
                self.parameters.values[part], self.parameters.gradients[part],
                self._state["velocity"][part], self.learning_rate, self.momentum, self.nesterov,
                decay,
            )  # fmt: skip


class AdamW(Optimizer):
    """Adam with decoupled weight decay on matrices; biases and norms do not decay.

    Formulas and sources are in kernels/adam.py.
    """

    state_names: tuple[str, ...] = ("exp_avg", "exp_avg_sq")
    _decoupled: ClassVar[bool] = True

    def __init__(
        self,
        parameters: Parameters,
        lr: float | None = None,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        amsgrad: bool = False,
        learning_rate: float | None = None,
    ) -> None:
        """Make the optimiser.

        Args:
            parameters: what `model.parameters()` gives.
            lr, learning_rate: two names of the learning rate, > 0; 0.001 unless given.
            beta1, beta2: decay of the moments, in [0, 1).    epsilon: > 0.
            weight_decay: share of a weight that goes per step and learning rate, >= 0.
            amsgrad: whether to divide by the largest second moment so far; the state then has
                `max_exp_avg_sq` too.

        Raises:
            TypeError, ValueError: an argument that is not allowed.
        """
        self.amsgrad = checks.boolean("amsgrad", amsgrad)
        if self.amsgrad:
            self.state_names = (*self.state_names, "max_exp_avg_sq")
        super().__init__(parameters, lr, learning_rate, 1e-3)
        self.beta1 = checks.number("beta1", beta1, at_least=0, below=1)
        self.beta2 = checks.number("beta2", beta2, at_least=0, below=1)
        self.epsilon = checks.number("epsilon", epsilon, above=0)
        self.weight_decay = checks.number("weight_decay", weight_decay, at_least=0)

        # The squares of gradients tell nothing of what weights add to them.
        self._state_was_given = self.weight_decay > 0 and not self._decoupled

    def _update(self) -> None:
        largest = self._state.get("max_exp_avg_sq", self.parameters.values[:0])
        for part, decay in self._parts(self.weight_decay):
            apart, penalty = (decay, 0.0) if self._decoupled else (0.0, decay)
            self.parameters.ops.adam_step(
                self.parameters.values[part], self.parameters.gradients[part],
                self._state["exp_avg"][part], self._state["exp_avg_sq"][part], largest[part],
                self.learning_rate, self.beta1, self.beta2, self.epsilon, apart, penalty,
                self.steps,
            )  # fmt: skip


class Adam(AdamW):
    """Adam, whose weight decay is L2 regularisation: part of the gradient."""

    _decoupled = False

    def __init__(
        self,
        parameters: Parameters,
        lr: float | None = None,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        amsgrad: bool = False,
        learning_rate: float | None = None,
    ) -> None:
        """Make the optimiser; arguments as for AdamW, but for one.

        Args:
            parameters, lr, beta1, beta2, epsilon, amsgrad, learning_rate: as for AdamW.
            weight_decay: times the weight is added to its gradient, >= 0.
        """
        super().__init__(
            parameters, lr, beta1, beta2, epsilon, weight_decay,
            amsgrad=amsgrad, learning_rate=learning_rate,
        )  # fmt: skip
