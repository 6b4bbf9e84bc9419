"""What reaches parameters, and the loss around the weights: numbers, picture, command."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import Recorder, one_thread, small_settings, tree

import fastformer as ff
from fastformer.analysis.gradient_flow import BINS, gradient_flow, histogram
from fastformer.analysis.landscape import loss_landscape
from fastformer.cli import main
from fastformer.errors import InvalidValueError
from fastformer.training.runs import train_run

__all__ = ["one_thread"]  # a fixture that every test here uses


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a small model with dropout, which must not act here."""
    directory = tmp_path_factory.mktemp("runs") / "run"
    train_run(small_settings(dropout=0.2, examples=1000, epochs=4), directory, Recorder())
    return directory


@pytest.fixture
def problem() -> tuple[ff.Transformer, ff.PackedBatch, np.ndarray]:
    """Return a model in float64 with dropout, in training, and a batch."""
    settings = small_settings(dropout=0.3, dtype="float64")
    train = settings.splits().train
    model = settings.new_model().train()
    return model, ff.pack(train.inputs[:40]), train.targets[:40]


def loss_of(model: ff.Transformer, batch: Any, targets: Any) -> float:
    return float(ff.evaluate(model, batch, targets, ff.CrossEntropyLoss()).loss)


@pytest.mark.smoke
def test_the_flow_is_that_of_the_gradients(problem: Any) -> None:
    model, batch, targets = problem
    weights = model.state_dict()
    flows = {flow.name: flow for flow in gradient_flow(model, batch, targets)}
    assert model.dropout_counter.training
    assert not any(gradient.any() for _, _, gradient in model.parameters())
    model.eval()
    loss = ff.CrossEntropyLoss()
    loss.forward(model.forward(batch), targets)
    model.backward(loss.backward())
    assert flows.keys() == weights.keys()
    for name, gradient in model.grad_dict().items():
        flow, weight = flows[name], weights[name]
        assert flow.gradient_rms == pytest.approx(np.sqrt((gradient**2).mean()), rel=1e-12)
        assert flow.weight_rms == pytest.approx(np.sqrt((weight**2).mean()), rel=1e-12)
        assert flow.dead == (gradient == 0).mean()
        assert (sum(flow.counts), flow.size) == (weight.size, weight.size)
    # [PAD] and [EOS] are never read: at least two of twenty rows have no gradient.
    assert flows["embedding.weight"].dead >= 0.1
    assert flows["output.bias"].ratio == 0.0  # by weights that are still 0


def test_the_loss_is_that_of_the_training(problem: Any) -> None:
    """With the run's label smoothing, that is: both would otherwise be of a loss of no one's."""
    model, batch, targets = problem
    plain, smoothed = (
        (
            gradient_flow(model, batch, targets, label_smoothing=smoothing)[0].gradient_rms,
            loss_landscape(model, batch, targets, points=3, label_smoothing=smoothing).centre,
        )
        for smoothing in (0.0, 0.3)
    )
    loss = ff.CrossEntropyLoss(label_smoothing=0.3)
    assert smoothed[1] == pytest.approx(ff.evaluate(model, batch, targets, loss).loss, rel=1e-12)
    assert smoothed[0] != pytest.approx(plain[0], rel=1e-3)


def test_a_gradient_that_is_not_finite_is_named(problem: Any) -> None:
    model, batch, targets = problem
    model.output.weight.value[0, 0] = np.nan
    with pytest.raises(InvalidValueError, match="the gradient of .* is not finite"):
        gradient_flow(model, batch, targets)
    assert model.dropout_counter.training


def test_a_histogram_counts_all_values_and_takes_equal_ones() -> None:
    counts, low, high = histogram(np.array([0.0, 0.0, 1.0, 2.0]))
    assert (counts[0], counts[-1], sum(counts), low, high) == (2, 1, 4, 0.0, 2.0)
    counts, low, high = histogram(np.ones(5))
    assert (sum(counts), counts[BINS // 2], low, high) == (5, 5, 1.0, 1.0)


def test_the_landscape_has_the_loss_of_the_weights_in_its_middle(problem: Any) -> None:
    model, batch, targets = problem
    weights = model.state_dict()
    found = loss_landscape(model, batch, targets, points=5, extent=0.5, seed=3)
    after = model.state_dict()
    assert all(np.array_equal(weights[name], after[name]) for name in weights)
    assert model.dropout_counter.training
    assert found.centre == loss_of(model, batch, targets)
    assert found.steps.tolist() == [-0.5, -0.25, 0.0, 0.25, 0.5]
    assert len(np.unique(found.losses)) == 25
    again = loss_landscape(model, batch, targets, points=5, extent=0.5, seed=3)
    assert np.array_equal(found.losses, again.losses)
    other = loss_landscape(model, batch, targets, points=5, extent=0.5, seed=4)
    assert not np.array_equal(found.losses, other.losses)


def test_a_step_is_as_long_as_the_weights_and_leaves_biases_alone(
    problem: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch, targets = problem
    before, seen = model.state_dict(), []
    forward = model.forward

    def watched(given: Any) -> Any:
        seen.append(model.state_dict())
        return forward(given)

    monkeypatch.setattr(model, "forward", watched)
    loss_landscape(model, batch, targets, points=3, extent=1.0)
    moved = {name: seen[5][name] - before[name] for name in before}  # one step along the first
    for name, weight in before.items():
        if weight.ndim == 1:
            assert not moved[name].any()
            continue
        axis = 1 if name == "embedding.weight" else 0
        lengths = [np.linalg.norm(array, axis=axis) for array in (moved[name], weight)]
        np.testing.assert_allclose(*lengths, rtol=1e-9)


def test_a_trained_model_lies_in_a_hollow(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(run)
    assert main(["inspect", str(run), "--points", "5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    losses = np.array(found["landscape"]["losses"])
    assert losses.argmin() == 12 and found["landscape"]["centre"] == losses[2, 2]
    assert len(found["parameters"]) == 15
    assert tree(run) == before


def test_inspect_shows_a_table_and_a_map_and_writes_a_picture(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "new/seen.png"
    assert main(["inspect", str(run), "--points", "7", "--picture", str(picture)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("blocks.0.") for line in lines) == 12
    cells = [line.split() for line in lines[-8:-1]]
    assert [len(row) for row in cells] == [7] * 7
    assert cells[3][3] == "O" and "@" in {mark for row in cells for mark in row}
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--points", "4"], "points must be odd, to have one in the middle, got 4"),
        (["--points", "1"], "points must be an integer from 3 to 201, got 1"),
        (["--extent", "0"], "extent must be a finite number > 0, got 0"),
        (["--seed", "-1"], "seed must be an integer >= 0, got -1"),
        (["--picture", "x.gif"], "a picture's name must end in one of .png, .svg, .pdf"),
    ],
)
def test_a_mistake_is_explained(
    arguments: list[str], complaint: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(run), *arguments]) == 2
    assert complaint in capsys.readouterr().err


def test_the_program_of_a_step_is_shown(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With dropout, which acts in training."""
    assert main(["inspect", str(run), "--program"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{len(lines)} ops in ")
    words = [line.split() for line in lines]
    assert words[0][:2] == ["0s", "embedding"] and "tokens[N]" in words[0]
    assert ["s", "blocks.0.attention.dropout", "dropout"] in [line[:3] for line in words]
    assert "add_gradient_copies" in words[-1]


def test_a_run_without_a_model_says_so(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    (copy / "checkpoints/best.safetensors").unlink()
    assert main(["inspect", str(copy)]) == 2
    assert "no best checkpoint yet" in capsys.readouterr().err
