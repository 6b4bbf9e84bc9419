"""A whole training step as a program: gradients by differences, ways, backends, threads, growth."""

import itertools
from typing import Any

import numba
import numpy as np
import pytest
from models import BACKENDS, assert_slope, make_model, use_one_thread

import fastformer as ff
from fastformer.backend import get_backend
from fastformer.kernels._compile import BUILD
from fastformer.kernels.cross_entropy import cross_entropy, sum_of_losses
from fastformer.program import Program
from fastformer.tensors import Axis
from fastformer.workspace import Workspace

WAYS = ("ops", "blocks", "whole")
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "first row": ("encoder", {}),
    "last row, pre-norm, rotary": (
        "encoder", {"pooling": "last", "norm": "pre", "positions": "rotary"}
    ),
    "mean, gelu, biases": (
        "encoder",
        {
            "pooling": "mean", "activation": "gelu", "qkv_bias": True,
            "attention_output_bias": True,
        },
    ),
    "each row, few classes": ("encoder", {"pooling": "none", "num_classes": 4}),
    "first row, rmsnorm, dropout": (
        "encoder", {"norm_type": "rmsnorm", "dropout": 0.2, "norm": "pre"}
    ),
    "tied, learned positions": ("decoder", {}),
    "rotary, swiglu, rmsnorm": (
        "decoder", {"norm_type": "rmsnorm", "activation": "swiglu", "positions": "rotary"}
    ),
    "alibi, mish, post-norm, untied": (
        "decoder",
        {"norm": "post", "positions": "alibi", "activation": "mish", "tied_embeddings": False},
    ),
    "dropout": ("decoder", {"dropout": 0.2, "activation": "relu", "positions": "sinusoidal"}),
    "own heads, no biases, embedding norm": (
        "decoder",
        {
            "head_size": 6, "num_kv_heads": 1, "ffn_bias": False, "norm_bias": False,
            "embedding_norm": True, "positions": "rotary", "rotary_base": 50.0,
        },
    ),
    "untied without a bias, embedding rmsnorm": (
        "decoder",
        {"tied_embeddings": False, "output_bias": False, "embedding_norm": True,
         "norm_type": "rmsnorm", "head_size": 3, "qkv_bias": True},
    ),
    "dropout, swiglu, alibi": (
        "decoder", {"dropout": 0.2, "activation": "swiglu", "positions": "alibi"}
    ),
}  # fmt: skip
EACH_MODEL = pytest.mark.parametrize("name", MODELS)
LENGTHS = (3, 1, 6, 2, 5)
# Of several shards, in each way that has shards.
MANY = (6, 1, 5, 6, 2, 6, 4, 6, 3) * (7 if BUILD == "python" else 14)
CALL = 12


class TrainingStep:
    """A model's forward, loss and backward as a program, and what it gives for a batch."""

    def __init__(self, model: Any, way: str = "ops", training: bool = True) -> None:
        use_one_thread()
        self.model = model
        self.program = Program(model.dtype.name, model, training=training)
        program, rows = self.program, model.logits_rows
        classes = Axis(model.config.num_logits)
        self.logits = program.bound("logits", rows, classes)
        self.targets = program.bound("targets", rows, kind="int")
        self.loss = program.bound("loss", Axis(1), kind="double")
        program.forward(model, self.logits)
        losses, _, _, dlogits = program.add(
            cross_entropy, logits=self.logits, targets=self.targets,
            smoothing=program.number("smoothing"), scale=program.number("scale"),
        )  # fmt: skip
        program.add(sum_of_losses, losses=losses, loss=self.loss)
        program.backward(model, dlogits)
        program.end_stage()
        self.workspace = Workspace(
            program, way, ops=get_backend(model.ops.name),
            max_seq_len=model.config.max_seq_len, gradients=model.parameters().gradients,
        )  # fmt: skip

    def run(self, lengths: tuple[int, ...] = LENGTHS) -> float:
        """Add a batch's gradients to the model's, and return the mean loss."""
        config, rng = self.model.config, np.random.default_rng(len(lengths))
        classes = config.num_logits
        batch = ff.pack([rng.integers(0, config.vocab_size, n).tolist() for n in lengths])
        rows = self.model.rows_of(batch)
        targets = rng.integers(0, classes, rows)
        targets[::4] = -1
        self.last_logits = np.full((rows, classes), np.nan, self.model.dtype)
        loss, count = np.full(1, np.nan), int((targets >= 0).sum())
        numbers: dict[str, float] = {"smoothing": 0.1, "scale": 1 / count}
        if "dropout call" in self.program.numbers:
            numbers["dropout call"] = CALL
        bound = {self.logits: self.last_logits, self.targets: targets, self.loss: loss}
        self.workspace.run(batch, numbers=numbers, bound=bound)
        return float(loss[0]) / count

    def gradients(self, lengths: tuple[int, ...] = LENGTHS) -> dict[str, np.ndarray]:
        """Return loss, logits and all gradients of a batch."""
        self.model.zero_grad()
        loss = self.run(lengths)
        found = {"loss": np.array(loss), "logits": self.last_logits}
        return found | {name: gradient.copy() for name, gradient in self.model.grad_dict().items()}


