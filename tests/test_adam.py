"""Adam and AdamW: twin, the published formula, first step, threads."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import DTYPES, EDGE_COLUMNS, Out, assert_equals_twin, assert_same_bits, run

from fastformer.kernels.adam import CHUNK, adam_step, adam_step_reference

LR, BETA1, BETA2, EPSILON = 1e-3, 0.9, 0.999, 1e-8


def arguments(rng, size, weight_decay=0.01, step=3, penalty=0.0, amsgrad=False):
    parameters, gradients, exp_avg = rng.standard_normal((3, size))
    exp_avg_sq = rng.standard_normal(size) ** 2
    shape = parameters.shape
    outputs = [Out(shape, start) for start in (parameters, exp_avg, exp_avg_sq)]
    largest = Out(shape, rng.standard_normal(size) ** 2) if amsgrad else np.empty(0)
    scalars = (LR, BETA1, BETA2, EPSILON, weight_decay, penalty, step)
    return outputs[0], gradients, outputs[1], outputs[2], largest, *scalars


@pytest.mark.parametrize("size", [0, *EDGE_COLUMNS, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
def test_equals_twin(rng, size):
    for weight_decay in (0.0, 0.01):
        for step in (1, 2, 1000):
            given = arguments(rng, size, weight_decay, step)
            assert_equals_twin(adam_step, adam_step_reference, *given)


@pytest.mark.parametrize("size", [0, *EDGE_COLUMNS, CHUNK + 1])
def test_amsgrad_and_penalty_equal_twin(rng, size):
    for options in ({"penalty": 0.1}, {"amsgrad": True}, {"penalty": 0.1, "amsgrad": True}):
        given = arguments(rng, size, 0.01, 5, **options)
        assert_equals_twin(adam_step, adam_step_reference, *given)


@settings(max_examples=30)
@given(
    size=st.integers(0, 200),
    step=st.integers(1, 10**6),
    penalty=st.sampled_from([0.0, 0.3]),
    amsgrad=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_equals_twin_for_any_size(size, step, penalty, amsgrad, seed):
    given = arguments(np.random.default_rng(seed), size, 0.1, step, penalty, amsgrad)
    assert_equals_twin(adam_step, adam_step_reference, *given)


@pytest.mark.parametrize(("penalty", "amsgrad"), [(0.0, False), (0.2, False), (0.2, True)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_five_steps_of_the_published_algorithm(rng, weight_decay, penalty, amsgrad):
    """Against scalars and Python's own arithmetic, line by line as in the paper."""
    gradients = rng.standard_normal(5) / np.arange(1, 6)  # so that second moments fall, too
    parameter, m, v = np.array([0.5]), np.zeros(1), np.zeros(1)
    largest, settings = np.zeros(int(amsgrad)), (LR, BETA1, 0.3, EPSILON, weight_decay, penalty)
    p, m_t, v_t, w_t = 0.5, 0.0, 0.0, 0.0
    for t, g in enumerate(gradients, 1):
        adam_step(parameter, np.array([g]), m, v, largest, *settings, t)
        g += penalty * p
        m_t = BETA1 * m_t + (1 - BETA1) * g
        v_t = 0.3 * v_t + (1 - 0.3) * g * g
        w_t = max(w_t, v_t) if amsgrad else v_t
        m_hat, v_hat = m_t / (1 - BETA1**t), w_t / (1 - 0.3**t)
        p = p - LR * (m_hat / (math.sqrt(v_hat) + EPSILON) + weight_decay * p)
        np.testing.assert_allclose([parameter[0], m[0], v[0]], [p, m_t, v_t], rtol=1e-13)
    assert not amsgrad or largest[0] == pytest.approx(w_t) and w_t > 1.1 * v_t


@pytest.mark.smoke
@pytest.mark.parametrize("dtype", DTYPES)
def test_first_step_has_the_size_of_the_learning_rate(dtype):
    parameters, zeros = np.zeros(4, dtype), np.zeros((2, 4), dtype)
    gradients = np.array([1e-3, -5, 1e4, 0], dtype)
    none = np.empty(0, dtype)
    adam_step(parameters, gradients, *zeros, none, LR, BETA1, BETA2, EPSILON, 0.0, 0.0, 1)
    np.testing.assert_allclose(parameters, [-LR, LR, -LR, 0], rtol=2e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_stays_visible(rng, dtype):
    given = list(arguments(rng, 37))
    given[1][18] = np.nan
    for output in run(adam_step, *given, dtype=dtype):
        np.testing.assert_array_equal(np.flatnonzero(np.isnan(output)), [18])


def test_same_bits_for_any_threads(rng):
    size = 3 * CHUNK + 5
    assert size > 3 * CHUNK
    assert_same_bits(adam_step, *arguments(rng, size))
    assert_same_bits(adam_step, *arguments(rng, size, penalty=0.1, amsgrad=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_moments_of_what_has_no_gradient_any_more_end_at_zero(dtype):
    """Near the smallest number of all, each step would take twenty times as long, and forever."""
    tiny, faint = np.finfo(dtype).tiny, {np.float32: 1e-28, np.float64: 1e-298}[dtype]
    parameters, gradients = np.ones(5, dtype), np.zeros(5, dtype)
    exp_avg = np.array([faint, -faint, 0, faint, 1], dtype)
    exp_avg_sq = np.array([tiny * 1.0005, 1, 0, tiny * 1.1, 1], dtype)
    for step in range(1, 201):
        for kernel in (adam_step, adam_step_reference):
            moments = exp_avg.copy(), exp_avg_sq.copy()
            settings = (LR, BETA1, BETA2, EPSILON, 0.0, 0.0, step)
            kernel(parameters, gradients, *moments, np.empty(0, dtype), *settings)
            sizes = np.abs(np.concatenate(moments))
            assert sizes[sizes > 0].min() >= tiny
        exp_avg, exp_avg_sq = moments
    np.testing.assert_array_equal(exp_avg[:4], 0)
    np.testing.assert_array_equal(exp_avg_sq[[0, 2, 3]], 0)
    np.testing.assert_allclose([exp_avg[4], exp_avg_sq[4]], [0.9**200, 0.999**200], rtol=1e-4)
    # With a gradient, however small, they are what the formula says.
    exp_avg, exp_avg_sq = np.zeros((2, 5), dtype)
    gradients[...] = 20 * tiny
    settings = (LR, BETA1, BETA2, EPSILON, 0.0, 0.0, 1)
    adam_step(parameters, gradients, exp_avg, exp_avg_sq, np.empty(0, dtype), *settings)
    np.testing.assert_allclose(exp_avg, (1 - BETA1) * 20 * tiny, rtol=1e-6)
