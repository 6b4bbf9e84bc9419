"""Optimizers against formulas that are written here, and their state."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import fastformer as ff
from fastformer.errors import InvalidTypeError, InvalidValueError
from fastformer.parameters import Parameters
from fastformer.training.optimizers import NotFiniteError

BACKENDS = ("numba", "reference")
DTYPES = ("float32", "float64")
CONFIG = ff.TransformerConfig(
    vocab_size=20,
    embed_dim=8,
    num_heads=2,
    num_layers=1,
    ffn_dim=12,
    qkv_bias=True,
    attention_output_bias=True,
)
STEPS = 5
Weights = dict[str, np.ndarray]
Rule = Callable[[np.ndarray, list[np.ndarray], bool], np.ndarray]


def model(backend: str = "numba", dtype: str = "float64") -> ff.Transformer:
    return ff.Transformer(CONFIG, seed=3, backend=backend, dtype=dtype)


def is_matrix(name: str) -> bool:
    """Tell whether a parameter is one that weight decay is for."""
    return name.endswith("weight") and "norm" not in name


def random_gradients(parameters: Parameters, step: int) -> Weights:
    """Set all gradients to numbers named by the step; return them in float64."""
    rng = np.random.default_rng(step)
    drawn = {}
    for name, _, gradient in parameters:
        gradient[...] = rng.standard_normal(gradient.shape)
        drawn[name] = gradient.astype(np.float64)
    return drawn


def sgd(momentum: float, rate: float) -> Rule:
    def rule(weight: np.ndarray, history: list[np.ndarray], matrix: bool) -> np.ndarray:
        for step in range(len(history)):
            # The velocity, written out: the sum of all gradients, each fading by momentum.
            velocity = sum(momentum ** (step - k) * history[k] for k in range(step + 1))
            weight = weight - rate * velocity
        return weight

    return rule


def adamw(rate: float, decay: float, beta1: float, beta2: float, epsilon: float) -> Rule:
    def rule(weight: np.ndarray, history: list[np.ndarray], matrix: bool) -> np.ndarray:
        for t in range(1, len(history) + 1):
            # The moments, written out as the weighted means that they are.
            weights1 = np.array([(1 - beta1) * beta1 ** (t - k) for k in range(1, t + 1)])
            weights2 = np.array([(1 - beta2) * beta2 ** (t - k) for k in range(1, t + 1)])
            past = np.stack(history[:t])
            mean = np.tensordot(weights1 / weights1.sum(), past, 1)
            square = np.tensordot(weights2 / weights2.sum(), past**2, 1)
            shrunk = weight * (1 - rate * decay) if matrix else weight
            weight = shrunk - rate * mean / (np.sqrt(square) + epsilon)
        return weight

    return rule


def looking_ahead(momentum: float, rate: float, penalty: float) -> Rule:
    def rule(weight: np.ndarray, history: list[np.ndarray], matrix: bool) -> np.ndarray:
        velocity = np.zeros_like(weight)
        for gradient in history:
            gradient = gradient + penalty * weight * matrix
            velocity = momentum * velocity + gradient
            weight = weight - rate * (gradient + momentum * velocity)
        return weight

    return rule


def amsgrad(rate: float, decay: float, penalty: float, beta2: float) -> Rule:
    def rule(weight: np.ndarray, history: list[np.ndarray], matrix: bool) -> np.ndarray:
        mean, square, largest = np.zeros((3, *weight.shape))
        for t, gradient in enumerate(history, 1):
            gradient = gradient + penalty * weight * matrix
            mean = 0.9 * mean + (1 - 0.9) * gradient
            square = beta2 * square + (1 - beta2) * gradient**2
            largest = np.maximum(largest, square)
            change = mean / (1 - 0.9**t) / (np.sqrt(largest / (1 - beta2**t)) + 1e-8)
            weight = weight * (1 - rate * decay * matrix) - rate * change
        return weight

    return rule


CASES = {
    "sgd": (lambda p: ff.SGD(p, lr=0.1), sgd(0.0, 0.1)),
    "momentum": (lambda p: ff.SGD(p, lr=0.03, momentum=0.9), sgd(0.9, 0.03)),
    "adam": (lambda p: ff.Adam(p), adamw(1e-3, 0.0, 0.9, 0.999, 1e-8)),
    "adam, other betas": (
        lambda p: ff.Adam(p, lr=0.02, beta1=0.5, beta2=0.9, epsilon=1e-3),
        adamw(0.02, 0.0, 0.5, 0.9, 1e-3),
    ),
    "adamw": (
        lambda p: ff.AdamW(p, lr=0.01, weight_decay=0.3),
        adamw(0.01, 0.3, 0.9, 0.999, 1e-8),
    ),
    "adamw without decay": (
        lambda p: ff.AdamW(p, lr=0.01, weight_decay=0),
        adamw(0.01, 0.0, 0.9, 0.999, 1e-8),
    ),
    "nesterov": (
        lambda p: ff.SGD(p, lr=0.03, momentum=0.9, weight_decay=0.2, nesterov=True),
        looking_ahead(0.9, 0.03, 0.2),
    ),
    "amsgrad": (
        lambda p: ff.Adam(p, lr=0.01, beta2=0.5, weight_decay=0.3, amsgrad=True),
        amsgrad(0.01, 0.0, 0.3, 0.5),
    ),
    "adamw, amsgrad": (
        lambda p: ff.AdamW(p, lr=0.01, beta2=0.5, weight_decay=0.3, amsgrad=True),
        amsgrad(0.01, 0.3, 0.0, 0.5),
    ),
}


@pytest.mark.smoke
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_steps_are_those_of_the_formula(case: str, backend: str, dtype: str) -> None:
    make, rule = CASES[case]
    trained = model(backend, dtype)
    parameters = trained.parameters()
    optimizer = make(parameters)
    start = {name: value.astype(np.float64) for name, value, _ in parameters}
    gradients = []
    for step in range(STEPS):
        gradients.append(random_gradients(parameters, step))
        optimizer.step()
        for name, _, gradient in parameters:
            np.testing.assert_array_equal(gradient, gradients[-1][name], "a gradient was changed")
    assert optimizer.steps == STEPS
    tolerance = {"float32": 1e-5, "float64": 1e-12}[dtype]
    for name, value, _ in parameters:
        expected = rule(start[name], [g[name] for g in gradients], is_matrix(name))
        np.testing.assert_allclose(value, expected, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_weight_decay_acts_on_matrices_only(backend: str) -> None:
    trained = model(backend)
    for _, value, _ in trained.parameters():
        value[...] = 2.0
    trained.zero_grad()
    ff.AdamW(trained.parameters(), lr=0.1, weight_decay=0.5).step()
    changed = {name for name, value, _ in trained.parameters() if (value != 2.0).any()}
    names = {name for name, _, _ in trained.parameters()}
    assert changed == {name for name in names if is_matrix(name)}
    assert changed == {name for name, value, _ in trained.parameters() if value.ndim == 2}
    for name in changed:
        np.testing.assert_allclose(trained.state_dict()[name], 2.0 * (1 - 0.1 * 0.5), rtol=1e-15)


@pytest.mark.parametrize("optimizer_class", [ff.SGD, ff.Adam, ff.AdamW])
@pytest.mark.parametrize("wrap", [list, dict, lambda p: [v for _, v, _ in p], lambda p: p.values])
def test_anything_but_parameters_is_refused(
    optimizer_class: Any, wrap: Callable[[Any], Any]
) -> None:
    # Arrays of another kind would be changed where the model does not see it.
    given = {} if wrap is dict else wrap(model().parameters())
    message = rf"^{optimizer_class.__name__}: parameters must be what model.parameters\(\) returns"
    with pytest.raises(TypeError, match=message):
        optimizer_class(given, lr=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: ff.Adam(p, lr=-1.0), "^lr must be a finite number > 0, got -1.0$"),
        (lambda p: ff.SGD(p, lr=0), "^lr must be a finite number > 0, got 0$"),
        (lambda p: ff.SGD(p, lr=float("nan")), "^lr must be a finite number > 0, got nan$"),
        (lambda p: ff.SGD(p, momentum=1.0), "^momentum must be .* >= 0 and < 1, got 1.0$"),
        (lambda p: ff.Adam(p, beta1=1.0), "^beta1 must be .* < 1, got 1.0$"),
        (lambda p: ff.Adam(p, beta2=-0.1), "^beta2 must be .* >= 0 .*, got -0.1$"),
        (lambda p: ff.Adam(p, epsilon=0.0), "^epsilon must be .* > 0, got 0.0$"),
        (lambda p: ff.AdamW(p, weight_decay=-1), "^weight_decay must be .* >= 0, got -1$"),
        (lambda p: ff.Adam(p, weight_decay=-1), "^weight_decay must be .* >= 0, got -1$"),
        (lambda p: ff.SGD(p, weight_decay=-1), "^weight_decay must be .* >= 0, got -1$"),
        (lambda p: ff.SGD(p, nesterov=True), "^nesterov=True needs a momentum > 0, got momentum=0"),
    ],
)
def test_bad_settings_are_refused(make: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        make(model().parameters())


@pytest.mark.parametrize(
    ("make", "name"), [(ff.SGD, "nesterov"), (ff.Adam, "amsgrad"), (ff.AdamW, "amsgrad")]
)
def test_switches_are_true_or_false(make: Any, name: str) -> None:
    with pytest.raises(InvalidTypeError, match=f"^{name} must be True or False, got 1$"):
        make(model().parameters(), **{name: 1})


@pytest.mark.parametrize("case", CASES)
def test_state_goes_to_another_optimizer_and_back(case: str) -> None:
    make, _ = CASES[case]
    first, second = model(), model()
    optimizer, other = make(first.parameters()), make(second.parameters())
    for step in range(3):
        random_gradients(first.parameters(), step)
        optimizer.step()
    state = optimizer.state_dict()
    copies = {name: array.copy() for name, array in state.items()}
    second.load_state_dict(first.state_dict())
    other.load_state_dict(state, optimizer.steps)
    for step in range(3, 6):
        for trained, used in ((first, optimizer), (second, other)):
            random_gradients(trained.parameters(), step)
            used.step()
    assert first.parameters().values.tobytes() == second.parameters().values.tobytes()
    for name, array in optimizer.state_dict().items():
        assert array.tobytes() == other.state_dict()[name].tobytes(), name
        assert state[name].tobytes() == copies[name].tobytes(), "state_dict must be a copy"


@pytest.mark.parametrize("amsgrad", [False, True])
def test_state_has_the_names_and_shapes_of_the_parameters(amsgrad: bool) -> None:
    parameters = model().parameters()
    state = ff.Adam(parameters, amsgrad=amsgrad).state_dict()
    assert {name: array.shape for name, array in state.items()} == {
        f"{moment}.{name}": value.shape
        for moment in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")[: 3 if amsgrad else 2]
        for name, value, _ in parameters
    }
    other = ff.Adam(model().parameters(), amsgrad=not amsgrad)
    with pytest.raises(InvalidValueError, match="state must fit this Adam.*max_exp_avg_sq"):
        other.load_state_dict(state, 1)


def test_weights_whose_squares_are_not_finite_are_noticed_where_they_are_part_of_gradients() -> (
    None
):
    parameters = model(dtype="float32").parameters()
    optimizer = ff.Adam(parameters, weight_decay=0.5)
    parameters.values[0] = 1e30
    optimizer.step()
    with pytest.raises(NotFiniteError, match="exp_avg_sq of .* is not finite at step 2"):
        optimizer.step()


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    parameters = model().parameters()
    optimizer = ff.Adam(parameters)
    random_gradients(parameters, 0)
    optimizer.step()
    before = {name: array.tobytes() for name, array in optimizer.state_dict().items()}
    good = {name: np.ones_like(array) for name, array in optimizer.state_dict().items()}
    name = list(good)[-1]
    missing = {key: array for key, array in good.items() if key != name}
    attempts: list[tuple[dict[str, np.ndarray], Any, type[Exception], str]] = [
        (missing, 1, InvalidValueError, f"state must fit this .*{name}"),
        (good | {"velocity.x": np.ones(1)}, 1, InvalidValueError, "velocity.x"),
        (good | {name: np.ones(3)}, 1, InvalidValueError, rf"state: '{name}' must be .* \(3,\)"),
        (good, -1, InvalidValueError, "^steps must be an integer from 0 to .*, got -1$"),
        (good, 1.0, InvalidTypeError, "^steps must be an integer from 0 to .*, got 1.0$"),
    ]
    for state, steps, error, message in attempts:
        with pytest.raises(error, match=message):
            optimizer.load_state_dict(state, steps)
    assert {n: array.tobytes() for n, array in optimizer.state_dict().items()} == before
    assert optimizer.steps == 1


def test_learning_rate_of_the_next_step_can_be_set() -> None:
    parameters = model().parameters()
    optimizer = ff.SGD(parameters, lr=1.0)
    before = parameters.values.copy()
    random_gradients(parameters, 0)
    optimizer.learning_rate = 0.25
    optimizer.step()
    np.testing.assert_allclose(parameters.values, before - 0.25 * parameters.gradients, rtol=1e-15)


@pytest.mark.needs("torch")
def test_against_torch() -> None:
    import torch

    makes = {
        "momentum": lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9),
        "adam": lambda p: torch.optim.Adam(p, lr=1e-3),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.3),
        "nesterov": lambda p: torch.optim.SGD(
            p, lr=0.03, momentum=0.9, weight_decay=0.2, nesterov=True
        ),
        "amsgrad": lambda p: torch.optim.Adam(
            p, lr=0.01, betas=(0.9, 0.5), weight_decay=0.3, amsgrad=True
        ),
        "adamw, amsgrad": lambda p: torch.optim.AdamW(
            p, lr=0.01, betas=(0.9, 0.5), weight_decay=0.3, amsgrad=True
        ),
    }
    for case, make in makes.items():
        parameters = model().parameters()
        optimizer = CASES[case][0](parameters)
        theirs = {name: torch.tensor(value.copy()) for name, value, _ in parameters}
        matrices = [tensor for name, tensor in theirs.items() if is_matrix(name)]
        rest = [tensor for name, tensor in theirs.items() if not is_matrix(name)]
        groups = [{"params": matrices}, {"params": rest}]
        if case not in ("momentum", "adam"):
            groups[1]["weight_decay"] = 0.0
        other = make(groups)
        for step in range(STEPS):
            for name, gradient in random_gradients(parameters, step).items():
                theirs[name].grad = torch.tensor(gradient)
            optimizer.step()
            other.step()
        for name, value, _ in parameters:
            np.testing.assert_allclose(value, theirs[name].numpy(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("make", [ff.SGD, ff.Adam, partial(ff.AdamW, amsgrad=True)])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e200])
def test_what_is_not_finite_is_refused_before_anything_changes(
    make: Any, backend: str, value: float
) -> None:
    parameters = model(backend).parameters()
    optimizer = make(parameters)
    random_gradients(parameters, 0)
    optimizer.step()
    arrays = {"the gradient of": parameters.gradients}
    if value != 1e200:
        arrays |= {"the parameter": parameters.values}
        arrays |= {f"{name} of": flat for name, flat in optimizer.state.items()}
    for kind, flat in arrays.items():
        name, view = list(parameters.views_of(flat))[3]
        old, view[0] = view[0].copy(), value
        before = [flat.tobytes() for flat in (parameters.values, *optimizer.state.values())]
        with pytest.raises(NotFiniteError, match=f"{kind} {name} is not finite at step 2; nothing"):
            optimizer.step()
        assert [f.tobytes() for f in (parameters.values, *optimizer.state.values())] == before
        assert optimizer.steps == 1
        view[0] = old
    optimizer.step()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "make", [partial(ff.SGD, momentum=0.999), ff.Adam, partial(ff.AdamW, amsgrad=True)]
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_largest_gradients_of_a_step_leave_the_state_finite(
    make: Any, backend: str, dtype: str
) -> None:
    """So that a state which nobody else has need not be looked at before each step."""
    parameters = model(backend, dtype=dtype).parameters()
    optimizer = make(parameters, lr=1e-30)
    parameters.gradients[...] = np.sqrt(np.finfo(dtype).max)
    for _ in range(20):
        with np.errstate(over="ignore"):  # of the second moment's correction: the change is then 0
            optimizer.step()
    assert all(np.isfinite(flat).all() for flat in optimizer.state.values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_state_that_was_given_away_is_looked_at_from_then_on(backend: str) -> None:
    parameters = model(backend).parameters()
    optimizer = ff.Adam(parameters)
    moments = optimizer.state["exp_avg"]
    optimizer.step()
    moments[0] = np.nan
    with pytest.raises(NotFiniteError, match="exp_avg of"):
        optimizer.step()


def test_a_state_that_is_not_finite_is_not_loaded() -> None:
    optimizer = ff.Adam(model().parameters())
    state = optimizer.state_dict()
    name = list(state)[2]
    state[name].flat[0] = np.nan
    with pytest.raises(InvalidValueError, match=f"state: '{name}' must be finite everywhere"):
        optimizer.load_state_dict(state, 1)