def new_step(name: str, backend: str, way: str = "ops", **options: Any) -> TrainingStep:
    kind, chosen = MODELS[name]
    return TrainingStep(make_model(kind, backend=backend, **chosen, **options), way)


def assert_close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], limit: float):
    """Errors are relative to the largest element of each array, or to 0.001."""
    assert found.keys() == expected.keys()
    for name, truth in expected.items():
        # The gradient of what is added to all keys of a query is made of roundings.
        error = np.abs(found[name] - truth).max() / max(1e-3, np.abs(truth).max())
        assert error <= limit, f"{name}: error {error:.2e}, limit {limit:.2e}"


@EACH_MODEL
def test_all_gradients_are_slopes_of_the_loss(name):
    """In three random directions through all parameters, and the twins alone compute."""
    step = new_step(name, "reference")
    step.gradients()
    parameters = step.model.parameters()
    gradients = parameters.gradients.copy()
    assert np.count_nonzero(gradients) > gradients.size / 2
    for seed in range(3):
        assert_slope(step.run, parameters.values, gradients, name, seed)


def test_a_gradient_that_is_wrong_is_no_slope():
    step = new_step("first row", "reference")
    step.gradients()
    parameters = step.model.parameters()
    gradients = parameters.gradients.copy()
    largest = np.abs(gradients).argmax()
    gradients[largest] *= 1.001
    with pytest.raises(AssertionError):
        for seed in range(3):
            assert_slope(step.run, parameters.values, gradients, "planted", seed)


@EACH_MODEL
def test_both_backends_equal_the_twins_in_order_in_every_way(name):
    """To roundings, for a batch of one shard and for one of several."""
    expected = {
        lengths: new_step(name, "reference").gradients(lengths) for lengths in (LENGTHS, MANY)
    }
    for way, backend in itertools.product(WAYS, BACKENDS):
        step = new_step(name, backend, way)
        for lengths, truth in expected.items():
            assert_close(step.gradients(lengths), truth, 1e-12)


@pytest.mark.skipif(BUILD != "production", reason="another build has no threads")
@EACH_MODEL
def test_same_bits_for_any_threads_in_poisoned_memory(name):
    for way in WAYS:
        step, bits = new_step(name, "numba", way, dtype="float32"), None
        step.gradients(MANY)
        for threads in (1, 2, 3, 4):
            numba.set_num_threads(threads)
            step.workspace.memory[...] = np.nan
            found = {k: v.tobytes() for k, v in step.gradients(MANY).items()}
            assert found == (bits or found), f"{way}, {threads} threads"
            bits = found


@pytest.mark.parametrize("way", WAYS)
def test_gradients_of_batches_add_up(way):
    step = new_step("rotary, swiglu, rmsnorm", "numba", way)
    one, other = (step.gradients(lengths) for lengths in (LENGTHS, MANY))
    step.model.zero_grad()
    step.run(LENGTHS)
    step.run(MANY)
    for name, gradient in step.model.grad_dict().items():
        np.testing.assert_allclose(gradient, one[name] + other[name], rtol=1e-10, atol=1e-12)


def test_dropout_drops_in_training_only_and_anew_in_each_call(monkeypatch):
    model = make_model("decoder", dropout=0.2)
    training, evaluation = TrainingStep(model), TrainingStep(model, training=False)
    assert "dropout call" in training.program.numbers
    plain = evaluation.gradients()
    assert_close(TrainingStep(make_model("decoder")).gradients(), plain, 1e-12)
    first, again = training.gradients(), training.gradients()
    monkeypatch.setattr("test_model_programs.CALL", CALL + 50)
    later = training.gradients()
    assert first["loss"] == again["loss"] not in (plain["loss"], later["loss"])


def test_a_seed_may_have_64_bits():
    largest = 2**64 - 1
    drops = [make_model("decoder", dropout=0.2, seed=largest, backend=b) for b in BACKENDS]
    compiled, twins = (TrainingStep(model).gradients() for model in drops)
    assert_close(compiled, twins, 1e-12)


def test_cycles_of_each_op_are_counted_without_changing_the_result():
    step = new_step("tied, learned positions", "numba", "blocks")
    expected, workspace = step.gradients(MANY), step.workspace
    ops, segments = len(workspace.steps), len(workspace.segments)
    workspace.clocks = np.zeros((4, ops + segments), np.int64)
    found = step.gradients(MANY)
    assert {name: v.tobytes() for name, v in found.items()} == {
        name: v.tobytes() for name, v in expected.items()
    }
    if BUILD != "python":
        assert (workspace.clocks[:, :ops].sum(axis=0) > 0).all()
        assert (workspace.clocks >= 0).all() and not workspace.clocks[1:, :ops].any()
