"""Generation: the cache's logits, greedy and drawn tokens, beams, and where sequences end."""

import itertools

import numpy as np
import pytest
from models import BACKENDS, make_model, make_sequences, same_bits

import fastformer as ff
from fastformer.generation import beam_search, generate
from fastformer.key_value_cache import KeyValueCache
from fastformer.sampling import log_softmax

CHUNKINGS = [(1, 1, 1, 1, 1, 1), (6,), (3, 2, 1), (1, 5)]
OPTIONS = [
    {},
    {"norm": "post", "positions": "sinusoidal", "tied_embeddings": False, "dropout": 0.5},
    {"positions": "rotary"},
    {"positions": "alibi"},
    {"positions": "rotary", "num_kv_heads": 1, "qkv_bias": True, "attention_output_bias": True},
    {"positions": "rotary", "num_kv_heads": 1, "qk_norm": True, "head_size": 6},
    {"embedding_norm": True, "ffn_bias": False, "norm_bias": False, "head_size": 5},
]
END = 4


def read_in_chunks(model, sequences, chunking):
    """Return the logits of all tokens, read a chunk of each sequence at a time, and the cache."""
    cache = KeyValueCache(model, len(sequences))
    parts, first = [[] for _ in sequences], 0
    for size in chunking:
        logits = cache.extend(ff.pack([ids[first : first + size] for ids in sequences]))
        for part, rows in zip(parts, logits.reshape(len(sequences), size, -1), strict=True):
            part.append(rows)
        first += size
    return np.concatenate([row for part in parts for row in part]), cache


