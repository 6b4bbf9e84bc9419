"""The helpers for people who write their own loop."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from runs import SIZES, one_thread

import fastformer as ff
from fastformer.data import DigitTask, generate
from fastformer.errors import InvalidValueError
from fastformer.training import steps
from fastformer.training.steps import count_right, predict_classes

__all__ = ["one_thread"]  # a fixture that every test here uses

CONFIG = ff.TransformerConfig(vocab_size=20, **SIZES)
DROPPING = ff.TransformerConfig(vocab_size=20, dropout=0.5, **SIZES)


def examples(count: int = 10) -> tuple[ff.PackedBatch, np.ndarray]:
    drawn = generate(DigitTask(examples=count, distinct=True), seed=5)
    return ff.pack(drawn.inputs), drawn.targets


@pytest.mark.smoke
def test_a_few_steps_learn_ten_examples_by_heart() -> None:
    model = ff.Transformer(CONFIG, seed=0)
    loss_fn, optimizer = ff.CrossEntropyLoss(), ff.Adam(model.parameters(), lr=0.01)
    batch, targets = examples()
    first = ff.train_step(model, batch, targets, loss_fn, optimizer)
    for _ in range(150):
        last = ff.train_step(model, batch, targets, loss_fn, optimizer)
    assert last.accuracy == 1.0
    assert last.loss < 0.05 < first.loss
    assert ff.evaluate(model, batch, targets, loss_fn).accuracy == 1.0
    assert optimizer.steps == 151


def test_a_step_is_forward_loss_backward_and_update() -> None:
    batch, targets = examples()
    models = [ff.Transformer(CONFIG, seed=0, dtype="float64") for _ in range(2)]
    optimizers = [ff.SGD(model.parameters(), lr=0.1) for model in models]
    loss_fn = ff.CrossEntropyLoss()
    for _ in range(3):
        models[0].parameters().gradients.fill(7.0)  # what was there must not count
        scores = ff.train_step(models[0], batch, targets, loss_fn, optimizers[0])
        models[1].zero_grad()
        logits = models[1].forward(batch)
        loss = loss_fn.forward(logits, targets)
        models[1].backward(loss_fn.backward())
        optimizers[1].step()
        assert scores == (loss, float((logits.argmax(axis=1) == targets).mean()))
        parts = [model.parameters().values.tobytes() for model in models]
        assert parts[0] == parts[1]


def test_evaluation_is_the_same_for_any_batch_size_and_changes_nothing() -> None:
    batch, targets = examples(50)
    model = ff.Transformer(CONFIG, seed=0, dtype="float64")
    loss_fn = ff.CrossEntropyLoss()
    before = model.parameters().values.tobytes(), model.parameters().gradients.tobytes()
    logits = model.forward(batch)
    expected = (loss_fn.forward(logits, targets), count_right(batch, logits, targets).accuracy)
    for batch_size in (1, 7, 50, 256):
        scores = ff.evaluate(model, batch, targets, loss_fn, batch_size=batch_size)
        assert scores.accuracy == expected[1]
        assert scores.loss == pytest.approx(expected[0], rel=1e-12)
    after = model.parameters().values.tobytes(), model.parameters().gradients.tobytes()
    assert after == before


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_logits_that_are_too_many_are_evaluated_in_parts(monkeypatch: Any, reduction: str) -> None:
    batch, _ = examples(50)
    model = ff.TransformerDecoder(ff.DecoderConfig(vocab_size=20, **SIZES), dtype="float64")
    targets = np.arange(batch.num_tokens) % 20
    targets[: batch.offsets[9]] = -1  # nothing is asked of the first part
    weight = np.arange(1.0, 21)
    for loss_fn in (ff.CrossEntropyLoss(reduction=reduction), ff.CrossEntropyLoss(weight=weight)):
        for whole in (False, True):
            expected = ff.evaluate(model, batch, targets, loss_fn, whole_answers=whole)
            with monkeypatch.context() as patch:
                patch.setattr(steps, "MOST_LOGITS", 7 * 20 * batch.longest)
                found = ff.evaluate(model, batch, targets, loss_fn, whole_answers=whole)
            assert found.accuracy == expected.accuracy
            assert found.loss == pytest.approx(expected.loss, rel=1e-12)


def test_evaluation_is_without_dropout_and_leaves_the_switch_as_it_was() -> None:
    batch, targets = examples()
    model, plain = ff.Transformer(DROPPING, seed=0), ff.Transformer(CONFIG, seed=0)
    expected = predict_classes(plain, batch)
    for training in (False, True):
        model.dropout_counter.training = training
        forwards = model.dropout_counter.forwards
        np.testing.assert_array_equal(predict_classes(model, batch), expected)
        assert model.dropout_counter.training is training
        assert model.dropout_counter.forwards == forwards
    model.train()
    assert (model.forward(batch) != expected).any()


def test_an_evaluation_that_fails_leaves_the_switch_as_it_was() -> None:
    model = ff.Transformer(DROPPING, seed=0).train()
    with pytest.raises(InvalidValueError):
        ff.evaluate(model, ff.pack([[20]]), np.array([0]), ff.CrossEntropyLoss())
    assert model.dropout_counter.training


def test_count_right_counts_rows_whose_largest_logit_is_the_target() -> None:
    logits, batch = np.array([[0.0, 1.0], [3.0, 1.0], [0.0, -1.0]]), ff.pack([[1], [2], [3]])
    assert count_right(batch, logits, np.array([1, 1, 0])) == (2, 3)
    assert count_right(batch, logits, np.array([-1, 1, 0])) == (1, 2)
    assert count_right(batch, logits, np.array([-1, -7, -1])) == (0, 0)


@pytest.mark.parametrize(
    ("targets", "tokens", "answers"),
    [
        ([1, 0, 0, 1, 1], (4, 5), (1, 2)),
        ([1, -1, -1, 1, 0], (3, 3), (2, 2)),
        ([-1, -1, 0, -1, -1], (1, 1), (1, 1)),  # of the first, nothing is asked
        ([1, 1, -1, -1, -1], (1, 2), (0, 1)),
        ([-1] * 5, (0, 0), (0, 0)),
    ],
)
def test_what_is_not_asked_counts_neither_as_right_nor_as_wrong(
    targets: list[int], tokens: tuple[int, int], answers: tuple[int, int]
) -> None:
    logits = np.eye(2)[[1, 0, 0, 1, 0]]
    batch = ff.pack([[1, 1], [1, 1, 1]])
    for whole, expected in ((False, tokens), (True, answers)):
        found = count_right(batch, logits, np.array(targets), whole)
        assert found == expected
        share = expected[0] / expected[1] if expected[1] else math.nan
        assert found.accuracy == pytest.approx(share, nan_ok=True)


@pytest.mark.parametrize("per_token", [False, True])
def test_steps_and_evaluations_give_the_accuracy_of_what_is_asked(per_token: bool) -> None:
    model, batch, targets = (_decoder if per_token else _classifier)("reference")
    right = model.forward(batch).argmax(axis=1)
    loss_fn = ff.CrossEntropyLoss(backend="reference")
    targets = np.full_like(targets, -1)

    def scores() -> list[float]:
        optimizer = ff.SGD(model.parameters(), lr=1e-9)
        step = ff.train_step(model, batch, targets, loss_fn, optimizer)
        return [step.accuracy, ff.evaluate(model, batch, targets, loss_fn, 3).accuracy]

    assert np.isnan(scores()).all()
    targets[0] = (right[0] + 1) % 20
    assert scores() == [0, 0]
    targets[1:4] = right[1:4]  # a decoder's are of one sequence, which as a whole is wrong
    assert scores() == [0.75, 0.75]
    whole = ff.evaluate(model, batch, targets, loss_fn, whole_answers=True).accuracy
    assert whole == (0 if per_token else 0.75)


WEIGHT = np.linspace(0.5, 2, 20)


@pytest.mark.parametrize(
    "options", [{}, {"weight": WEIGHT}, {"reduction": "sum"}], ids=["mean", "weight", "sum"]
)
@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("per_token", [False, True])
def test_batches_of_a_count_add_up_to_one_large_batch(
    per_token: bool, backend: str, options: dict[str, Any]
) -> None:
    """Whatever they hold: unlike numbers of sequences, unlike lengths, targets that are ignored."""
    model, _, _ = (_decoder if per_token else _classifier)(backend)
    loss_fn = ff.CrossEntropyLoss(label_smoothing=0.1, backend=backend, **options)
    rng = np.random.default_rng(3)
    ids = [rng.integers(0, 20, length).tolist() for length in (3, 8, 1, 7, 2, 8, 5, 4)]
    batch, bounds = ff.pack(ids), [0, 4, 5, 8]  # the kernel of four sequences, and layers
    rows = batch.offsets if per_token else np.arange(9)
    targets = rng.integers(0, 20, rows[-1])
    targets[rows[1] : rows[2]] = targets[rows[4] : rows[5]] = -1
    model.zero_grad()
    loss, _ = ff.accumulate_gradients(model, batch, targets, loss_fn)
    expected, found = model.parameters().gradients.copy(), 0.0
    model.zero_grad()
    for first, last in itertools.pairwise(bounds):
        part, asked = ff.pack(ids[first:last]), targets[rows[first] : rows[last]]
        count = WEIGHT[targets[targets >= 0]].sum() if "weight" in options else (targets >= 0).sum()
        found += ff.accumulate_gradients(model, part, asked, loss_fn, count)[0]
    assert found == pytest.approx(loss, rel=1e-12)
    np.testing.assert_allclose(model.parameters().gradients, expected, rtol=1e-9, atol=1e-12)
    if "weight" in options:
        own = WEIGHT[targets[: rows[4]][targets[: rows[4]] >= 0]].sum()
        message = f"count must be a finite number >= {own:g}, got"
    else:
        own = int((targets[: rows[4]] >= 0).sum())
        message = f"count must be an integer >= {own}, got {own - 1}"
    with pytest.raises(InvalidValueError, match=message):
        part, asked = ff.pack(ids[:4]), targets[: rows[4]]
        ff.accumulate_gradients(model, part, asked, loss_fn, own - 1)


def test_an_evaluation_in_parts_has_the_loss_of_all_that_is_asked() -> None:
    model, batch, targets = _decoder("reference")
    targets[:20] = -1
    loss_fn = ff.CrossEntropyLoss(backend="reference")
    whole = loss_fn.forward(model.forward(batch), targets)
    for batch_size in (1, 2, 7):
        assert ff.evaluate(model, batch, targets, loss_fn, batch_size).loss == pytest.approx(whole)


def _classifier(backend: str) -> tuple[ff.Transformer, ff.PackedBatch, np.ndarray]:
    batch, targets = examples(7)
    return ff.Transformer(CONFIG, seed=0, dtype="float64", backend=backend), batch, targets


def _decoder(backend: str) -> tuple[ff.TransformerDecoder, ff.PackedBatch, np.ndarray]:
    config = ff.DecoderConfig(vocab_size=20, max_seq_len=8, **SIZES)
    batch = examples(7)[0]
    targets = np.where(np.arange(batch.num_tokens) % 3 > 0, np.roll(batch.tokens, -1), -1)
    return ff.TransformerDecoder(config, seed=0, dtype="float64", backend=backend), batch, targets


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("made", [_classifier, _decoder])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_step_of_weights_and_sums_is_that_of_the_loss_by_itself(
    smoothing: float, reduction: str, made: Callable[[str], Any], backend: str
) -> None:
    model, batch, targets = made(backend)
    options = {"label_smoothing": smoothing, "reduction": reduction, "backend": backend}
    loss_fn = ff.CrossEntropyLoss(weight=WEIGHT, **options)
    logits = model.forward(batch)
    loss = loss_fn.forward(logits, targets)
    model.zero_grad()
    model.backward(loss_fn.backward())
    expected = model.parameters().gradients.copy()
    model.zero_grad()
    found, found_logits = ff.accumulate_gradients(model, batch, targets, loss_fn)
    assert found == pytest.approx(loss, rel=1e-12)
    np.testing.assert_array_equal(found_logits, logits)
    np.testing.assert_allclose(model.parameters().gradients, expected, rtol=1e-9, atol=1e-12)
    # A program without weights, and then that with others, by the same model.
    for weight in (None, WEIGHT[::-1]):
        other = ff.CrossEntropyLoss(weight=weight, **options)
        found, _ = ff.accumulate_gradients(model, batch, targets, other)
        assert found == pytest.approx(other.forward(logits, targets), rel=1e-12)
        assert abs(found - loss) > 1e-3


def test_weights_of_other_classes_add_nothing() -> None:
    model, batch, targets = _decoder("numba")
    model.zero_grad()
    with pytest.raises(InvalidValueError, match=r"weight must be \(20,\), .* got \(3,\)"):
        ff.accumulate_gradients(model, batch, targets, ff.CrossEntropyLoss(weight=[1, 2, 3]))
    assert not model.parameters().gradients.any()


def test_padded_targets_train_as_those_of_each_token_do() -> None:
    model, _, _ = _decoder("numba")
    tokens = np.array([[3, 1, 4, 0, 0], [1, 5, 0, 0, 0], [9, 2, 6, 5, 3]])
    targets = np.array([[1, 4, -1, 7, 7], [5, -1, 7, 7, 7], [2, 6, 5, 3, -1]])
    lengths = [3, 2, 5]
    packed = ff.pack_targets(targets, lengths)
    np.testing.assert_array_equal(packed, [1, 4, -1, 5, -1, 2, 6, 5, 3, -1])
    found = ff.evaluate(model, ff.pack(tokens, lengths), packed, ff.CrossEntropyLoss())
    rows = [row[:n].tolist() for row, n in zip(tokens, lengths, strict=True)]
    listed = np.concatenate([row[:n] for row, n in zip(targets, lengths, strict=True)])
    assert found == ff.evaluate(model, ff.pack(rows), listed, ff.CrossEntropyLoss())


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("made", [_classifier, _decoder])
@pytest.mark.parametrize(
    "options", [{}, {"weight": WEIGHT}, {"reduction": "sum"}], ids=["mean", "weight", "sum"]
)
def test_a_batch_in_parts_has_the_loss_and_gradient_of_the_whole(
    options: dict[str, Any],
    made: Callable[[str], Any],
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loss_fn = ff.CrossEntropyLoss(label_smoothing=0.1, backend=backend, **options)
    model, batch, targets = made(backend)
    model.zero_grad()
    loss, logits = ff.accumulate_gradients(model, batch, targets, loss_fn)
    gradients = model.parameters().gradients.copy()
    for parts in (2, 3, 7):
        monkeypatch.setattr(steps, "_part_count", lambda *_, parts=parts: parts)
        model.parameters().gradients.fill(1.0)  # what was there is added to
        found, found_logits = ff.accumulate_gradients(model, batch, targets, loss_fn)
        assert found == pytest.approx(loss, rel=1e-12)
        np.testing.assert_allclose(found_logits, logits, rtol=0, atol=1e-12)
        np.testing.assert_allclose(
            model.parameters().gradients - 1.0, gradients, rtol=1e-9, atol=1e-12
        )


def test_targets_that_are_all_ignored_give_no_gradient_in_parts_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(steps, "_part_count", lambda *_: 3)
    model, batch, targets = _decoder("numba")
    model.zero_grad()
    loss, _ = ff.accumulate_gradients(
        model, batch, np.full_like(targets, -1), ff.CrossEntropyLoss()
    )
    assert (loss, float(np.abs(model.parameters().gradients).max())) == (0.0, 0.0)


def test_what_is_wrong_in_the_last_part_is_named_by_its_place_in_the_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(steps, "_part_count", lambda *_: 3)
    model, batch, targets = _decoder("numba")
    model.zero_grad()
    wrong, last = targets.copy(), batch.num_tokens - 1
    wrong[last] = 20
    with pytest.raises(InvalidValueError, match=f"got 20 at index {last}$"):
        ff.accumulate_gradients(model, batch, wrong, ff.CrossEntropyLoss())
    tokens = batch.tokens.copy()
    tokens[last] = 20
    with pytest.raises(InvalidValueError, match=f"got 20 at token {last} of the batch"):
        ff.accumulate_gradients(
            model, ff.PackedBatch(tokens, batch.offsets), targets, ff.CrossEntropyLoss()
        )
    assert not model.parameters().gradients.any()


def test_a_sequence_too_long_for_relative_positions_adds_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(steps, "_part_count", lambda *_: 2)
    config = ff.DecoderConfig(vocab_size=20, max_seq_len=8, positions="rotary", **SIZES)
    model = ff.TransformerDecoder(config)
    batch = ff.pack([[1, 2, 3], [4] * 9])
    with pytest.raises(InvalidValueError, match="max_seq_len"):
        ff.accumulate_gradients(model, batch, batch.tokens, ff.CrossEntropyLoss())
    assert not model.parameters().gradients.any()


def test_only_batches_that_keep_much_are_cut() -> None:
    digits = ff.Transformer(ff.TransformerConfig(vocab_size=20), backend="reference")
    assert steps._part_count(digits, ff.pack([[1] * 20] * 256)) == 1
    # 2 blocks of 9 * 64 + 2 * 256 elements for each of 20 tokens: 2^25 are kept of 771 sequences.
    assert steps._part_count(digits, ff.pack([[1] * 20] * 771)) == 1
    assert steps._part_count(digits, ff.pack([[1] * 20] * 772)) == 2
    assert steps._part_count(digits, ff.pack([[1] * 50] * 900)) == 3


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_bad_batch_size_is_refused(batch_size: int) -> None:
    batch, targets = examples()
    model = ff.Transformer(CONFIG)
    with pytest.raises(InvalidValueError, match=f"^batch_size .* >= 1, got {batch_size}$"):
        ff.evaluate(model, batch, targets, ff.CrossEntropyLoss(), batch_size=batch_size)


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        (np.array([0, 20]), ValueError, "from 0 to 19, .* got 20 at index 1"),
        (np.array([0]), ValueError, r"must be \(2,\), one for each row"),
        (np.array([0.0, 1.0]), TypeError, "integer array"),
    ],
)
def test_bad_targets_change_no_weight(
    targets: np.ndarray, error: type[Exception], message: str
) -> None:
    model = ff.Transformer(CONFIG)
    optimizer = ff.Adam(model.parameters())
    before = model.parameters().values.tobytes()
    batch = ff.pack([[15, 17], [12, 18, 1]])
    with pytest.raises(error, match=message):
        ff.train_step(model, batch, targets, ff.CrossEntropyLoss(), optimizer)
    assert (model.parameters().values.tobytes(), optimizer.steps) == (before, 0)


def test_a_classifier_with_classes_of_its_own_is_evaluated_on_them() -> None:
    sizes = {"embed_dim": 8, "num_heads": 2, "num_layers": 1, "ffn_dim": 8}
    config = ff.TransformerConfig(vocab_size=3, num_classes=5, **sizes)
    model, batch = ff.Transformer(config), ff.pack([[1, 2], [0]])
    logits = model.forward(batch)
    found = ff.evaluate(model, batch, [4, 3], ff.CrossEntropyLoss())
    assert found.loss == pytest.approx(ff.CrossEntropyLoss().forward(logits, [4, 3]), rel=1e-5)
    with pytest.raises(ValueError, match="5"):
        ff.evaluate(model, batch, [5, 0], ff.CrossEntropyLoss())
