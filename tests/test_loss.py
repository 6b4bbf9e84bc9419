"""Cross-entropy: its value, its gradient, ignored targets, and what it refuses."""

from typing import Any

import numpy as np
import pytest
from gradients import assert_gradients
from hypothesis import given
from hypothesis import strategies as st

import fastformer as ff
from fastformer.errors import InvalidTypeError, InvalidValueError

BACKENDS = ("numba", "reference")
RTOL = {"float32": 2e-6, "float64": 1e-12}


def formula(
    logits: np.ndarray,
    targets: np.ndarray,
    ignored: int,
    smoothing: float = 0.0,
    weight: list[float] | None = None,
    reduction: str = "mean",
) -> tuple[float, np.ndarray]:
    """Return loss and gradient in float64, straight from the definition."""
    logits = logits.astype(np.float64)
    weights = np.ones(logits.shape[1]) if weight is None else np.array(weight)
    counted = np.flatnonzero(targets != ignored)
    divisor = weights[targets[counted]].sum() if reduction == "mean" else 1.0
    gradient = np.zeros_like(logits)
    loss = 0.0
    for row in counted:
        exponentials = np.exp(logits[row] - logits[row].max())
        probabilities = exponentials / exponentials.sum()
        shares = np.full(probabilities.shape, smoothing / probabilities.size)
        shares[targets[row]] += 1 - smoothing
        shares *= weights
        logarithms = logits[row] - logits[row].max() - np.log(exponentials.sum())
        loss -= shares @ logarithms / divisor
        gradient[row] = (probabilities * shares.sum() - shares) / divisor
    return loss, gradient


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend", BACKENDS)
@given(
    rows=st.integers(1, 40),
    classes=st.integers(1, 33),
    ignored=st.sampled_from([-1, -100]),
    share=st.sampled_from([0.0, 0.3]),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    weighted=st.booleans(),
    reduction=st.sampled_from(["mean", "sum"]),
    seed=st.integers(0, 1000),
)
def test_loss_and_gradient_are_those_of_the_formula(
    backend: str,
    dtype: str,
    rows: int,
    classes: int,
    ignored: int,
    share: float,
    smoothing: float,
    weighted: bool,
    reduction: str,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    logits = (5 * rng.standard_normal((rows, classes))).astype(dtype)
    targets = np.where(rng.random(rows) < share, ignored, rng.integers(0, classes, rows))
    before = logits.copy(), targets.copy()
    weight = rng.uniform(0.5, 2, classes).tolist() if weighted else None
    loss_fn = ff.CrossEntropyLoss(
        weight=weight,
        ignore_index=ignored,
        label_smoothing=smoothing,
        reduction=reduction,
        backend=backend,
    )
    loss, gradient = formula(logits, targets, ignored, smoothing, weight, reduction)
    largest = 30 * rows if reduction == "sum" else 1.0
    assert loss_fn.forward(logits, targets) == pytest.approx(
        loss, rel=RTOL[dtype], abs=1e-6 * largest
    )
    assert loss_fn.count == np.count_nonzero(targets != ignored)
    found = loss_fn.backward()
    assert found.dtype == dtype
    scale = 10 if weighted or reduction == "sum" else 1
    np.testing.assert_allclose(found, gradient, rtol=10 * RTOL[dtype], atol=scale * RTOL[dtype])
    assert not found[targets == ignored].any()
    np.testing.assert_array_equal(logits, before[0])
    np.testing.assert_array_equal(targets, before[1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("targets", [[2, 0, 1, 2], [2, -1, 1, -1]])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight": [0.5, 2, 1]},
        {"weight": [0, 2, 1], "label_smoothing": 0.2},
        {"weight": [0.5, 2, 1], "label_smoothing": 0.2, "reduction": "sum"},
    ],
)
def test_gradient_is_that_of_central_differences(
    backend: str, targets: list[int], options: dict[str, Any], rng: np.random.Generator
) -> None:
    loss_fn, ids = ff.CrossEntropyLoss(backend=backend, **options), np.array(targets)

    def backward(dout: np.ndarray, logits: np.ndarray) -> list[np.ndarray]:
        loss_fn.forward(logits, ids)
        return [dout[0] * loss_fn.backward()]

    assert_gradients(
        lambda logits: np.array([loss_fn.forward(logits, ids)]),
        backward,
        rng.standard_normal((4, 3)),
    )


@pytest.mark.smoke
@pytest.mark.parametrize("backend", BACKENDS)
def test_all_ignored_is_zero_and_not_nan(backend: str) -> None:
    loss_fn = ff.CrossEntropyLoss(backend=backend)
    loss = loss_fn.forward(np.full((3, 5), 1e4, np.float32), np.array([-1, -1, -1]))
    assert loss == 0.0
    np.testing.assert_array_equal(loss_fn.backward(), np.zeros((3, 5), np.float32))


@pytest.mark.parametrize("backend", BACKENDS)
def test_targets_that_all_count_nothing_give_zero_and_not_nan(backend: str) -> None:
    loss_fn = ff.CrossEntropyLoss(weight=[0, 1], backend=backend)
    assert loss_fn.forward(np.zeros((2, 2)), [0, 0]) == 0.0
    np.testing.assert_array_equal(loss_fn.backward(), np.zeros((2, 2)))


def test_weights_are_copied_and_fixed() -> None:
    weight = np.array([1, 2, 3])
    loss_fn = ff.CrossEntropyLoss(weight=weight)
    weight[0] = 100
    assert loss_fn.weight is not None
    np.testing.assert_array_equal(loss_fn.weight, [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="read-only"):
        loss_fn.weight[0] = 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_uniform_logits_give_the_logarithm_of_the_number_of_classes(backend: str) -> None:
    loss_fn = ff.CrossEntropyLoss(backend=backend)
    loss = loss_fn.forward(np.full((2, 20), 7.0), np.array([3, 19]))
    assert loss == pytest.approx(np.log(20), rel=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_huge_logits_stay_finite_and_nan_stays_visible(backend: str) -> None:
    loss_fn = ff.CrossEntropyLoss(backend=backend)
    huge = np.array([[1e4, -1e4], [-1e4, 1e4]], np.float32)
    assert loss_fn.forward(huge, np.array([0, 0])) == pytest.approx(1e4)
    np.testing.assert_allclose(loss_fn.backward(), [[0, 0], [-0.5, 0.5]])
    damaged = np.array([[np.nan, 1.0], [0.0, 1.0]], np.float32)
    assert np.isnan(loss_fn.forward(damaged, np.array([1, 1])))
    assert np.isnan(loss_fn.backward()[0]).all()


def test_targets_changed_after_forward_never_reach_backward() -> None:
    # Backward writes at [row, target] without a check.
    loss_fn, targets = ff.CrossEntropyLoss(), np.array([0, 1])
    logits = np.array([[1.0, 2.0], [3.0, 1.0]])
    loss_fn.forward(logits, targets)
    expected = loss_fn.backward()
    loss_fn.forward(logits, targets)
    targets[:] = 10**6
    np.testing.assert_array_equal(loss_fn.backward(), expected)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint64"])
def test_targets_of_any_integers(dtype: str) -> None:
    logits = np.array([[1.0, 2.0], [3.0, 1.0], [0.0, 0.5]])
    targets = np.array([0, 9, 1, 9, 1], dtype)[::2]  # and not contiguous
    targets.flags.writeable = False
    loss_fn = ff.CrossEntropyLoss()
    expected, _ = formula(logits, np.array([0, 1, 1]), -1)
    assert loss_fn.forward(logits, targets) == pytest.approx(expected, rel=1e-12)


LOGITS = np.zeros((3, 4), np.float32)
TARGETS = np.array([0, 1, 2])


@pytest.mark.parametrize(
    ("logits", "targets", "error", "message"),
    [
        (LOGITS.tolist(), TARGETS, InvalidTypeError, r"logits must be an array .* got list"),
        (LOGITS.astype(int), TARGETS, InvalidTypeError, "float32 or float64, got int64"),
        (LOGITS.astype(np.float16), TARGETS, InvalidTypeError, "float64, got float16"),
        (LOGITS[0], TARGETS, InvalidValueError, r"\(N, V\), N and V >= 1, got \(4,\)"),
        (LOGITS[:0], TARGETS[:0], InvalidValueError, r"N and V >= 1, got \(0, 4\)"),
        (np.asfortranarray(LOGITS), TARGETS, InvalidValueError, "must be a C-contiguous"),
        (LOGITS, [0, 1, None], InvalidTypeError, r"targets must be an integer .* got \[0, 1, None"),
        (LOGITS, TARGETS.astype(float), InvalidTypeError, "integer array .* got float64"),
        (LOGITS, TARGETS == 1, InvalidTypeError, "integer array .* got bool"),
        (LOGITS, TARGETS[:2], InvalidValueError, r"\(3,\), one for each row .* got \(2,\)"),
        (LOGITS, TARGETS[:, None], InvalidValueError, r"one for each row .* got \(3, 1\)"),
        (LOGITS, np.array([0, 4, 9]), InvalidValueError, "from 0 to 3, .* got 4 at index 1"),
        (LOGITS, np.array([0, 1, -2]), InvalidValueError, "or -1 to be .* got -2 at index 2"),
    ],
)
def test_bad_arguments_are_refused(
    logits: Any, targets: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^CrossEntropyLoss: .*{message}"):
        ff.CrossEntropyLoss().forward(logits, targets)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ignore_index": 0}, InvalidValueError, r"^ignore_index must be .* to -1, got 0$"),
        ({"ignore_index": "no"}, InvalidTypeError, r"^ignore_index must be .* to -1, got 'no'$"),
        ({"ignore_index": -(2**63) - 1}, InvalidValueError, "^ignore_index must be"),
        ({"label_smoothing": -0.1}, InvalidValueError, "^label_smoothing must be .* got -0.1$"),
        ({"label_smoothing": 1.5}, InvalidValueError, "^label_smoothing must be .* <= 1, got 1.5$"),
        ({"label_smoothing": np.nan}, InvalidValueError, "^label_smoothing must be .* got nan$"),
        ({"label_smoothing": "0.1"}, InvalidTypeError, "^label_smoothing must be .* got '0.1'$"),
        ({"weight": [1, -0.5]}, InvalidValueError, "^weight must be .* got -0.5 for class 1$"),
        ({"weight": [np.nan]}, InvalidValueError, "^weight must be finite .* got nan for class 0$"),
        ({"weight": [1e39]}, InvalidValueError, "^weight must be finite .* got 1e.39 for class 0$"),
        ({"weight": [[1.0]]}, InvalidValueError, r"^weight must be \(V,\), .* got \(1, 1\)$"),
        ({"weight": []}, InvalidValueError, r"^weight must be \(V,\), .* got \(0,\)$"),
        ({"weight": [1, [2]]}, InvalidTypeError, r"^weight must be .* got \[1, \[2\]\]$"),
        ({"weight": "1"}, InvalidTypeError, "^weight must be a list or array .* got '1'$"),
        ({"weight": [True]}, InvalidTypeError, r"^weight must be .* of numbers, got \[True\]$"),
        ({"reduction": "max"}, InvalidValueError, "^reduction must be one of 'mean', 'sum'"),
        ({"backend": "torch"}, InvalidValueError, "^backend must be one of 'numba', 'reference'"),
    ],
)
def test_bad_options_are_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ff.CrossEntropyLoss(**options)


def test_weights_of_another_number_of_classes_are_refused() -> None:
    loss_fn = ff.CrossEntropyLoss(weight=[1, 2, 3])
    message = r"^CrossEntropyLoss: weight must be \(4,\), one for each class .* got \(3,\)$"
    with pytest.raises(InvalidValueError, match=message):
        loss_fn.forward(LOGITS, TARGETS)


@pytest.mark.needs("torch")
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_against_torch(
    rng: np.random.Generator, smoothing: float, weighted: bool, reduction: str
) -> None:
    import torch

    logits = rng.standard_normal((9, 7))
    targets = np.array([0, 6, -1, 3, 3, -1, 2, 1, 5])
    theirs = torch.tensor(logits, requires_grad=True)
    weight = rng.uniform(0, 3, 7) if weighted else None
    options = {"label_smoothing": smoothing, "reduction": reduction}
    criterion = torch.nn.CrossEntropyLoss(
        ignore_index=-1, weight=None if weight is None else torch.tensor(weight), **options
    )
    loss = criterion(theirs, torch.tensor(targets))
    loss.backward()
    loss_fn = ff.CrossEntropyLoss(weight=weight, **options)
    assert loss_fn.forward(logits, targets) == pytest.approx(loss.item(), rel=1e-12)
    np.testing.assert_allclose(loss_fn.backward(), theirs.grad.numpy(), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_losses_of_each_target_and_their_gradient(rng: np.random.Generator, backend: str) -> None:
    logits, targets = rng.standard_normal((5, 4)), [0, -1, 3, 2, 2]
    each = ff.CrossEntropyLoss(reduction="none", backend=backend)
    whole = ff.CrossEntropyLoss(reduction="sum", backend=backend)
    losses = each.forward(logits, targets)
    assert losses.shape == (5,) and losses[1] == 0
    np.testing.assert_allclose(losses.sum(), whole.forward(logits, targets), rtol=1e-12)
    np.testing.assert_array_equal(each.backward(), whole.backward())
    shares = rng.uniform(0, 2, 5)
    expected = whole.backward() * shares[:, None]
    np.testing.assert_allclose(each.backward(shares), expected, rtol=1e-12, atol=1e-15)
    for share, complaint in (
        (shares[:4], r"share must be \(5,\) numbers, got \(4,\)"),
        ([np.nan] * 5, "share must be finite"),
        (["a"] * 5, r"share must be \(5,\) numbers"),
    ):
        with pytest.raises((TypeError, ValueError), match=complaint):
            each.backward(share)
    model = ff.Transformer(ff.TransformerConfig(vocab_size=4, embed_dim=4, num_heads=1, ffn_dim=4))
    for use in (ff.accumulate_gradients, ff.evaluate):
        with pytest.raises(ValueError, match="no one value to train on"):
            use(model, ff.pack([[1, 2]]), [1], each)
