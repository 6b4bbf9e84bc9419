"""A classifier's loss and gradients in one kernel, and the class that calls it."""

import gc
import weakref

import numpy as np
import pytest
from block_calls import marked
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import assert_equals_twin, assert_same_bits

import fastformer as ff
from fastformer.bench.classifier_cases import classifier_gradients
from fastformer.kernels.activation import GELU, MISH, RELU
from fastformer.kernels.transformer_gradients import (
    transformer_gradients,
    transformer_gradients_reference,
)
from fastformer.training import classifier_plan

KINDS = [
    {"activation": RELU},
    {"activation": GELU, "bias": True, "learned": True, "smoothing": 0.1},
    {"activation": MISH, "learned": True},
]


def check(rng, *sizes, **kind):
    arguments = marked(classifier_gradients(rng, *sizes, **kind))
    assert_equals_twin(transformer_gradients, transformer_gradients_reference, *arguments)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize(
    "sizes",
    [
        ((1, 1, 1, 2), 1, 1, 1, 1, 1),
        ((3, 1, 4, 2, 9), 2, 3, 10, 7, 2),
        ((40, 7, 21, 60, 33), 3, 8, 49, 19, 3),
        ((8,) * 16, 4, 16, 64, 20, 2),
    ],
    ids=str,
)
def test_equals_twin(rng, sizes, shards, kind):
    check(rng, *sizes, shards=shards, **kind)


@settings(max_examples=15)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=4, max_size=9),
    heads=st.integers(1, 3),
    width=st.integers(4, 18),
    ffn=st.integers(1, 40),
    blocks=st.integers(1, 3),
    kind=st.sampled_from(KINDS[1:]),  # no kinks, where rounding decides between two gradients
    shards=st.sampled_from((1, 2, 4)),
    seed=st.integers(0, 2**32),
)
def test_equals_twin_for_any_shape(lengths, heads, width, ffn, blocks, kind, shards, seed):
    rng = np.random.default_rng(seed)
    check(rng, lengths, heads, width, ffn, 11, blocks, shards=shards, **kind)


def test_same_bits_for_any_thread_count(rng):
    given_arguments = classifier_gradients(rng, (8, 3, 20) * 5, 4, 16, 64, 20, 2, shards=4)
    assert_same_bits(transformer_gradients, *marked(given_arguments))


SIZES = {"vocab_size": 11, "embed_dim": 12, "num_heads": 2, "ffn_dim": 20, "max_seq_len": 12}
MODELS = [
    {},
    {"activation": "gelu", "positions": "learned", "pooling": "last", "num_layers": 1},
    {"activation": "mish", "attention_bias": True, "num_layers": 3, "layernorm_epsilon": 1e-3},
    {"dropout": 0.5},  # which nothing is but in training
]
# What goes through the layers, each with a batch that would fit otherwise.
OTHERS = [
    {"norm": "pre"},
    {"pooling": "mean"},
    {"norm_type": "rmsnorm"},
    {"activation": "swiglu"},
    {"positions": "rotary"},
    {"positions": "alibi"},
]


def make(backend="numba", dtype="float64", **options):
    config = ff.TransformerConfig(**SIZES | options)
    return ff.Transformer(config, seed=3, backend=backend, dtype=dtype)


def make_batch(rng, sequences, longest=12):
    lengths = rng.integers(1, longest + 1, sequences)
    batch = ff.pack([rng.integers(0, 11, length).tolist() for length in lengths])
    targets = rng.integers(0, 11, sequences)
    targets[::5] = -1
    return batch, targets


def computed(model, batch, targets, loss_fn):
    """Return loss, logits and gradients, and that they were added to what was there."""
    gradients = model.parameters().gradients
    gradients.fill(0.0)
    loss, logits = ff.accumulate_gradients(model, batch, targets, loss_fn)
    once = gradients.copy()
    ff.accumulate_gradients(model, batch, targets, loss_fn)
    np.testing.assert_allclose(gradients, 2 * once, rtol=1e-12, atol=1e-15)
    return loss, logits, once


@pytest.fixture
def calls(monkeypatch):
    """Count what goes through a plan."""
    made = []
    accumulate = classifier_plan.ClassifierPlan.accumulate

    def counted(self, *arguments):
        made.append(self)
        return accumulate(self, *arguments)

    monkeypatch.setattr(classifier_plan.ClassifierPlan, "accumulate", counted)
    return made


