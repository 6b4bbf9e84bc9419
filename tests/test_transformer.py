"""Both models: gradients with every option, backends, weights, buffers, determinism, learning."""

import hashlib

import numba
import numpy as np
import pytest
from models import (
    BACKENDS,
    KINDS,
    LARGE_LENGTHS,
    SIZES,
    assert_equal_gradients,
    assert_parameter_gradients,
    dlogits_for,
    forward_and_backward,
    large_model,
    make_batch,
    make_config,
    make_model,
    make_sequences,
    same_bits,
)
from twins import called

import fastformer as ff
from fastformer.errors import FastformerError, InvalidTypeError, InvalidValueError
from fastformer.kernels._blocks import task_grid
from fastformer.kernels._rows import row_tasks

row_tasks, task_grid = map(called, (row_tasks, task_grid))

TWO_OPTIONS = {
    "norm": "pre",
    "activation": "gelu",
    "qkv_bias": True,
    "attention_output_bias": True,
    "dropout": 0.3,
}
OPTIONS = {
    "encoder": [
        {},
        {"norm": "pre"},
        {"norm_type": "rmsnorm"},
        {"activation": "gelu"},
        {"activation": "gelu_exact"},
        {"activation": "mish"},
        {"activation": "swiglu"},
        {"activation": "geglu"},
        {"positions": "learned"},
        {"positions": "rotary"},
        {"positions": "rotary", "pooling": "last", **TWO_OPTIONS},
        {"positions": "alibi"},
        {"positions": "alibi", "pooling": "last", **TWO_OPTIONS},
        {"pooling": "mean"},
        {"pooling": "last"},
        {"num_classes": 3},
        {"num_classes": 17, "pooling": "mean"},
        {"pooling": "none"},
        {"pooling": "none", "num_classes": 4, "positions": "rotary", **TWO_OPTIONS},
        {"qkv_bias": True, "attention_output_bias": True},
        {"dropout": 0.3},
        {"num_layers": 1, "num_heads": 1},
        {"num_layers": 3, "num_heads": 12, "embed_dim": 12},
        *({"pooling": pooling, **TWO_OPTIONS} for pooling in ("first", "mean", "last")),
        {"pooling": "mean", "norm": "pre", "num_layers": 1},
        {"norm": "pre", "norm_type": "rmsnorm", "activation": "swiglu", "dropout": 0.3},
    ],
    "decoder": [
        {},
        {"tied_embeddings": False},
        {"norm": "post"},
        {"activation": "relu"},
        {"activation": "mish"},
        {"norm_type": "rmsnorm", "activation": "swiglu", "dropout": 0.3},
        {"positions": "sinusoidal"},
        {"positions": "rotary"},
        {"positions": "alibi"},
        {"qkv_bias": True, "attention_output_bias": True},
        {"dropout": 0.3},
        {
            "norm": "post",
            "dropout": 0.3,
            "tied_embeddings": False,
            "qkv_bias": True,
            "attention_output_bias": True,
        },
        {"num_layers": 1, "num_heads": 1},
    ],
}
CASES = [(kind, options) for kind in KINDS for options in OPTIONS[kind]]


