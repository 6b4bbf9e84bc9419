"""Positions: the table of sines, a learned table, and sequences that are too long."""

import numpy as np
import pytest
from models import BACKENDS, make_batch, shaken

import fastformer as ff
from fastformer.errors import InvalidTypeError, InvalidValueError
from fastformer.layers.positional_encoding import sinusoidal_table

BATCH = make_batch((3, 1, 5))


@pytest.mark.parametrize("embed_dim", [1, 2, 7, 64])
def test_sines(embed_dim):
    table = sinusoidal_table(50, embed_dim)
    assert table.shape == (50, embed_dim) and table.dtype == np.float64
    for position in (0, 1, 17, 49):
        for column in range(embed_dim):
            angle = position / 10000 ** ((column - column % 2) / embed_dim)
            expected = np.cos(angle) if column % 2 else np.sin(angle)
            assert table[position, column] == pytest.approx(expected, abs=1e-13)
    assert len(np.unique(table, axis=0)) == 50, "two positions have the same row"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("learned", [True, False])
def test_each_sequence_begins_at_position_0(rng, backend, learned):
    layer = ff.PositionalEncoding(7, 5, learned=learned, backend=backend, dtype="float64")
    x = rng.standard_normal((9, 7))
    rows = [0, 1, 2, 0, 0, 1, 2, 3, 4]
    np.testing.assert_allclose(layer.forward(x, BATCH), x + layer.table[rows], 1e-15)
    assert set(layer.state_dict()) == ({"weight"} if learned else set())


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_of_a_learned_table(rng, backend):
    """The sum of each position's rows; that of x is dout itself."""
    layer = shaken(
        ff.PositionalEncoding(7, 6, learned=True, seed=2, backend=backend, dtype="float64")
    )
    dout = rng.standard_normal((9, 7))
    layer.forward(rng.standard_normal((9, 7)), BATCH)
    np.testing.assert_array_equal(layer.backward(dout), dout)
    expected = np.zeros((6, 7))
    for row, position in zip(dout, BATCH.positions, strict=True):
        expected[position] += row
    np.testing.assert_allclose(layer.grad_dict()["weight"], expected, 1e-12)
    assert not expected[5].any(), "a position that no token has"


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_embedding_adds_positions_in_the_same_pass(rng, backend):
    options = {"backend": backend, "dtype": "float64"}
    embedding = ff.Embedding(11, 7, **options)
    positions = ff.PositionalEncoding(7, 5, learned=True, **options)
    apart = positions.forward(embedding.forward(BATCH), BATCH).copy()
    np.testing.assert_allclose(embedding.forward(BATCH, positions), apart, 1e-15)
    dout = rng.standard_normal((9, 7))
    embedding.backward(dout)
    together = positions.weight.gradient.copy()
    positions.weight.gradient[...] = 0
    positions.backward(dout)
    np.testing.assert_array_equal(positions.weight.gradient, together)


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("length", [6, 9])
def test_a_sequence_that_is_too_long_is_refused(learned, length):
    layer = ff.PositionalEncoding(7, 5, learned=learned)
    message = rf"{length} tokens is {length - 5} longer than max_seq_len=5"
    batch = ff.pack([[1], [1] * length])
    with pytest.raises(InvalidValueError, match=message):
        layer.forward(np.zeros((length + 1, 7), np.float32), batch)
    with pytest.raises(InvalidValueError, match=message):
        ff.Embedding(11, 7).forward(batch, layer)


def test_a_learned_table_s_initial_values():
    tables = [
        ff.PositionalEncoding(
            100, 80, learned=True, std=0.1, seed=3, backend=backend, dtype=dtype
        ).table
        for backend in BACKENDS
        for dtype in ("float32", "float64")
    ]
    for table in tables:
        np.testing.assert_array_equal(table, tables[-1].astype(table.dtype))
    np.testing.assert_allclose(tables[-1].std(), 0.1, rtol=0.05)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((0, 5), {}, InvalidValueError, r"embed_dim must be an integer >= 1, got 0"),
        ((7, 0), {}, InvalidValueError, r"max_seq_len must be an integer >= 1, got 0"),
        ((7, "5"), {}, InvalidTypeError, r"max_seq_len must be an integer >= 1, got '5'"),
        ((7, 5), {"learned": 1}, InvalidTypeError, r"learned must be True or False, got 1"),
        ((7, 5), {"learned": True, "std": -1.0}, InvalidValueError, r"std must be .*got -1.0"),
    ],
)
def test_construction_refuses(arguments, options, error, message):
    with pytest.raises(error, match=message):
        ff.PositionalEncoding(*arguments, **options)
