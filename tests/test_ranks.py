"""Processes that train together: which shards each has, and the same bits for any number."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mpi_runs import (
    DIGITS,
    MPIEXEC,
    environment,
    needs_mpi,
    run,
    steps_of,
    wait_for_step,
    without_place,
    words_of,
)

import fastformer as ff
from fastformer.cli import main
from fastformer.cli.elastic import train_elastically
from fastformer.training.callbacks import TrainingCallbacks
from fastformer.training.config import TrainingConfig
from fastformer.training.ranks import Ranks, add_subtrees, disagreement, shares
from fastformer.training.runs import resume_run
from fastformer.training.shards import shard_count
from fastformer.training.steps import step_gradients

SIZES = {
    "vocab_size": 20, "embed_dim": 16, "num_heads": 2, "num_layers": 1, "ffn_dim": 32,
    "max_seq_len": 16,
}  # fmt: skip


@given(leaves=st.integers(0, 6).map(lambda n: 1 << n), ranks=st.integers(1, 12))
def test_each_shard_has_one_rank(leaves: int, ranks: int) -> None:
    spans = shares(leaves, ranks)
    assert len(spans) == ranks
    assert [n for low, high in spans for n in range(low, high)] == list(range(leaves))
    assert all(low < high for low, high in spans) == (ranks <= leaves)


@given(
    leaves=st.integers(0, 5).map(lambda n: 1 << n),
    ranks=st.integers(1, 9),
    seed=st.integers(0, 2**32),
)
def test_a_tree_has_the_same_bits_for_any_ranks(leaves: int, ranks: int, seed: int) -> None:
    terms = np.random.default_rng(seed).normal(size=(leaves, 5)).astype(np.float32)

    def tree(low: int, high: int) -> np.ndarray:
        if high - low == 1:
            return terms[low].copy()
        middle = (low + high) // 2
        return tree(low, middle) + tree(middle, high)

    spans = enumerate(shares(leaves, ranks))
    parts = {rank: tree(low, high) for rank, (low, high) in spans if low < high}
    found = add_subtrees(parts, leaves, ranks, lambda a, b: np.add(a, b, out=a))
    np.testing.assert_array_equal(found, tree(0, leaves))


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_shards_add_up_to_the_gradient_of_the_batch(backend: str) -> None:
    model = ff.TransformerDecoder(ff.DecoderConfig(**SIZES), seed=1, backend=backend)
    random = np.random.default_rng(0)
    batch = ff.pack([random.integers(0, 20, n).tolist() for n in random.integers(1, 16, 11)])
    targets, found = random.integers(-1, 20, batch.num_tokens), {}
    for shards in (1, 2, 4, 8):
        for fresh in (True, False):
            model.zero_grad()
            loss, counts = step_gradients(
                model, batch, targets, ff.CrossEntropyLoss(), shards=shards, fresh=fresh
            )
            gradient = model.parameters().gradients.copy()
            if fresh:
                found[shards] = loss, counts, gradient
            np.testing.assert_array_equal(gradient, found[shards][2])
    # What was there before is added to.
    step_gradients(model, batch, targets, ff.CrossEntropyLoss(), shards=8)
    np.testing.assert_array_equal(model.parameters().gradients, 2 * found[8][2])
    loss, counts, gradient = found[1]
    for shards in (2, 4, 8):
        np.testing.assert_allclose(found[shards][0], loss, rtol=1e-6)
        assert found[shards][1] == counts
        np.testing.assert_allclose(found[shards][2], gradient, rtol=1e-4, atol=1e-6)
        assert not np.array_equal(found[shards][2], gradient)  # sums are cut otherwise


def test_dropout_is_that_of_each_shard_whoever_computes_it() -> None:
    class Second(Ranks):
        """Stands for the second of two, which adds nothing of the first one's."""

        rank, size = 1, 2

    model = ff.Transformer(ff.TransformerConfig(dropout=0.5, **SIZES), seed=1).train()
    batch, targets = ff.pack([[1, 2, 3]] * 8), np.arange(8)
    gradients = []
    for ranks in (Ranks(), Second()):
        model.zero_grad()
        model.dropout_counter.forwards = 5
        step_gradients(
            model, batch, targets, ff.CrossEntropyLoss(), 8, shards=2, ranks=ranks, fresh=True
        )
        gradients.append(model.parameters().gradients.copy())
        assert model.dropout_counter.forwards == 7
    model.zero_grad()
    model.dropout_counter.forwards = 6
    half = batch.select(np.arange(4, 8))
    step_gradients(model, half, targets[4:], ff.CrossEntropyLoss(), 8, shards=1, fresh=True)
    np.testing.assert_array_equal(gradients[1], model.parameters().gradients)
    assert not np.array_equal(*gradients)


def test_the_number_of_shards_is_that_of_sizes() -> None:
    large = ff.TransformerDecoder(ff.DecoderConfig(**{**SIZES, "embed_dim": 256, "ffn_dim": 1024}))
    small = ff.Transformer(ff.TransformerConfig(**SIZES))
    for count, wanted in ((8, 1), (32, 2), (100, 4)):
        assert shard_count(large, ff.pack([[1] * 16] * count)) == wanted
    assert shard_count(small, ff.pack([[1] * 16] * 8)) == 1
    assert shard_count(small, ff.pack([[1] * 16] * 5), 64) == 4  # of which each has a sequence
    with pytest.raises(ValueError, match="shards must be a power of two, or 0, got 3"):
        TrainingConfig(shards=3)


