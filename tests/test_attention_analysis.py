"""Attention weights against those computed by hand, and what is said of heads."""

import numpy as np
import pytest
from models import make_model
from runs import one_thread

import fastformer as ff
from fastformer.analysis.attention import (
    ExpressionAttention,
    attention_weights,
    batch_attention,
    expression_attention,
    head_summaries,
    kind_of,
    relative_entropy,
    token_attention,
    visible_tokens,
)
from fastformer.analysis.head_roles import head_roles
from fastformer.analysis.prediction import DigitPredictor
from fastformer.analysis.token_roles import FIXED, TOKEN_ROLES, number_spans, role_flags
from fastformer.data import DIGIT_TOKENS, DigitTask, Expression, encode

__all__ = ["one_thread"]  # a fixture that every test here uses

TOKENS = Expression("Max", (5, 3, 9)).tokens()
OPTIONS = {"vocab_size": len(DIGIT_TOKENS), "max_seq_len": 12}


def weights_by_hand(block, x, batch, causal):
    """Return softmax(Q K^T / sqrt(D)) of each head of the one sequence of a batch."""
    attention = block.attention
    width = attention.embed_dim // attention.num_heads
    query, key = (x @ attention.qkv_weight.value[part] for part in (0, 1))
    found = []
    for head in range(attention.num_heads):
        columns = slice(head * width, (head + 1) * width)
        scores = query[:, columns] @ key[:, columns].T / np.sqrt(width)
        if causal:
            scores[~np.tri(len(x), dtype=bool)] = -np.inf
        raised = np.exp(scores - scores.max(axis=1, keepdims=True))
        found.append(raised / raised.sum(axis=1, keepdims=True))
    return np.stack(found)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_weights_are_those_of_the_formula_in_every_layer(kind: str, backend: str) -> None:
    model = make_model(kind, backend=backend, norm="post", **OPTIONS)
    batch = ff.pack([encode(TOKENS)])
    layers = batch_attention(model, batch)
    x = model.embedding.forward(batch, model.positions).copy()
    for block, found in zip(model.blocks, layers, strict=True):
        expected = weights_by_hand(block, x, batch, kind == "decoder")
        np.testing.assert_allclose(found[0], expected, rtol=1e-9, atol=1e-12)
        x = block.forward(x, batch).copy()


def test_the_row_that_is_read_out_is_that_of_the_models_own_forward() -> None:
    model = make_model("encoder", **OPTIONS)
    batch = ff.pack([encode(TOKENS), encode(["Min", "(", "4", ")"])])
    full = batch_attention(model, batch)[-1]
    model.forward(batch)
    own = model.blocks[-1].attention.weights()
    assert own.shape[2] == 1 and full.shape[2] == len(TOKENS)
    np.testing.assert_allclose(full[:, :, :1], own, rtol=1e-9, atol=1e-12)


def test_another_input_has_other_weights_and_padding_has_none() -> None:
    model = make_model("encoder", **OPTIONS)
    _, first = attention_weights(model, "Max ( 5 3 9 )")
    tokens, second = attention_weights(model, "max(5,3,8)")
    assert tokens == [*"Max ( 5 , 3 , 8 )".split()]
    assert all(layer.shape == (3, 8, 8) for layer in (*first, *second))
    assert np.abs(first[0] - second[0]).max() > 1e-3
    short, long = encode(["Min", "(", "4", ")"]), encode(TOKENS)
    (alone, *_), (both, *_) = (batch_attention(model, ff.pack(s)) for s in ([short], [short, long]))
    np.testing.assert_allclose(both[0, :, :4, :4], alone[0], rtol=1e-9, atol=1e-12)
    assert not both[0, :, :4, 4:].any()


