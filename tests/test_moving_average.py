"""The moving average of weights: its kernel, its formula, its place in a model, and its state."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import DTYPES, EDGE_COLUMNS, Out, assert_equals_twin, assert_same_bits, run

import fastformer as ff
from fastformer.errors import InvalidTypeError, InvalidValueError
from fastformer.kernels.moving_average import CHUNK, average_step, average_step_reference
from fastformer.training.optimizers import NotFiniteError

BACKENDS = ("numba", "reference")
CONFIG = ff.TransformerConfig(vocab_size=7, embed_dim=8, num_heads=2, num_layers=1, ffn_dim=12)
BATCH, TARGETS = ff.pack([[1, 2, 3], [4, 5]]), np.array([3, 6])


def arguments(rng, size, decay=0.9):
    average, values = rng.standard_normal((2, size))
    return Out((size,), average), values, decay


def new_model(backend="numba"):
    return ff.Transformer(CONFIG, seed=1, dtype="float64", backend=backend)


def change(model, step):
    """Draw other weights, named by the step, and return them in one array."""
    values = model.parameters().values
    values[...] = np.random.default_rng(step).standard_normal(values.shape)
    return values.copy()


@pytest.mark.parametrize("size", [0, *EDGE_COLUMNS, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
@pytest.mark.parametrize("decay", [0.0, 0.9, 0.9999])
def test_equals_twin(rng, size, decay):
    assert_equals_twin(average_step, average_step_reference, *arguments(rng, size, decay))


@settings(max_examples=30)
@given(size=st.integers(0, 200), decay=st.floats(0, 0.9999), seed=st.integers(0, 2**32))
def test_equals_twin_for_any_size(size, decay, seed):
    given = arguments(np.random.default_rng(seed), size, decay)
    assert_equals_twin(average_step, average_step_reference, *given)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_stays_visible(rng, dtype):
    given = list(arguments(rng, 37))
    given[1][18] = np.nan
    (average,) = run(average_step, *given, dtype=dtype)
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(average)), [18])


def test_same_bits_for_any_threads(rng):
    assert_same_bits(average_step, *arguments(rng, 3 * CHUNK + 5))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("warmup", [False, True])
def test_it_is_the_mean_of_all_weights_with_shares_that_fade(backend, warmup):
    model = new_model(backend)
    history = [model.parameters().values.copy()]
    ema = ff.EMA(model, decay=0.3, warmup=warmup)
    for step in range(1, 6):
        history.append(change(model, step))
        ema.update()
    decays = [min(0.3, (1 + n) / (10 + n)) if warmup else 0.3 for n in range(5)]
    shares = [np.prod(decays)]
    shares += [(1 - decays[n]) * np.prod(decays[n + 1 :]) for n in range(5)]
    assert sum(shares) == pytest.approx(1)
    expected = np.tensordot(shares, history, 1)
    np.testing.assert_array_equal(model.parameters().values, history[-1])
    with ema.applied():
        np.testing.assert_allclose(model.parameters().values, expected, rtol=1e-12, atol=1e-14)
    assert (ema.updates, ema.decay, ema.warmup) == (5, 0.3, warmup)


def test_within_applied_the_model_answers_with_the_average_and_then_with_its_own_weights():
    model, loss_fn = new_model(), ff.CrossEntropyLoss()
    optimizer, ema = ff.Adam(model.parameters(), lr=0.01), ff.EMA(model, decay=0.5)
    for _ in range(4):
        ff.train_step(model, BATCH, TARGETS, loss_fn, optimizer)
        ema.update()
    own, logits = model.parameters().values.tobytes(), model.forward(BATCH)
    other = new_model()
    other.load_state_dict(ema.state_dict())
    assert (other.forward(BATCH) != logits).any()
    with ema.applied():
        np.testing.assert_array_equal(model.forward(BATCH), other.forward(BATCH))
        scores = ff.evaluate(model, BATCH, TARGETS, loss_fn)
        with pytest.raises(InvalidValueError, match=r"EMA.update: .* leave `with ema.applied\(\)`"):
            ema.update()
        with pytest.raises(InvalidValueError, match="EMA.applied: the average is the model's"):
            ema.applied().__enter__()
    assert scores == ff.evaluate(other, BATCH, TARGETS, loss_fn)
    assert model.parameters().values.tobytes() == own
    with pytest.raises(KeyError), ema.applied():
        raise KeyError
    assert model.parameters().values.tobytes() == own
    ema.update()


def test_state_goes_to_another_average_and_back():
    first, second = new_model(), new_model()
    one, other = ff.EMA(first, 0.9, warmup=True), ff.EMA(second, 0.9, warmup=True)
    for step in range(3):
        change(first, step)
        one.update()
    state = one.state_dict()
    copies = {name: array.copy() for name, array in state.items()}
    assert state.keys() == first.state_dict().keys()
    other.load_state_dict(state, one.updates)
    for step in range(3, 5):
        for model, ema in ((first, one), (second, other)):
            change(model, step)
            ema.update()
    for name, array in one.state_dict().items():
        assert array.tobytes() == other.state_dict()[name].tobytes(), name
        assert state[name].tobytes() == copies[name].tobytes(), "state_dict must be a copy"


def test_it_is_copied_together_with_its_model():
    model = new_model()
    ema = ff.EMA(model, 0.5)
    copied, copied_ema = copy.deepcopy((model, ema))
    change(copied, 1)
    copied_ema.update()
    assert (ema.updates, copied_ema.updates) == (0, 1)
    with copied_ema.applied():
        assert (copied.parameters().values != model.parameters().values).any()
    alone = copy.deepcopy(ema)
    with pytest.raises(InvalidValueError, match="EMA: it was copied without its model"):
        alone.update()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_not_taken_in(backend, value):
    model = new_model(backend)
    ema = ff.EMA(model)
    before = {name: array.tobytes() for name, array in ema.state_dict().items()}
    model.parameters().values[3] = value
    with pytest.raises(NotFiniteError, match="^EMA: a weight is not finite at update 1; the avera"):
        ema.update()
    assert {name: array.tobytes() for name, array in ema.state_dict().items()} == before
    assert ema.updates == 0


def test_bad_arguments_are_refused_and_change_nothing():
    model = new_model()
    for make, error, message in (
        (
            lambda: ff.EMA(model.parameters()),
            InvalidTypeError,
            "^EMA: model must be a Layer, got P",
        ),
        (lambda: ff.EMA(model, 1.0), InvalidValueError, "^decay must be .* < 1, got 1.0$"),
        (lambda: ff.EMA(model, -0.1), InvalidValueError, "^decay must be .* >= 0 .*, got -0.1$"),
        (lambda: ff.EMA(model, "0.9"), InvalidTypeError, "^decay must be .* got '0.9'$"),
        (lambda: ff.EMA(model, warmup=1), InvalidTypeError, "^warmup must be True or False, got 1"),
    ):
        with pytest.raises(error, match=message):
            make()
    ema = ff.EMA(model)
    good = ema.state_dict()
    name = next(iter(good))
    ones = {key: np.ones_like(array) for key, array in good.items()}
    for state, updates, error, message in (
        ({key: array for key, array in ones.items() if key != name}, 1, ValueError, name),
        (ones | {name: np.ones(3)}, 1, ValueError, rf"^state: '{name}' must be .* \(3,\)"),
        (ones | {name: good[name] * np.nan}, 1, ValueError, "must be finite"),
        (ones, -1, ValueError, "^updates must be an integer from 0 to .*, got -1$"),
        (ones, 1.0, TypeError, "^updates must be an integer .* got 1.0$"),
    ):
        with pytest.raises(error, match=message):
            ema.load_state_dict(state, updates)
    for key, array in ema.state_dict().items():
        np.testing.assert_array_equal(array, good[key])
    assert ema.updates == 0


@pytest.mark.needs("torch")
def test_against_torch():
    import torch
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    model = new_model()
    theirs = torch.nn.Linear(1, model.parameters().values.size, bias=False, dtype=torch.float64)
    ema = ff.EMA(model, decay=0.9)
    averaged = AveragedModel(theirs, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for step in range(6):  # the first one of theirs copies, as ours does where it is made
        with torch.no_grad():
            theirs.weight[:, 0] = torch.tensor(model.parameters().values)
        averaged.update_parameters(theirs)
        if step:
            ema.update()
        change(model, step)
    with ema.applied():
        found = model.parameters().values.copy()
    expected = averaged.module.weight.detach().numpy()[:, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)