def test_what_differs_is_named() -> None:
    assert disagreement([{"a": 1}, {"a": 1}]) is None
    assert disagreement([{"a": 1}, {"a": 1}, {"a": 2}]) == "rank 2 has a 2, and rank 0 has 1"
    assert disagreement([{}, {"b": 3}]) == "rank 1 has b 3, and rank 0 has None"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("ranks") / "alone"
    done = run(0, 1, *DIGITS, "--epochs=2", "--json", "--out", place)
    assert done.returncode == 0, done.stderr
    return place


@needs_mpi
@pytest.mark.parametrize(("ranks", "threads"), [(1, 2), (2, 1), (2, 2), (3, 1), (4, 1), (8, 1)])
def test_any_number_of_processes_has_the_same_bits(
    ranks: int, threads: int, alone: Path, tmp_path: Path
) -> None:
    done = run(ranks, threads, *DIGITS, "--epochs=2", "--json", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert without_place(tmp_path / "run") == without_place(alone)
    assert done.stdout.count("\n") == 1 and json.loads(done.stdout)["steps"]
    assert done.stderr.count("validation loss") == 1  # the header: progress comes once


ADD_UP = """
import numpy as np
import fastformer as ff
from fastformer.training.ranks import all_ranks

model, ranks = ff.Transformer(ff.TransformerConfig(vocab_size=9), seed=1), all_ranks()

def added(leaves):
    flat = model.parameters()
    random = np.random.default_rng(ranks.rank)
    flat.gradients[:] = random.normal(size=flat.gradients.size) * (ranks.rank < leaves)
    ranks.add_up(flat.gradients, leaves, flat.ops.add_gradient)
    return flat.gradients.copy()

batch = ff.pack([[1, 2, 3]])
own = model.parameters().gradients
model.embedding.forward(batch)
for leaves in (2, 4):
    by_messages = added(leaves)
    with ranks.sharing_gradients(model):
        assert model.parameters().gradients is not own
        in_memory = added(leaves)
        before = model.embedding.weight.gradient.copy()
        model.embedding.forward(batch)
        model.embedding.backward(np.ones((3, model.config.embed_dim), np.float32))
        assert not np.array_equal(model.embedding.weight.gradient, before)
        kept = model.parameters().gradients.copy()
    np.testing.assert_array_equal(model.parameters().gradients, kept)
    np.testing.assert_array_equal(by_messages, in_memory)
    assert len({found.tobytes() for found in ranks.gather(in_memory)}) == 1
    assert by_messages.any()
"""


@needs_mpi
def test_messages_and_shared_memory_have_the_same_bits() -> None:
    words = [str(MPIEXEC), "--oversubscribe", "-n", "3", sys.executable, "-c", ADD_UP]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, env=environment())
    assert done.returncode == 0 and done.stderr == "", done.stderr


@needs_mpi
def test_a_decoder_on_text_has_the_same_bits(tmp_path: Path) -> None:
    text, found = tmp_path / "text.txt", []
    text.write_text("the quick brown fox jumps over the lazy dog. " * 60)
    words = ["text", text, "--crops=64", "--batch-size=16", "--epochs=1", "--max-seq-len=32"]
    words += ["--embed-dim=32", "--num-layers=1", "--num-heads=2", "--ffn-dim=64", "--shards=4"]
    for ranks in (0, 2):
        done = run(ranks, 1, *words, "--dropout=0.1", "--out", tmp_path / f"run-{ranks}")
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("sample:") == 1
        found.append(without_place(tmp_path / f"run-{ranks}"))
    assert found[0] == found[1]


