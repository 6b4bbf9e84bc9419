"""The tour: ten steps, paced at a terminal, and a run like any other."""

import json
import re
from pathlib import Path

import pytest
from runs import everything, one_thread

from fastformer.cli import main, tour

__all__ = ["one_thread"]  # a fixture that every test here uses

SMALL = (
    "train --examples 400 --embed-dim 16 --num-heads 2 --num-layers 1 --ffn-dim 32 --epochs 3"
).split()


def titles(out: str) -> list[str]:
    return re.findall(r"^\d+ of 10  (.*)$", out, re.MULTILINE)


def pretend_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let input and output look like a terminal's."""
    for stream in ("stdin", "stdout"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True, raising=False)


@pytest.mark.smoke
def test_ten_steps_are_shown_and_the_run_is_like_any_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda prompt: pytest.fail("nobody is there to press"))
    assert main([*SMALL, "--tour", "--out", str(tmp_path / "tour")]) == 0
    out, err = capsys.readouterr()
    assert titles(out) == list(tour.STEPS)
    assert main([*SMALL, "--out", str(tmp_path / "plain")]) == 0
    assert everything(tmp_path / "tour") == everything(tmp_path / "plain")
    result = json.loads((tmp_path / "tour/result.json").read_text())
    assert f"{result['parameters']:,}" in out
    assert "shared      0 inputs" in out
    assert out.count("guess: ") == 2  # after epochs 1 and 2
    assert " -> " in out  # the right answer, among the likeliest
    assert "layer 1, head 1" in out and "shades:" in out
    assert "Most alike in the embedding" in out
    assert len(re.findall(r"^ +[123] ", err, re.MULTILINE)) == 3  # the epochs, as ever


def test_the_parameters_of_the_parts_add_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL, "--tour", "--out", str(tmp_path / "run")]) == 0
    step = capsys.readouterr().out.split(tour.STEPS[3])[1].split(tour.STEPS[4])[0]
    *parts, total = [
        int(n.replace(",", "")) for n in re.findall(r"^  \D.*? ([\d,]+)(?:   .*)?$", step, re.M)
    ]
    assert sum(parts) == total > 0


def test_a_guess_is_that_of_the_weights_of_its_epoch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fastformer.analysis.prediction import DigitPredictor
    from fastformer.training.digits_run import RunSettings
    from fastformer.training.loop import load_weights
    from fastformer.training.run_directory import RunDirectory

    words = [*SMALL[:-1], "2", "--tour", "--out", str(tmp_path / "run")]
    assert main(words) == 0
    guesses = re.findall(r"guess: (.*\)) = (\S+)   (\S+ %)", capsys.readouterr().out)
    run = RunDirectory.open(tmp_path / "run")
    settings = RunSettings.from_run(run)
    model = settings.new_model()
    load_weights(model, run.latest())
    answer = DigitPredictor(model, settings.task).predict(guesses[-1][0])
    assert guesses[-1][1] == answer.prediction
    assert float(guesses[-1][2][:-2]) == pytest.approx(100 * answer.probability, abs=0.01)


def test_enter_is_waited_for_between_steps(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend_a_terminal(monkeypatch)
    prompts: list[str] = []
    monkeypatch.setattr("builtins.input", lambda prompt: prompts.append(prompt))
    assert main([*SMALL, "--tour", "--out", str(tmp_path / "run")]) == 0
    assert len(prompts) == len(tour.STEPS) - 1


def test_the_end_of_input_lets_it_go_straight_through(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend_a_terminal(monkeypatch)
    asked: list[str] = []

    def end(prompt: str) -> str:
        asked.append(prompt)
        raise EOFError

    monkeypatch.setattr("builtins.input", end)
    assert main([*SMALL, "--tour", "--out", str(tmp_path / "run")]) == 0
    assert len(asked) == 1
    assert titles(capsys.readouterr().out) == list(tour.STEPS)


def test_json_has_the_last_line_and_the_tour_goes_elsewhere(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend_a_terminal(monkeypatch)
    monkeypatch.setattr("builtins.input", lambda prompt: pytest.fail("a program has no Enter"))
    assert main([*SMALL, "--tour", "--json", "--out", str(tmp_path / "run")]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1 and json.loads(out)["steps"] == 30
    assert titles(err) == list(tour.STEPS)


def test_a_run_that_is_there_is_refused_before_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert main([*SMALL, "--tour", "--out", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "is not empty, and not a run that --overwrite could replace" in err
    assert main(["train", "--tour", "--resume", str(tmp_path)]) == 2
    assert "--resume goes on with the run's own settings" in capsys.readouterr().err
