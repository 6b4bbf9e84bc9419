"""`check_layer`, on right layers and planted faults; and layers of one's own in models."""

from functools import partial

import numpy as np
import pytest
from models import BACKENDS, assert_parameter_gradients, dlogits_for, make_batch, use_one_thread

import fastformer as ff
from fastformer.errors import EquivalenceError, InvalidTypeError, InvalidValueError

WIDTH = 6


def cubed_reference(x, out):
    out[...] = x**3


@ff.op("x[R,C] -> out[R,C]", cut="R", cost="C", twin=cubed_reference)
def cubed(part, x, out):
    for i in range(part.first, part.last):
        for j in range(x.shape[1]):
            out[i, j] = x[i, j] * x[i, j] * x[i, j]


def cubed_gradient_reference(dout, x, dx):
    dx[...] = 3 * x * x * dout


@ff.op("dout[R,C] x[R,C] -> dx[R,C]", cut="R", cost="C", twin=cubed_gradient_reference)
def cubed_gradient(part, dout, x, dx):
    for i in range(part.first, part.last):
        for j in range(x.shape[1]):
            dx[i, j] = 3 * x[i, j] * x[i, j] * dout[i, j]


@ff.op("dout[R,C] x[R,C] -> dx[R,C]", cut="R", cost="C", twin=cubed_gradient_reference)
def doubled_gradient(part, dout, x, dx):
    for i in range(part.first, part.last):
        for j in range(x.shape[1]):
            dx[i, j] = 2 * x[i, j] * x[i, j] * dout[i, j]


def wrong_gradient_reference(dout, x, dx):
    dx[...] = 2 * x * x * dout


class Cubed(ff.Layer):
    """(x scale)^3 W, scale trained."""

    gradient = cubed_gradient

    def __init__(self, config, *, counter=None, seed=0, **options):
        super().__init__(**options)
        self.expand = ff.Linear(config.embed_dim, 8, seed=seed, **options)
        self.contract = ff.Linear(8, config.embed_dim, bias=False, seed=seed, **options)

    def forward_ops(self, p, x, residual=None):
        hidden = p.forward(self.expand, x)
        p.save(hidden=hidden)
        (out,) = p.add(cubed, x=hidden)
        return p.forward(self.contract, out, residual=residual)

    def backward_ops(self, p, dout, residual=None):
        dout = p.backward(self.contract, dout)
        (dhidden,) = p.add(self.gradient, dout=dout, x=p.saved.hidden)
        return p.backward(self.expand, dhidden, residual=residual)


class Unlike(Cubed):
    """Its compiled gradient is not its twin's."""

    gradient = doubled_gradient


class NoBackward(ff.Layer):
    def forward_ops(self, p, x):
        (out,) = p.add(cubed, x=x)
        return out


CONFIG = ff.DecoderConfig(vocab_size=11, embed_dim=WIDTH, num_heads=2, ffn_dim=8, max_seq_len=6)


def test_a_right_layer_passes_and_the_report_says_what_was_found():
    use_one_thread()
    report = ff.check_layer(partial(Cubed, CONFIG), WIDTH, rows=9)
    assert report.float64 <= 1e-10 and report.float32 <= 1e-4 and report.differences <= 1e-6
    assert report.seconds > 0 and report.reference_seconds > 0
    assert "compiled beside twins: float64" in str(report) and "times as fast" in str(report)


def test_a_layer_that_reads_a_batch_is_checked_too():
    use_one_thread()
    ff.check_layer(lambda **o: ff.MultiHeadAttention(WIDTH, 2, **o), WIDTH, batch=make_batch())


def test_a_kernel_that_differs_from_its_twin_is_noticed():
    use_one_thread()
    with pytest.raises(
        EquivalenceError, match=r"gradient of the input of float64 compiled differs"
    ):
        ff.check_layer(partial(Unlike, CONFIG), WIDTH)


def test_a_gradient_that_is_wrong_in_kernel_and_twin_is_noticed(monkeypatch):
    use_one_thread()
    monkeypatch.setattr(doubled_gradient, "twin", wrong_gradient_reference)
    with pytest.raises(
        EquivalenceError, match=r"gradient of the input has the slope .* differences"
    ):
        ff.check_layer(partial(Unlike, CONFIG), WIDTH)


def test_mistakes_are_named():
    with pytest.raises(InvalidTypeError, match=r"what make returns must be a Layer, got int"):
        ff.check_layer(lambda **_: 3, WIDTH)
    with pytest.raises(InvalidValueError, match="width must be an integer >= 1, got 0"):
        ff.check_layer(partial(Cubed, CONFIG), 0)
    with pytest.raises(InvalidTypeError, match="block must be a Layer, got int"):
        ff.TransformerDecoder(CONFIG, block=lambda config, **_: 3)
    with pytest.raises(InvalidTypeError, match="feed_forward must be a Layer, got NoneType"):
        ff.TransformerBlock(CONFIG, feed_forward=lambda config, **_: None)


def test_a_layer_without_a_backward_says_so(rng):
    use_one_thread()
    layer = NoBackward(dtype="float64")
    x = rng.standard_normal((3, 4))
    np.testing.assert_allclose(layer.forward(x), x**3, 1e-14)
    with pytest.raises(NotImplementedError, match=r"NoBackward appends no ops of backward"):
        layer.backward(x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_of_own_layers_has_the_right_gradients_and_is_fused(backend):
    use_one_thread()
    block = partial(ff.TransformerBlock, feed_forward=Cubed)
    model = ff.TransformerDecoder(CONFIG, block=block, backend=backend, dtype="float64", seed=2)
    batch = make_batch()
    dlogits = dlogits_for(model.forward(batch))
    model.backward(dlogits)
    assert_parameter_gradients(model, lambda: float(np.vdot(dlogits, model.forward(batch))))
    segment = next(s for s in model.program.segments if any(step.op is cubed for step in s))
    assert len(segment) > 10, "the layer's ops are not joined with those around them"