def trained_mode(model):
    return model.train() if model.config.dropout else model


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_gradients(kind, options):
    """A random direction through all parameters, and one through each of them.

    Those of the twins are held to the compiled ones below.
    """
    model, batch = trained_mode(make_model(kind, **options)), make_batch()
    logits, _ = forward_and_backward(model, batch)
    weights = dlogits_for(logits)

    def loss():
        model.dropout_counter.forwards = 5
        return float(np.vdot(weights, model.forward(batch)))

    assert_parameter_gradients(model, loss)


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_gradient_is_noticed(kind):
    """Each tensor's gradient, off by a hundred-thousandth, fails the check above."""
    model, batch = make_model(kind, num_layers=1), make_batch()
    logits, _ = forward_and_backward(model, batch)
    weights = dlogits_for(logits)
    for name, _, gradient in model.parameters():
        right = gradient.copy()
        gradient *= 1 + 1e-5
        with pytest.raises(AssertionError, match=rf"Not equal to tolerance(.|\n)*\n({name}|all)"):
            assert_parameter_gradients(model, lambda: float(np.vdot(weights, model.forward(batch))))
        gradient[...] = right


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-4), ("float64", 1e-11)])
@pytest.mark.parametrize(("kind", "options"), CASES)
def test_backends_agree(kind, options, dtype, rtol):
    found, expected = (
        forward_and_backward(
            trained_mode(make_model(kind, backend=backend, dtype=dtype, **options)),
            make_batch(),
        )
        for backend in BACKENDS
    )
    np.testing.assert_allclose(found[0], expected[0], rtol, rtol)
    assert_equal_gradients(found[1], expected[1], rtol, 10 * rtol)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_accumulate_and_are_zeroed(kind, backend):
    model = make_model(kind, backend=backend)
    logits, once = forward_and_backward(model, make_batch())
    dlogits = dlogits_for(logits)
    given = dlogits.copy()
    model.backward(dlogits)
    assert same_bits(dlogits, given)
    assert_equal_gradients(model.grad_dict(), {k: 2 * v for k, v in once.items()}, 1e-12, 1e-14)
    # Two halves of a batch add up to the whole.
    model.zero_grad()
    assert not model.parameters().gradients.any()
    model.zero_grad()
    _, whole = forward_and_backward(model, make_batch(), forwards=5)
    assert same_bits(whole, once)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_two_batches_add_up(kind):
    model, lengths = make_model(kind), (3, 1, 5, 2)
    batch = make_batch(lengths)
    logits, whole = forward_and_backward(model, batch)
    dlogits = dlogits_for(logits)
    model.zero_grad()
    for part in (np.arange(1), np.arange(1, 4)):
        selected = batch.select(part)
        rows = part
        if kind == "decoder":
            rows = np.arange(batch.offsets[part[0]], batch.offsets[part[-1] + 1])
        np.testing.assert_allclose(model.forward(selected), logits[rows], 1e-11, 1e-12)
        model.backward(dlogits[rows])
    assert_equal_gradients(model.grad_dict(), whole, 1e-10, 1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_the_caller_s_own(kind):
    model = make_model(kind)
    logits = model.forward(make_batch())
    kept = logits.copy()
    model.forward(make_batch(seed=1))
    assert same_bits(logits, kept)
    logits[...] = np.nan
    assert np.isfinite(model.forward(make_batch())).all()


def parameter_hash(kind, threads, steps=20):
    model, batch = large_model(kind), make_batch(LARGE_LENGTHS)
    numba.set_num_threads(threads)
    loss_fn, optimizer = ff.CrossEntropyLoss(), ff.Adam(model.parameters(), lr=1e-3)
    rows = batch.num_sequences if kind == "encoder" else batch.num_tokens
    targets = np.random.default_rng(0).integers(0, SIZES["vocab_size"], rows)
    for _ in range(steps):
        model.zero_grad()
        loss_fn.forward(model.forward(batch), targets)
        model.backward(loss_fn.backward())
        ff.clip_gradients(model.parameters(), 1.0)
        optimizer.step()
    assert np.isfinite(model.parameters().values).all()
    return hashlib.sha256(model.parameters().values.tobytes()).hexdigest()


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_threads_changes_no_bit(kind):
    tokens = sum(LARGE_LENGTHS)
    for rows, columns, depth in [(tokens, 256, 64), (tokens, 64, 256), (64, 256, tokens)]:
        assert np.prod(task_grid(rows, columns, depth, 32)) >= 4
    assert row_tasks(tokens, 64) >= 4
    hashes = [parameter_hash(kind, threads) for threads in (1, 2, 3, 4)]
    assert len(set(hashes)) == 1
    assert parameter_hash(kind, 1, steps=1) != hashes[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([[1, 2], [3]], InvalidTypeError, r"given a PackedBatch, got list; .*fastformer.pack"),
        (np.zeros((2, 3), int), InvalidTypeError, r"given a PackedBatch, got ndarray"),
        (None, InvalidTypeError, r"given a PackedBatch, got NoneType"),
        (ff.pack([[1, 2], [3, 11]]), InvalidValueError, r"vocab_size=11, got 11 at token 3"),
        (ff.pack([[1, 2**62], [3]]), InvalidValueError, rf"vocab_size=11, got {2**62} at token 1"),
        (ff.pack([[1], [1] * 9]), InvalidValueError, r"9 tokens is 3 longer than max_seq_len=6"),
    ],
)
def test_forward_refuses(kind, given, error, message):
    with pytest.raises(error, match=message):
        make_model(kind).forward(given)


