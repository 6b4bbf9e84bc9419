"""Generation beyond what a model reads, stop sequences, several samples, and one at a time."""

import numpy as np
import pytest
from models import BACKENDS, make_model, make_sequences

import fastformer as ff
from fastformer.generation import Generated, generate, generate_stream
from fastformer.key_value_cache import KeyValueCache
from fastformer.random import generator
from fastformer.sampling import log_softmax

DRAWS = {"temperature": 1.5, "seed": 5}
EVERY = DRAWS | {"top_k": 9, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.2}


def by_hand(model, prompt, count, *, kept):
    """Go on greedily by full forwards; where there is no room, begin with the last `kept`."""
    read, tokens, total = list(prompt)[-model.config.max_seq_len :], [], 0.0
    for _ in range(count):
        if len(read) > model.config.max_seq_len:
            read = read[-kept:]
        scores = log_softmax(model.forward(ff.pack([read]))[-1:])[0]
        tokens.append(int(scores.argmax()))
        read, total = [*read, tokens[-1]], total + scores.max()
    return tokens, total


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary", "alibi"])
@pytest.mark.parametrize(("longest", "kept"), [(6, 3), (5, 2), (1, 1)])
def test_a_text_longer_than_the_model_goes_on(positions, longest, kept, backend):
    model = make_model("decoder", positions=positions, max_seq_len=longest, backend=backend)
    prompts = make_sequences((2, 9, 1, 6, 5))
    found = generate(model, prompts, max_new_tokens=17)
    for prompt, one in zip(prompts, found, strict=True):
        tokens, total = by_hand(model, prompt, 17, kept=kept)
        assert one.tokens == tokens
        assert one.log_probability == pytest.approx(total, rel=1e-9)
        assert one.cropped and not one.ended


def test_it_is_said_whether_anything_was_dropped():
    model = make_model("decoder")
    prompts = make_sequences((6, 7, 3, 4))
    cropped = [one.cropped for one in generate(model, prompts, max_new_tokens=1)]
    assert cropped == [False, True, False, False]
    cropped = [one.cropped for one in generate(model, prompts, max_new_tokens=4)]
    assert cropped == [True, True, False, True]


def test_a_text_depends_on_no_other_text():
    model = make_model("decoder", dtype="float32")
    prompts = make_sequences((2, 5, 1, 8, 3), seed=1)
    options = EVERY | {"max_new_tokens": 15, "end": 4, "stop": [[1, 2], [7]], "num_samples": 3}
    together = generate(model, prompts, **options)
    assert len({one.ended for one in together}) == 2
    for number in range(len(prompts)):
        # In its place, with others beside it, and none behind it.
        others = [[10]] * number + [prompts[number]]
        alone = generate(model, others, **options)
        assert alone[-3:] == together[3 * number : 3 * number + 3]
        fewer = generate(model, others, **options | {"num_samples": 1})
        assert fewer[-1] == together[3 * number]


def test_samples_of_a_prompt_differ_and_are_its_own():
    model = make_model("decoder")
    found = generate(model, [[1, 2], [3]], max_new_tokens=8, num_samples=4, **DRAWS)
    assert len(found) == 8
    assert len({tuple(one.tokens) for one in found}) == 8
    for one, prompt in zip(found, [[1, 2]] * 4 + [[3]] * 4, strict=True):
        if not one.cropped:
            scores = log_softmax(model.forward(ff.pack([[*prompt, *one.tokens[:-1]]])))
            rows = np.arange(len(one.tokens)) + len(prompt) - 1
            assert one.log_probability == pytest.approx(scores[rows, one.tokens].sum())


