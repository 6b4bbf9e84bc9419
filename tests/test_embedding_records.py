"""The embedding tables that a run keeps after each epoch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import Recorder, everything, one_thread, small_settings, tree

from fastformer.errors import CheckpointError
from fastformer.training.checkpoint import load_checkpoint
from fastformer.training.embedding_records import MOST_NUMBERS, EmbeddingRecords
from fastformer.training.loop import TrainingInterrupted, load_weights
from fastformer.training.runs import resume_run, train_run

__all__ = ["one_thread"]  # a fixture that every test here uses


def test_a_run_keeps_the_table_of_each_epoch(tmp_path: Path) -> None:
    settings = small_settings()
    result = train_run(settings, tmp_path / "run", Recorder())
    records = EmbeddingRecords(tmp_path / "run")
    tables = records.read_all((20, 16))
    assert list(tables) == [0, 1, 2, 3]
    model = settings.new_model()
    np.testing.assert_array_equal(tables[0], model.embedding.weight.value)
    best = load_checkpoint(tmp_path / "run/checkpoints/best.safetensors")
    load_weights(model, best)
    np.testing.assert_array_equal(tables[result["best_epoch"]], model.embedding.weight.value)
    assert all((tables[n] != tables[n + 1]).any() for n in range(3))


def test_a_run_that_goes_on_keeps_the_same_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small_settings(dropout=0.1)
    train_run(settings, tmp_path / "whole", Recorder())

    class Stop(Recorder):
        def stepped(self, step: int, *rest: object) -> None:
            if step == 15:
                import os
                import signal

                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingInterrupted):
        train_run(settings, tmp_path / "parts", Stop())
    records = EmbeddingRecords(tmp_path / "parts")
    assert records.epochs() == [0, 1]
    records.save(7, np.zeros((20, 16), np.float32))  # of an epoch that was given up
    resume_run(tmp_path / "parts", Recorder())
    assert everything(tmp_path / "parts") == everything(tmp_path / "whole")
    assert tree(tmp_path / "parts/embeddings") == tree(tmp_path / "whole/embeddings")


def test_a_run_in_place_of_another_has_only_its_own(tmp_path: Path) -> None:
    train_run(small_settings(), tmp_path / "run", Recorder())
    train_run(small_settings(epochs=1), tmp_path / "run", Recorder(), overwrite=True)
    assert EmbeddingRecords(tmp_path / "run").epochs() == [0, 1]


def test_a_run_without_records_says_what_is_missing(tmp_path: Path) -> None:
    records = EmbeddingRecords(tmp_path)
    assert records.epochs() == []
    with pytest.raises(ValueError, match=r"lacks the records .*embeddings/epoch-\*\.safetensors"):
        records.read_all((20, 4))
    with pytest.raises(ValueError, match="read checkpoint .*epoch-0003"):
        records.read(3, (20, 4))


def test_a_damaged_record_is_noticed(tmp_path: Path) -> None:
    records = EmbeddingRecords(tmp_path)
    records.save(2, np.ones((20, 4), np.float32))
    file = tmp_path / "embeddings/epoch-0002.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="epoch-0002.* is damaged"):
        records.read_all((20, 4))


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        (np.ones((5, 4), np.float32), r"no embedding.weight of shape \(20, 4\), but \(5, 4\)"),
        (np.ones((), np.float32), r"of shape \(20, 4\), but \(\) float32$"),
        (np.ones((20, 4), np.int64), r"of shape \(20, 4\), but \(20, 4\) int64$"),
        (np.full((20, 4), np.nan, np.float32), "values that are not finite, or beyond 1e\\+100"),
        (np.full((20, 4), 1e200), "values that are not finite, or beyond 1e\\+100"),
    ],
)
def test_a_record_that_is_no_table_of_the_model_is_refused(
    table: np.ndarray[Any, Any], complaint: str, tmp_path: Path
) -> None:
    EmbeddingRecords(tmp_path).save(0, table)
    with pytest.raises(CheckpointError, match=complaint):
        EmbeddingRecords(tmp_path).read_all((20, 4))


def test_names_that_are_no_records_are_left_alone_and_few_that_lack_are_listed(
    tmp_path: Path,
) -> None:
    records = EmbeddingRecords(tmp_path)
    for epoch in (0, 3, 99_999_999):
        records.save(epoch, np.ones((20, 4), np.float32))
    for name in ("epoch-99999999999999999999", "epoch-00007", "epoch-1"):
        (records.directory / f"{name}.safetensors").touch()
    assert records.epochs() == [0, 3, 99_999_999]
    assert [Path(file).name for file in records.missing(4)] == [
        f"epoch-{epoch:04d}.safetensors" for epoch in (1, 2, 4, 5)
    ]


def test_a_large_table_is_not_recorded(tmp_path: Path) -> None:
    EmbeddingRecords(tmp_path).save(1, np.zeros((MOST_NUMBERS + 1, 1), np.float32))
    assert not list(tmp_path.iterdir())