@pytest.mark.parametrize("kind", KINDS)
def test_backward_before_forward_is_refused(kind):
    with pytest.raises(FastformerError, match="forward"):
        make_model(kind).backward(np.zeros((2, 11)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda d: d[1:].copy(), InvalidValueError),
        (lambda d: d[:, 1:].copy(), InvalidValueError),
        (lambda d: d[0], InvalidValueError),
        (lambda d: d.astype("float32"), InvalidTypeError),
        (lambda d: np.asfortranarray(d), InvalidValueError),
        (lambda d: d.tolist(), InvalidTypeError),
        (lambda d: None, InvalidTypeError),
    ],
)
def test_backward_refuses(kind, change, error):
    model = make_model(kind, backend="reference")
    dlogits = np.zeros_like(model.forward(make_batch()))
    rows = len(dlogits)
    with pytest.raises(error, match=rf"dlogits must be .*\({rows}, 11\) float64"):
        model.backward(change(dlogits))
    assert not model.parameters().gradients.any()


@pytest.mark.smoke
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_hundred_thousand_parameters(backend):
    """llmlearn's sizes: 102,036 in 27 arrays, each of its shape."""
    model = ff.Transformer(ff.TransformerConfig(vocab_size=20), backend=backend)
    assert model.num_parameters == 102_036
    block = {f"attention.{name}.weight": (64, 64) for name in ("query", "key", "value", "output")}
    block |= {f"{norm}.{name}": (64,) for norm in ("norm1", "norm2") for name in ("weight", "bias")}
    block |= {"feed_forward.expand.weight": (64, 256), "feed_forward.expand.bias": (256,)}
    block |= {"feed_forward.contract.weight": (256, 64), "feed_forward.contract.bias": (64,)}
    shapes = {f"blocks.{i}.{name}": shape for i in (0, 1) for name, shape in block.items()}
    shapes |= {"embedding.weight": (20, 64), "output.weight": (64, 20), "output.bias": (20,)}
    weights = model.state_dict()
    assert {name: value.shape for name, value in weights.items()} == shapes
    assert len(shapes) == 27
    assert all((weights[name] == 0).all() for name in shapes if name.endswith("bias"))
    assert all((weights[f"blocks.{i}.norm{j}.weight"] == 1).all() for i in (0, 1) for j in (1, 2))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_pad_width_never_matters(kind, dtype):
    """Whatever stands in the padding, and however wide it is, all bits are the same."""
    model, lengths = make_model(kind, dtype=dtype), [3, 1, 5, 2]
    sequences = make_sequences(lengths)
    expected = forward_and_backward(model, ff.pack(sequences))
    for width, garbage in [(5, 0), (6, 10), (9, -1), (50, 2**62)]:
        padded = np.full((4, width), garbage)
        for row, sequence in zip(padded, sequences, strict=True):
            row[: len(sequence)] = sequence
        found = forward_and_backward(model, ff.pack(padded, lengths))
        assert same_bits(found[0], expected[0]) and same_bits(found[1], expected[1])


def logits_of_each(model, sequences):
    """Return the logits of each sequence."""
    batch = ff.pack(sequences)
    logits = model.forward(batch)
    pooled = getattr(model.config, "pooling", "none") != "none"
    return np.split(logits, range(1, len(sequences)) if pooled else batch.offsets[1:-1])


@pytest.mark.parametrize("pooling", ["first", "mean", "last", "none", None])
def test_other_sequences_never_matter(rng, pooling):
    """Alone or at any place in a batch a sequence gives the same, and others change no bit."""
    kind = "encoder" if pooling else "decoder"
    model = make_model(kind, **({"pooling": pooling} if pooling else {}))
    sequences = make_sequences((3, 1, 5, 2, 6))
    expected = logits_of_each(model, sequences)
    for index, sequence in enumerate(sequences):
        (alone,) = logits_of_each(model, [sequence])
        np.testing.assert_allclose(alone, expected[index], 1e-11, 1e-12)
        others = [rng.integers(0, 11, len(ids)).tolist() for ids in sequences]
        others[index] = sequence
        assert same_bits(logits_of_each(model, others)[index], expected[index])
    order = rng.permutation(len(sequences))
    shuffled = logits_of_each(model, [sequences[i] for i in order])
    for place, index in enumerate(order):
        np.testing.assert_allclose(shuffled[place], expected[index], 1e-11, 1e-12)


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-4), ("float64", 1e-9)])
@pytest.mark.parametrize("kind", KINDS)
def test_both_backends_learn_alike(kind, dtype, rtol):
    """Losses of 50 steps."""
    trajectories = []
    for backend in BACKENDS:
        model_class = ff.Transformer if kind == "encoder" else ff.TransformerDecoder
        model = model_class(make_config(kind), seed=2, backend=backend, dtype=dtype)
        loss_fn = ff.CrossEntropyLoss(backend=backend)
        optimizer = ff.Adam(model.parameters(), lr=1e-3)
        losses = []
        for step in range(50):
            batch = make_batch((3, 1, 5, 2, 4), seed=step % 4)
            logits = model.forward(batch)
            targets = np.random.default_rng(step % 4).integers(0, 11, len(logits))
            losses.append(loss_fn.forward(logits, targets))
            model.zero_grad()
            model.backward(loss_fn.backward())
            optimizer.step()
        trajectories.append(losses)
    np.testing.assert_allclose(*trajectories, rtol=rtol)
    assert trajectories[0][-1] < trajectories[0][0] - 0.1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{}, TWO_OPTIONS | {"dropout": 0.0, "pooling": "mean"}])
