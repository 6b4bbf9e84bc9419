"""Cross-entropy: twin, gradient, label smoothing, ignored targets, extreme logits, threads."""

import numpy as np
import pytest
from gradients import assert_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import DTYPES, EDGE_COLUMNS, Out, assert_equals_twin, assert_same_bits, called, run

from fastformer.kernels._rows import row_tasks
from fastformer.kernels.cross_entropy import (
    cross_entropy_backward,
    cross_entropy_backward_reference,
    cross_entropy_forward,
    cross_entropy_forward_reference,
)

row_tasks = called(row_tasks)


NO_WEIGHTS = np.empty(0)


def forward(function, logits, targets, dtype=np.float64, smoothing=0.0, weights=NO_WEIGHTS):
    rows = Out(targets.shape)
    given = logits, targets, smoothing, rows, rows, rows, weights
    *written, total_loss = run(function, *given, dtype=dtype)
    np.testing.assert_allclose(total_loss, written[0].sum(dtype=np.float64), rtol=1e-13)
    return written


def check(logits, targets, scale=0.25, smoothing=0.0, weights=NO_WEIGHTS):
    rows = Out(targets.shape)
    losses, *_ = assert_equals_twin(
        cross_entropy_forward,
        cross_entropy_forward_reference,
        *(logits, targets, smoothing, rows, rows, rows, weights),
    )
    _, largest, total = forward(cross_entropy_forward_reference, logits, targets)
    # Where a row has one class, shares that add up to 1 are taken from 1.
    dlogits = Out(logits.shape, scale=scale if smoothing or weights.size else 0.0)
    (dlogits,) = assert_equals_twin(
        cross_entropy_backward,
        cross_entropy_backward_reference,
        *(logits, targets, largest, total, smoothing, scale, dlogits, weights),
    )
    return losses, dlogits


SMOOTHINGS = pytest.mark.parametrize("smoothing", [0.0, 0.1])


def draw(rng, rows, columns):
    return 3 * rng.standard_normal((rows, columns)), rng.integers(-1, columns, rows)


@pytest.mark.smoke
@pytest.mark.parametrize("columns", EDGE_COLUMNS)
@pytest.mark.parametrize("rows", [0, 1, 17])
@SMOOTHINGS
def test_equals_twin(rng, smoothing, rows, columns):
    check(*draw(rng, rows, columns), smoothing=smoothing)


@pytest.mark.parametrize("columns", EDGE_COLUMNS)
@pytest.mark.parametrize("rows", [0, 1, 17])
@SMOOTHINGS
def test_weights_equal_twin(rng, smoothing, rows, columns):
    weights = rng.uniform(0.5, 2, columns)
    check(*draw(rng, rows, columns), smoothing=smoothing, weights=weights)


