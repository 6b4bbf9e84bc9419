"""What holds for every layer: gradients, dtypes, inputs left alone, and misuse that is refused.

Misuse is tried on the reference backend: checks come before either, and NumPy survives a fault.
Linear, attention, feed-forward, positions, dropout and blocks have test files of their own too.
"""

import numpy as np
import pytest
from gradients import assert_gradients
from models import (
    BACKENDS,
    assert_layer_gradients,
    make_batch,
    make_config,
    same_bits,
    shaken,
    use_one_thread,
)

import fastformer as ff
from fastformer.errors import FastformerError, InvalidTypeError, InvalidValueError

DTYPES = ("float32", "float64")
LENGTHS = (3, 1, 2)
ROWS, WIDTH = 6, 8
BATCH = make_batch(LENGTHS)


def dropping(**options):
    layer = ff.Dropout(0.3, **options)
    layer.counter.training = True
    layer.counter.forwards = 4
    return layer


# How to make each layer that turns (N, C) into (N, C), and whether it is given the batch too.
LAYERS = {
    "ReLU": (ff.ReLU, False),
    "GELU": (ff.GELU, False),
    "ExactGELU": (ff.ExactGELU, False),
    "Mish": (ff.Mish, False),
    "Softmax": (ff.Softmax, False),
    "Dropout": (dropping, False),
    "LayerNorm": (lambda **o: ff.LayerNorm(WIDTH, **o), False),
    "LayerNorm, no bias": (lambda **o: ff.LayerNorm(WIDTH, bias=False, **o), False),
    "RMSNorm": (lambda **o: ff.RMSNorm(WIDTH, **o), False),
    "Linear": (lambda **o: ff.Linear(WIDTH, WIDTH, **o), False),
    "FeedForward": (lambda **o: ff.FeedForward(WIDTH, 12, **o), False),
    "FeedForward, no bias": (lambda **o: ff.FeedForward(WIDTH, 12, bias=False, **o), False),
    "FeedForward, gated": (lambda **o: ff.FeedForward(WIDTH, 12, activation="swiglu", **o), False),
    "PositionalEncoding": (lambda **o: ff.PositionalEncoding(WIDTH, 5, learned=True, **o), True),
    "MultiHeadAttention": (lambda **o: ff.MultiHeadAttention(WIDTH, 2, **o), True),
    "TransformerBlock": (
        lambda **o: ff.TransformerBlock(make_config("encoder", embed_dim=WIDTH, num_heads=2), **o),
        True,
    ),
}


class Case:
    """A layer, with its forward as a function of x alone."""

    def __init__(self, name, backend="numba", dtype="float64"):
        use_one_thread()
        make, self.has_batch = LAYERS[name]
        self.layer = make(backend=backend, dtype=dtype)
        if self.layer.num_parameters:
            shaken(self.layer)

    def forward(self, x):
        return self.layer.forward(x, BATCH) if self.has_batch else self.layer.forward(x)

    def backward(self, dout, x=None):
        if x is not None:
            self.forward(x)
        return self.layer.backward(dout)


def inputs(rng, dtype="float64"):
    """Return random (N, C), none so near to 0 that a difference would cross ReLU's kink."""
    x = rng.standard_normal((ROWS, WIDTH))
    return (x + np.copysign(0.01, x)).astype(dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "name",
    [
        "ReLU",
        "GELU",
        "ExactGELU",
        "Mish",
        "Softmax",
        "Dropout",
        "LayerNorm",
        "RMSNorm",
        "LayerNorm, no bias",
    ],
)
def test_whole_jacobian(rng, backend, name):
    case = Case(name, backend)
    assert_gradients(
        lambda x: case.forward(x).copy(),
        lambda dout, x: [case.backward(dout, x).copy()],
        inputs(rng),
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", LAYERS)
def test_gradients(rng, backend, name):
    """By the input, and by each element of each parameter."""
    case = Case(name, backend)
    backward = case.backward
    assert_layer_gradients(case.layer, case.forward, lambda dout: (backward(dout),), inputs(rng))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_an_embedding(backend):
    layer = shaken(ff.Embedding(11, 5, backend=backend, dtype="float64"))

    def backward(dout):
        layer.backward(dout)
        return ()

    assert_layer_gradients(layer, lambda: layer.forward(BATCH), backward)


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-4), ("float64", 1e-12)])
@pytest.mark.parametrize("name", LAYERS)
def test_backends_agree(rng, name, dtype, rtol):
    x, dout = inputs(rng, dtype), inputs(rng, dtype)
    results = []
    for backend in BACKENDS:
        case = Case(name, backend, dtype)
        out = case.forward(x).copy()
        dx = case.backward(dout).copy()
        assert out.dtype == dx.dtype == np.dtype(dtype)
        results.append({"out": out, "dx": dx} | case.layer.grad_dict())
    assert results[0].keys() == results[1].keys()
    for key, value in results[1].items():
        np.testing.assert_allclose(results[0][key], value, rtol, rtol, err_msg=key)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", LAYERS)