def test_calls_without_new_options_have_the_tokens_that_they_had():
    """As they were when each draw had a generator of its own."""
    model = make_model("decoder", max_seq_len=20)
    prompts = make_sequences((2, 3))
    cache, ids = KeyValueCache(model, 2), [[], []]
    logits = cache.extend(ff.pack(prompts))[[1, 4]]
    for place in range(12):
        for row in range(2):
            order = np.argsort(-logits[row], kind="stable")[:5]
            reached = np.cumsum(np.exp((logits[row, order] - logits[row, order[0]]) / 1.5))
            uniform = generator(3, "generation", row, place).random()
            ids[row].append(int(order[(reached <= uniform * reached[-1]).sum()]))
        logits = cache.extend(ff.pack([one[-1:] for one in ids]))
    found = generate(model, prompts, max_new_tokens=12, temperature=1.5, top_k=5, seed=3)
    assert [one.tokens for one in found] == ids


def test_a_stop_sequence_ends_a_text_and_is_left_out():
    model = make_model("decoder", max_seq_len=20)
    (free,) = generate(model, [[1]], max_new_tokens=12, **DRAWS)
    for first in range(3, 10):
        for length in (1, 2, 3):
            stop = free.tokens[first : first + length]
            places = [p for p in range(12) if free.tokens[p : p + length] == stop]
            options = {"max_new_tokens": 12, "stop": [[10, 10, 10, 10], stop], **DRAWS}
            (found,) = generate(model, [[1]], **options)
            assert found.tokens == free.tokens[: places[0]] and found.ended
            (whole,) = generate(
                model, [[1]], **options | {"stop": None, "max_new_tokens": places[0] + length}
            )
            assert found.log_probability == whole.log_probability


def test_the_prompt_is_no_part_of_a_stop_sequence():
    model = make_model("decoder")
    (free,) = generate(model, [[1]], max_new_tokens=3)
    both = [1, free.tokens[0]]
    assert both not in (free.tokens[:2], free.tokens[1:])
    assert generate(model, [[1]], max_new_tokens=3, stop=[both]) == [free]


def test_a_penalty_makes_tokens_that_were_seen_less_likely():
    model = make_model("decoder", max_seq_len=12)
    prompts = [[1, 2], [3]]
    plain = generate(model, prompts, max_new_tokens=10)
    assert generate(model, prompts, max_new_tokens=10, repetition_penalty=1.0) == plain
    # So large a penalty leaves a logit of nothing, and what is negative is never taken again.
    for prompt, one in zip(
        prompts, generate(model, prompts, max_new_tokens=4, repetition_penalty=1e6), strict=True
    ):
        assert len({*prompt, *one.tokens}) == len(prompt) + 4


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        DRAWS,
        EVERY,
        EVERY | {"end": 3},
        DRAWS | {"stop": [[3, 4], [5], [1, 1, 2]]},
        DRAWS | {"stop": [[2, 3, 4, 5, 6, 7]]},
    ],
    ids=str,
)
def test_a_stream_has_the_tokens_of_generate(options, backend):
    model = make_model("decoder", backend=backend)
    for seed in range(4):
        options = {"max_new_tokens": 20, **options, "seed": seed}
        (expected,) = generate(model, [[1, 2]], **options)
        stream = generate_stream(model, [1, 2], **options)
        assert iter(stream) is stream
        found = list(stream)
        assert found == expected.tokens
        assert all(type(token) is int for token in found)


def test_a_stream_gives_each_token_before_the_next_is_made():
    model = make_model("decoder")
    stream = generate_stream(model, [1, 2], max_new_tokens=2**31 - 1)
    first = [next(stream) for _ in range(15)]
    assert first == generate(model, [[1, 2]], max_new_tokens=15)[0].tokens


def test_a_stream_holds_back_what_may_be_a_stop():
    model = make_model("decoder", max_seq_len=20)
    (free,) = generate(model, [[1]], max_new_tokens=9, **DRAWS)
    stop = free.tokens[4:8]
    stream = generate_stream(model, [1], max_new_tokens=9, stop=[stop], **DRAWS)
    assert list(stream) == free.tokens[:4]
    # What is left of a stop at the end was none.
    short = generate_stream(model, [1], max_new_tokens=6, stop=[stop], **DRAWS)
    assert list(short) == free.tokens[:6]


def test_what_is_generated_is_not_cropped_unless_it_is_said():
    assert not Generated(tokens=[], log_probability=0.0, ended=False).cropped
