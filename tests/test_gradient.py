"""The gradient's norm and its scaling: twin, precision, extreme values, threads."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import DTYPES, EDGE_COLUMNS, Out, assert_equals_twin, assert_same_bits

from fastformer.kernels.gradient import (
    CHUNK,
    add_gradient,
    add_gradient_reference,
    gradient_norm,
    gradient_norm_reference,
    may_step,
    may_step_reference,
    scale_gradient,
    scale_gradient_reference,
    zero_gradient,
    zero_gradient_reference,
)

SIZES = [0, *EDGE_COLUMNS, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3]


def check(gradients):
    assert_equals_twin(gradient_norm, gradient_norm_reference, gradients)
    start = Out(gradients.shape, gradients)
    assert_equals_twin(scale_gradient, scale_gradient_reference, start, 0.37)
    assert_equals_twin(add_gradient, add_gradient_reference, start, gradients[::-1].copy())
    assert_equals_twin(zero_gradient, zero_gradient_reference, start)
    assert_equals_twin(may_step, may_step_reference, *[gradients] * 4)


@pytest.mark.smoke
@pytest.mark.parametrize("size", SIZES)
def test_equals_twin(rng, size):
    check(rng.standard_normal(size))


@settings(max_examples=30)
@given(size=st.integers(0, 2 * CHUNK), seed=st.integers(0, 2**32))
def test_equals_twin_for_any_size(size, seed):
    check(np.random.default_rng(seed).standard_normal(size))


def test_norm_of_many_equals_twin(rng):
    """A chain of equal squares is rounded in one direction; what the twin sums by pairs is not."""
    size = 512 * CHUNK + 3
    for gradients in (np.full(size, 0.7), rng.standard_normal(size)):
        assert_equals_twin(gradient_norm, gradient_norm_reference, gradients)


def test_no_gradient_has_norm_zero():
    assert gradient_norm(np.empty(0, np.float32)) == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_is_exact_on_small_integers(rng, dtype):
    gradients = rng.integers(-9, 10, 3 * CHUNK + 5)
    expected = math.sqrt(int((gradients**2).sum()))
    assert gradient_norm(gradients.astype(dtype)) == expected


def test_norm_is_summed_in_double_precision():
    """In float32 these squares overflow, and ones are lost when added to 2^24."""
    assert gradient_norm(np.array([3e30, 4e30], np.float32)) == pytest.approx(5e30, rel=1e-7)
    many = np.ones(2**25, np.float32)
    assert gradient_norm(many) == math.sqrt(2**25)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 19, CHUNK + 1])
def test_nan_and_infinity_stay_visible(dtype, size):
    for value in (np.nan, np.inf, -np.inf):
        gradients = np.ones(size, dtype)
        gradients[-1] = value
        norm = gradient_norm(gradients)
        assert np.isnan(norm) if np.isnan(value) else norm == np.inf
        scale_gradient(gradients, 2.0)
        np.testing.assert_array_equal(gradients[-1], value)
        np.testing.assert_array_equal(gradients[:-1], 2)
        zero_gradient(gradients)
        np.testing.assert_array_equal(gradients, 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 19, 2 * CHUNK + 5])
def test_no_step_where_one_value_is_not_finite(rng, dtype, size):
    """In each of the arrays, at any place; of gradients the squares must be finite, too."""
    largest = np.finfo(dtype).max
    for value in (np.nan, np.inf, -np.inf, largest, -largest):
        for place in {0, size // 3, min(size, CHUNK) - 1, CHUNK % size, size - 1}:
            for which in range(4):
                arrays = [rng.uniform(-1, 1, size).astype(dtype) for _ in range(4)]
                assert may_step(*arrays)
                arrays[which][place] = value
                expected = which != 1 and np.isfinite(value)
                assert may_step(*arrays) == may_step_reference(*arrays) == expected


def test_states_that_are_not_there_do_not_hinder():
    none, some = np.empty(0, np.float32), np.ones(5, np.float32)
    for ask in (may_step, may_step_reference):
        assert ask(some, none, none, none)
        assert ask(some, some, some, none)
        assert not ask(some, none, some * np.nan, none)


def test_same_bits_for_any_threads(rng):
    gradients = rng.standard_normal(3 * CHUNK + 5)
    assert gradients.size > 3 * CHUNK
    assert_same_bits(gradient_norm, gradients)
    assert_same_bits(may_step, *[gradients] * 4)
    assert_same_bits(zero_gradient, Out(gradients.shape, gradients))
    assert_same_bits(scale_gradient, Out(gradients.shape, gradients), 0.37)
    assert_same_bits(add_gradient, Out(gradients.shape, gradients), gradients[::-1].copy())
