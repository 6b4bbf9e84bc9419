"""Rotary positions and ALiBi in attention: formula, gradients, chosen rows, models, commands."""

import copy
import json

import numpy as np
import pytest
from models import BACKENDS, KINDS, assert_layer_gradients, make_batch, make_model, shaken
from runs import SIZES, one_thread

import fastformer as ff
from fastformer.cli import main
from fastformer.errors import InvalidTypeError, InvalidValueError
from fastformer.layers.relative_positions import alibi_slopes, rotary_tables

__all__ = ["one_thread"]  # a fixture that every test here uses

WIDTH, HEADS = 8, 2
BATCH = make_batch((3, 1, 4))
ROWS = {"none": None, "first": np.array([0, 3, 4]), "last": np.array([2, 3, 7])}
RELATIVE = ("rotary", "alibi")


def make_layer(kind, backend="numba", **options):
    positions = ff.RelativePositions(kind, WIDTH, HEADS, 6, dtype="float64")
    options |= {"positions": positions, "seed": 1, "backend": backend, "dtype": "float64"}
    return shaken(ff.MultiHeadAttention(WIDTH, HEADS, **options))


def formula(kind, x, weights, causal):
    """Compute the layer one sequence, head, query and key at a time."""
    q, k, v = (x @ weights[f"{name}.weight"] for name in ("query", "key", "value"))
    D, out = WIDTH // HEADS, np.zeros_like(x)
    half = D // 2
    for first, last in zip(BATCH.offsets[:-1], BATCH.offsets[1:], strict=True):
        for head in range(HEADS):
            part = slice(head * D, (head + 1) * D)
            for i in range(first, last):
                seen = range(first, i + 1 if causal else last)
                scores = []
                for j in seen:
                    one, other = q[i, part], k[j, part]
                    if kind == "alibi":
                        slope = 2.0 ** (-8 * (head + 1) / HEADS)
                        scores.append(one @ other / np.sqrt(D) - slope * abs(i - j))
                    else:
                        # Each pair of columns is a complex number that is turned.
                        angles = (i - j) * 10000.0 ** (-np.arange(half) / half)
                        pairs = (one[:half] + 1j * one[half:]) * np.exp(1j * angles)
                        product = pairs * (other[:half] - 1j * other[half:])
                        scores.append(product.real.sum() / np.sqrt(D))
                e = np.exp(scores)
                out[i, part] = e / e.sum() @ v[list(seen), part]
    return out @ weights["output.weight"]


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 6, 8, 12])
def test_slopes(heads):
    """Of a power of two the paper's; of another number, those of its authors' program."""
    known = {
        1: [2**-8], 2: [2**-4, 2**-8], 3: [2**-4, 2**-8, 2**-2],
        4: [2**-2, 2**-4, 2**-6, 2**-8], 6: [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3],
        8: [2.0**-i for i in range(1, 9)],
        12: [*(2.0**-i for i in range(1, 9)), *(2.0 ** -(i - 0.5) for i in range(1, 5))],
    }  # fmt: skip
    np.testing.assert_allclose(alibi_slopes(heads), known[heads], 1e-14)


def test_tables_do_not_depend_on_their_length():
    for short, long in zip(rotary_tables(5, 6), rotary_tables(50, 6), strict=True):
        assert short.shape == (5, 3) and short.dtype == np.float64
        np.testing.assert_array_equal(short, long[:5])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", RELATIVE)
def test_formula(rng, kind, causal, backend):
    layer, x = make_layer(kind, backend, causal=causal), rng.standard_normal((8, WIDTH))
    expected = formula(kind, x, layer.state_dict(), causal)
    np.testing.assert_allclose(layer.forward(x, BATCH), expected, 1e-10, 1e-12)
    other = {"rotary": "alibi", "alibi": "rotary"}[kind]
    assert np.abs(formula(other, x, layer.state_dict(), causal) - expected).max() > 1e-3
    if not causal:
        for rows in ("first", "last"):
            found = layer.forward(x, BATCH, rows=rows)
            np.testing.assert_allclose(found, expected[ROWS[rows]], 1e-10, 1e-12)