@needs_mpi
@pytest.mark.parametrize("killed", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_goes_on_with_another_number_of_processes(
    killed: signal.Signals, tmp_path: Path
) -> None:
    """After one was killed, or asked to stop; it has the bits of a run without a stop."""
    words = [*DIGITS, "--checkpoint-every=1", "--epochs=40"]
    place, whole = tmp_path / "run", tmp_path / "whole"
    with subprocess.Popen(
        words_of(2, 1, *words, "--out", place), env=environment(), text=True,
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        wait_for_step(2, place, process)
        os.kill(psutil.Process(process.pid).children()[-1].pid, killed)
        begun = time.monotonic()
        _, told = process.communicate(timeout=60)
    assert process.returncode != 0 and time.monotonic() - begun < 20
    if killed == signal.SIGKILL:
        assert "exited on\nsignal 9 (Killed)" in told
    else:
        assert told.count("everything is saved. To go on:") == 1
    if killed == signal.SIGKILL:
        done = run(3, 1, "--resume", place)
        assert done.returncode == 0, done.stderr
    else:
        resume_run(place, TrainingCallbacks())
    assert run(0, 1, *words, "--out", whole).returncode == 0
    assert without_place(place) == without_place(whole)


@needs_mpi
def test_one_process_takes_a_name_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        done = run(2, 1, *DIGITS, "--epochs=1")
        assert done.returncode == 0, done.stderr
        assert sorted(path.name for path in Path("runs").iterdir())[-1] == f"digits-{number}"
    assert without_place(Path("runs/digits-1")) == without_place(Path("runs/digits-2"))


@needs_mpi
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_rank_that_others_wait_for_is_named(stopped: int, tmp_path: Path) -> None:
    words = words_of(2, 1, *DIGITS, "--epochs=4000", "--out", tmp_path / "run")
    with subprocess.Popen(
        words, env=environment(), text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as process:  # fmt: skip
        assert process.stderr is not None
        told = iter(process.stderr)
        assert any(line.split()[:1] == ["1"] for line in told)  # the first epoch's
        rank = psutil.Process(process.pid).children()[stopped]
        rank.suspend()
        line = next(line for line in told if "waited" in line)
        rank.resume()
        assert any(line.split()[:1] != ["fastformer:"] for line in told)  # another epoch's
        process.terminate()
        process.communicate(timeout=60)
    assert f"rank {1 - stopped} has waited 10 s for rank {stopped} (" in line
    assert f", process {rank.pid}): slow, or stopped" in line


@needs_mpi
def test_mistakes_are_told_once_and_nothing_is_written(tmp_path: Path) -> None:
    place = tmp_path / "run"
    few = ["digits", "--examples=300", "--epochs=1", "--out", place]
    done = run(2, 1, *few)
    assert done.returncode == 2
    assert done.stderr.count("2 processes share the 1 shards of a batch: start at most 1") == 1
    own = [str(word) for word in words_of(0, 1, *few, "--shards=2")]
    differing = [str(MPIEXEC), "-n", "1", *own, ":", "-n", "1", *own, "--learning-rate=0.5"]
    for words, message in (
        (differing, "rank 1 has learning_rate 0.5, and rank 0 has 0.001"),
        ([*words_of(2, 1, *few), "--nonsense"], "Unknown option"),
        ([*words_of(2, 1, *few), "--shards=3"], "shards must be a power of two"),
        ([*words_of(2, 1, *few), "--seeds=2"], "start this one command without mpiexec"),
    ):
        done = subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=300)
        assert done.returncode == 2 and done.stderr.count(message) == 1, done.stderr
        assert done.stdout == "" and not place.exists()


def test_several_processes_without_their_library_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = tmp_path / "mpi4py.py"
    hidden.write_text("raise ImportError('as if it were not installed')")
    words = words_of(0, 1, *DIGITS, "--out", tmp_path / "run")
    for rank in "01":
        told = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": rank}
        paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=120,
            env=environment() | told | {"PYTHONPATH": paths},
        )  # fmt: skip
        assert done.returncode == 2 and "pip install 'fastformer[mpi]'" in done.stderr
    assert not (tmp_path / "run").exists()


@needs_mpi
def test_an_elastic_run_goes_on_with_the_processes_that_are_left(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = words_of(0, 1, *DIGITS, "--checkpoint-every=1", "--epochs=40", "--elastic=3", "--json")
    whole, place = tmp_path / "whole", Path("runs/digits-1")
    with subprocess.Popen(
        words, text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE,
        env=environment() | {"PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"},
    ) as process:  # fmt: skip
        saved = 2
        for left in (3, 2):
            wait_for_step(saved, place, process)
            (launched,) = psutil.Process(process.pid).children()
            ranks = launched.children()
            assert len(ranks) == left
            ranks[-1].kill()
            launched.wait(20)
            saved = max(steps_of(place)) + 2
        shown, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    assert told.count("A process was lost. Going on with") == 2
    assert run(0, 1, *DIGITS, "--checkpoint-every=1", "--epochs=40", "--out", whole).returncode == 0
    assert without_place(place) == without_place(whole)
    assert json.loads(shown)["run"] == str(place)


@needs_mpi
def test_an_elastic_run_ends_as_it_is_asked_to(tmp_path: Path) -> None:
    place = tmp_path / "run"
    words = words_of(0, 1, *DIGITS, "--epochs=4000", "--elastic=2", "--out", place)
    with subprocess.Popen(
        words, env=environment(), text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as process:  # fmt: skip
        wait_for_step(1, place, process)
        process.terminate()
        _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert told.count("everything is saved. To go on:") == 1 and "lost" not in told


@pytest.mark.parametrize("words", [["--elastic=0"], ["--elastic", "two"], ["--elastic"]])
def test_an_elastic_run_needs_a_number(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "digits", *words]) == 2
    assert "elastic" in capsys.readouterr().err


def test_an_elastic_run_is_started_without_mpiexec(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="start it without mpiexec"):
        train_elastically(["train", "digits", "--elastic=2"])


@needs_mpi
def test_a_mistake_ends_an_elastic_run_at_once() -> None:
    done = run(0, 1, *DIGITS, "--elastic=2", "--learning-rate=-1")
    assert done.returncode == 2 and done.stderr.count("learning_rate must be") == 1, done.stderr
    assert "lost" not in done.stderr
