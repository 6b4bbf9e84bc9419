"""Kernels that are called later: the same results, and no kernel before Python is done."""

import numpy as np
import pytest
from models import BACKENDS, make_batch, make_model, same_bits

import fastformer as ff
from fastformer.errors import InvalidValueError
from fastformer.layers.calls import call, make

BATCHES = [make_batch(lengths) for lengths in ((3, 1, 4, 2), (5, 6), (3, 1, 4, 2))]
KINDS = [
    ("encoder", {"pooling": "mean"}),
    ("encoder", {"norm": "pre"}),
    ("encoder", {"pooling": "mean", "dropout": 0.5}),
    ("decoder", {}),
    ("decoder", {"tied_embeddings": False, "dropout": 0.5}),
    ("decoder", {"norm": "post", "positions": "alibi"}),
    ("decoder", {"norm_type": "rmsnorm", "activation": "swiglu", "positions": "rotary"}),
]


def targets_of(model, batch):
    rows = batch.num_tokens if isinstance(model, ff.TransformerDecoder) else batch.num_sequences
    return np.arange(rows) % model.config.vocab_size - 1


def test_calls_are_made_at_once_or_later_and_in_order():
    made, calls = [], []
    call(None, made.append, 1)
    call(calls, made.append, 3)
    call(calls, made.append, 4)
    call(None, made.append, 2)
    result = np.zeros(1)
    assert make(calls, result) is result
    assert made == [1, 2, 3, 4]
    assert make(calls, result) is result
    assert made == [1, 2, 3, 4]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("kind", "options"), KINDS, ids=str)
def test_a_step_is_its_layers_one_by_one(backend, kind, options):
    models = [make_model(kind, backend=backend, **options).train() for _ in range(2)]
    loss_fn = ff.CrossEntropyLoss(backend=backend)
    for batch in BATCHES:
        targets = targets_of(models[0], batch)
        loss, logits = ff.accumulate_gradients(models[0], batch, targets, loss_fn)
        expected = models[1].forward(batch)
        assert same_bits(logits, expected)
        assert loss == loss_fn.forward(expected, targets)
        models[1].backward(loss_fn.backward())
        gradients, others = (model.parameters().gradients for model in models)
        assert same_bits(gradients, others)
        assert gradients.any()


def told(monkeypatch, model, order):
    """Have all ops of a model's backend tell of their calls."""
    for name, op in list(vars(model.ops).items()):
        if callable(op):

            def call_and_tell(*arguments, name=name, op=op):
                order.append(name)
                return op(*arguments)

            monkeypatch.setattr(model.ops, name, call_and_tell)


def test_no_kernel_runs_before_python_is_done(monkeypatch):
    model, loss_fn, batch = make_model("decoder"), ff.CrossEntropyLoss(), BATCHES[0]
    targets, order = targets_of(model, batch), []
    ff.accumulate_gradients(model, batch, targets, loss_fn)
    told(monkeypatch, model, order)
    backward = model.embedding.backward

    def last_of_python(dout, **options):
        backward(dout, **options)
        order.append("Python")

    monkeypatch.setattr(model.embedding, "backward", last_of_python)
    ff.accumulate_gradients(model, batch, targets, loss_fn)
    assert order[:2] == ["Python", "embedding_forward"]
    assert order[-1] == "embedding_backward"
    assert len(order) > 12


def test_what_is_refused_calls_no_kernel(monkeypatch):
    model, loss_fn, order = make_model("decoder"), ff.CrossEntropyLoss(), []
    targets = targets_of(model, BATCHES[0])
    ff.accumulate_gradients(model, BATCHES[0], targets, loss_fn)
    told(monkeypatch, model, order)
    targets[-1] = model.config.vocab_size
    with pytest.raises(InvalidValueError, match="targets must be"):
        ff.accumulate_gradients(model, BATCHES[0], targets, loss_fn)
    assert order == []
