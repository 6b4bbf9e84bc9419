"""The package from outside: what its names are, and that they are imported when they are used."""

import os
import subprocess
import sys

import numpy as np
import pytest
from program import HANG, ROOT

import fastformer as ff

# Programs outside are written against these.
NAMES = {
    "Adam",
    "AdamW",
    "CrossEntropyLoss",
    "DecoderConfig",
    "Dropout",
    "EMA",
    "Embedding",
    "ExactGELU",
    "FeedForward",
    "GELU",
    "LayerNorm",
    "Linear",
    "Mish",
    "MultiHeadAttention",
    "PackedBatch",
    "PositionalEncoding",
    "ReLU",
    "RMSNorm",
    "SGD",
    "Softmax",
    "Transformer",
    "TransformerBlock",
    "TransformerConfig",
    "TransformerDecoder",
    "accumulate_gradients",
    "evaluate",
    "generate",
    "generate_stream",
    "pack",
    "pack_targets",
    "pack_text",
    "BPETokenizer",
    "ByteTokenizer",
    "CharacterTokenizer",
    "WordTokenizer",
    "train_step",
}
HEAVY = ("numba", "matplotlib", "llvmlite")
LIGHT_MODULES = [
    "fastformer.errors",
    "fastformer.random",
    "fastformer.threads",
    "fastformer.checks",
    "fastformer.batch",
    "fastformer.models.config",
    "fastformer.data.vocabulary",
    "fastformer.data.expressions",
    "fastformer.data.digits",
    "fastformer.data.batches",
    "fastformer.training.config",
    "fastformer.training.checkpoint",
    "fastformer.training.run_directory",
    "fastformer.training.metrics",
    "fastformer.training.schedules",
    "fastformer.cli",
]


def run_python(code: str) -> str:
    """Run code in a new process and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.smoke
def test_every_public_name_is_there():
    assert NAMES <= set(ff.__all__) == set(dir(ff))
    assert len(set(ff.__all__)) == len(ff.__all__)
    for name in ff.__all__:
        value = getattr(ff, name)
        assert value is getattr(ff, name)
        if name != "__version__":
            assert value.__name__ == name and value.__doc__, name
            assert value.__module__.startswith("fastformer."), name


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"'fastformer' has no attribute 'Tranformer'"):
        _ = ff.Tranformer
    with pytest.raises(ImportError):
        exec("from fastformer import Tranformer")


def test_all_names_can_be_imported_at_once():
    space = {}
    exec("from fastformer import *", space)
    assert NAMES <= space.keys()


def test_the_import_is_light():
    code = (
        f"import fastformer, sys; dir(fastformer); print([n for n in {HEAVY} if n in sys.modules])"
    )
    assert run_python(code) == "[]"


def test_what_needs_no_kernels_imports_none():
    code = f"""
import importlib, sys
for name in {LIGHT_MODULES}:
    importlib.import_module(name)
    assert not [n for n in {HEAVY} if n in sys.modules], name
import fastformer as ff
ff.TransformerConfig(vocab_size=3), ff.pack([[1]])
print([n for n in {HEAVY} if n in sys.modules])
"""
    assert run_python(code) == "[]"


def test_models_need_no_pictures():
    code = "import fastformer, sys; fastformer.Transformer; print('matplotlib' in sys.modules)"
    assert run_python(code) == "False"


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_example_that_programs_are_written_against(backend, dtype):
    config = ff.TransformerConfig(
        vocab_size=20, embed_dim=64, num_heads=4, num_layers=2, ffn_dim=256, max_seq_len=50
    )
    model = ff.Transformer(config, seed=42, backend=backend, dtype=dtype)
    batch = ff.pack([[15, 17, 7, 19, 5, 19, 11, 18], [12, 17, 2, 19, 3, 19, 4, 18]])
    targets = np.array([11, 2])
    loss_fn = ff.CrossEntropyLoss(backend=backend)
    optimizer = ff.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(5):
        logits = model.forward(batch)
        assert (logits.shape, logits.dtype) == ((2, 20), np.dtype(dtype))
        losses.append(loss_fn.forward(logits, targets))
        model.zero_grad()
        model.backward(loss_fn.backward())
        optimizer.step()
    assert losses == sorted(losses, reverse=True)
    weights = model.state_dict()
    other = ff.Transformer(config, seed=1, backend=backend, dtype=dtype)
    other.load_state_dict(weights)
    np.testing.assert_array_equal(other.forward(batch), model.forward(batch))
    assert model.grad_dict().keys() == weights.keys()


def test_a_step_and_an_evaluation_of_ones_own_loop():
    config = ff.TransformerConfig(vocab_size=20, embed_dim=8, num_heads=2, ffn_dim=8)
    model = ff.Transformer(config, seed=1)
    batch, targets = ff.pack([[15, 7, 5], [12, 2], [13, 2, 3]]), np.array([7, 2, 3])
    loss_fn, optimizer = ff.CrossEntropyLoss(), ff.AdamW(model.parameters(), lr=1e-2)
    before = ff.evaluate(model, batch, targets, loss_fn)
    first = ff.train_step(model, batch, targets, loss_fn, optimizer)
    assert first == pytest.approx(before)
    assert ff.evaluate(model, batch, targets, loss_fn, batch_size=2).loss < before.loss
