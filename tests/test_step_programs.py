"""Whole training steps as programs: in each way that threads share a batch, step after step."""

import numba
import numpy as np
import pytest
from models import BACKENDS, same_bits

import fastformer as ff
from fastformer.kernels._compile import BUILD, ORDER
from fastformer.schedule import WAYS, choose_way
from fastformer.training.steps import step_workspace

SIZES = {
    "vocab_size": 11, "embed_dim": 12, "num_heads": 2, "num_layers": 2, "ffn_dim": 20,
    "max_seq_len": 40,
}  # fmt: skip
LENGTHS = [40, 3, 9, 31, 1, 12, 7, 40, 25, 25, 30, 38]  # four shards of 64 tokens, two of 128
LIKE_LLAMA = {"norm_type": "rmsnorm", "activation": "swiglu", "positions": "rotary"}
MODELS = {
    "encoder": (ff.TransformerConfig, {}),
    "encoder of means": (ff.TransformerConfig, {"pooling": "mean", "activation": "gelu"}),
    "tagger": (ff.TransformerConfig, {"pooling": "none", "num_classes": 11, "norm": "pre"}),
    "encoder with dropout": (ff.TransformerConfig, {"dropout": 0.3, "norm": "pre", **LIKE_LLAMA}),
    "decoder": (ff.DecoderConfig, {}),
    "decoder with ALiBi": (
        ff.DecoderConfig,
        {"positions": "alibi", "qkv_bias": True, "attention_output_bias": True},
    ),
    "decoder with shared keys": (
        ff.DecoderConfig,
        {"num_kv_heads": 1, "qk_norm": True, **LIKE_LLAMA},
    ),
    "encoder with shared keys": (
        ff.TransformerConfig,
        {"num_kv_heads": 1, "qkv_bias": True, "attention_output_bias": True},
    ),
    "encoder with norms of queries and keys": (ff.TransformerConfig, {"qk_norm": True}),
    "decoder with its own head": (ff.DecoderConfig, {"tied_embeddings": False, **LIKE_LLAMA}),
}


def new_model(kind, **options):
    config, settings = MODELS[kind]
    model = ff.Transformer if config is ff.TransformerConfig else ff.TransformerDecoder
    return model(config(**SIZES | settings), **options).train()


def new_batch(model, lengths, seed=0):
    """Return a batch and its targets, of which some are not asked for."""
    random = np.random.default_rng(seed)
    batch = ff.pack([random.integers(0, 11, length).tolist() for length in lengths])
    targets = random.integers(0, 11, model.rows_of(batch))
    targets[1::3] = -1
    return batch, targets


def choose(monkeypatch, way):
    """Share all batches in one way; forward alone is never "whole"."""

    def chosen(sequences, elements, block, parameters):
        return "blocks" if way == "whole" and parameters is None else way

    monkeypatch.setattr("fastformer.models.base.choose_way", chosen)


def losses(model, batches, loss_fn, steps=4):
    optimizer = ff.Adam(model.parameters(), lr=1e-2)
    return [
        ff.train_step(model, *batches[step % len(batches)], loss_fn, optimizer).loss
        for step in range(steps)
    ]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", MODELS)
def test_steps_in_a_row_are_those_of_layers_called_one_by_one(kind, way, monkeypatch):
    """In float64, with batches of several sizes in turn, against a loss of the caller's own."""

    class OwnLoss(ff.CrossEntropyLoss):
        """Its methods are called, and so the model's forward and backward."""

    choose(monkeypatch, way)
    found = []
    for loss_fn in (ff.CrossEntropyLoss, OwnLoss):
        for backend in BACKENDS:
            model = new_model(kind, backend=backend, dtype="float64")
            batches = [new_batch(model, lengths) for lengths in (LENGTHS, [5, 2], LENGTHS[3:])]
            found.append(losses(model, batches, loss_fn(backend=backend)))
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], 1e-11)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_weights_and_sums_are_those_of_layers_called_one_by_one(kind, way, monkeypatch):
    class OwnLoss(ff.CrossEntropyLoss):
        """Its methods are called."""

    choose(monkeypatch, way)
    for reduction in ("mean", "sum"):
        options = {"weight": np.linspace(0, 2, 11), "label_smoothing": 0.1}
        found = []
        for loss_fn in (ff.CrossEntropyLoss, OwnLoss):
            model = new_model(kind, dtype="float64")
            batches = [new_batch(model, lengths) for lengths in (LENGTHS, [5, 2])]
            found.append(losses(model, batches, loss_fn(reduction=reduction, **options)))
        np.testing.assert_allclose(found[1], found[0], 1e-11)


