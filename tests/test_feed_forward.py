"""The feed-forward layer: formula, gradients of either activation, dropout, misuse."""

import math

import numpy as np
import pytest
from models import BACKENDS, assert_layer_gradients, shaken

import fastformer as ff
from fastformer.errors import InvalidTypeError, InvalidValueError
from fastformer.layers.dropout import DropoutCounter

ACTIVATIONS = {
    "relu": lambda u: np.maximum(u, 0),
    "gelu": lambda u: 0.5 * u * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3))),
    "gelu_exact": lambda u: u / 2 * (1 + np.vectorize(math.erf)(u / math.sqrt(2))),
    "mish": lambda u: u * np.tanh(np.log1p(np.exp(u))),
}
GATES = {"swiglu": lambda z: z / (1 + np.exp(-z)), "geglu": ACTIVATIONS["gelu"]}
WITH_GATE = (*ACTIVATIONS, *GATES)


def make_layer(backend="numba", activation="relu", dropout=0.0, dtype="float64"):
    counter = DropoutCounter(seed=3)
    counter.training = dropout > 0
    counter.forwards = 2
    options = {"activation": activation, "dropout": dropout, "counter": counter, "seed": 1}
    return shaken(ff.FeedForward(6, 10, **options, backend=backend, dtype=dtype))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_formula(rng, backend, activation):
    layer = make_layer(backend, activation)
    w = layer.state_dict()
    assert {name: value.shape for name, value in w.items()} == {
        "expand.weight": (6, 10),
        "expand.bias": (10,),
        "contract.weight": (10, 6),
        "contract.bias": (6,),
    }
    x, residual = rng.standard_normal((2, 5, 6))
    hidden = ACTIVATIONS[activation](x @ w["expand.weight"] + w["expand.bias"])
    expected = hidden @ w["contract.weight"] + w["contract.bias"]
    np.testing.assert_allclose(layer.forward(x), expected, 1e-10, 1e-12)
    found = layer.forward(x, residual=residual)
    np.testing.assert_allclose(found, expected + residual, 1e-10, 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", GATES)
def test_formula_with_a_gate(rng, backend, activation):
    layer = make_layer(backend, activation)
    w = layer.state_dict()
    assert {name: value.shape for name, value in w.items()} == {
        "expand.weight": (6, 10),
        "expand.bias": (10,),
        "gate.weight": (6, 10),
        "gate.bias": (10,),
        "contract.weight": (10, 6),
        "contract.bias": (6,),
    }
    x, residual = rng.standard_normal((2, 5, 6))
    gate, value = (x @ w[f"{name}.weight"] + w[f"{name}.bias"] for name in ("gate", "expand"))
    hidden = GATES[activation](gate) * value
    expected = hidden @ w["contract.weight"] + w["contract.bias"]
    np.testing.assert_allclose(layer.forward(x), expected, 1e-10, 1e-12)
    found = layer.forward(x, residual=residual)
    np.testing.assert_allclose(found, expected + residual, 1e-10, 1e-12)


@pytest.mark.parametrize("activation", GATES)
def test_only_gates_have_a_matrix_more(activation):
    plain, gated = make_layer(activation="relu"), make_layer(activation=activation)
    assert plain.gate is None
    assert gated.num_parameters == plain.num_parameters + 6 * 10 + 10


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", WITH_GATE)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_gradients(rng, backend, activation, dropout):
    """By x and by what is added to the result, whose gradient is that of the result."""
    layer = make_layer(backend, activation, dropout)

    def forward(x, residual):
        return layer.forward(x, residual=residual)

    def backward(dout):
        return layer.backward(dout), dout

    x, residual = rng.standard_normal((2, 5, 6))
    assert_layer_gradients(layer, forward, backward, x, residual)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_x_may_be_the_residual_too(rng, backend, activation, dropout):
    """As in a block: then the gradient of the residual, dout, belongs to x as well."""
    layer = make_layer(backend, activation, dropout)
    assert_layer_gradients(
        layer,
        lambda x: layer.forward(x, residual=x),
        lambda dout: (layer.backward(dout) + dout,),
        rng.standard_normal((5, 6)),
    )


@pytest.mark.parametrize(
    ("sizes", "options", "error", "message"),
    [
        ((0, 10), {}, InvalidValueError, r"must be an integer >= 1, got 0"),
        ((6, 1.5), {}, InvalidTypeError, r"must be an integer >= 1, got 1.5"),
        ((6, 10), {"activation": "rela"}, InvalidValueError, r"'rela'; did you mean 'relu'\?"),
        ((6, 10), {"activation": None}, InvalidTypeError, r"activation must be one of .*got None"),
        ((6, 10), {"dropout": 1.0}, InvalidValueError, r"must be .* >= 0 and < 1, got 1.0"),
        ((6, 10), {"dropout": np.nan}, InvalidValueError, r"must be .* >= 0 and < 1, got nan"),
    ],
)
def test_construction_refuses(sizes, options, error, message):
    with pytest.raises(error, match=message):
        ff.FeedForward(*sizes, **options)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("shape", [(4, 6), (5, 7), (6,)])
def test_a_residual_that_does_not_fit_is_refused(dropout, shape):
    layer = make_layer("reference", dropout=dropout)
    with pytest.raises(InvalidValueError, match=r"residual must be \(5, 6\) float64"):
        layer.forward(np.zeros((5, 6)), residual=np.zeros(shape))
