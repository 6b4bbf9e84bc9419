"""Small models and batches for tests, and gradients of parameters by central differences."""

from collections.abc import Callable

import numba
import numpy as np
from gradients import ATOL, RTOL

import fastformer as ff

BACKENDS = ("numba", "reference")
KINDS = ("encoder", "decoder")
LENGTHS = (3, 1, 5, 2)
LARGE_LENGTHS = (8, 7) * 18
SIZES = {
    "vocab_size": 11,
    "embed_dim": 12,
    "num_heads": 3,
    "num_layers": 2,
    "ffn_dim": 20,
    "max_seq_len": 6,
}

# Narrower than for kernels: ReLUs have kinks, and a narrow step seldom crosses one.
STEP = 2.0**-14


def use_one_thread():
    """Run what is small on one thread, until the end of the test: others would only be waited for.

    Where the machine is busy, a wait takes as long as a thousand small kernels.
    """
    numba.set_num_threads(1)


def make_config(kind, **options):
    """Return a small config; options replace its sizes and add to them."""
    use_one_thread()
    config_class = ff.TransformerConfig if kind == "encoder" else ff.DecoderConfig
    return config_class(**SIZES | options)


def make_model(kind, *, backend="numba", dtype="float64", seed=3, **options):
    """Return a small model whose biases and norms are not at their initial 0 and 1."""
    model_class = ff.Transformer if kind == "encoder" else ff.TransformerDecoder
    model = model_class(make_config(kind, **options), seed=seed, backend=backend, dtype=dtype)
    return shaken(model)


def large_model(kind):
    """Return a model for which most kernels have several tasks on a batch of LARGE_LENGTHS."""
    options = {"embed_dim": 64, "num_heads": 4, "ffn_dim": 256, "max_seq_len": 8}
    return make_model(kind, dtype="float32", **options)


def shaken(layer, seed=5):
    """Add random numbers to all parameters, so that none is 0 or 1; return the layer."""
    use_one_thread()
    random = np.random.default_rng(seed)
    for _, value, _ in layer.parameters():
        value += 0.2 * random.standard_normal(value.shape)
    return layer


def make_sequences(lengths=LENGTHS, seed=0):
    """Return lists of random ids."""
    random = np.random.default_rng(seed)
    return [random.integers(0, SIZES["vocab_size"], length).tolist() for length in lengths]


def make_batch(lengths=LENGTHS, seed=0):
    """Return a packed batch of random ids."""
    return ff.pack(make_sequences(lengths, seed))


def forward_and_backward(model, batch, seed=1, forwards=5):
    """Return the logits, and all gradients for a random gradient by the logits.

    `forwards` is the number of the forward pass that dropout's random numbers are drawn for.
    """
    model.dropout_counter.forwards = forwards
    logits = model.forward(batch)
    model.zero_grad()
    model.backward(dlogits_for(logits, seed))
    return logits, model.grad_dict()


def dlogits_for(logits, seed=1):
    """Return a random gradient by the logits, the same for either dtype up to rounding."""
    return np.random.default_rng(seed).standard_normal(logits.shape).astype(logits.dtype)


def slope(function: Callable[[], float], array: np.ndarray, direction: np.ndarray) -> float:
    """Return the derivative of function() where `array`, which it reads, moves along a direction.

    Four points give an error of the fourth power of the step.
    """
    before = array.copy()

    def at(shift: float) -> float:
        array[...] = before + shift * direction
        return function()

    near, far = at(STEP) - at(-STEP), at(2 * STEP) - at(-2 * STEP)
    array[...] = before
    return (8 * near - far) / (12 * STEP)


def assert_each_slope(function, array, gradient, name):
    """Compare a gradient with the slope along each element of an array."""
    found = np.empty(array.shape)
    for index in np.ndindex(array.shape):
        direction = np.zeros(array.shape)
        direction[index] = 1
        found[index] = slope(function, array, direction)
    np.testing.assert_allclose(gradient, found, RTOL, ATOL, err_msg=name)


def assert_slope(function, array, gradient, name, seed=7):
    """Compare a gradient with the slope along a random direction of length 1."""
    direction = np.random.default_rng(seed).standard_normal(array.shape)
    direction /= np.linalg.norm(direction)
    found, expected = np.vdot(gradient, direction), slope(function, array, direction)
    np.testing.assert_allclose(found, expected, RTOL, ATOL, err_msg=name)


def assert_parameter_gradients(layer, function):
    """Compare the layer's present gradients with function()'s slopes, along random directions.

    One direction goes through all parameters, and one through each of them.
    """
    parameters = layer.parameters()
    assert_slope(function, parameters.values, parameters.gradients, "all parameters")
    for name, value, gradient in parameters:
        assert gradient.any(), f"{name} has no gradient"
        assert_slope(function, value, gradient, name)


def assert_layer_gradients(layer, forward, backward, *inputs):
    """Hold a layer's backward to each slope of its forward, in float64.

    Args:
        layer: whose parameters are checked, each element of each.
        forward: forward(*inputs) -> the output.
        backward: backward(dout) -> the gradient of the inputs, a tuple of as many arrays.
        inputs: float64 arrays.
    """
    dout = np.random.default_rng(2).standard_normal(forward(*inputs).shape)
    given = dout.copy()
    layer.zero_grad()
    gradients = [gradient.copy() for gradient in backward(dout)]
    np.testing.assert_array_equal(dout, given, "backward changed dout")

    def loss():
        return float(np.vdot(given, forward(*inputs)))

    for index, (x, gradient) in enumerate(zip(inputs, gradients, strict=True)):
        assert_each_slope(loss, x, gradient, f"input {index}")
    for name, value, gradient in layer.parameters():
        assert_each_slope(loss, value, gradient, name)
    if layer.num_parameters:
        parameters = layer.parameters()
        assert_slope(loss, parameters.values, parameters.gradients, "all parameters")


def assert_gradients_on_both_backends(make, forward, backward, *inputs):
    """Hold the compiled backward to each slope of its forward, and all of the twins' to it.

    Args:
        make: make(backend) -> the layer, in float64, with the same parameters each time.
        forward: forward(layer, *inputs) -> the output.
        backward: backward(layer, dout) -> the gradient of the inputs, a tuple of as many arrays.
        inputs: float64 arrays.
    """
    compiled, twins = map(make, BACKENDS)
    assert_layer_gradients(
        compiled, lambda *x: forward(compiled, *x), lambda dout: backward(compiled, dout), *inputs
    )
    found = []
    for layer in (compiled, twins):
        out = forward(layer, *inputs).copy()
        layer.zero_grad()
        gradients = backward(layer, np.random.default_rng(4).standard_normal(out.shape))
        named = {f"input {index}": dx.copy() for index, dx in enumerate(gradients)}
        found.append({"output": out, **named, **layer.grad_dict()})
    assert_equal_gradients(found[1], found[0], 1e-9, 1e-12)


def assert_equal_gradients(found, expected, rtol, atol):
    """Compare two dictionaries of arrays."""
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        np.testing.assert_allclose(found[name], gradient, rtol, atol, err_msg=name)


def same_bits(found, expected):
    """Tell whether two arrays, or two dictionaries of arrays, have the same bits."""
    if isinstance(found, dict):
        return found.keys() == expected.keys() and all(
            same_bits(found[name], expected[name]) for name in found
        )
    return (found.dtype, found.shape, found.tobytes()) == (
        expected.dtype,
        expected.shape,
        expected.tobytes(),
    )
