"""Configs: their defaults, and every value that is not allowed, by name."""

import dataclasses

import numpy as np
import pytest

import fastformer as ff
from fastformer.errors import FastformerError, InvalidTypeError, InvalidValueError

CONFIGS = (ff.TransformerConfig, ff.DecoderConfig)
VALUE, TYPE = InvalidValueError, InvalidTypeError


def test_defaults_are_models_that_people_know():
    encoder, decoder = (config(vocab_size=20) for config in CONFIGS)
    for config in (encoder, decoder):
        sizes = config.embed_dim, config.num_heads, config.num_layers, config.ffn_dim
        assert (*sizes, config.max_seq_len) == (64, 4, 2, 256, 50)
        assert config.dropout == 0 and config.qkv_bias is False
    assert (encoder.norm, encoder.activation, encoder.positions) == ("post", "relu", "sinusoidal")
    assert (encoder.pooling, encoder.num_classes) == ("first", 0)
    assert encoder.num_logits == decoder.num_logits == 20
    assert ff.TransformerConfig(vocab_size=20, num_classes=3).num_logits == 3
    assert (decoder.norm, decoder.activation, decoder.positions) == ("pre", "gelu", "learned")
    assert decoder.tied_embeddings is True


# (settings, error, message)
REFUSED = [
    *(
        ({name: value}, error, rf"{name} must be an integer {allowed}, got {value!r}")
        for name, allowed in (
            ("vocab_size", ">= 1"),
            ("embed_dim", ">= 1"),
            ("num_heads", ">= 1"),
            ("num_layers", "from 1 to 4096"),
            ("ffn_dim", ">= 1"),
            ("max_seq_len", "from 1 to 1048576"),
        )
        for value, error in [(0, VALUE), (-1, VALUE), (True, TYPE), (2.0, TYPE), ("8", TYPE)]
    ),
    ({"num_heads": 3}, VALUE, r"got num_heads=3 and embed_dim=64; the nearest that does is [24];"),
    ({"num_heads": 65}, VALUE, r"num_heads must divide embed_dim.*nearest that does is 64;"),
    ({"embed_dim": 7, "num_heads": 5}, VALUE, r"num_heads=5 and embed_dim=7; .* is 7;"),
    # Divisors are not looked for one by one up to such sizes.
    ({"embed_dim": 2**61 - 1, "num_heads": 4}, VALUE, r"the nearest that does is 1;"),
    ({"embed_dim": 10**18, "num_heads": 3}, VALUE, r"the nearest that does is 2;"),
    (
        {"embed_dim": 2**61, "num_heads": 2**61, "positions": "rotary"},
        VALUE,
        rf"must be even, .*take num_heads={2**60}, or",
    ),
    ({"num_layers": 10**9}, VALUE, r"num_layers must be an integer from 1 to 4096, got 1000000000"),
    ({"ffn_dim": 10**400}, VALUE, r"ffn_dim must be an integer >= 1, got one of 1329 bits$"),
    ({"norm": "poste"}, VALUE, r"norm must be one of 'post', 'pre', got 'poste'.*'post'\?"),
    ({"norm": None}, TYPE, r"norm must be one of 'post', 'pre', got None"),
    (
        {"activation": "Gelu"},
        VALUE,
        r"'gelu', 'gelu_exact', 'mish', 'swiglu', 'geglu', got 'Gelu'.*'gelu'\?",
    ),
    ({"activation": "silu"}, VALUE, r"activation must be one of .*got 'silu'"),
    ({"norm_type": "rms"}, VALUE, r"norm_type must be one of .*'layernorm', 'rmsnorm', got 'rms'"),
    ({"norm_type": "RMSNorm"}, VALUE, r"got 'RMSNorm'; did you mean 'rmsnorm'\?"),
    ({"norm_type": None}, TYPE, r"norm_type must be one of 'layernorm', 'rmsnorm', got None"),
    ({"positions": "none"}, VALUE, r"positions must be one of 'sinusoidal', 'learned', 'rotary'"),
    (
        {"positions": "rotary", "embed_dim": 12, "num_heads": 4},
        VALUE,
        r"must be even, got embed_dim=12 and num_heads=4; take num_heads=3, or .* multiple of 8$",
    ),
    (
        {"positions": "rotary", "embed_dim": 9, "num_heads": 3},
        VALUE,
        r"must be even, got embed_dim=9 and num_heads=3; take an embed_dim that is a multiple of 6",
    ),
    ({"positions": "sinus"}, VALUE, r"got 'sinus'; did you mean 'sinusoidal'\?"),
    ({"dropout": -0.1}, VALUE, r"dropout must be a finite number >= 0 and < 1, got -0.1"),
    ({"dropout": 1.0}, VALUE, r"dropout must be a finite number >= 0 and < 1, got 1.0"),
    ({"dropout": np.nan}, VALUE, r"dropout must be a finite number >= 0 and < 1, got nan"),
    ({"dropout": np.inf}, VALUE, r"dropout must be a finite number >= 0 and < 1, got inf"),
    ({"dropout": False}, TYPE, r"dropout must be a finite number .*got False"),
    ({"dropout": "0.1"}, TYPE, r"dropout must be a finite number .*got '0.1'"),
    ({"qkv_bias": 1}, TYPE, r"qkv_bias must be True or False, got 1"),
    *(
        ({name: "no"}, TYPE, rf"{name} must be True or False, got 'no'")
        for name in (
            "qk_norm",
            "attention_output_bias",
            "ffn_bias",
            "norm_bias",
            "output_bias",
            "embedding_norm",
        )
    ),
    ({"head_size": -1}, VALUE, r"head_size must be an integer >= 0, got -1"),
    ({"positions": "rotary", "head_size": 5}, VALUE, r"head_size must be even, got 5"),
    ({"rotary_base": 0.0}, VALUE, r"rotary_base must be a finite number > 0, got 0.0"),
    ({"rotary_scaling": np.inf}, VALUE, r"rotary_scaling must be a finite number > 0, got inf"),
    ({"layernorm_epsilon": 0}, VALUE, r"layernorm_epsilon must be a finite number > 0, got 0"),
    ({"layernorm_epsilon": np.nan}, VALUE, r"layernorm_epsilon must be .*> 0, got nan"),
]