def test_looking_changes_nothing_and_drops_nothing() -> None:
    model = make_model("encoder", dropout=0.5, **OPTIONS).train()
    before = model.dropout_counter.forwards
    first, second = (attention_weights(model, "Max ( 5 3 9 )")[1] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert model.dropout_counter.training and model.dropout_counter.forwards == before


def test_an_expression_that_the_task_lacks_is_refused() -> None:
    predictor = DigitPredictor(make_model("encoder", **OPTIONS), DigitTask(operations=("Max",)))
    assert expression_attention(predictor, "Max ( 1 2 3 )").readout == 0
    with pytest.raises(ValueError, match="unknown operation 'Min' for this task"):
        expression_attention(predictor, "Min ( 1 2 3 )")
    with pytest.raises(ValueError, match="wrong number of arguments"):
        expression_attention(predictor, "Max ( 1 2 )")


@pytest.mark.smoke
def test_entropy_is_relative_to_that_of_equal_weights() -> None:
    weights = np.array([[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25, 0.25, 0.25, 0.25]])
    np.testing.assert_allclose(relative_entropy(weights, 4), [0, 0.5, 1], atol=1e-12)
    causal = np.array([[1, 0, 0], [0.5, 0.5, 0], [0.5, 0.5, 0]])
    found = relative_entropy(causal, visible_tokens(3, causal=True))
    np.testing.assert_allclose(found, [0, 1, np.log(2) / np.log(3)], atol=1e-12)
    kinds = [kind_of(entropy) for entropy in (0.0, 0.47, 0.48, 0.96, 0.97, 1.0)]
    assert kinds == ["focused", "focused", "mixed", "mixed", "distributed", "distributed"]


def test_a_summary_leaves_out_rows_that_reach_no_answer() -> None:
    focused, equal = np.eye(4)[[2, 2, 2, 2]], np.full((4, 4), 0.25)
    mixed = np.concatenate([focused[:1], equal[1:]])
    tokens = ["Max", "(", "7", ")"]
    layers = [np.stack([focused, equal]), np.stack([mixed, equal])]
    found = head_summaries(ExpressionAttention(tokens, layers, readout=0))
    assert [(s.layer, s.head, s.kind) for s in found] == [
        (1, 1, "focused"),
        (1, 2, "distributed"),
        (2, 1, "focused"),
        (2, 2, "distributed"),
    ]
    assert found[2].looks_at[0] == (2, "7", 1.0)
    everywhere = head_summaries(ExpressionAttention(tokens, layers, readout=None))
    assert everywhere[2].kind == "mixed"
    assert everywhere[2].entropy == pytest.approx(0.75)


def test_roles_of_tokens_are_those_of_the_expression() -> None:
    tokens = [*"Max ( 1 2 , 7 , 1 2 )".split()]
    assert number_spans(tokens) == [(2, 4, 12), (5, 6, 7), (7, 9, 12)]
    places = {
        role: np.flatnonzero(flags).tolist()
        for role, flags in zip(TOKEN_ROLES, role_flags(tokens, 12), strict=True)
    }
    assert places == {
        "the operation": [0],
        "the largest number": [2, 3, 7, 8],
        "the smallest number": [5],
        "the first number": [2, 3],
        "the second number": [5],
        "the last number": [7, 8],
        "the answer": [2, 3, 7, 8],
        "punctuation": [1, 4, 6, 9],
    }


def planted(monkeypatch: pytest.MonkeyPatch, look, layers: int = 2, heads: int = 1) -> object:
    """Return a model of which each token (expression's ids, row, layer) looks at look(...)."""
    model = make_model("encoder", num_layers=layers, num_heads=heads, **OPTIONS)

    def attention(_: object, batch: ff.PackedBatch) -> list[np.ndarray]:
        found = np.full((layers, batch.num_sequences, heads, batch.longest, batch.longest), 0.0)
        for b, start in enumerate(batch.offsets[:-1]):
            tokens = [DIGIT_TOKENS[i] for i in batch.tokens[start : batch.offsets[b + 1]]]
            for layer in range(layers):
                for row in range(len(tokens)):
                    target = look(tokens, row, layer)
                    found[layer, b, :, row, : len(tokens)] = 0.1 / len(tokens)
                    found[layer, b, :, row, target] += 0.9
        return list(found)

    monkeypatch.setattr("fastformer.analysis.head_roles.batch_attention", attention)
    return model


EXPRESSIONS = [
    Expression(operation, arguments)
    for operation in ("Max", "Min")
    for arguments in ((5, 3, 9), (1, 8, 4), (7, 2, 6), (0, 4, 2))
]


def test_a_head_that_looks_at_the_answer_is_found_with_its_operations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def look(tokens: list[str], row: int, layer: int) -> int:
        if layer == 0:
            return max(row - 1, 0)
        numbers = [token for token in tokens if token.isdecimal()]
        return tokens.index(max(numbers) if tokens[0] == "Max" else min(numbers))

    first, last = head_roles(planted(monkeypatch, look), EXPRESSIONS)
    assert last.readout is not None and last.tokens is None
    assert (last.readout.best, last.readout.share) == ("the answer", 1.0)
    assert last.readout.clear
    largest, smallest = last.by_group["Max"], last.by_group["Min"]
    assert (largest.best, largest.share) == ("the largest number", 1.0)
    assert (smallest.best, smallest.share) == ("the smallest number", 1.0)
    assert smallest.shares["the largest number"] == 0.0
    assert first.tokens is not None and first.readout is not None
    assert (first.tokens.best, first.tokens.share) == ("the previous token", 1.0)
    assert (first.readout.best, first.readout.share) == ("the operation", 1.0)
    entropy = relative_entropy(np.array([0.9 + 0.1 / 8] + [0.1 / 8] * 7), 8)
    assert first.entropy == pytest.approx(float(entropy))


def test_part_of_the_examples_is_part_of_the_support(monkeypatch: pytest.MonkeyPatch) -> None:
    # Where the first number is 5, at the last number; else at the comma in position 3.
    model = planted(monkeypatch, lambda tokens, row, layer: 6 if tokens[2] == "5" else 3)
    support = head_roles(model, EXPRESSIONS)[-1].readout
    assert support is not None
    assert (support.shares["punctuation"], support.shares["the last number"]) == (0.75, 0.25)
    assert (support.shares[FIXED], support.position) == (0.75, 3)
    # Half of the tokens are punctuation, and one of eight is in position 3: that says more.
    assert (support.chance["punctuation"], support.chance[FIXED]) == (0.5, 0.125)
    assert (support.name, support.share, support.clear) == ("position 3", 0.75, True)
    assert support.text() == "position 3 75 %"


def test_a_head_without_a_habit_is_said_to_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    model = planted(
        monkeypatch,
        lambda tokens, row, layer: (row + int(tokens[2]) + int(tokens[6])) % 8,
        layers=1,
    )
    support = head_roles(model, EXPRESSIONS)[0].readout
    assert support is not None and not support.clear
    assert support.text().startswith("nothing clear (")
    always = planted(monkeypatch, lambda tokens, row, layer: 5, layers=1)
    support = head_roles(always, EXPRESSIONS)[0].readout
    assert support is not None and support.clear
    assert (support.name, support.share) == ("position 5", 1.0)
    assert support.as_json()["clear"] is True


def test_chance_is_the_part_of_the_tokens_that_play_a_role(monkeypatch: pytest.MonkeyPatch) -> None:
    model = planted(monkeypatch, lambda tokens, row, layer: 0)
    expressions = [Expression("Max", (5, 5, 9)), Expression("Max", (1, 2, 3))]
    support = head_roles(model, expressions)[-1].readout
    assert support is not None
    assert support.chance["the operation"] == 1 / 8
    assert support.chance["the smallest number"] == (2 / 8 + 1 / 8) / 2
    assert support.beyond_chance("the operation") == 1.0
    assert support.beyond_chance("the smallest number") < 0


def test_a_model_that_reads_the_mean_has_no_row_that_is_read_out() -> None:
    model = make_model("encoder", pooling="mean", **OPTIONS)
    assert token_attention(model, TOKENS).readout is None
    roles = head_roles(model, EXPRESSIONS)
    assert all(r.readout is None and r.tokens is not None and not r.by_group for r in roles)
    last = make_model("encoder", pooling="last", **OPTIONS)
    assert token_attention(last, TOKENS).readout == 7


def test_heads_of_a_decoder_look_from_the_last_token_and_never_ahead() -> None:
    model = make_model("decoder", **OPTIONS)
    roles = head_roles(model, EXPRESSIONS)
    assert len(roles) == 6
    for role in roles:
        assert role.readout is not None and "the next token" not in role.readout.shares
        assert role.tokens is None or "the next token" not in role.tokens.shares
    found = token_attention(model, TOKENS)
    assert (found.readout, found.causal) == (7, True)
    assert not np.triu(found.layers[0], 1).any()
    assert head_summaries(found)[0].entropy < 1.0
