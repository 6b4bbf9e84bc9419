"""Local steps: which part of a batch a process has, and how all agree."""

import signal
import subprocess
from pathlib import Path

import numpy as np
import psutil
import pytest
from mpi_runs import (
    DIGITS,
    environment,
    needs_mpi,
    run,
    steps_of,
    wait_for_step,
    without_place,
    words_of,
)

import fastformer as ff
from fastformer.parameters import Array
from fastformer.training.callbacks import TrainingCallbacks
from fastformer.training.config import TrainingConfig
from fastformer.training.local_steps import OuterStep, own_part
from fastformer.training.ranks import Add, Ranks
from fastformer.training.runs import resume_run

LOCAL = [*DIGITS, "--local-steps=4", "--epochs=9", "--checkpoint-every=1"]


class OneOf(Ranks):
    """Stands for one of several, of which the others have given what they add."""

    def __init__(self, rank: int, size: int, others: list[Array]) -> None:
        self.rank, self.size, self.others = rank, size, others

    def add_up(self, gradients: Array, leaves: int, add: Add) -> None:
        assert leaves >= self.size
        add(gradients, self.others.pop(0))


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("per_token", [False, True])
def test_each_sequence_is_that_of_one_process(ranks: int, per_token: bool) -> None:
    batch = ff.pack([[n] * (n + 1) for n in range(7)])
    targets = batch.tokens.copy() if per_token else np.arange(7)
    parts = [own_part(batch, targets, OneOf(rank, ranks, [])) for rank in range(ranks)]
    assert np.array_equal(np.concatenate([part.tokens for part, _ in parts]), batch.tokens)
    assert np.array_equal(np.concatenate([own for _, own in parts]), targets)
    assert all(part.num_sequences in (7 // ranks, -(-7 // ranks)) for part, _ in parts)
    for rank in range(8):  # of too few, each has all
        part, own = own_part(batch, targets, OneOf(rank, 8, []))
        assert part.num_sequences == 7 and np.array_equal(own, targets)


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_an_outer_step_is_that_of_the_paper(backend: str, momentum: float) -> None:
    sizes = {"vocab_size": 9, "embed_dim": 8, "num_heads": 2, "num_layers": 1, "ffn_dim": 8}
    config = ff.TransformerConfig(**sizes)
    model = ff.Transformer(config, seed=1, backend=backend, dtype="float64")
    flat, random = model.parameters(), np.random.default_rng(0)
    inner = ff.AdamW(flat, 1e-2)
    others: list[Array] = []
    outer = OuterStep(inner, OneOf(0, 2, others), 0.7, momentum)
    theta, velocity = flat.values.copy(), np.zeros_like(flat.values)
    used = flat.values != 0
    for _ in range(3):
        flat.gradients[...] = random.normal(size=flat.values.size) * used
        inner.step()
        moments = [state.copy() for state in inner.state.values()]
        given = [
            np.abs(random.normal(size=flat.values.size)) * used for _ in range(1 + len(moments))
        ]
        delta = (theta - flat.values + given[0]) / 2
        velocity = momentum * velocity + delta
        theta = theta - 0.7 * (delta + momentum * velocity if momentum else delta)
        others[:] = [array.copy() for array in given]
        outer.make()
        np.testing.assert_allclose(flat.values, theta, rtol=1e-12, atol=1e-14)
        for found, own, other in zip(inner.state.values(), moments, given[1:], strict=True):
            np.testing.assert_allclose(found, (own + other) / 2, rtol=1e-12, atol=1e-14)
        assert not others


def test_settings_that_are_not_allowed() -> None:
    for name, value in (
        ("local_steps", -1),
        ("outer_learning_rate", 0.0),
        ("outer_momentum", 1.0),
    ):
        with pytest.raises(ValueError, match=name):
            TrainingConfig(**{name: value})


@needs_mpi
@pytest.mark.parametrize("ranks", [0, 2, 3])
def test_a_run_with_local_steps_that_was_stopped_has_the_same_bits(
    ranks: int, tmp_path: Path
) -> None:
    whole, place = tmp_path / "whole", tmp_path / "run"
    done = run(ranks, 1, *LOCAL, "--out", whole)
    assert done.returncode == 0, done.stderr
    words = words_of(ranks, 1, *LOCAL, "--out", place)
    with subprocess.Popen(
        words, env=environment(), text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as process:  # fmt: skip
        wait_for_step(1, place, process)
        last = [*psutil.Process(process.pid).children(), psutil.Process(process.pid)][0]
        last.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    steps = steps_of(place)
    if ranks:
        done = run(ranks, 1, "--resume", place)
        assert done.returncode == 0, done.stderr
    else:
        resume_run(place, TrainingCallbacks())
    assert steps and all(step % 5 in (0, 4) for step in steps)  # an epoch has five
    assert without_place(whole) == without_place(place)
