"""Linear and TiedLinear: formula, gradients, initial weights, epilogues, misuse."""

import numpy as np
import pytest
from models import BACKENDS, assert_layer_gradients, assert_parameter_gradients, shaken

import fastformer as ff
from fastformer.errors import FastformerError, InvalidTypeError, InvalidValueError
from fastformer.layers.linear import TiedLinear, xavier_uniform

DTYPES = ("float32", "float64")
RTOL = {"float32": 1e-4, "float64": 1e-12}


def make_linear(backend, dtype="float64", bias=True, sizes=(5, 7)):
    return shaken(ff.Linear(*sizes, bias=bias, seed=1, backend=backend, dtype=dtype))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 13])
def test_formula(rng, backend, dtype, rows):
    layer = make_linear(backend, dtype)
    weights = layer.state_dict()
    assert {name: value.shape for name, value in weights.items()} == {
        "weight": (5, 7),
        "bias": (7,),
    }
    x = rng.standard_normal((rows, 5)).astype(dtype)
    before = x.copy()
    out = layer.forward(x)
    assert (out.shape, out.dtype) == ((rows, 7), np.dtype(dtype))
    np.testing.assert_allclose(out, x @ weights["weight"] + weights["bias"], RTOL[dtype], 1e-6)
    np.testing.assert_array_equal(x, before)
    residual = rng.standard_normal((rows, 7)).astype(dtype)
    expected = out + residual
    np.testing.assert_allclose(layer.forward(x, residual=residual), expected, RTOL[dtype], 1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bias", [True, False])
def test_gradients(rng, backend, bias):
    layer = make_linear(backend, bias=bias)
    assert set(layer.state_dict()) == ({"weight", "bias"} if bias else {"weight"})
    x = rng.standard_normal((4, 5))
    assert_layer_gradients(layer, layer.forward, lambda dout: (layer.backward(dout),), x)


@pytest.mark.parametrize("name", ["activation", "out"])
def test_what_only_a_program_can_be_told_is_refused(name):
    layer = make_linear("reference")
    layer.forward(np.zeros((4, 5)))
    with pytest.raises(InvalidTypeError, match=rf"given dout alone by itself, got also {name}"):
        layer.backward(np.zeros((4, 7)), **{name: 1})
    with pytest.raises(FastformerError, match=rf"(?s){name} is for forward_ops|not {name}"):
        make_linear("reference").forward(np.zeros((4, 5)), **{name: 1})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_accumulate_and_are_zeroed(rng, backend, bias):
    layer = make_linear(backend, bias=bias)
    dout = rng.standard_normal((13, 7))
    layer.forward(rng.standard_normal((13, 5)))
    layer.backward(dout)
    once = layer.grad_dict()
    layer.backward(dout)
    for name, gradient in layer.grad_dict().items():
        np.testing.assert_array_equal(gradient, 2 * once[name], name)
    layer.zero_grad()
    assert not any(gradient.any() for gradient in layer.grad_dict().values())


def test_initial_weights():
    """Uniform within Xavier's limits; of either backend and dtype the same; bias zero."""
    weights = [
        ff.Linear(60, 40, seed=9, backend=backend, dtype=dtype).state_dict()
        for backend in BACKENDS
        for dtype in DTYPES
    ]
    exact = ff.Linear(60, 40, seed=9, dtype="float64").state_dict()["weight"]
    limit = np.sqrt(6 / 100)
    assert 0.99 * limit < np.abs(exact).max() <= limit
    assert abs(exact.mean()) < 5 * limit / np.sqrt(3 * exact.size)
    np.testing.assert_allclose(exact.std(), limit / np.sqrt(3), rtol=0.05)
    for given in weights:
        np.testing.assert_array_equal(given["weight"], exact.astype(given["weight"].dtype))
        assert not given["bias"].any()
    other = ff.Linear(60, 40, seed=10).state_dict()["weight"]
    assert not np.isclose(other, exact).all()


def test_xavier_fan():
    weight = xavier_uniform(np.random.default_rng(0), 3, 3)
    assert weight.shape == (3, 3) and weight.dtype == np.float64
    assert np.abs(weight).max() <= 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_tied_weights(rng, backend):
    """Logits by the table; the table's gradient has both parts."""
    embedding = shaken(ff.Embedding(6, 5, backend=backend, dtype="float64"))
    tied = TiedLinear(embedding)
    assert tied.weight is embedding.weight
    batch = ff.pack([[1, 2, 1], [5]])

    def forward():
        return tied.forward(embedding.forward(batch))

    np.testing.assert_allclose(
        forward(), embedding.weight.value[batch.tokens] @ embedding.weight.value.T, 1e-12
    )
    dout = rng.standard_normal((4, 6))
    embedding.zero_grad()
    embedding.backward(tied.backward(dout))
    assert_parameter_gradients(embedding, lambda: float(np.vdot(dout, forward())))


VALUE, TYPE = InvalidValueError, InvalidTypeError


@pytest.mark.parametrize(
    ("sizes", "options", "error", "message"),
    [
        ((0, 7), {}, VALUE, r"in_features must be an integer >= 1, got 0"),
        ((5, -7), {}, VALUE, r"out_features must be an integer >= 1, got -7"),
        ((5.0, 7), {}, TYPE, r"in_features must be an integer >= 1, got 5.0"),
        ((True, 7), {}, TYPE, r"in_features must be an integer >= 1, got True"),
        ((5, 7), {"seed": -1}, VALUE, r"seed must be an integer >= 0, got -1"),
        ((5, 7), {"seed": 0.5}, TYPE, r"seed must be an integer >= 0, got 0.5"),
        ((5, 7), {"dtype": "float16"}, VALUE, r"dtype must be one of 'float32', 'float64'"),
        ((5, 7), {"dtype": np.float32}, TYPE, r"dtype must be one of 'float32', 'float64'"),
        ((5, 7), {"backend": "torch"}, VALUE, r"backend must be one of 'numba', 'reference'"),
        ((5, 7), {"bias": "no"}, TYPE, r"bias must be True or False, got 'no'"),
    ],
)
def test_construction_refuses(sizes, options, error, message):
    with pytest.raises(error, match=message):
        ff.Linear(*sizes, **options)


@pytest.mark.parametrize(
    ("residual", "error"),
    [(np.zeros((3, 7)), VALUE), (np.zeros((4, 7), np.float32), TYPE), ([[0.0] * 7] * 4, TYPE)],
)
def test_a_residual_that_does_not_fit_is_refused(residual, error):
    layer = make_linear("reference")
    with pytest.raises(error, match=r"Linear: residual must be"):
        layer.forward(np.zeros((4, 5)), residual=residual)


@pytest.mark.parametrize(("shape", "error"), [((4, 6), VALUE), ((4,), VALUE)])
def test_tied_weights_refuse(shape, error):
    tied = TiedLinear(ff.Embedding(6, 5))
    with pytest.raises(error, match=r"TiedLinear: x must be \(N, 5\) float32"):
        tied.forward(np.zeros(shape, np.float32))
    tied.forward(np.zeros((4, 5), np.float32))
    with pytest.raises(error, match=r"TiedLinear.backward: dout must be \(4, 6\) float32"):
        tied.backward(np.zeros((3, 6), np.float32))