@pytest.mark.parametrize("weight", [None, np.linspace(0, 2, 11)])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["encoder with dropout", "decoder"])
def test_any_number_of_threads_gives_the_same_bits(kind, way, weight, monkeypatch):
    choose(monkeypatch, way)
    loss_fn = ff.CrossEntropyLoss(weight=weight)
    model, most = new_model(kind), numba.get_num_threads()
    batch, targets = new_batch(model, LENGTHS)
    found = []
    try:
        for threads in range(1, numba.config.NUMBA_NUM_THREADS + 1):
            numba.set_num_threads(threads)
            model.dropout_counter.forwards = 0
            model.zero_grad()
            loss, logits = ff.accumulate_gradients(model, batch, targets, loss_fn)
            found.append((loss, logits.tobytes(), model.parameters().gradients.tobytes()))
    finally:
        numba.set_num_threads(most)
    assert len(set(found)) == 1


@pytest.mark.parametrize("way", WAYS)
def test_what_lies_in_the_workspace_before_a_step_changes_nothing(way, monkeypatch):
    """All of it NaN: nothing is read that was not written in this step."""
    choose(monkeypatch, way)
    model = new_model("encoder")
    batch, targets = new_batch(model, LENGTHS)
    found = []
    for _ in range(2):
        model.zero_grad()
        loss, _ = ff.accumulate_gradients(model, batch, targets, ff.CrossEntropyLoss())
        found.append((loss, model.parameters().gradients.copy()))
        (space,) = model.workspaces
        assert space.way == way
        space.memory.fill(np.nan)
        space.scratches.fill(np.nan)
    assert found[0][0] == found[1][0] and same_bits(found[0][1], found[1][1])


def test_backward_drops_what_its_forward_dropped_whatever_came_between():
    model = new_model("encoder with dropout", dtype="float64")
    batch, targets = new_batch(model, LENGTHS)
    dlogits = np.random.default_rng(1).standard_normal((len(LENGTHS), 11))
    found = []
    for steps_between in (0, 2):
        model.dropout_counter.forwards = 0
        model.forward(batch)
        for _ in range(steps_between):
            ff.accumulate_gradients(model, batch, targets, ff.CrossEntropyLoss())
        model.zero_grad()
        model.backward(dlogits)
        found.append(model.parameters().gradients.copy())
    assert same_bits(*found)


def test_gradients_are_added_to_those_that_are_there():
    model = new_model("encoder")
    batch, targets = new_batch(model, LENGTHS)
    once, twice = (model.parameters().gradients.copy() for _ in range(2))
    for found in (once, twice):
        ff.accumulate_gradients(model, batch, targets, ff.CrossEntropyLoss())
        found[...] = model.parameters().gradients
    np.testing.assert_allclose(twice, 2 * once, 1e-5, 1e-7)


@pytest.mark.parametrize(
    ("sizes", "way"),
    [
        ((4, 1 << 17, 1 << 21, 1 << 19), "whole"),
        ((3, 1 << 10, 1 << 10, 1 << 10), "ops"),
        ((4, (1 << 17) + 1, 1 << 20, 1 << 19), "ops"),
        ((8, 1 << 17, 1 << 20, (1 << 19) + 1), "blocks"),
        ((8, 1 << 17, 1 << 20, None), "blocks"),
        ((8, (1 << 17) + 1, 1 << 20, None), "ops"),
        ((8, 1 << 17, (1 << 20) + 1, None), "ops"),
    ],
)
def test_the_way_is_chosen_by_sizes(sizes, way):
    assert choose_way(*sizes) == way


def test_a_workspace_shows_every_op_on_a_line():
    model = new_model("encoder with dropout", backend="reference")
    text = str(model.program).splitlines()
    assert text[0].startswith(f"{len(text) - 1} ops in {len(text) - 1} segments (ops)")
    batch, targets = new_batch(model, LENGTHS)
    ff.accumulate_gradients(model, batch, targets, ff.CrossEntropyLoss(backend="reference"))
    text = str(step_workspace(model, batch)).splitlines()
    names = [line.split()[1] for line in text[1:]]
    assert "blocks.1.attention.dropout" in " ".join(names)
    assert "waits for" in text[-1] and "gradients[" in text[-1]


@pytest.mark.skipif(BUILD != "python", reason="compiled loops keep their order")
@pytest.mark.parametrize("way", WAYS)
def test_any_order_of_tasks_gives_the_same_bits(way, monkeypatch):
    choose(monkeypatch, way)
    model = new_model("encoder")
    batch, targets = new_batch(model, LENGTHS[:5])
    found = set()
    for seed in range(3):
        ORDER.seed(seed)
        model.zero_grad()
        ff.accumulate_gradients(model, batch, targets, ff.CrossEntropyLoss())
        found.add(model.parameters().gradients.tobytes())
    assert len(found) == 1