@SMOOTHINGS
def test_weights_of_one_are_no_weights(rng, smoothing):
    logits, targets = draw(rng, 17, 37)
    for found, expected in zip(
        check(logits, targets, 1.0, smoothing, np.ones(37)),
        check(logits, targets, 1.0, smoothing),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@SMOOTHINGS
def test_weights_are_those_of_the_definition(rng, smoothing):
    """Each class's term of the cross-entropy, with its share of the target, times its weight."""
    logits, targets = draw(rng, 9, 37)
    weights = rng.uniform(0, 3, 37)
    losses, dlogits = check(logits, targets, 1.0, smoothing, weights)
    shares = np.full((9, 37), smoothing / 37)
    shares[np.arange(9), targets] += 1 - smoothing
    shares *= weights * (targets >= 0)[:, None]
    exponentials = np.exp(logits)
    softmax = exponentials / exponentials.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(losses, -(shares * np.log(softmax)).sum(axis=1), rtol=1e-5)
    expected = softmax * shares.sum(axis=1, keepdims=True) - shares
    np.testing.assert_allclose(dlogits, expected, rtol=1e-5, atol=1e-5)


@SMOOTHINGS
@settings(max_examples=20)
@given(rows=st.integers(0, 50), columns=st.integers(1, 400), seed=st.integers(0, 2**32))
def test_equals_twin_for_any_shape(smoothing, rows, columns, seed):
    check(*draw(np.random.default_rng(seed), rows, columns), smoothing=smoothing)


@pytest.mark.parametrize("smoothing", [0.1, 0.5, 1.0])
def test_smoothing_is_that_of_targets_which_are_shares(rng, smoothing):
    """The cross-entropy with a distribution that has its share for each class."""
    logits, targets = draw(rng, 9, 37)
    losses, dlogits = check(logits, targets, 1.0, smoothing)
    shares = np.full((9, 37), smoothing / 37)
    shares[np.arange(9), targets] += 1 - smoothing
    exponentials = np.exp(logits)
    softmax = exponentials / exponentials.sum(axis=1, keepdims=True)
    counts = (targets >= 0)[:, None]
    expected = -(shares * np.log(softmax) * counts).sum(axis=1)
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dlogits, (softmax - shares) * counts, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("columns", [50_257, 151_936])
@SMOOTHINGS
def test_large_vocabularies_equal_twin(rng, smoothing, columns):
    """A chain of equal terms is rounded in one direction: it would be off by 300 roundings."""
    logits, targets = draw(rng, 3, columns)
    logits[0], logits[0, 0], targets[0] = 0, 5, 1
    check(logits, targets, smoothing=smoothing)


def test_long_sums_of_losses_equal_twin():
    logits = np.tile([0.3, 0.1], (300_000, 1))
    rows = Out((len(logits),))
    ones = np.ones(len(logits), np.int64)
    assert_equals_twin(
        cross_entropy_forward,
        cross_entropy_forward_reference,
        *(logits, ones, 0.0, rows, rows, rows),
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_class_that_is_ruled_out_makes_a_smoothed_loss_infinite(rng, dtype):
    """And not NaN, though sums of infinities are corrected for roundings."""
    logits, _ = draw(rng, 2, 400)
    logits[1, [0, 399]] = -np.inf
    targets = np.array([3, 3])
    for function in (cross_entropy_forward, cross_entropy_forward_reference):
        rows = Out((2,))
        given = logits, targets, 0.1, rows, rows, rows
        losses, *_ = run(function, *given, dtype=dtype)
        assert np.isfinite(losses[0]) and losses[1] == np.inf


@pytest.mark.parametrize("weights", [NO_WEIGHTS, np.array([0.5, 2, 0, 1, 3])])
@SMOOTHINGS
def test_gradient(rng, smoothing, weights):
    targets = np.array([2, -1, 0, 4])

    def backward(dout, logits):
        _, largest, total = forward(cross_entropy_forward_reference, logits, targets)
        arguments = (logits, targets, largest, total, smoothing, 1.0, Out(logits.shape), weights)
        (dlogits,) = run(cross_entropy_backward_reference, *arguments, dtype=np.float64)
        return [dlogits * dout[:, None]]

    assert_gradients(
        lambda logits: forward(
            cross_entropy_forward_reference, logits, targets, smoothing=smoothing, weights=weights
        )[0],
        backward,
        rng.standard_normal((4, 5)),
    )


@SMOOTHINGS
def test_ignored_targets_count_nothing(rng, smoothing):
    logits, _ = draw(rng, 5, 37)
    losses, dlogits = check(logits, np.full(5, -1), smoothing=smoothing)
    assert not losses.any()
    assert not dlogits.any()


@pytest.mark.parametrize("dtype", DTYPES)
@SMOOTHINGS
def test_ignored_row_gets_no_gradient_whatever_it_holds(dtype, smoothing):
    """A NaN in a row that does not count must not reach the parameters."""
    logits = np.array([[0.0, np.nan, 1.0], [0.0, 1.0, 2.0]])
    targets = np.array([-1, 1])
    losses, largest, total = forward(cross_entropy_forward, logits, targets, dtype, smoothing)
    arguments = (logits, targets, largest, total, smoothing, 1.0, Out(logits.shape))
    (dlogits,) = run(cross_entropy_backward, *arguments, dtype=dtype)
    assert losses[0] == 0
    np.testing.assert_array_equal(dlogits[0], 0)
    assert np.isfinite(dlogits[1]).all()


def test_extreme_logits():
    inf = np.inf
    logits = np.array(
        [[1e4, -1e4, 0], [1e4, -1e4, 0], [-inf, 2, 2], [-inf, 2, 2], [5, 5, 5], [-1e4, -1e4, -1e4]]
    )
    losses, dlogits = check(logits, np.array([0, 1, 1, 0, 2, 0]), scale=1.0)
    log2, log3 = np.log([2, 3])
    np.testing.assert_allclose(losses, [0, 2e4, log2, inf, log3, log3], rtol=1e-6)
    np.testing.assert_array_equal(dlogits[:2], [[0, 0, 0], [1, -1, 0]])
    np.testing.assert_allclose(dlogits[5], [-2 / 3, 1 / 3, 1 / 3], rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [-1e38, 1e38, -3.4e38])
def test_constant_row_of_huge_logits(dtype, value):
    logits = np.full((1, 5), value)
    losses, *_ = forward(cross_entropy_forward, logits, np.array([3]), dtype)
    np.testing.assert_allclose(losses, np.log(5), rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("column", [0, 15, 16, 36])
@SMOOTHINGS
def test_nan_stays_visible(rng, dtype, column, smoothing):
    logits, _ = draw(rng, 3, 37)
    targets = np.array([1, 2, 3])
    logits[1, column] = np.nan
    losses, largest, total = forward(cross_entropy_forward, logits, targets, dtype, smoothing)
    arguments = (logits, targets, largest, total, smoothing, 1.0, Out(logits.shape))
    (dlogits,) = run(cross_entropy_backward, *arguments, dtype=dtype)
    np.testing.assert_array_equal(np.isnan(losses), [False, True, False])
    np.testing.assert_array_equal(np.isnan(dlogits).all(axis=1), [False, True, False])
    assert np.isfinite(dlogits[[0, 2]]).all()


@SMOOTHINGS
def test_same_bits_for_any_threads(rng, smoothing):
    logits, targets = draw(rng, 300, 67)
    rows = Out(targets.shape)
    assert row_tasks(*logits.shape) > 3
    _, largest, total = forward(cross_entropy_forward_reference, logits, targets)
    for weights in (NO_WEIGHTS, rng.uniform(0.5, 2, 67)):
        given = logits, targets, smoothing, rows, rows, rows, weights
        assert_same_bits(cross_entropy_forward, *given)
        saved = largest, total, smoothing, 0.25
        given = logits, targets, *saved, Out(logits.shape), weights
        assert_same_bits(cross_entropy_backward, *given)