def gradients_are_right(rng, layer, rows):
    assert_layer_gradients(
        layer,
        lambda x: layer.forward(x, BATCH, rows=rows),
        lambda dout: (layer.backward(dout),),
        rng.standard_normal((8, WIDTH)),
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("kind", RELATIVE)
def test_gradients(rng, kind, rows, backend):
    layer = make_layer(kind, backend, qkv_bias=True, output_bias=True)
    gradients_are_right(rng, layer, None if rows == "none" else rows)


def test_gradients_that_are_not_turned_back_are_noticed(rng, monkeypatch):
    right = ff.MultiHeadAttention._rotate

    def planted(self, p, q, k, query_positions, direction):
        if direction > 0:
            right(self, p, q, k, query_positions, direction)

    monkeypatch.setattr(ff.MultiHeadAttention, "_rotate", planted)
    layer = make_layer("rotary")
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        gradients_are_right(rng, layer, None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("positions", RELATIVE)
def test_a_model_learns_no_positions_and_its_layers_share_them(kind, positions):
    model = make_model(kind, positions=positions, max_seq_len=6)
    plain = make_model(kind, positions="sinusoidal")
    assert model.num_parameters == plain.num_parameters
    assert model.state_dict().keys() == plain.state_dict().keys()
    shared = [block.attention.positions for block in model.blocks]
    assert all(one is model.relative for one in shared)
    copied = copy.deepcopy(model)
    assert copied.blocks[0].attention.positions is copied.blocks[1].attention.positions
    assert copied.relative is not model.relative
    batch = make_batch()
    np.testing.assert_array_equal(copied.forward(batch), model.forward(batch))
    with pytest.raises(InvalidValueError, match="of 7 tokens is 1 longer than max_seq_len=6"):
        model.forward(ff.pack([[1] * 7]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("positions", RELATIVE)
def test_the_order_of_tokens_counts(kind, positions):
    model = make_model(kind, positions=positions)
    logits = [model.forward(ff.pack([ids]))[-1] for ids in ([1, 2, 3, 4], [1, 3, 2, 4])]
    assert np.abs(logits[0] - logits[1]).max() > 1e-6


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("sinusoidal", 8, 2, 6), InvalidValueError, "kind must be one of 'rotary', 'alibi'"),
        (("rotary", 6, 2, 6), InvalidValueError, "must be even, got embed_dim=6 and num_heads=2"),
        (("alibi", 8, 3, 6), InvalidValueError, "num_heads must divide embed_dim, got num_heads=3"),
        (("rotary", 8, 2, 6, 3), InvalidValueError, "head_size must be even, got 3"),
        (("rotary", 8, 2, 6, -2), InvalidValueError, "head_size must be an integer >= 0, got -2"),
        (("rotary", 8, 2, 6, 0, 0.0), InvalidValueError, "rotary_base must be .*> 0, got 0.0"),
        (("rotary", 8, 2, 6, 0, 9.0, -1.0), InvalidValueError, "rotary_scaling must be .* got -1"),
        (("rotary", 8, 2, 0), InvalidValueError, "max_seq_len must be an integer >= 1, got 0"),
        (("rotary", 8, 2, 2.0), InvalidTypeError, "max_seq_len must be an integer >= 1, got 2.0"),
        (("rotary", 8, 2, 1 << 40), InvalidValueError, "max_seq_len x head_size must be at most"),
    ],
)
def test_mistakes_are_named(arguments, error, message):
    own = dict(zip(("head_size", "rotary_base", "rotary_scaling"), arguments[4:], strict=False))
    with pytest.raises(error, match=message):
        ff.RelativePositions(*arguments[:4], **own)


def test_scaled_positions_have_the_angles_of_nearer_ones():
    near = ff.RelativePositions("rotary", 8, 2, 6, dtype="float64")
    far = ff.RelativePositions("rotary", 8, 2, 24, rotary_scaling=4.0, dtype="float64")
    np.testing.assert_allclose(far.cosines[::4], near.cosines, 1e-15)
    steep = ff.RelativePositions("rotary", 8, 2, 6, rotary_base=100.0, dtype="float64")
    np.testing.assert_allclose(steep.sines[3], np.sin(3 / np.array([1.0, 10.0])), 1e-14)


def test_positions_of_another_attention_are_refused():
    positions = ff.RelativePositions("rotary", 8, 2, 6)
    for sizes, dtype in (((8, 4), "float32"), ((16, 2), "float32"), ((8, 2), "float64")):
        with pytest.raises(InvalidValueError, match="got some for 2 heads of 4 and float32"):
            ff.MultiHeadAttention(*sizes, positions=positions, dtype=dtype)
    with pytest.raises(InvalidTypeError, match="must be RelativePositions or None, got str"):
        ff.MultiHeadAttention(8, 2, positions="rotary")


@pytest.mark.parametrize("positions", RELATIVE)
def test_every_command_takes_a_run(tmp_path, capsys, positions):
    run = str(tmp_path / "run")
    sizes = [f"--{name.replace('_', '-')}={size}" for name, size in SIZES.items()]
    train = ["train", "--out", run, "--examples=400", "--epochs=2", "--tour", *sizes]
    assert main([*train, "--positions", positions]) == 0
    note = {"rotary": "queries and keys are turned", "alibi": "scores fall with the distance"}
    assert f"{note[positions]}, nothing to learn" in capsys.readouterr().out
    assert f'positions = "{positions}"' in (tmp_path / "run/config.toml").read_text()
    assert main(["train", "--resume", run]) == 0
    assert main(["evaluate", run, "--json"]) == 0
    assert main(["predict", run, "Max ( 5 3 9 )"]) == 0
    assert main(["attention", run, "Max ( 5 3 9 )", "--picture", str(tmp_path / "a.svg")]) == 0
    assert main(["embeddings", run]) == 0
    capsys.readouterr()
    assert main(["inspect", run, "--points", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "positions" not in json.dumps(found)
    assert main(["report", run]) == 0
    assert positions in (tmp_path / "run/report.html").read_text()


def test_an_odd_head_is_refused_on_the_command_line(tmp_path, capsys):
    words = ["train", "--out", str(tmp_path / "run"), "--positions", "rotary"]
    assert main([*words, "--embed-dim", "12", "--num-heads", "4"]) == 2
    assert "must be even, got embed_dim=12 and num_heads=4" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
