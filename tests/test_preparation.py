"""All that a run calls is compiled before it begins: no line of the table waits for a kernel."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from program import ROOT
from runs import SIZES, Recorder, one_thread, small_settings
from test_answers import small_settings as answers

import fastformer as ff
from fastformer.training.classifier_run import ClassifierJob
from fastformer.training.digits_run import RunSettings
from fastformer.training.examples import Examples
from fastformer.training.preparation import batches_of_each_size
from fastformer.training.run_directory import RunDirectory
from fastformer.warmup import compilation_clock, telling_of_compilation

__all__ = ["one_thread"]  # a fixture that every test here uses


def digits(model: dict[str, Any] | None = None, **options: Any) -> RunSettings:
    """Return settings of which the last batch of each epoch is one sequence."""
    left = len(small_settings(examples=200).splits().train) - 1
    settings = small_settings(**{"examples": 200, "epochs": 1, "batch_size": left, **options})
    return replace(settings, model=ff.TransformerConfig(vocab_size=20, **SIZES, **(model or {})))


OTHER_LAYERS: dict[str, Any] = {
    "norm_type": "rmsnorm", "positions": "rotary", "activation": "swiglu", "norm": "pre",
    "dropout": 0.1,
}  # fmt: skip


def late(*runs: Any, change: str = "") -> list[int]:
    """Return how many kernels were compiled, or loaded, after each of some runs had begun."""
    program = f"{change}\n{Path(__file__).with_name('compiled_late.py').read_text()}"
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps([settings.tables() for settings in runs]),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(runs) and all(one["steps"] for one in found)
    return [one["late"] for one in found]


def test_nothing_is_compiled_once_training_has_begun() -> None:
    assert (
        late(
            digits(),
            answers("nested", epochs=1, batch_size=107),
            digits({"dropout": 0.1}, optimizer="sgd", clip_norm=0.1, accumulation_steps=2),
            digits(precision="bfloat16"),
        )
        == [0] * 4
    )


def test_nor_with_other_forms_of_layers() -> None:
    assert late(digits(OTHER_LAYERS), digits(OTHER_LAYERS, dtype="float64")) == [0, 0]


def test_what_is_compiled_late_would_be_seen() -> None:
    change = "from fastformer.training import loop\nloop.compile_for = lambda *arguments: None"
    assert late(digits(), change=change) > [0]


def test_preparing_changes_nothing(tmp_path: Path) -> None:
    settings = digits({"dropout": 0.5})
    job = ClassifierJob(settings)
    run = RunDirectory.create(tmp_path / "run", settings.tables())
    trainer = job.trainer(run, Recorder())
    model, before = job.model, job.model.parameters().values.tobytes()
    for training in (False, True):
        model.dropout_counter.training = training
        trainer._is_prepared = False
        trainer.prepare(job.tests)
        assert model.dropout_counter.training is training
    assert model.parameters().values.tobytes() == before
    assert not model.parameters().gradients.any()
    assert (model.dropout_counter.forwards, trainer.optimizer.steps) == (0, 0)
    assert list(run.path.iterdir()) == [run.path / "config.toml"]


def sizes(source: Any, epochs: range, batch_size: int) -> list[tuple[int, int]]:
    """Return the sequences and tokens of the batches that are tried."""
    found = batches_of_each_size(source, 7, epochs, batch_size)
    return [(batch.num_sequences, batch.num_tokens) for batch, _ in found]


def test_batches_of_each_size_are_the_smallest_and_largest_of_the_run(
    rng: np.random.Generator,
) -> None:
    ids = [[1] * int(length) for length in rng.integers(1, 30, 23)]
    source, epochs = Examples(ff.pack(ids), np.zeros(23, np.int64)), range(2, 6)
    every: dict[int, set[int]] = {}
    for epoch in epochs:
        for batch, _ in source.batches(7, epoch, 5, 0):
            every.setdefault(batch.num_sequences, set()).add(batch.num_tokens)
    assert every.keys() == {5, 3}
    wanted = {(count, end(seen)) for count, seen in every.items() for end in (min, max)}
    found = sizes(source, epochs, 5)
    assert set(found) == wanted and len(found) == 4
    assert sizes(source, range(3, 3), 5) == []
    same = Examples(ff.pack([[1, 2]] * 23), np.zeros(23, np.int64))
    assert sizes(same, epochs, 5) == [(5, 10), (3, 6)]
    assert sizes(same, epochs, 23) == [(23, 46)]


@dataclass
class Stream:
    """A source of which nothing is known but its batches."""

    size: int = 7

    def batches(self, seed: int, epoch: int, batch_size: int, start: int) -> Any:
        for first in range(start * batch_size, self.size, batch_size):
            count = min(batch_size, self.size - first)
            yield ff.pack([[epoch] * 2] * count), np.zeros(count, np.int64)


def test_of_a_stream_the_first_and_the_last_batch_are_tried() -> None:
    assert sizes(Stream(), range(1, 9), 3) == [(3, 6), (1, 2)]
    assert sizes(Stream(), range(1, 9), 9) == [(7, 14)]


def test_time_of_compilation_is_that_of_no_example(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba.core import event

    now = [100.0]
    monkeypatch.setattr(time, "time", lambda: now[0])

    def compile_for(seconds: float) -> None:
        with event.trigger_event("numba:compiler_lock"):
            now[0] += seconds / 2
            with event.trigger_event("numba:compiler_lock"):  # what a kernel calls
                now[0] += seconds / 2

    with compilation_clock() as compiling:
        now[0] += 7
        assert compiling() == 0
        compile_for(2)
        now[0] += 7
        compile_for(3)
        assert compiling() == 5
    compile_for(9)
    assert compiling() == 5


def test_compilation_that_is_not_known_by_name_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    from numba.core import event

    with telling_of_compilation():
        pass
    assert capsys.readouterr().err == ""
    with telling_of_compilation():
        for _ in range(2):
            with event.trigger_event("numba:compile"):
                pass
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and lines[0].startswith("fastformer: compiling what few models need")
