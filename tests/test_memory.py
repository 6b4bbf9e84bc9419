"""What callers keep in their hands: arrays that overlap, arrays changed in between, attributes.

Kernels trust sizes, ids and rows that were checked in Python. So whatever a caller does with arrays
and objects that he still has, the numbers are those of separate, unchanged ones, or it is an error.
"""

import copy
import pickle
import warnings

import numpy as np
import pytest
from models import make_batch, make_config, make_model, same_bits, shaken, use_one_thread

import fastformer as ff
from fastformer.errors import FastformerError, InvalidTypeError, InvalidValueError
from fastformer.kernels.activation import EXACT_GELU, GELU, MISH, RELU
from fastformer.key_value_cache import KeyValueCache
from fastformer.layers.dropout import DropoutCounter
from fastformer.program import Program
from fastformer.tensors import Axis

ROWS, WIDTH = 6, 8
BATCH = make_batch((3, 1, 2))
OPTIONS = {"backend": "numba", "dtype": "float32"}


def dropping(**options):
    layer = ff.Dropout(0.3, **options)
    layer.counter.training = True
    return layer


def block(**options):
    settings = {"embed_dim": WIDTH, "num_heads": 2}
    kinds = {"norm", "norm_type", "activation", "dropout"}
    config = make_config("encoder", **settings, **{k: options.pop(k) for k in kinds & {*options}})
    return ff.TransformerBlock(config, **options)


def attention(**options):
    return ff.MultiHeadAttention(WIDTH, 2, **options)


# How to make each layer that turns (N, C) into (N, C), and what forward is given beside x.
LAYERS = {
    "ReLU": (ff.ReLU, ()),
    "GELU": (ff.GELU, ()),
    "Softmax": (ff.Softmax, ()),
    "Dropout": (dropping, ()),
    "LayerNorm": (lambda **o: ff.LayerNorm(WIDTH, **o), ()),
    "RMSNorm": (lambda **o: ff.RMSNorm(WIDTH, **o), ()),
    "Linear": (lambda **o: ff.Linear(WIDTH, WIDTH, **o), ()),
    "FeedForward": (lambda **o: ff.FeedForward(WIDTH, 12, **o), ()),
    "FeedForward, gated": (lambda **o: ff.FeedForward(WIDTH, 12, activation="swiglu", **o), ()),
    "PositionalEncoding": (
        lambda **o: ff.PositionalEncoding(WIDTH, 5, learned=True, **o),
        (BATCH,),
    ),
    "MultiHeadAttention": (attention, (BATCH,)),
    "TransformerBlock": (block, (BATCH,)),
    "TransformerBlock, pre-norm": (lambda **o: block(norm="pre", **o), (BATCH,)),
    "TransformerBlock, in layers": (lambda **o: block(norm_type="rmsnorm", **o), (BATCH,)),
    "TransformerBlock, pre-norm in layers": (
        lambda **o: block(norm="pre", norm_type="rmsnorm", **o),
        (BATCH,),
    ),
}
each_layer = pytest.mark.parametrize("name", LAYERS)


def new(name):
    use_one_thread()
    make, more = LAYERS[name]
    layer = make(**OPTIONS)
    if layer.num_parameters:
        shaken(layer)
    layer.zero_grad()
    return layer, more