def test_an_encoder_learns_ten_examples_by_heart(backend, options):
    config = make_config("encoder", **options)
    model = ff.Transformer(config, seed=1, backend=backend)
    batch = make_batch((3, 1, 5, 2, 4, 6, 3, 3, 5, 4), seed=3)
    targets = np.arange(10)
    loss_fn, optimizer = ff.CrossEntropyLoss(backend=backend), ff.Adam(model.parameters(), lr=1e-2)
    first = ff.evaluate(model, batch, targets, loss_fn)
    for _ in range(100):
        ff.train_step(model, batch, targets, loss_fn, optimizer)
    last = ff.evaluate(model, batch, targets, loss_fn)
    assert first.accuracy < 0.5 and last.accuracy == 1 and last.loss < 0.05


@pytest.mark.smoke
@pytest.mark.parametrize("backend", BACKENDS)
def test_classes_are_other_than_token_ids(backend):
    model = make_model("encoder", backend=backend, num_classes=3)
    batch, targets = make_batch(), [2, 0, -1, 1]
    assert model.forward(batch).shape == (4, 3)
    loss_fn = ff.CrossEntropyLoss(weight=[1, 2, 0.5], backend=backend)
    optimizer = ff.Adam(model.parameters(), lr=1e-2)
    first = ff.train_step(model, batch, targets, loss_fn, optimizer)
    np.testing.assert_allclose(first.loss, loss_fn.forward(make_model(
        "encoder", backend=backend, num_classes=3).forward(batch), targets), 1e-12)  # fmt: skip
    assert ff.evaluate(model, batch, targets, loss_fn).loss < first.loss
    with pytest.raises(InvalidValueError, match="from 0 to 2, .* got 3 at index 1"):
        ff.train_step(model, batch, [0, 3, 0, 0], loss_fn, optimizer)
    with pytest.raises(InvalidValueError, match=r"weight must be \(3,\)"):
        ff.train_step(model, batch, targets, ff.CrossEntropyLoss(weight=[1] * 11), optimizer)


def test_as_many_classes_as_token_ids_are_the_default():
    found = [make_model("encoder", num_classes=classes).state_dict() for classes in (0, 11)]
    assert same_bits(*found)


def turned_tokens(count, seed):
    """Return sequences, and for each token whether it is as large as the one after it or larger."""
    random = np.random.default_rng(seed)
    sequences = [random.integers(0, 11, random.integers(2, 7)) for _ in range(count)]
    targets = [
        np.append(np.where(ids[:-1] >= ids[1:], 1, 0), -1 if ids.size % 2 else 2)
        for ids in sequences
    ]
    return ff.pack([ids.tolist() for ids in sequences]), np.concatenate(targets)


def test_a_tagger_learns_what_stands_behind_each_token():
    model = ff.Transformer(
        make_config(
            "encoder", num_classes=3, pooling="none", embed_dim=24, ffn_dim=48, norm="pre"
        ),
        seed=1,
    )  # fmt: skip
    validation = turned_tokens(100, 1)
    history = ff.fit(
        model, turned_tokens(600, 0), validation, epochs=12, learning_rate=1e-2, batch_size=32
    )
    assert max(record["validation_accuracy"] for record in history) > 0.95
    scores = ff.evaluate(model, *validation, ff.CrossEntropyLoss())
    assert scores.accuracy == max(record["validation_accuracy"] for record in history)
    whole = ff.evaluate(model, *validation, ff.CrossEntropyLoss(), whole_answers=True)
    assert whole.accuracy < scores.accuracy
