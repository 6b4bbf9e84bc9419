"""Draws: what the filters leave, as `transformers` has it, and the random numbers."""

import numpy as np
import pytest

from fastformer.random import first_numbers, generator
from fastformer.sampling import Sampling, log_probabilities, log_softmax

# Each filter alone, and all of them: the order matters.
SETTINGS = [
    {},
    {"temperature": 0.5},
    {"top_k": 3},
    {"top_k": 1},
    {"top_p": 0.7},
    {"top_p": 1e-9},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"repetition_penalty": 1.7},
    {"repetition_penalty": 0.6},
    {"temperature": 1.7, "top_k": 9, "top_p": 0.8, "min_p": 0.12, "repetition_penalty": 1.3},
    {"temperature": 0.7, "top_k": 300, "top_p": 0.95, "min_p": 0.01},
]


def probabilities(sampling, logits, seen):
    """Return what a token of each row is drawn by, (B, V) in the order of ids."""
    order, weights = sampling.weights(sampling.penalized(logits, seen))
    found = np.zeros(logits.shape)
    np.put_along_axis(found, order, weights / weights.sum(axis=1, keepdims=True), axis=1)
    return found


def some_logits(vocab_size, rows=5):
    """Return logits (B, V) with no equals, texts (B, 6), and what tokens these have, (B, V)."""
    random = np.random.default_rng(vocab_size)
    logits = 3 * random.standard_normal((rows, vocab_size))
    texts = random.integers(0, vocab_size, (rows, 6))
    seen = np.zeros((rows, vocab_size), bool)
    np.put_along_axis(seen, texts, True, axis=1)
    return logits, texts, seen


def softmax(logits):
    exps = np.exp(logits - logits.max())
    return exps / exps.sum()


def filtered(logits, text, *, temperature=1.0, top_k=None, top_p=1.0, min_p=0.0,
             repetition_penalty=1.0):  # fmt: skip
    """Return the probabilities of one row by the definitions, a token at a time."""
    logits = list(logits)
    for token in set(text):
        negative = logits[token] < 0
        logits[token] *= repetition_penalty if negative else 1 / repetition_penalty
    logits = np.array(logits) / temperature
    logits[logits < sorted(logits)[-(top_k or len(logits))]] = -np.inf
    shares = softmax(logits)
    for token, share in enumerate(shares):
        if shares[shares > share].sum() >= top_p:
            logits[token] = -np.inf
    shares = softmax(logits)
    logits[shares < min_p * shares.max() * (1 - 1e-12)] = -np.inf
    return softmax(logits)


@pytest.mark.parametrize("vocab_size", [13, 4000])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_filters_leave_what_their_definitions_say(settings, vocab_size):
    settings = settings | {"top_k": min(settings.get("top_k") or vocab_size, vocab_size)}
    logits, texts, seen = some_logits(vocab_size)
    found = probabilities(Sampling(**{"temperature": 1.0} | settings), logits, seen)
    for row, text, shares in zip(logits, texts, found, strict=True):
        np.testing.assert_allclose(shares, filtered(row, text, **settings), 1e-9, 1e-15)


@pytest.mark.needs("transformers")
@pytest.mark.parametrize("vocab_size", [13, 4000])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_filters_leave_what_transformers_leaves(settings, vocab_size):
    import torch
    from transformers.generation import logits_process as theirs

    names = {
        "repetition_penalty": theirs.RepetitionPenaltyLogitsProcessor,
        "temperature": theirs.TemperatureLogitsWarper,
        "top_k": theirs.TopKLogitsWarper,
        "top_p": theirs.TopPLogitsWarper,
        "min_p": theirs.MinPLogitsWarper,
    }
    if "top_k" in settings:
        settings = settings | {"top_k": min(settings["top_k"], vocab_size)}
    logits, texts, seen = some_logits(vocab_size)
    processors = [make(settings[name]) for name, make in names.items() if name in settings]
    expected = torch.tensor(logits)
    for processor in processors:
        expected = processor(torch.tensor(texts), expected)
    expected = torch.softmax(expected, dim=1).numpy()
    found = probabilities(Sampling(**{"temperature": 1.0} | settings), logits, seen)
    np.testing.assert_allclose(found, expected, 1e-9, 1e-15)


