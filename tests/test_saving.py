"""A model in one file, there and back; damage, and what cannot be saved."""

from functools import partial

import numpy as np
import pytest
from models import KINDS, make_batch, make_config, make_model, same_bits
from test_layer_check import CONFIG, Cubed

import fastformer as ff
from fastformer.data.tokenizers import ByteTokenizer, CharacterTokenizer
from fastformer.errors import CheckpointError, InvalidTypeError, InvalidValueError
from fastformer.training.checkpoint import load_checkpoint, save_checkpoint


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_there_and_back(tmp_path, kind, dtype):
    model = make_model(kind, dtype=dtype, positions="rotary", head_size=6, qk_norm=True)
    ff.save(model, tmp_path / "model.safetensors")
    found = ff.load(tmp_path / "model.safetensors")
    assert type(found) is type(model) and found.config == model.config
    assert same_bits(found.state_dict(), model.state_dict())
    assert same_bits(found.forward(make_batch()), model.forward(make_batch()))
    assert found.tokenizer is None and found.labels is None
    twins = ff.load(tmp_path / "model.safetensors", backend="reference")
    np.testing.assert_allclose(twins.forward(make_batch()), model.forward(make_batch()), 1e-3, 1e-4)


def test_a_precision_is_kept(tmp_path):
    model = ff.TransformerDecoder(make_config("decoder"), precision="bfloat16")
    ff.save(model, tmp_path / "m")
    assert ff.load(tmp_path / "m").precision == "bfloat16"


def test_a_tagger_is_kept_with_the_names_of_its_classes(tmp_path):
    model = make_model("encoder", num_classes=3, pooling="none")
    model.labels = np.array(["name", "verb", "é"])
    model.save(tmp_path / "m")
    found = ff.load(tmp_path / "m")
    assert found.config == model.config and found.labels == ("name", "verb", "é")
    ff.save(found, tmp_path / "other")
    assert (tmp_path / "m").read_bytes() == (tmp_path / "other").read_bytes()
    assert found.forward(make_batch()).shape == (make_batch().num_tokens, 3)


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), CharacterTokenizer("abc déf")])
def test_a_tokenizer_goes_with_its_model(tmp_path, tokenizer):
    model = make_model("decoder")
    model.tokenizer = tokenizer
    ff.save(model, tmp_path / "m")
    found = ff.load(tmp_path / "m").tokenizer
    assert (found.kind, found.vocab_size) == (tokenizer.kind, tokenizer.vocab_size)
    assert found.encode("abc d").tolist() == tokenizer.encode("abc d").tolist()


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ("ab", InvalidTypeError, "labels must be a list of strings, got 'ab'"),
        ([1, 2], InvalidTypeError, "labels must be a list of strings, got 1 at index 0"),
        (["a", "a"], InvalidValueError, "labels must be different, got 'a' twice"),
        (["a", "b", "a"], InvalidValueError, "labels must be different, got 'a' twice"),
        ([], InvalidValueError, "labels must be at least one string, got none"),
    ],
)
def test_labels_that_are_none_are_refused(labels, error, message):
    model = make_model("encoder", num_classes=2)
    with pytest.raises(error, match=message):
        model.labels = labels
    assert model.labels is None


def test_labels_and_tokenizers_that_do_not_fit_are_not_saved(tmp_path):
    model = make_model("encoder", num_classes=3)
    model.labels = "a", "b"
    with pytest.raises(InvalidValueError, match="model.labels must have 3 names, .* got 2"):
        model.save(tmp_path / "m")
    model.labels, model.tokenizer = None, str.split
    with pytest.raises(InvalidTypeError, match="model.tokenizer must be a tokenizer of"):
        model.save(tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_layers_of_one_s_own_cannot_be_saved(tmp_path):
    block = partial(ff.TransformerBlock, feed_forward=Cubed)
    with pytest.raises(InvalidTypeError, match="layers of your own"):
        ff.save(ff.TransformerDecoder(CONFIG, block=block), tmp_path / "m")
    with pytest.raises(InvalidTypeError, match="model must be a Transformer or TransformerDecoder"):
        ff.save(ff.Linear(2, 2), tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_what_is_no_model_is_refused(tmp_path):
    path = tmp_path / "m"
    with pytest.raises(CheckpointError, match="m"):
        ff.load(path)
    model = make_model("encoder")
    ff.save(model, path)
    whole = load_checkpoint(path)
    for change in (
        {"model": "GPT"}, {"config": {}}, {"config": {"vocab_size": 3}}, {"dtype": "int8"},
        {"tokenizer": "{}"}, {"tokenizer": 3}, {"labels": 3}, {"labels": ["a"]}, {"labels": [1]},
        {"config": whole.metadata["config"] | {"x": 1}},
        {"config": whole.metadata["config"] | {"ffn_dim": 7}},
        {"config": whole.metadata["config"] | {"num_classes": 2**40}},
    ):  # fmt: skip
        save_checkpoint(path, whole.tensors, whole.metadata | change)
        with pytest.raises(CheckpointError, match="does not hold a model"):
            ff.load(path)
    save_checkpoint(path, {}, whole.metadata)
    with pytest.raises(CheckpointError, match="'embedding.weight' is missing"):
        ff.load(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        ff.load(path)
