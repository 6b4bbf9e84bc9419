"""Several threads of Python and one model: each gets its right answer, or an error that says so.

No test waits for a race: who comes in between, and where, is fixed by the order of the calls.
"""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from models import (
    dlogits_for,
    make_batch,
    make_model,
    make_sequences,
    same_bits,
    use_one_thread,
)

import fastformer as ff
from fastformer import thread_safety
from fastformer.errors import FastformerError, NotForwardedError, OtherThreadError
from fastformer.generation import generate
from fastformer.key_value_cache import KeyValueCache

KINDS = ("encoder", "decoder")
LENGTHS = [(3, 1, 5, 2), (1,), (2, 2), (6, 4, 1, 1, 3), (5,) * 7]


def elsewhere(work):
    """Do work in another thread, which lives until the test is over; return its result."""

    def alone():
        use_one_thread()
        return work()

    return POOL.submit(alone).result()


@pytest.fixture(autouse=True)
def _another_thread():
    global POOL
    with ThreadPoolExecutor(1) as POOL:
        elsewhere(lambda: None)
        yield


def of_all(work, arguments, workers=4):
    """Do work for each argument in some threads at once; return the results in order."""
    with ThreadPoolExecutor(workers, initializer=use_one_thread) as pool:
        return list(pool.map(work, arguments))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"norm_type": "rmsnorm"}])
def test_threads_that_ask_one_model_get_their_own_answers(kind, options):
    model = make_model(kind, dtype="float32", **options)
    batches = [make_batch(lengths, seed) for seed, lengths in enumerate(LENGTHS)]
    right = [model.forward(batch) for batch in batches]
    asked = [*range(len(batches))] * 40
    answers = of_all(lambda index: model.forward(batches[index]), asked)
    for index, answer in zip(asked, answers, strict=True):
        assert same_bits(answer, right[index])


def test_threads_that_generate_with_one_model():
    model = make_model("decoder", dtype="float32")
    prompts = make_sequences((2, 1, 3, 2, 1), seed=4)
    options = {"max_new_tokens": 3, "temperature": 1.0}
    right = [generate(model, [prompt], **options) for prompt in prompts]
    asked = [*range(len(prompts))] * 8
    answers = of_all(lambda index: generate(model, [prompts[index]], **options), asked)
    assert answers == [right[index] for index in asked]


@pytest.mark.parametrize("kind", KINDS)
def test_one_thread_trains_while_others_ask(kind):
    """Steps have the bits of a training alone: neither dropout nor what is kept is disturbed."""
    batch = make_batch()
    targets = np.arange(len(batch) if kind == "encoder" else batch.num_tokens) % 3
    results = []
    for askers in (0, 3):
        model = make_model(kind, dtype="float32", dropout=0.3).train()
        loss, optimizer = ff.CrossEntropyLoss(), ff.Adam(model.parameters())
        trained = threading.Event()

        def ask(_, model=model, loss=loss, trained=trained):
            found = 0
            while not (trained.is_set() and found):
                found += ff.evaluate(model, batch, targets, loss).loss > 0
                if kind == "decoder":
                    generate(model, [[1]], max_new_tokens=2)

        def train(model=model, loss=loss, optimizer=optimizer, trained=trained):
            try:
                for _ in range(20):
                    ff.train_step(model, batch, targets, loss, optimizer)
            finally:
                trained.set()

        with ThreadPoolExecutor(4, initializer=use_one_thread) as pool:
            asking = [pool.submit(ask, number) for number in range(askers)]
            pool.submit(train).result()
            for future in asking:
                future.result()
        assert model.dropout_counter.training
        results.append(model.state_dict())
    assert same_bits(*results)


def test_threads_that_train_models_of_their_own_may_share_a_loss():
    loss = ff.CrossEntropyLoss()
    logits = [np.random.default_rng(n).standard_normal((3, 5)).astype(np.float32) for n in (0, 1)]
    targets = np.array([1, 2, 3])
    expected = loss.forward(logits[0], targets), loss.backward()
    loss.forward(logits[0], targets)
    other = elsewhere(lambda: loss.forward(logits[1], targets))
    assert loss.value == expected[0] != other
    assert same_bits(loss.backward(), expected[1])
    with pytest.raises(NotForwardedError, match="no forward in this thread"):
        _ = ff.CrossEntropyLoss().value


