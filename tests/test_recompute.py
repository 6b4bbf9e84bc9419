"""What backward computes again is not kept, and changes no bit."""

import numpy as np
import pytest
from models import BACKENDS, make_batch, make_model, same_bits

import fastformer as ff
from fastformer.errors import InvalidTypeError, InvalidValueError
from fastformer.models.config import RECOMPUTE
from fastformer.training import steps
from fastformer.training.steps import recomputed, step_workspace

MODELS = {
    "encoder": ("encoder", {"dropout": 0.2}),
    "encoder, pre-norm, mean": ("encoder", {"norm": "pre", "pooling": "mean", "qk_norm": True}),
    "decoder": ("decoder", {"dropout": 0.1, "positions": "rotary", "num_kv_heads": 1}),
    "decoder, gated": ("decoder", {"activation": "swiglu", "norm_type": "rmsnorm"}),
}


def targets_of(model, batch):
    rows = batch.num_tokens if isinstance(model, ff.TransformerDecoder) else batch.num_sequences
    return np.arange(rows) % 11


def step(model, batch):
    """Return loss, logits and gradients of one step."""
    model.train()
    model.dropout_counter.forwards = 3
    model.zero_grad()
    loss, logits = ff.accumulate_gradients(
        model, batch, targets_of(model, batch), ff.CrossEntropyLoss(backend=model.ops.name)
    )
    return loss, logits, model.grad_dict()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", [(3, 1, 5), (6,) * 30], ids=["ops", "whole"])
@pytest.mark.parametrize("name", MODELS)
def test_results_have_the_same_bits(name, lengths, backend):
    kind, options = MODELS[name]
    model = make_model(kind, num_layers=3, backend=backend, **options)
    batch = make_batch(lengths)
    loss, logits, gradients = step(model, batch)
    for recompute in RECOMPUTE[1:]:
        model.recompute = recompute
        found = step(model, batch)
        assert found[0] == loss and same_bits(found[1], logits)
        assert same_bits(found[2], gradients), recompute


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_less_is_kept_and_no_op_s_result_is_unused(kind):
    model = make_model(kind, num_layers=6, embed_dim=24, num_heads=2)
    batch, sizes = make_batch((6, 6, 6)), {}
    for recompute in RECOMPUTE:
        model.recompute = recompute
        space = step_workspace(model, batch)
        space.grow(3000, 500)
        sizes[recompute] = space.memory.nbytes
        read = {tensor.whole for s in space.steps for tensor in s.reads}
        for one in space.steps:
            if one.op.name.startswith("linear") and "weight_gradient" not in one.op.name:
                assert any(t.whole in read or t.memory is not None for t in one.writes), one.title
    assert sizes["block"] < 0.5 * sizes["none"]
    assert sizes["block"] < sizes["attention"] < 0.9 * sizes["none"]


def test_a_memory_limit_chooses_parts_first_and_then_computes_again():
    model = make_model("decoder", num_layers=6, embed_dim=24, num_heads=2, dtype="float32")
    batch = make_batch((6,) * 10)
    loss, _, gradients = step(model, batch)
    one = 4 * 6 * steps._kept(model, "none")  # bytes that one sequence keeps
    chosen = {}
    for share in (20, 5, 1, 0.75, 0.5, 0.01):
        model.memory_limit = int(share * one)
        chosen[share] = steps._part_count(model, batch), recomputed(model, batch)
        found = step(model, batch)
        np.testing.assert_allclose(found[0], loss, 1e-5)
        for name, gradient in gradients.items():
            np.testing.assert_allclose(found[2][name], gradient, 1e-3, 1e-6)
    assert chosen[20] == (1, "none") and chosen[5] == (2, "none") and chosen[1] == (10, "none")
    assert chosen[0.75][1] == "attention" and chosen[0.5][1] == "block"
    assert chosen[0.01] == (10, "block")


def test_mistakes_are_named():
    model = make_model("encoder")
    with pytest.raises(InvalidValueError, match="recompute must be one of 'none', 'attention'"):
        model.recompute = "blocks"
    with pytest.raises(InvalidTypeError, match="memory_limit must be an integer >= 0, got 1.5"):
        model.memory_limit = 1.5
