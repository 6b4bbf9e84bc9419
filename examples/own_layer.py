"""Put a layer of your own into a model: compiled, checked, and trained with the rest."""

from functools import partial

import numpy as np

import fastformer as ff


def sine_twin(x, out):
    out[...] = np.sin(x)


@ff.op("x[R,C] -> out[R,C]", cut="R", cost="C", twin=sine_twin)
def sine(part, x, out):
    for i in range(part.first, part.last):
        for j in range(x.shape[1]):
            out[i, j] = np.sin(x[i, j])


def sine_gradient_twin(dout, x, dx):
    dx[...] = np.cos(x) * dout


@ff.op("dout[R,C] x[R,C] -> dx[R,C]", cut="R", cost="C", twin=sine_gradient_twin)
def sine_gradient(part, dout, x, dx):
    for i in range(part.first, part.last):
        for j in range(x.shape[1]):
            dx[i, j] = np.cos(x[i, j]) * dout[i, j]


class Waves(ff.Layer):
    """A feed-forward layer with sines between its two products."""

    def __init__(self, config, *, counter=None, seed=0, **options):
        super().__init__(**options)
        self.expand = ff.Linear(config.embed_dim, config.ffn_dim, seed=seed, **options)
        self.contract = ff.Linear(config.ffn_dim, config.embed_dim, seed=seed, **options)

    def forward_ops(self, p, x, residual=None):
        hidden = p.forward(self.expand, x)
        p.save(hidden=hidden)
        (waves,) = p.add(sine, x=hidden)
        return p.forward(self.contract, waves, residual=residual)

    def backward_ops(self, p, dout, residual=None):
        (dhidden,) = p.add(sine_gradient, dout=p.backward(self.contract, dout), x=p.saved.hidden)
        return p.backward(self.expand, dhidden, residual=residual)


config = ff.TransformerConfig(vocab_size=7, embed_dim=16, num_heads=2, ffn_dim=32)
print(ff.check_layer(partial(Waves, config), config.embed_dim))

model = ff.Transformer(config, block=partial(ff.TransformerBlock, feed_forward=Waves), seed=1)
rows = np.random.default_rng(1).integers(0, 7, (400, 3))
train, unseen = ((ff.pack(part), part.max(axis=1)) for part in (rows[:300], rows[300:]))
history = ff.fit(model, train, unseen, epochs=5, learning_rate=3e-3)
print(f"largest of three numbers: {history[-1]['validation_accuracy']:.0%} of unseen ones right")