@pytest.mark.parametrize("config_class", CONFIGS)
@pytest.mark.parametrize(("settings", "error", "message"), REFUSED)
def test_refuses(config_class, settings, error, message):
    with pytest.raises(error, match=message) as caught:
        config_class(**{"vocab_size": 20} | settings)
    assert isinstance(caught.value, FastformerError)


@pytest.mark.parametrize(
    ("config_class", "settings", "error", "message"),
    [
        (
            CONFIGS[0],
            {"pooling": "max"},
            VALUE,
            r"pooling must be one of 'first', 'mean', 'last', 'none'",
        ),
        (CONFIGS[0], {"num_classes": -1}, VALUE, r"num_classes must be an integer >= 0, got -1"),
        (CONFIGS[0], {"num_classes": 2.0}, TYPE, r"num_classes must be an integer >= 0, got 2.0"),
        (CONFIGS[0], {"num_classes": True}, TYPE, r"num_classes must be an integer >= 0, got True"),
        (CONFIGS[0], {"pooling": "frist"}, VALUE, r"got 'frist'; did you mean 'first'\?"),
        (CONFIGS[0], {"pooling": 0}, TYPE, r"pooling must be one of .*, got 0"),
        (CONFIGS[1], {"tied_embeddings": 0}, TYPE, r"tied_embeddings must be True or False"),
    ],
)
def test_refuses_its_own_settings(config_class, settings, error, message):
    with pytest.raises(error, match=message):
        config_class(vocab_size=20, **settings)


@pytest.mark.parametrize("name", ["num_classes", "pooling"])
def test_a_decoder_has_neither_classes_nor_pooling(name):
    with pytest.raises(TypeError, match=name):
        ff.DecoderConfig(vocab_size=20, **{name: 3})


@pytest.mark.parametrize("config_class", CONFIGS)
def test_settings_are_named_frozen_and_explained(config_class):
    config = config_class(vocab_size=np.int64(20))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.embed_dim = 3
    with pytest.raises(TypeError):
        config_class(20)
    with pytest.raises(TypeError, match="embed_dims"):
        config_class(vocab_size=20, embed_dims=3)
    with pytest.raises(TypeError, match="vocab_size"):
        config_class()
    helps = {f.name: f.metadata.get("help") for f in dataclasses.fields(config_class)}
    redefined = {"norm", "activation", "positions"} if config_class is ff.DecoderConfig else set()
    assert all(text for name, text in helps.items() if name not in redefined)
    assert dataclasses.replace(config, num_heads=8).num_heads == 8
    with pytest.raises(InvalidValueError, match="num_heads must divide"):
        dataclasses.replace(config, num_heads=7)


@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        (ff.Transformer, ff.DecoderConfig(vocab_size=5)),
        (ff.TransformerDecoder, ff.TransformerConfig(vocab_size=5)),
        (ff.Transformer, {"vocab_size": 5}),
        (ff.TransformerDecoder, None),
        (ff.Transformer, ff.TransformerConfig),
    ],
)
def test_models_refuse_a_config_of_another_class(model_class, config):
    wanted = "TransformerConfig" if model_class is ff.Transformer else "DecoderConfig"
    with pytest.raises(InvalidTypeError, match=rf"config must be a {wanted}, got \w+"):
        model_class(config)


@pytest.mark.parametrize("model_class", [ff.Transformer, ff.TransformerDecoder])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"backend": "numpy"}, VALUE, r"backend must be one of 'numba', 'reference', got 'numpy'"),
        ({"backend": None}, TYPE, r"backend must be one of .*got None"),
        ({"dtype": "float16"}, VALUE, r"dtype must be one of 'float32', 'float64', got 'float16'"),
        ({"dtype": int}, TYPE, r"dtype must be one of 'float32', 'float64'"),
        ({"seed": -1}, VALUE, r"seed must be an integer .*got -1"),
        ({"seed": True}, TYPE, r"seed must be an integer .*got True"),
        ({"seed": 2.0}, TYPE, r"seed must be an integer .*got 2.0"),
        ({"seed": None}, TYPE, r"seed must be an integer .*got None"),
    ],
)
def test_models_refuse_options(model_class, options, error, message):
    config_class = CONFIGS[model_class is ff.TransformerDecoder]
    config = config_class(vocab_size=5, embed_dim=8, num_heads=2, ffn_dim=8)
    with pytest.raises(error, match=message):
        model_class(config, **options)