@pytest.mark.needs("transformers")
def test_transformers_has_the_filters_in_the_same_order():
    import transformers
    from transformers.generation.logits_process import LogitsProcessorList

    config = transformers.GPT2Config(n_layer=1, n_head=1, n_embd=4, vocab_size=9, n_positions=8)
    model = transformers.GPT2LMHeadModel(config)
    given = SETTINGS[-2]
    settings = transformers.GenerationConfig(do_sample=True, num_beams=1, **given)
    found = model._get_logits_processor(settings, 1, None, None, LogitsProcessorList())
    names = [type(processor).__name__ for processor in found]
    assert [name.split("Logits")[0] for name in names] == [
        "RepetitionPenalty", "Temperature", "TopK", "TopP", "MinP",
    ]  # fmt: skip


def test_of_equals_the_smaller_ids_go_first():
    logits = np.zeros((2, 100))
    logits[0, 50], logits[1, [3, 70]] = 1, 2
    for top_k in (4, 60):  # of many tokens, and of few
        order, _ = Sampling(temperature=1.0, top_k=top_k).weights(logits)
        assert order[:, :4].tolist() == [[50, 0, 1, 2], [3, 70, 0, 1]]
        assert order.shape == (2, top_k)


def test_draws_have_the_frequencies_of_the_weights():
    logits = np.array([0.0, 2.0, 1.0, -3.0])
    uniform = (np.arange(20_000) + 0.5) / 20_000
    rows = np.tile(logits, (uniform.size, 1))
    for settings in ({}, {"temperature": 0.5, "top_k": 3}, {"top_p": 0.8}, {"min_p": 0.2}):
        sampling = Sampling(**{"temperature": 1.0} | settings)
        shares = np.bincount(sampling.draw(rows, uniform), minlength=4) / uniform.size
        expected = probabilities(sampling, logits[None], np.zeros((1, 4), bool))[0]
        np.testing.assert_allclose(shares, expected, atol=1e-4)


def test_the_largest_number_draws_one_that_is_left():
    logits = np.random.default_rng(0).standard_normal((500, 30))
    uniform = np.full(500, 1 - 2.0**-53)
    sampling = Sampling(temperature=1.0, top_p=0.5)
    chosen, (order, weights) = sampling.draw(logits, uniform), sampling.weights(logits)
    assert (weights[order == chosen[:, None]] > 0).all()


@pytest.mark.parametrize("vocab_size", [1, 7, 40_000])
def test_the_score_of_a_chosen_token_is_that_of_all(vocab_size):
    random = np.random.default_rng(0)
    logits = random.standard_normal((4, vocab_size)).astype(np.float32)
    chosen = random.integers(0, vocab_size, 4)
    found = log_probabilities(logits, chosen)
    assert found.tolist() == log_softmax(logits)[np.arange(4), chosen].tolist()


@pytest.mark.parametrize("seed", [0, 7, 2**31 + 5, 2**40 + 3, 2**64 - 1])
def test_many_numbers_at_once_are_those_of_generators(seed):
    rows, places = np.array([0, 3, 2**32 - 1]), np.array([0, 1, 255, 256])
    samples = np.array([[0], [1], [2]])
    found = first_numbers(seed, "generation", rows[:, None], places)
    further = first_numbers(seed, "generation", rows[:, None], places, samples)
    for i, row in enumerate(rows.tolist()):
        for j, place in enumerate(places.tolist()):
            assert found[i, j] == generator(seed, "generation", row, place).random()
            assert further[i, j] == generator(seed, "generation", row, place, i).random()
    assert first_numbers(seed, "purpose").tolist() == [generator(seed, "purpose").random()]