def test_inputs_are_left_alone_and_gradients_accumulate(rng, name, backend):
    case = Case(name, backend)
    x, dout = inputs(rng), inputs(rng)
    before = x.copy(), dout.copy()
    case.layer.zero_grad()
    out = case.forward(x)
    kept = out.copy()
    first = case.backward(dout).copy()
    once = case.layer.grad_dict()
    second = case.backward(dout)
    assert same_bits(second, first), "a second backward gives another gradient"
    assert same_bits(out, kept), "backward changed the output"
    for key, gradient in case.layer.grad_dict().items():
        np.testing.assert_allclose(gradient, 2 * once[key], 1e-12, err_msg=key)
    assert same_bits(x, before[0]) and same_bits(dout, before[1])
    case.layer.zero_grad()
    assert not case.layer.parameters().gradients.any()


@pytest.mark.parametrize("name", LAYERS)
def test_forward_gives_a_buffer_that_is_used_again(rng, name):
    case = Case(name)
    x = inputs(rng)
    first = case.forward(x)
    copy = first.copy()
    again = case.forward(x)
    assert np.shares_memory(first, again) and same_bits(again, copy)


def read_only(array):
    array.flags.writeable = False
    return array


# What is given in place of an (N, 8) float32 array, and what is raised.
ZEROS = np.zeros((ROWS, WIDTH), np.float32)
BAD_ARRAYS = {
    "dtype": (ZEROS.astype("float64"), InvalidTypeError, "float64"),
    "integers": (ZEROS.astype(int), InvalidTypeError, "int64"),
    "byte order": (ZEROS.astype(">f4"), InvalidTypeError, ">f4"),
    "list": (ZEROS.tolist(), InvalidTypeError, r"list|\[\["),
    "none": (None, InvalidTypeError, "None"),
    "fortran": (np.asfortranarray(ZEROS), FastformerError, "C-contiguous"),
    "strided": (np.zeros((2 * ROWS, WIDTH), np.float32)[::2], FastformerError, "C-contiguous"),
    "columns": (np.zeros((ROWS, 2 * WIDTH), np.float32)[:, ::2], FastformerError, "C-contiguous"),
    "read-only": (read_only(ZEROS.copy()), InvalidValueError, "writable"),
    "one axis": (np.zeros(WIDTH, np.float32), InvalidValueError, r"\(8,\)"),
    "three axes": (np.zeros((1, ROWS, WIDTH), np.float32), InvalidValueError, r"\(1, 6, 8\)"),
    "width": (np.zeros((ROWS, WIDTH + 1), np.float32), InvalidValueError, r"\(6, 9\)"),
}
# What these layers take as it comes: any width, and element-wise layers any shape.
ANY_SHAPE = ("ReLU", "GELU", "ExactGELU", "Mish", "Dropout")
TAKEN = {(name, kind) for name in ANY_SHAPE for kind in ("width", "one axis", "three axes")}
TAKEN |= {("Softmax", "width")}


@pytest.mark.parametrize("kind", BAD_ARRAYS)
@pytest.mark.parametrize("name", LAYERS)
def test_forward_refuses(name, kind):
    case = Case(name, "reference", "float32")
    x, error, message = BAD_ARRAYS[kind]
    if (name, kind) in TAKEN:
        assert case.forward(x).shape == x.shape
        return
    with pytest.raises(error, match=rf"(?s)\w+: \w+ must be .*({message})"):
        case.forward(x)


@pytest.mark.parametrize("kind", [*BAD_ARRAYS, "rows"])
@pytest.mark.parametrize("name", LAYERS)
def test_backward_refuses(name, kind):
    """Kernels do not check, so a dout of another shape must never reach one."""
    case = Case(name, "reference", "float32")
    case.forward(ZEROS.copy())
    rows = np.zeros((ROWS - 1, WIDTH), np.float32), InvalidValueError, r"\(5, 8\)"
    dout, error, message = rows if kind == "rows" else BAD_ARRAYS[kind]
    before = case.layer.grad_dict()
    with pytest.raises(error, match=rf"(?s)\w+(\.backward)?: \w+ must be .*({message})"):
        case.backward(dout)
    assert same_bits(case.layer.grad_dict(), before), "gradients were changed"


@pytest.mark.parametrize("rows", [ROWS - 1, ROWS + 1, 0])
@pytest.mark.parametrize("name", [name for name, (_, has_batch) in LAYERS.items() if has_batch])
def test_rows_that_are_not_the_batch_s_are_refused(name, rows):
    case = Case(name, "reference", "float32")
    wanted = rf"must be \(6, 8\) float32, got \({rows}, 8\)"
    with pytest.raises(InvalidValueError, match=wanted):
        case.forward(np.zeros((rows, WIDTH), np.float32))