@pytest.mark.parametrize("options", MODELS, ids=str)
@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_plan_gives_what_the_layers_give(rng, calls, monkeypatch, backend, options, smoothing):
    monkeypatch.setattr(classifier_plan, "SHARD_TOKENS", 8)
    loss_fn = ff.CrossEntropyLoss(label_smoothing=smoothing, backend=backend)
    model = make(backend, **options)
    # A batch that grows, and shrinks again, uses what was made for the largest one.
    for sequences in (4, 40, 7):
        batch, targets = make_batch(rng, sequences)
        found = computed(model, batch, targets, loss_fn)
        assert len(calls) == 2
        with monkeypatch.context() as patch:
            patch.setattr(classifier_plan, "FEWEST_SEQUENCES", 10**9)
            expected = computed(model, batch, targets, loss_fn)
        assert len(calls) == 2
        calls.clear()
        assert found[0] == pytest.approx(expected[0], rel=1e-12)
        for one, other in zip(found[1:], expected[1:], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("options", OTHERS, ids=str)
def test_other_models_go_through_their_layers(rng, calls, options):
    model = make("reference", **options)
    ff.accumulate_gradients(model, *make_batch(rng, 6), ff.CrossEntropyLoss(backend="reference"))
    assert not calls


def test_other_batches_and_losses_go_through_the_layers(rng, calls):
    class OwnLoss(ff.CrossEntropyLoss):
        pass

    model, loss_fn = make("reference"), ff.CrossEntropyLoss(backend="reference")
    batch, targets = make_batch(rng, 6)
    few = make_batch(rng, classifier_plan.FEWEST_SEQUENCES - 1)
    ff.accumulate_gradients(model, *few, loss_fn)
    ff.accumulate_gradients(model, batch, targets, OwnLoss(backend="reference"))
    ff.accumulate_gradients(model, batch, targets, ff.CrossEntropyLoss())  # of another backend
    dropping = make("reference", dropout=0.5).train()
    ff.accumulate_gradients(dropping, batch, targets, loss_fn)
    assert not calls
    ff.accumulate_gradients(dropping.eval(), batch, targets, loss_fn)
    ff.accumulate_gradients(model, batch, targets, loss_fn)
    assert len(calls) == 2


def test_large_models_and_batches_go_through_the_layers(rng, calls, monkeypatch):
    loss_fn = ff.CrossEntropyLoss(backend="reference")
    batch, targets = make_batch(rng, 6)
    sizes = {
        "MOST_ELEMENTS": batch.num_tokens * 12,
        "MOST_PARAMETERS": make("reference").parameters().values.size,
    }
    for name, size in sizes.items():
        for less in (0, 1):
            model = make("reference")
            with monkeypatch.context() as patch:
                patch.setattr(classifier_plan, name, size - less)
                ff.accumulate_gradients(model, batch, targets, loss_fn)
            assert len(calls) == 1 - less
            calls.clear()


def test_a_training_forward_is_counted(rng):
    """Dropout's random numbers come from the count, whichever way a batch goes."""
    model, loss_fn = make("reference"), ff.CrossEntropyLoss(backend="reference")
    for sequences in (2, 6, 2, 6):
        ff.accumulate_gradients(model, *make_batch(rng, sequences), loss_fn)
    assert model.dropout_counter.forwards == 0
    model.train()
    for sequences in (2, 6, 2, 6):
        ff.accumulate_gradients(model, *make_batch(rng, sequences), loss_fn)
    assert model.dropout_counter.forwards == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids, targets: ids[2].__setitem__(0, 11), "got 11 at token"),
        (lambda ids, targets: ids[3].extend([1] * 12), "longer than max_seq_len=12"),
        (lambda ids, targets: targets.__setitem__(4, 11), "from 0 to 10, .* got 11 at index 4"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_added(change, message):
    ids, targets = [[1, 2, 3] for _ in range(6)], np.arange(6)
    model = make()
    change(ids, targets)
    with pytest.raises(ValueError, match=message):
        ff.accumulate_gradients(model, ff.pack(ids), targets, ff.CrossEntropyLoss())
    assert not model.parameters().gradients.any()


def test_a_plan_does_not_keep_its_model(rng, calls):
    model = make("reference")
    loss_fn = ff.CrossEntropyLoss(backend="reference")
    ff.accumulate_gradients(model, *make_batch(rng, 6), loss_fn)
    kept, plan = weakref.ref(model), weakref.ref(calls.pop())
    del model
    gc.collect()
    assert kept() is None and plan() is None