@pytest.mark.parametrize("kind", KINDS)
def test_a_forward_that_comes_between_forward_and_backward_is_an_error(kind):
    model, batch = make_model(kind, dtype="float32"), make_batch()
    logits = model.forward(batch)
    dlogits = dlogits_for(logits)
    model.backward(dlogits)
    expected = model.grad_dict()
    elsewhere(lambda: model.forward(make_batch(seed=9)))
    with pytest.raises(OtherThreadError, match="last forward was another thread's"):
        model.backward(dlogits)
    assert same_bits(model.grad_dict(), expected), "gradients were changed"
    # It is not that thread's fault, which goes on.
    elsewhere(lambda: model.backward(dlogits))
    model.zero_grad()
    model.forward(batch)
    model.backward(dlogits)
    assert same_bits(model.grad_dict(), expected)


LAYERS = {
    "Linear": (lambda: ff.Linear(8, 8), False),
    "ReLU": (ff.ReLU, False),
    "Softmax": (ff.Softmax, False),
    "Dropout": (lambda: ff.Dropout(0.5), False),
    "LayerNorm": (lambda: ff.LayerNorm(8), False),
    "RMSNorm": (lambda: ff.RMSNorm(8), False),
    "FeedForward": (lambda: ff.FeedForward(8, 8), False),
    "PositionalEncoding": (lambda: ff.PositionalEncoding(8, 6), True),
    "MultiHeadAttention": (lambda: ff.MultiHeadAttention(8, 2), True),
    "TransformerBlock": (
        lambda: ff.TransformerBlock(
            ff.TransformerConfig(vocab_size=3, embed_dim=8, num_heads=2, ffn_dim=8)
        ),
        True,
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_by_itself_is_for_one_thread(name):
    use_one_thread()
    make, has_batch = LAYERS[name]
    layer, batch = make(), make_batch()
    x = np.random.default_rng(0).standard_normal((batch.num_tokens, 8)).astype(np.float32)
    more = (batch,) if has_batch else ()
    out = layer.forward(x, *more)
    kept = out.copy()
    for work in (lambda: layer.forward(x, *more), lambda: layer.backward(x)):
        with pytest.raises(OtherThreadError, match=r"copy\.deepcopy"):
            elsewhere(work)
    assert same_bits(out, kept)
    expected = layer.backward(x).copy()
    copied = copy.deepcopy(layer)

    def on_a_copy():
        return copied.forward(x, *more).copy(), copied.backward(x).copy()

    found = elsewhere(on_a_copy)
    assert same_bits(found[0], kept) and same_bits(found[1], expected)


def test_a_layer_of_a_thread_that_is_over_is_free():
    layer, x = ff.Linear(4, 4), np.ones((2, 4), np.float32)
    thread = threading.Thread(target=lambda: (use_one_thread(), layer.forward(x)))
    thread.start()
    thread.join()
    layer.forward(x)
    with pytest.raises(OtherThreadError):
        elsewhere(lambda: layer.forward(x))


def test_a_layer_of_a_model_that_one_thread_uses_by_itself():
    model, batch = make_model("encoder"), make_batch()
    right = model.forward(batch)
    x = np.ones((batch.num_tokens, 12))
    out = model.blocks[0].forward(x, batch)
    kept = out.copy()
    for work in (
        lambda: model.forward(batch),
        lambda: model.blocks[1].forward(x, batch),
        lambda: model.blocks[0].attention.weights(),
    ):
        with pytest.raises(OtherThreadError):
            elsewhere(work)
    assert same_bits(out, kept)
    # A pass of the whole model overwrites the buffer, so it is no longer kept for its thread.
    assert same_bits(model.forward(batch), right)
    assert same_bits(elsewhere(lambda: model.forward(batch)), right)


def test_an_error_leaves_the_model_to_others():
    model, batch = make_model("decoder"), make_batch()
    right = model.forward(batch)
    for wrong in (ff.pack([[10**6]]), "x"):
        with pytest.raises(FastformerError):
            model.forward(wrong)
        with pytest.raises(FastformerError):
            KeyValueCache(model, 1).extend(wrong)
    assert same_bits(elsewhere(lambda: model.forward(batch)), right)


def test_a_forked_process_forgets_threads_that_it_has_not():
    guard, held, over = thread_safety.ThreadGuard(), threading.Event(), threading.Event()

    def hold():
        with guard:
            held.set()
            over.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    lock = guard.lock
    guard.reset_in_child()
    with guard:
        assert guard.holder == threading.get_ident()
        guard.reset_in_child()
        assert guard.holder, "the thread that forks is in the child too"
    over.set()
    guard.lock = lock  # in one process, both threads leave
    thread.join()
