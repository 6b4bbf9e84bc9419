"""The decoder: it never sees what comes later, tied weights, learning, and dropout's switch."""

import numpy as np
import pytest
from models import (
    BACKENDS,
    KINDS,
    forward_and_backward,
    make_batch,
    make_config,
    make_model,
    make_sequences,
    same_bits,
)

import fastformer as ff

OPTIONS = [
    {},
    {"norm": "post", "positions": "sinusoidal", "tied_embeddings": False},
    {"positions": "rotary"},
    {"positions": "alibi"},
]


@pytest.mark.smoke
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_later_token_never_changes_earlier_logits(backend, dtype, options):
    model = make_model("decoder", backend=backend, dtype=dtype, **options)
    sequences = make_sequences((4, 6))
    expected = model.forward(ff.pack(sequences))
    for place in range(6):
        changed = [sequences[0], sequences[1].copy()]
        changed[1][place] = (changed[1][place] + 1) % 11
        logits = model.forward(ff.pack(changed))
        same = [same_bits(*rows) for rows in zip(logits, expected, strict=True)]
        assert same == [True] * (4 + place) + [False] * (6 - place)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_prefix_has_the_logits_of_the_whole(backend):
    model = make_model("decoder", backend=backend)
    (sequence,) = make_sequences((6,))
    logits = model.forward(ff.pack([sequence]))
    for length in range(1, 6):
        prefix = model.forward(ff.pack([sequence[:length]]))
        np.testing.assert_allclose(prefix, logits[:length], 1e-11, 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_flow_from_a_token_to_those_before_it_alone(backend):
    model = make_model("decoder", backend=backend, tied_embeddings=False)
    ids = [3, 1, 4, 0, 5, 9]
    model.forward(ff.pack([ids, [8, 7]]))
    for token in range(6):
        model.zero_grad()
        dlogits = np.zeros((8, 11))
        dlogits[token] = np.arange(11) - 3.0
        model.backward(dlogits)
        rows = np.flatnonzero(model.grad_dict()["embedding.weight"].any(axis=1))
        assert sorted(rows) == sorted(ids[: token + 1])


def test_tied_weights_are_one_parameter():
    tied, untied = (make_model("decoder", tied_embeddings=value) for value in (True, False))
    names = set(tied.state_dict())
    assert "output.weight" not in names
    assert set(untied.state_dict()) - names == {"output.weight", "output.bias"}
    assert untied.num_parameters - tied.num_parameters == 12 * 11 + 11
    # The same table as separate output weights gives the same logits and, added up, gradients.
    weights = tied.state_dict()
    weights |= {"output.weight": weights["embedding.weight"].T, "output.bias": np.zeros(11)}
    untied.load_state_dict(weights)
    batch = make_batch()
    logits, gradients = forward_and_backward(tied, batch)
    other_logits, other = forward_and_backward(untied, batch)
    np.testing.assert_allclose(logits, other_logits, 1e-11, 1e-12)
    expected = other["embedding.weight"] + other["output.weight"].T
    np.testing.assert_allclose(gradients["embedding.weight"], expected, 1e-11, 1e-12)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_decoder_learns_ten_sequences_by_heart(options):
    """Each next token, where the first tells which sequence it is; the last has no target."""
    model = ff.TransformerDecoder(make_config("decoder", **options), seed=1)
    sequences = [[first, *ids] for first, ids in enumerate(make_sequences((5, 3, 4, 5, 2) * 2))]
    batch = ff.pack(sequences)
    targets = np.array([token for ids in sequences for token in [*ids[1:], -1]])
    loss_fn, optimizer = ff.CrossEntropyLoss(), ff.Adam(model.parameters(), lr=1e-2)
    for _ in range(120):
        loss = loss_fn.forward(model.forward(batch), targets)
        model.zero_grad()
        model.backward(loss_fn.backward())
        optimizer.step()
    counted = targets >= 0
    assert (model.forward(batch).argmax(axis=1) == targets)[counted].all() and loss < 0.1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_a_switch_and_a_counter(kind, backend):
    model, batch = make_model(kind, backend=backend, dropout=0.3), make_batch()
    plain = make_model(kind, backend=backend).forward(batch)
    np.testing.assert_allclose(model.forward(batch), plain, 1e-12)
    assert model.dropout_counter.forwards == 0, "what drops nothing is not counted"
    assert model.train() is model
    runs = [model.forward(batch) for _ in range(3)]
    assert len({run.tobytes() for run in (plain, *runs)}) == 4
    assert model.dropout_counter.forwards == 3
    # From its number on, a run goes on with the same random numbers.
    model.dropout_counter.forwards = 1
    assert same_bits(model.forward(batch), runs[1])
    assert model.eval() is model
    np.testing.assert_allclose(model.forward(batch), plain, 1e-12)
    other = make_model(kind, backend=backend, dropout=0.3, seed=4)
    other.load_state_dict(model.state_dict())
    other.train().dropout_counter.forwards = 1
    assert not np.allclose(other.forward(batch), runs[1]), "the seed is not used"


@pytest.mark.parametrize("kind", KINDS)
def test_both_backends_drop_the_same(kind):
    logits = [
        make_model(kind, backend=backend, dropout=0.5).train().forward(make_batch())
        for backend in BACKENDS
    ]
    np.testing.assert_allclose(*logits, 1e-11, 1e-12)