@pytest.mark.parametrize("batch", [[[1, 2, 3], [4], [5, 6]], np.zeros(6, int), None])
@pytest.mark.parametrize("name", [name for name, (_, has_batch) in LAYERS.items() if has_batch])
def test_anything_but_a_packed_batch_is_refused(name, batch):
    case = Case(name, "reference", "float32")
    with pytest.raises(InvalidTypeError, match=r"PackedBatch"):
        case.layer.forward(ZEROS.copy(), batch)


@pytest.mark.parametrize("name", LAYERS)
def test_backend_and_dtype_are_checked(name):
    make, _ = LAYERS[name]
    with pytest.raises(InvalidValueError, match="backend must be one of"):
        make(backend="cuda")
    with pytest.raises(InvalidValueError, match="dtype must be one of"):
        make(dtype="int8")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ff.LayerNorm(0), InvalidValueError, r"embed_dim must be .* >= 1, got 0"),
        (lambda: ff.LayerNorm(8, epsilon=0), InvalidValueError, r"epsilon must be .* > 0, got 0"),
        (lambda: ff.LayerNorm(8, epsilon="x"), InvalidTypeError, r"epsilon must be .* got 'x'"),
        (lambda: ff.RMSNorm(1.5), InvalidTypeError, r"embed_dim must be .* >= 1, got 1.5"),
        (lambda: ff.RMSNorm(8, epsilon=-1), InvalidValueError, r"epsilon must be .* > 0, got -1"),
        (lambda: ff.Embedding(0, 8), InvalidValueError, r"vocab_size must be .* >= 1, got 0"),
        (lambda: ff.Embedding(8, 2.0), InvalidTypeError, r"embed_dim must be .* >= 1, got 2.0"),
        (lambda: ff.Embedding(8, 8, std=-1.0), InvalidValueError, r"std must be .*got -1.0"),
        (lambda: ff.Embedding(8, 8, std=np.nan), InvalidValueError, r"std must be .*got nan"),
    ],
)
def test_construction_refuses(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_layer_norm_normalises(rng):
    layer = ff.LayerNorm(WIDTH, dtype="float64")
    out = layer.forward(5 + 3 * inputs(rng))
    np.testing.assert_allclose(out.mean(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(out.var(axis=1), 1, rtol=1e-4)
    assert set(layer.state_dict()) == {"weight", "bias"}


def test_rms_norm_scales(rng):
    layer = ff.RMSNorm(WIDTH, dtype="float64")
    x = 5 + 3 * inputs(rng)
    out = layer.forward(x)
    np.testing.assert_allclose((out * out).mean(axis=1), 1, rtol=1e-4)
    # Each row is only scaled: nothing is taken off.
    np.testing.assert_allclose(out / x, np.broadcast_to(out[:, :1] / x[:, :1], x.shape), rtol=1e-12)
    assert set(layer.state_dict()) == {"weight"}


def test_an_embedding_looks_up_rows():
    layer = shaken(ff.Embedding(11, WIDTH))
    np.testing.assert_array_equal(layer.forward(BATCH), layer.weight.value[BATCH.tokens])
    large = ff.Embedding(500, 100, std=0.3, seed=4, dtype="float64").state_dict()["weight"]
    np.testing.assert_allclose(large.std(), 0.3, rtol=0.02)
    assert abs(large.mean()) < 5 * 0.3 / np.sqrt(large.size)


@pytest.mark.parametrize("largest", [11, 12, 2**62])
def test_an_id_outside_the_table_is_refused(largest):
    layer = ff.Embedding(11, WIDTH)
    batch = ff.pack([[1, 2], [10, largest]])
    with pytest.raises(InvalidValueError, match=rf"vocab_size=11, got {largest} at token 3"):
        layer.forward(batch)


@pytest.mark.parametrize("options", [{"embed_dim": 4}, {"embed_dim": 12}, {"dtype": "float64"}])
def test_positions_that_do_not_fit_the_embedding_are_refused(options):
    positions = ff.PositionalEncoding(max_seq_len=9, **{"embed_dim": WIDTH} | options)
    with pytest.raises(FastformerError, match="positions"):
        ff.Embedding(11, WIDTH, backend="reference").forward(BATCH, positions)


def test_an_embedding_does_not_own_the_positions_that_it_was_given():
    layer, positions = ff.Embedding(11, WIDTH), ff.PositionalEncoding(WIDTH, 5, learned=True)
    layer.forward(BATCH, positions)
    assert list(layer.state_dict()) == ["weight"]
    assert list(positions.state_dict()) == ["weight"]
