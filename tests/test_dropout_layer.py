"""The dropout layer: when it drops, where its random numbers come from, misuse."""

import numpy as np
import pytest
from models import BACKENDS, same_bits

import fastformer as ff
from fastformer.errors import FastformerError, InvalidTypeError, InvalidValueError
from fastformer.layers.dropout import DropoutCounter

ONES = np.ones((40, 50))


def make_counter(seed=3, forwards=1):
    counter = DropoutCounter(seed)
    counter.training, counter.forwards = True, forwards
    return counter


def make_layer(rate=0.3, backend="numba", dtype="float64", **counter):
    return ff.Dropout(rate, make_counter(**counter), backend=backend, dtype=dtype)


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_nothing_is_dropped_unless_training(rng, rate):
    layer = ff.Dropout(rate, dtype="float64")
    x, residual = rng.standard_normal((2, 4, 5))
    assert not layer.active
    assert np.shares_memory(layer.forward(x), x) and same_bits(layer.forward(x), x)
    np.testing.assert_array_equal(layer.forward(x, residual), x + residual)
    assert same_bits(layer.backward(residual), residual)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_kept_is_scaled_and_has_the_gradient(rng, backend):
    layer = make_layer(backend=backend)
    kept = layer.forward(ONES).copy() != 0
    assert abs(kept.mean() - 0.7) < 5 * np.sqrt(0.21 / ONES.size)
    x, residual, dout = rng.standard_normal((3, 40, 50))
    out = layer.forward(x, residual)
    np.testing.assert_allclose(out, residual + np.where(kept, x / 0.7, 0), 1e-12, 1e-15)
    np.testing.assert_allclose(layer.backward(dout), np.where(kept, dout / 0.7, 0), 1e-12)


def mask(layer):
    return layer.forward(ONES).copy() != 0


def test_the_mask_is_named_by_seed_forward_and_place():
    first = mask(make_layer())
    for backend in BACKENDS:
        assert same_bits(mask(make_layer(backend=backend)), first)
    for other in (make_layer(seed=4), make_layer(forwards=2)):
        agreement = (mask(other) == first).mean()
        assert abs(agreement - 0.58) < 0.1
    counter = make_counter()
    masks = [mask(ff.Dropout(0.3, counter, dtype="float64")) for _ in range(3)]
    assert counter.places == 3
    assert len({m.tobytes() for m in masks}) == 3


def test_no_two_calls_of_a_run_have_the_same_name():
    counter = make_counter()
    layers = [ff.Dropout(0.3, counter, dtype="float64") for _ in range(3)]
    masks = set()
    for forwards in range(4):
        counter.forwards = forwards
        masks.update(mask(layer).tobytes() for layer in layers)
    assert len(masks) == 12


def test_backward_follows_the_last_forward(rng):
    """Neither the switch nor the counter may change between forward and backward unseen."""
    layer = make_layer()
    dout = rng.standard_normal(ONES.shape)
    kept = mask(layer)
    layer.counter.training = False
    layer.counter.forwards += 1
    np.testing.assert_array_equal(layer.backward(dout) != 0, kept)
    layer.forward(ONES)
    assert same_bits(layer.backward(dout), dout)


@pytest.mark.parametrize("seed", [0, 2**31, 2**32, 2**62, 2**63, 2**64 - 1])
def test_any_seed_gives_the_same_mask_on_either_backend(seed):
    layers = [make_layer(backend=backend, seed=seed) for backend in BACKENDS]
    assert same_bits(mask(layers[0]), mask(layers[1]))


def test_a_seed_that_the_random_numbers_cannot_take_is_refused():
    with pytest.raises(InvalidValueError, match=r"seed must be an integer from 0 to"):
        DropoutCounter(2**64)
    with pytest.raises(InvalidValueError, match=r"seed must be .*got -1"):
        DropoutCounter(-1)


@pytest.mark.parametrize(
    ("rate", "error"),
    [
        (-0.1, InvalidValueError),
        (1, InvalidValueError),
        (np.nan, InvalidValueError),
        ("0.1", InvalidTypeError),
        (True, InvalidTypeError),
    ],
)
def test_a_rate_that_is_not_allowed_is_refused(rate, error):
    with pytest.raises(error, match=r"rate must be a finite number >= 0 and < 1, got"):
        ff.Dropout(rate)


@pytest.mark.parametrize("residual", [np.ones((2, 5)), np.ones((4, 5), np.float32), [1.0]])
def test_a_residual_that_does_not_fit_is_refused(residual):
    with pytest.raises(FastformerError, match=r"Dropout: residual must be"):
        make_layer(backend="reference").forward(np.ones((4, 5)), residual)
