"""Stochastic gradient descent: twin, momentum, threads."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import DTYPES, EDGE_COLUMNS, Out, assert_equals_twin, assert_same_bits, run

from fastformer.kernels.sgd import CHUNK, sgd_step, sgd_step_reference


def arguments(rng, size, momentum=0.9, nesterov=False, penalty=0.0):
    parameters, gradients, velocity = rng.standard_normal((3, size))
    scalars = 0.1, momentum, nesterov, penalty
    return Out((size,), parameters), gradients, Out((size,), velocity), *scalars


@pytest.mark.smoke
@pytest.mark.parametrize("size", [0, *EDGE_COLUMNS, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_equals_twin(rng, size, momentum):
    assert_equals_twin(sgd_step, sgd_step_reference, *arguments(rng, size, momentum))
    assert_equals_twin(sgd_step, sgd_step_reference, *arguments(rng, size, momentum, True, 0.1))


@settings(max_examples=30)
@given(
    size=st.integers(0, 200),
    nesterov=st.booleans(),
    penalty=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 2**32),
)
def test_equals_twin_for_any_size(size, nesterov, penalty, seed):
    given = arguments(np.random.default_rng(seed), size, 0.9, nesterov, penalty)
    assert_equals_twin(sgd_step, sgd_step_reference, *given)


@pytest.mark.parametrize("dtype", DTYPES)
def test_momentum_over_three_steps(dtype):
    """A gradient of 1, a momentum of 1/2 and a learning rate of 1 are exact."""
    parameters, velocity = np.zeros((2, 20), dtype)
    for expected in (-1, -2.5, -4.25):
        sgd_step(parameters, np.ones(20, dtype), velocity, 1.0, 0.5, False, 0.0)
        np.testing.assert_array_equal(parameters, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nesterov_and_penalty_over_two_steps(dtype):
    """Powers of two are exact: gradients 1 + p / 2 are 1, then 1/4; velocities 1, then 3/4."""
    parameters, velocity = np.zeros((2, 20), dtype)
    for expected in (-1.5, -1.5 - 0.25 - 0.375):
        sgd_step(parameters, np.ones(20, dtype), velocity, 1.0, 0.5, True, 0.5)
        np.testing.assert_array_equal(parameters, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_stays_visible(rng, dtype):
    given = list(arguments(rng, 37))
    given[1][18] = np.nan
    for output in run(sgd_step, *given, dtype=dtype):
        np.testing.assert_array_equal(np.flatnonzero(np.isnan(output)), [18])


def test_same_bits_for_any_threads(rng):
    size = 3 * CHUNK + 5
    assert size > 3 * CHUNK
    assert_same_bits(sgd_step, *arguments(rng, size))
    assert_same_bits(sgd_step, *arguments(rng, size, 0.9, True, 0.1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_velocity_without_gradients_ends_at_zero(dtype):
    """Near the smallest number of all, each step would take twenty times as long, and forever."""
    faint = {np.float32: 1e-28, np.float64: 1e-298}[dtype]
    for kernel in (sgd_step, sgd_step_reference):
        parameters, gradients = np.ones(3, dtype), np.zeros(3, dtype)
        velocity = np.array([faint, -faint, 1], dtype)
        for _ in range(200):
            kernel(parameters, gradients, velocity, 0.1, 0.9, False, 0.0)
            assert np.abs(velocity[velocity != 0]).min() >= np.finfo(dtype).tiny
        np.testing.assert_array_equal(velocity[:2], 0)
        np.testing.assert_allclose(velocity[2], 0.9**200, rtol=1e-4)