@pytest.mark.parametrize("chunking", CHUNKINGS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", OPTIONS)
def test_the_cache_has_the_bits_of_the_full_forward(options, dtype, chunking):
    model = make_model("decoder", dtype=dtype, **options).eval()
    sequences = make_sequences((6, 6, 6))
    logits, cache = read_in_chunks(model, sequences, chunking)
    assert same_bits(logits, model.forward(ff.pack(sequences)))
    assert cache.lengths.tolist() == [6, 6, 6]
    # One weight that differs is seen: the comparison is not empty.
    weights = {name: value for name, value, _ in model.parameters()}
    weights["blocks.0.attention.value.weight"] *= 1.01
    assert not same_bits(logits, model.forward(ff.pack(sequences)))


@pytest.mark.parametrize("positions", ["learned", "rotary", "alibi"])
def test_a_wide_model_and_long_sequences_keep_the_bits(positions):
    sizes = {
        "positions": positions,
        "embed_dim": 64,
        "num_heads": 4,
        "ffn_dim": 256,
        "max_seq_len": 300,
    }
    model = make_model("decoder", dtype="float32", **sizes)
    sequences = make_sequences((290, 290))
    expected = model.forward(ff.pack(sequences))
    logits, _ = read_in_chunks(model, sequences, (131, 150, 1, 7, 1))
    assert same_bits(logits, expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", OPTIONS)
def test_the_last_rows_alone_have_the_bits_of_all(options, dtype):
    model = make_model("decoder", dtype=dtype, **options).eval()
    cache, whole = KeyValueCache(model, 3), KeyValueCache(model, 3)
    for lengths in ((3, 1, 2), (1, 1, 1), (2, 1, 3)):
        batch = ff.pack(make_sequences(lengths))
        logits = cache.extend(batch, last_only=True)
        assert same_bits(logits, whole.extend(batch)[np.cumsum(lengths) - 1])
    with pytest.raises(TypeError, match="last_only must be True or False, got 1"):
        cache.extend(ff.pack([[1]] * 3), last_only=1)


def test_a_sequence_that_is_forgotten_begins_anew_and_others_go_on():
    model = make_model("decoder")
    cache = KeyValueCache(model, 3)
    cache.extend(ff.pack([[1, 2, 3], [4, 5], [6]]))
    cache.forget([0, 2])
    assert cache.lengths.tolist() == [0, 2, 0]
    logits = cache.extend(ff.pack([[7, 8], [9], [10, 1, 2]]))
    expected = [model.forward(ff.pack([ids])) for ids in ([7, 8], [4, 5, 9], [10, 1, 2])]
    assert same_bits(logits, np.concatenate([expected[0], expected[1][-1:], expected[2]]))
    with pytest.raises(ValueError, match="sequences must be numbers from 0 to 2"):
        cache.forget([3])


@pytest.mark.parametrize("positions", ["learned", "rotary", "alibi"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_reference_agrees_up_to_rounding(dtype, positions):
    model = make_model("decoder", backend="reference", dtype=dtype, positions=positions)
    sequences = make_sequences((6, 6))
    logits, _ = read_in_chunks(model, sequences, (2, 3, 1))
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(logits, model.forward(ff.pack(sequences)), tolerance, tolerance)


@pytest.mark.parametrize("positions", ["learned", "rotary", "alibi"])
def test_a_selected_sequence_goes_on_as_it_would_alone(positions):
    model = make_model("decoder", positions=positions)
    sequences = make_sequences((4, 2, 3))
    cache = KeyValueCache(model, 3)
    cache.extend(ff.pack(sequences))
    cache.select([2, 0, 2])
    logits = cache.extend(ff.pack([[1, 2], [3], [5]]))
    expected = [(2, [1, 2], slice(0, 2)), (0, [3], slice(2, 3)), (2, [5], slice(3, 4))]
    for number, more, rows in expected:
        alone = model.forward(ff.pack([[*sequences[number], *more]]))
        assert same_bits(logits[rows], alone[len(sequences[number]) :])


def test_dropout_is_off_while_a_cache_reads_and_then_as_before():
    model = make_model("decoder", dropout=0.5).train()
    first = KeyValueCache(model, 1).extend(ff.pack([[1, 2]]))
    assert same_bits(first, KeyValueCache(model, 1).extend(ff.pack([[1, 2]])))
    assert model.dropout_counter.training


@pytest.mark.parametrize("backend", BACKENDS)
def test_greedy_takes_the_likeliest_token_each_time_alone_and_in_a_batch(backend):
    model = make_model("decoder", backend=backend)
    prompts = make_sequences((2, 1, 3))
    together = generate(model, prompts, max_new_tokens=3)
    for prompt, found in zip(prompts, together, strict=True):
        ids, total = list(prompt), 0.0
        for _ in range(3):
            scores = log_softmax(model.forward(ff.pack([ids]))[-1:])[0]
            ids.append(int(scores.argmax()))
            total += scores.max()
        assert found.tokens == ids[len(prompt) :]
        assert found.log_probability == pytest.approx(total, rel=1e-10)
        assert not found.ended
        (alone,) = generate(model, [prompt], max_new_tokens=3)
        assert alone.tokens == found.tokens


def test_a_sequence_ends_at_its_end_and_others_go_on():
    model = make_model("decoder")
    prompts = [[token] for token in range(11)]
    free = generate(model, prompts, max_new_tokens=5)
    produced = {token for one in free for token in one.tokens}
    end = min(produced, key=lambda token: sum(token in one.tokens for one in free))
    ended = [found.tokens.index(end) if end in found.tokens else None for found in free]
    assert 0 < ended.count(None) < len(ended)
    for found, whole, place in zip(
        generate(model, prompts, max_new_tokens=5, end=end), free, ended, strict=True
    ):
        assert found.tokens == whole.tokens[:place]
        assert found.ended == (place is not None)


def test_draws_depend_on_seed_prompt_and_place_alone():
    model = make_model("decoder")
    prompts = [[1]] * 8

    def tokens(seed, prompts=prompts):
        found = generate(model, prompts, max_new_tokens=4, temperature=2.0, seed=seed)
        return [one.tokens for one in found]

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)
    assert tokens(1)[:3] == tokens(1, prompts[:3])
    assert len(set(map(tuple, tokens(1)))) > 1


def test_one_likeliest_or_a_low_temperature_is_greedy():
    model = make_model("decoder")
    prompts = make_sequences((1, 2))
    greedy = generate(model, prompts, max_new_tokens=4)
    assert generate(model, prompts, max_new_tokens=4, temperature=5.0, top_k=1) == greedy
    assert generate(model, prompts, max_new_tokens=4, temperature=1e-9) == greedy


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_one_beam_is_greedy(seed):
    model = make_model("decoder", seed=seed)
    for prompt in make_sequences((1, 2, 3)):
        (greedy,) = generate(model, [prompt], max_new_tokens=3, end=END)
        (beam,) = beam_search(model, prompt, beams=1, max_new_tokens=3, end=END)
        assert beam.tokens == greedy.tokens
        assert beam.ended == greedy.ended
        assert beam.log_probability == pytest.approx(greedy.log_probability, rel=1e-12)


def all_ways(model, prompt, length, end):
    """Return (log probability, tokens) of every way to go on, by full forwards."""
    ways = []
    for count in range(length + 1):
        for ids in itertools.product(set(range(5)) - {end}, repeat=count):
            whole = [*ids] if count == length else [*ids, end]
            scores = log_softmax(model.forward(ff.pack([[*prompt, *whole]])))
            rows = np.arange(len(whole)) + len(prompt) - 1
            ways.append((scores[rows, whole].sum(), list(ids)))
    return sorted(ways, key=lambda way: -way[0])


@pytest.mark.parametrize(
    ("end", "positions"), [(END, "learned"), (1, "learned"), (END, "rotary"), (END, "alibi")]
)
def test_many_beams_find_the_best_of_all_ways(end, positions):
    model = make_model("decoder", vocab_size=5, positions=positions)
    ways = all_ways(model, [2, 3], 3, end)
    assert np.exp([way[0] for way in ways]).sum() == pytest.approx(1)
    found = beam_search(model, [2, 3], beams=125, max_new_tokens=3, end=end)
    assert [beam.tokens for beam in found] == [way[1] for way in ways]
    np.testing.assert_allclose([b.log_probability for b in found], [way[0] for way in ways])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "temperature must be a finite number > 0"),
        ({"temperature": -1.0}, "temperature must be a finite number > 0"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 1.0, "top_k": 0}, "top_k must be"),
        ({"temperature": 1.0, "top_k": 12}, "top_k must be"),
        ({"top_k": 3}, "got top_k=3 and no temperature: give a temperature too"),
        ({"top_p": 0.9}, "top_p=0.9 and no temperature"),
        ({"min_p": 0.1}, "min_p=0.1 and no temperature"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p must be a finite number > 0 and <= 1"),
        ({"temperature": 1.0, "top_p": 1.1}, "top_p must be a finite number > 0 and <= 1"),
        ({"temperature": 1.0, "min_p": -0.1}, "min_p must be a finite number >= 0 and <= 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be a finite number >= 1e-06"),
        ({"stop": [[]]}, "stop sequence 0 must have at least one token id"),
        ({"stop": [[1], [11]]}, r"stop sequence 1 must .* below vocab_size=11, got \[11\]"),
        ({"stop": [[-1]]}, "stop sequence 0 must be >= 0, got -1"),
        ({"num_samples": 0}, "num_samples must be"),
        ({"num_samples": 2}, "num_samples=2 are draws: give a temperature"),
        ({"max_new_tokens": 0}, "max_new_tokens must be"),
        ({"max_new_tokens": 2**31}, "max_new_tokens must be an integer from 1 to 2147483647"),
        ({"end": 11}, "end must be"),
        ({"seed": -1}, "seed must be"),
        ({"prompts": [[]]}, "empty"),
        ({"prompts": [[11]]}, "below vocab_size=11, got 11"),
    ],
)
def test_bad_arguments_are_named(options, message):
    model = make_model("decoder")
    given = {"prompts": [[1, 2]], "max_new_tokens": 2} | options
    prompts = given.pop("prompts")
    with pytest.raises(ValueError, match=message):
        generate(model, prompts, **given)
    if "num_samples" not in given:
        with pytest.raises(ValueError, match=message):
            ff.generate_stream(model, prompts[0], **given)  # at once, not at the first token


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "top_k": 1, "top_p": 0.5}])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_an_error(wrong, options):
    model = make_model("decoder", backend="reference")
    model.blocks[0].norm1.bias.value[0] = wrong
    with (
        np.errstate(all="ignore"),
        pytest.raises(ValueError, match="logits of this model are not finite"),
    ):
        generate(model, [[1]], max_new_tokens=2, **options)


@pytest.mark.parametrize("stop", ["12", 3, [3], [["a"]], [[0.5]]])
def test_stops_of_another_type_are_refused(stop):
    with pytest.raises(TypeError, match="stop .*must be .* got"):
        generate(make_model("decoder"), [[1]], max_new_tokens=1, stop=stop)


def test_other_models_caches_and_beams_are_refused():
    with pytest.raises(TypeError, match="needs a TransformerDecoder, got Transformer"):
        generate(make_model("encoder"), [[1]], max_new_tokens=1)
    model = make_model("decoder")
    with pytest.raises(ValueError, match="beams must be"):
        beam_search(model, [1], beams=0, max_new_tokens=1)
    with pytest.raises(ValueError, match="of 10 tokens is 4 longer than max_seq_len=6"):
        beam_search(model, [1, 2], beams=2, max_new_tokens=9)
    cache = KeyValueCache(model, 2)
    with pytest.raises(ValueError, match="the cache's 2 sequences, got 1"):
        cache.extend(ff.pack([[1]]))
    with pytest.raises(TypeError, match="must be a PackedBatch"):
        cache.extend([[1]])
    with pytest.raises(ValueError, match="from 0 to 1"):
        cache.select([2])