def numbers(seed, shape=(ROWS, WIDTH)):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def reshaped(array):
    """Give an array another shape where it is, as its owner may."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array.shape = array.size // 2, 2


@each_layer
def test_a_layer_applied_to_its_own_result(name):
    """Its input then lies in the buffer that it writes to."""
    layer, more = new(name)
    twin, _ = new(name)
    x, dout = numbers(0), numbers(1)
    found, expected = layer.forward(x, *more), twin.forward(x, *more).copy()
    for _ in range(3):
        found, expected = layer.forward(found, *more), twin.forward(expected, *more).copy()
        assert same_bits(found, expected)
    assert same_bits(layer.backward(dout), twin.backward(dout))
    assert same_bits(layer.grad_dict(), twin.grad_dict())


@each_layer
def test_a_gradient_that_lies_where_the_next_one_goes(name):
    layer, more = new(name)
    twin, _ = new(name)
    x, dout = numbers(0), numbers(1)
    layer.forward(x, *more)
    twin.forward(x, *more)
    found, expected = layer.backward(dout), twin.backward(dout).copy()
    for _ in range(3):
        found, expected = layer.backward(found), twin.backward(expected).copy()
        assert same_bits(found, expected)
    assert same_bits(layer.grad_dict(), twin.grad_dict())
    # What backward gave goes through forward, and is still needed in the backward after it.
    layer.forward(found, *more)
    twin.forward(expected, *more)
    assert same_bits(layer.backward(dout), twin.backward(dout))
    assert same_bits(layer.grad_dict(), twin.grad_dict())


@each_layer
def test_arrays_that_are_reshaped_after_the_call(name):
    """The layer still has its input then, and the sizes that it was checked for."""
    layer, more = new(name)
    x, dout = numbers(0), numbers(1)
    out = layer.forward(x, *more).copy()
    expected = layer.backward(dout).copy()
    for again in range(2):
        assert same_bits(layer.forward(x, *more), out)
        reshaped(x)
        assert same_bits(layer.backward(dout), expected), again
        if name in ("ReLU", "GELU", "Dropout", "Softmax"):  # these take any width
            break
        with pytest.raises(FastformerError, match="must be"):
            layer.forward(x, *more)
        x = x.reshape(ROWS, WIDTH)
    reshaped(dout)
    with pytest.raises(FastformerError, match="must be"):
        layer.backward(dout)


def squares():
    """Return a linear layer after a forward of as many rows as it has columns."""
    layer, _ = new("Linear")
    layer.forward(numbers(2, (WIDTH, WIDTH)))
    layer.backward(numbers(3, (WIDTH, WIDTH)))
    return layer


@pytest.mark.parametrize("name", ["weight.gradient", "dx", "out", "x", "weight.value"])
def test_a_gradient_may_lie_wherever_it_likes(name):
    """Also in what backward writes and reads: the numbers are those of a copy."""
    results = []
    for copied in (False, True):
        layer = squares()
        dout = {
            "weight.gradient": layer.weight.gradient[0],
            "weight.value": layer.weight.value[0],
            "dx": layer.backward(numbers(3, (WIDTH, WIDTH))),
            "out": layer.forward(numbers(2, (WIDTH, WIDTH))),
            "x": layer.x,
        }[name]
        dx = layer.backward(dout.copy() if copied else dout).copy()
        results.append(layer.grad_dict() | {"dx": dx})
    assert same_bits(*results)


def test_a_gradient_of_the_table_may_be_one_by_its_rows():
    results = []
    for copied in (False, True):
        table = ff.Embedding(ROWS, WIDTH, **OPTIONS)
        table.forward(ff.pack([[1, 2, 3], [4], [5, 0]]))
        table.backward(numbers(1))
        table.backward(table.weight.gradient.copy() if copied else table.weight.gradient)
        results.append(table.grad_dict())
    assert same_bits(*results)


@pytest.mark.parametrize(
    "activation", [99, -1, 5, 10**30, "relu", None, True, 1.0, [1], np.int64(1)]
)
def test_an_unknown_activation_is_refused(activation):
    program, layer = Program("float32"), new("Linear")[0]
    x = program.bound("x", Axis(6), Axis(WIDTH))
    for act in (
        lambda: program.forward(layer, x, activation=activation),
        lambda: program.backward(layer, x, activation=activation, saved=x),
    ):
        with pytest.raises(FastformerError, match=r"activation must be one of .*RELU \(1\).*got"):
            act()


@pytest.mark.parametrize("activation", [RELU, GELU, MISH, EXACT_GELU])
def test_an_activation_goes_with_what_it_saved(activation):
    program, layer = Program("float32"), new("Linear")[0]
    x = program.bound("x", Axis(6), Axis(WIDTH))
    for given in ({"activation": activation}, {"saved": x}):
        with pytest.raises(InvalidValueError, match="activation and saved go together"):
            program.backward(layer, x, **given)


@pytest.mark.parametrize(
    "chosen",
    [
        [-2], [0, -1], [3], [2**63], [], [True], np.array([True, False, True]), [0.0], [[0], [1]],
        0, None, "0", [None], np.array([2**64 - 2], np.uint64), np.array([-1], np.int8), [1, 2.0],
        slice(0, 1),
    ],
    ids=str,
)  # fmt: skip
def test_sequences_that_a_batch_has_not_are_refused(chosen):
    cache = KeyValueCache(make_model("decoder"), 3)
    for owner in (ff.pack([[1, 2], [3], [4, 5]]), cache):
        with pytest.raises(FastformerError, match="sequences must be .* got"):
            owner.select(chosen)
    assert len(cache.lengths) == 3


@pytest.mark.parametrize("chosen", [[2, 0, 0], (2, 0, 0), np.array([2, 0, 0], np.uint8)])
def test_sequences_may_be_any_integers(chosen):
    batch = ff.pack([[1, 2], [3], [4, 5]]).select(chosen)
    assert batch.tokens.tolist() == [4, 5, 1, 2, 1, 2]
    assert (len(batch), batch.longest, batch.largest_id) == (3, 2, 5)


@pytest.mark.parametrize("name", ["tokens", "offsets", "positions"])
def test_no_flag_makes_a_batch_writable(name):
    batch = ff.pack([[1, 2], [3]])
    array = getattr(batch, name)
    assert not array.flags.writeable
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True
    assert array.base is None or not isinstance(array.base, np.ndarray)


def trained(kind="encoder", **options):
    """Return a model that has made a step, and its optimizer."""
    model = make_model(kind, dtype="float32", **options)
    optimizer = ff.Adam(model.parameters(), lr=1e-2)
    ff.train_step(model, *task(kind), ff.CrossEntropyLoss(), optimizer)
    return model, optimizer


def task(kind="encoder"):
    batch = make_batch()
    count = len(batch) if kind == "encoder" else batch.num_tokens
    return batch, [index % 3 for index in range(count)]


def objects():
    """Yield every kind of public object, after it was used."""
    for name in LAYERS:
        layer, more = new(name)
        layer.forward(numbers(0), *more)
        layer.backward(numbers(1))
        yield name, layer
    for kind in ("encoder", "decoder"):
        model, optimizer = trained(kind)
        model.forward(task()[0])
        yield kind, model
        yield "optimizer", optimizer
    yield "SGD", ff.SGD(model.parameters(), momentum=0.5)
    yield "parameters", model.parameters()
    yield "parameter", model.embedding.weight
    yield "embedding", model.embedding
    yield "read-out", model.output
    yield "batch", task()[0]
    yield "loss", ff.CrossEntropyLoss()
    yield "counter", model.dropout_counter
    yield "cache", KeyValueCache(model, 3)
    yield "positions", ff.RelativePositions("rotary", WIDTH, 2, 9)
    yield "config", model.config


# What may be set, to which good value; all else that an object has may not.
SETTABLE = {
    "learning_rate": 0.5, "steps": 3, "training": True, "forwards": 7, "recompute": "block",
    "memory_limit": 1 << 20,
}  # fmt: skip
NO_NUMBERS = (None, -1, np.nan, "x", np.zeros(3), [1], object())
HOSTILE = (10**30, *NO_NUMBERS)


def test_no_attribute_can_be_set_to_what_kernels_would_believe():
    tried = 0
    for name, owner in objects():
        for attribute in [key for key in vars(owner) if not key.startswith("_")]:
            kept = getattr(owner, attribute)
            for value in HOSTILE if attribute != "learning_rate" else NO_NUMBERS:
                with pytest.raises((FastformerError, AttributeError)) as caught:
                    setattr(owner, attribute, value)
                assert attribute in str(caught.value), (name, attribute, value)
                assert getattr(owner, attribute) is kept, (name, attribute, value)
                tried += 1
            with pytest.raises(AttributeError, match=attribute):
                delattr(owner, attribute)
            if attribute in SETTABLE:
                setattr(owner, attribute, SETTABLE[attribute])
                assert getattr(owner, attribute) == SETTABLE[attribute]
    assert tried > 1900


def test_what_a_person_adds_to_an_object_is_his_own():
    model = make_model("encoder")
    for value in (1, 2):
        model.note = value
        assert model.note == value
    del model.note
    assert not hasattr(model, "note")


def test_the_lists_that_objects_give_cannot_be_changed():
    model, optimizer = trained()
    with pytest.raises(TypeError):
        model.blocks[0] = model.blocks[1]
    with pytest.raises(TypeError):
        optimizer.state["exp_avg"] = np.zeros(3)
    cache = KeyValueCache(make_model("decoder"), 2)
    cache.lengths[:] = 10**9
    assert cache.lengths.tolist() == [0, 0]
    with pytest.raises(AttributeError, match="lengths"):
        cache.lengths = np.array([5, 5])


def test_targets_and_logits_that_change_after_the_loss():
    logits, targets = numbers(0, (4, 5)), np.array([1, 2, 3, 4])
    loss = ff.CrossEntropyLoss()
    loss.forward(logits, targets)
    expected = loss.backward()
    targets[:] = 10**9
    reshaped(logits)
    assert same_bits(loss.backward(), expected)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_lists_of_targets_are_taken_wherever_arrays_are(kind):
    batch, listed = task(kind)
    listed[1] = -1
    results = []
    for targets in (listed, tuple(listed), np.array(listed), np.array(listed, np.int8)):
        model = make_model(kind, dtype="float32")
        loss, optimizer = ff.CrossEntropyLoss(), ff.Adam(model.parameters())
        step = ff.train_step(model, batch, targets, loss, optimizer)
        evaluated = ff.evaluate(model, batch, targets, loss)
        accumulated = ff.accumulate_gradients(model, batch, targets, loss)[0]
        alone = loss.forward(model.forward(batch), targets)
        results.append([step, evaluated, accumulated, alone])
    assert results == [results[0]] * 4


def both(model, optimizer):
    return copy.deepcopy((model, optimizer))


def optimizer_first(model, optimizer):
    return copy.deepcopy({"optimizer": optimizer, "model": model}).values().__reversed__()


@pytest.mark.parametrize("copied", [both, optimizer_first])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_a_model_and_its_optimizer_are_copied_together(kind, copied):
    """The copy goes on to the bits of the original, and leaves it alone."""
    model, optimizer = trained(kind)
    other, its = copied(model, optimizer)
    before = model.state_dict()
    batch, targets = task(kind)
    loss = ff.CrossEntropyLoss()
    for _ in range(2):
        ff.train_step(other, batch, targets, loss, its)
    assert same_bits(model.state_dict(), before)
    for _ in range(2):
        ff.train_step(model, batch, targets, loss, optimizer)
    assert same_bits(model.state_dict(), other.state_dict())
    assert same_bits(optimizer.state_dict(), its.state_dict()) and its.steps == 3


def test_an_optimizer_of_another_model_is_refused():
    model, optimizer = trained()
    loss = ff.CrossEntropyLoss()
    for foreign in (trained()[1], copy.deepcopy(optimizer), both(model, optimizer)[1]):
        before = model.state_dict()
        with pytest.raises(InvalidValueError, match=r"^Adam: .* of another model"):
            ff.train_step(model, *task(), loss, foreign)
        assert same_bits(model.state_dict(), before) and foreign.steps == 1
    alone = copy.deepcopy(optimizer)
    with pytest.raises(InvalidValueError, match=r"copied without its model"):
        alone.step()
    ff.train_step(model, *task(), loss, optimizer)


@pytest.mark.parametrize("act", [pickle.dumps, copy.copy])
def test_what_would_train_nothing_is_not_made(act):
    model, optimizer = trained()
    for owner in (model, optimizer, model.parameters()):
        with pytest.raises(InvalidTypeError, match="deepcopy|state_dict"):
            act(owner)


@pytest.mark.parametrize(
    "act", [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))]
)
def test_losses_and_batches_are_copied(act):
    loss = ff.CrossEntropyLoss(ignore_index=-5, label_smoothing=0.25, backend="reference")
    other = act(loss)
    assert (other.ignore_index, other.label_smoothing, other.ops) == (-5, 0.25, loss.ops)
    batch = act(task()[0])
    assert same_bits(make_model("encoder").forward(batch), make_model("encoder").forward(task()[0]))


def test_settings_of_numpy_s_small_integers_do_not_overflow():
    small = {name: np.int8(64) for name in ("vocab_size", "embed_dim", "ffn_dim")}
    model = ff.Transformer(ff.TransformerConfig(**small, num_heads=np.int8(4)))
    assert (
        model.num_parameters
        == ff.Transformer(
            ff.TransformerConfig(vocab_size=64, embed_dim=64, ffn_dim=64)
        ).num_parameters
    )
    assert ff.MultiHeadAttention(np.int8(64), np.int8(4)).num_parameters == 4 * 64 * 64
    ff.RelativePositions("rotary", np.int8(64), np.int8(4), np.int8(100))


def test_a_backward_belongs_to_the_last_whole_forward():
    for kind in ("encoder", "decoder"):
        model, batch = make_model(kind), make_batch()
        dlogits = np.ones_like(model.forward(batch))
        model.backward(dlogits)
        with pytest.raises(FastformerError, match="token ids must be below"):
            model.forward(ff.pack([[10**6]]))
        with pytest.raises(FastformerError, match="call forward first"):
            model.backward(dlogits)
        with pytest.raises(FastformerError, match="call forward first"):
            copy.deepcopy(model).backward(dlogits)


def test_what_is_called_between_changes_no_backward():
    """A layer by itself, a training step, generation: each has a memory of its own."""
    for kind in ("encoder", "decoder"):
        model, batch = make_model(kind), make_batch()
        dlogits = np.ones_like(model.forward(batch))
        model.zero_grad()
        model.backward(dlogits)
        expected = model.grad_dict()
        model.forward(batch)
        model.blocks[0].norm1.forward(np.ones((ROWS, 12)))
        ff.accumulate_gradients(model, *task(kind), ff.CrossEntropyLoss())
        if kind == "decoder":
            KeyValueCache(model, len(batch)).extend(batch)
        model.zero_grad()
        model.backward(dlogits)
        assert same_bits(model.grad_dict(), expected)


def test_a_counter_is_checked_where_it_is_given():
    for counter in (5, "x", object()):
        with pytest.raises(InvalidTypeError, match="counter must be a DropoutCounter"):
            ff.Dropout(0.1, counter)
        with pytest.raises(InvalidTypeError, match="counter must be a DropoutCounter"):
            ff.FeedForward(4, 4, counter=counter)
    counter = DropoutCounter(2**64 - 1)
    counter.forwards = 1 << 48
    layer = ff.Dropout(0.5, counter, **OPTIONS)
    counter.training = True
    layer.forward(numbers(0))
    for positions in (5, "x", ff.RelativePositions("alibi", WIDTH, 2, 9)):
        with pytest.raises(InvalidTypeError, match="positions must be a PositionalEncoding"):
            ff.Embedding(11, WIDTH).forward(BATCH, positions)
        if not isinstance(positions, ff.RelativePositions):
            with pytest.raises(InvalidTypeError, match="positions must be RelativePositions"):
                block(positions=positions)
