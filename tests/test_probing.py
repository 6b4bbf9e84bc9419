"""Objects that people and their tools look at: what is missing, what is shown, second names."""

import copy
import inspect
import pickle

import numpy as np
import pytest
from models import make_batch, make_model

import fastformer as ff
from fastformer.errors import FastformerError, InvalidValueError, NotForwardedError

ENCODER = """\
Transformer(
  (embedding): Embedding(vocab_size=20, embed_dim=64)
  (positions): PositionalEncoding(max_seq_len=50, embed_dim=64, learned=False)
  (dropout): Dropout(rate=0.0)
  (blocks): 2 x TransformerBlock(
    norm=post
    (attention): MultiHeadAttention(
      embed_dim=64, num_heads=4
      (output): Linear(in_features=64, out_features=64, bias=False)
      (dropout): Dropout(rate=0.0)
    )
    (norm1): LayerNorm(embed_dim=64, epsilon=1e-05)
    (feed_forward): FeedForward(
      activation=relu
      (expand): Linear(in_features=64, out_features=256)
      (contract): Linear(in_features=256, out_features=64)
      (dropout): Dropout(rate=0.0)
    )
    (norm2): LayerNorm(embed_dim=64, epsilon=1e-05)
  )
  (output): Linear(in_features=64, out_features=20)
)
102,036 parameters, float32, numba"""


def test_a_model_shows_its_layers_and_sizes():
    model = ff.Transformer(ff.TransformerConfig(vocab_size=20))
    assert str(model) == repr(model) == ENCODER


def test_a_decoder_shows_what_it_has_beside():
    config = ff.DecoderConfig(
        vocab_size=20, num_layers=1, positions="rotary", norm_type="rmsnorm", activation="swiglu"
    )
    shown = repr(ff.TransformerDecoder(config, dtype="float64", backend="reference"))
    for line in (
        "(blocks): TransformerBlock(",
        "embed_dim=64, num_heads=4, causal=True, positions=rotary",
        "(gate): Linear(in_features=64, out_features=256)",
        "(final_norm): RMSNorm(embed_dim=64, epsilon=1e-05)",
        "(output): TiedLinear(embed_dim=64, vocab_size=20)",
        "parameters, float64, reference",
    ):
        assert line in shown, shown


def test_a_part_of_a_model_is_shown_and_counted_too():
    model = make_model("encoder")
    assert repr(model.output) == (
        "Linear(in_features=12, out_features=11)\n143 parameters, float64, numba"
    )
    parts = [layer for _, layer in model.children()]
    assert sum(part.num_parameters for part in parts) == model.num_parameters
    assert repr(ff.ReLU()) == "ReLU()\n0 parameters, float32, numba"


@pytest.mark.parametrize(
    "name", ["store", "fit", "__len__", "_repr_html_", "_ipython_display_", "T"]
)
def test_what_no_class_has_is_an_attribute_error(name):
    for owner in (make_model("encoder"), ff.Linear(2, 2), ff.CrossEntropyLoss()):
        with pytest.raises(AttributeError, match=f"has no attribute '{name}'") as caught:
            getattr(owner, name)
        assert not isinstance(caught.value, FastformerError)
        assert (caught.value.name, caught.value.obj) == (name, owner)
        assert not hasattr(owner, name) and getattr(owner, name, 3) == 3


def test_what_forward_leaves_is_asked_for_too_early():
    batch = make_batch()
    layers = [
        ff.Linear(12, 12), ff.LayerNorm(12), ff.RMSNorm(12), ff.ReLU(), ff.Softmax(),
        ff.Dropout(0.5), ff.Embedding(11, 12), ff.PositionalEncoding(12, 6),
        ff.FeedForward(12, 4, activation="swiglu"), ff.MultiHeadAttention(12, 2),
        *make_model("encoder").blocks,
    ]  # fmt: skip
    assert sum(bool(layer.left) for layer in layers) >= 6
    for layer in layers:
        for name in layer.left:
            with pytest.raises(NotForwardedError, match=rf"no '{name}' yet.*call forward first"):
                getattr(layer, name)
    x = np.ones((batch.num_tokens, 12), np.float32)
    for layer in layers[:6]:
        layer.forward(x)
    assert layers[0].x.shape == x.shape
    for layer in layers[6:]:
        with pytest.raises(NotForwardedError):
            layer.backward(x)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_tools_that_look_at_everything(kind):
    model = make_model(kind)
    parts = [model, *(layer for layer in model.layers() if layer is not model)]
    for owner in (*parts, ff.pack([[1]]), ff.Adam(model.parameters()), model.parameters()):
        members = dict(inspect.getmembers(owner))
        assert members["__class__"] is type(owner)
        assert inspect.signature(type(owner)).parameters
        dir(owner), hash(owner), bool(owner), str(owner)
    assert copy.deepcopy(model).num_parameters == model.num_parameters
    unmade = type(model).__new__(type(model))
    assert not hasattr(unmade, "anything")
    with pytest.raises(FastformerError, match="state_dict"):
        pickle.dumps(model)


@pytest.mark.parametrize("make", [ff.SGD, ff.Adam, ff.AdamW])
def test_lr_and_learning_rate_are_one_name(make):
    parameters = make_model("encoder").parameters()
    usual = make(parameters)
    assert usual.lr == usual.learning_rate == (0.01 if make is ff.SGD else 0.001)
    optimizer = make(parameters, learning_rate=0.25)
    assert optimizer.lr == make(parameters, lr=0.25).learning_rate == 0.25
    optimizer.lr = 0.5
    assert optimizer.learning_rate == 0.5
    optimizer.learning_rate = 0
    assert optimizer.lr == 0
    with pytest.raises(InvalidValueError, match="two names of one number"):
        make(parameters, lr=0.25, learning_rate=0.25)
    for wrong in (-1, float("nan"), "x", None, True):
        for name in ("lr", "learning_rate"):
            with pytest.raises(FastformerError, match=r"learning_rate must be .* >= 0, got"):
                setattr(optimizer, name, wrong)
        with pytest.raises(FastformerError, match=r"learning_rate must be .* > 0, got"):
            make(parameters, learning_rate=0 if wrong is None else wrong)
    assert optimizer.lr == 0
