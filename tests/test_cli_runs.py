"""Train, evaluate and predict from the command line, with a model that trains in a moment."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from program import HANG, start_program
from runs import one_thread

from fastformer.cli import main

__all__ = ["one_thread"]  # a fixture that every test here uses

TINY = "--examples 400 --embed-dim 16 --num-heads 2 --num-layers 1 --ffn-dim 32".split()
SMALL = [*TINY, "--epochs", "2"]


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a small model, for the tests that need a finished run."""
    directory = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", "--out", str(directory), *SMALL]) == 0
    return directory


def test_train_writes_a_run_and_one_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *SMALL, "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert out.count("\n") == 1
    wanted = {"test_accuracy", "per_operation", "steps", "seconds", "examples_per_second", "run"}
    assert wanted <= set(result)
    assert result["run"] == "runs/digits-1"
    assert (tmp_path / "runs/digits-1/config.toml").is_file()
    assert len(re.findall(r"^ +[12] ", err, re.MULTILINE)) == 2
    assert main(["train", "digits", *SMALL, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run"] == "runs/digits-2"


def test_train_shows_a_table_and_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "a run"
    assert main(["train", "--out", str(directory), *SMALL, "--operations", "Max", "Min"]) == 0
    out = capsys.readouterr().out
    assert "accuracy by operation, hardest first" in out
    assert re.search(r"^  Max +[█░]{40} ", out, re.MULTILINE)
    assert not re.search(r"^  First ", out, re.MULTILINE)
    assert re.search(r"^test accuracy +\d+\.\d % of \d+ inputs never seen", out, re.MULTILINE)
    assert f"fastformer predict '{directory}'" in out


def test_a_run_is_not_overwritten_without_being_told_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "--out", str(tmp_path / "run"), *SMALL, "--json"]
    assert main(arguments) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main(arguments) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert main([*arguments, "--overwrite"]) == 0


def test_evaluate_repeats_what_training_measured(
    run_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run_directory), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    trained = json.loads((run_directory / "result.json").read_text())
    assert result["test_accuracy"] == trained["test_accuracy"]
    assert result["per_operation"] == trained["per_operation"]
    assert main(["evaluate", str(run_directory)]) == 0
    out = capsys.readouterr().out
    assert "never seen in training" in out
    assert "hardest" in out or "equally hard" in out


def test_predict_answers_one_expression(
    run_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(run_directory), "max(5, 3,9)"]) == 0
    first, *top = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"Max \( 5 , 3 , 9 \) = \S+   \d+\.\d\d %   \((right|wrong.*)\)", first)
    assert len(top) == 5
    assert main(["predict", str(run_directory), "Max ( 5 3 9 )", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {"expression", "prediction", "probability", "expected", "correct", "top"} <= set(result)
    assert result["expected"] == "9"
    assert first.startswith(f"Max ( 5 , 3 , 9 ) = {result['prediction']} ")
    for words in (["Max", "5", "3", "9"], ["max", "5,", "3", "9"], ["max 5 3 9"]):
        assert main(["predict", str(run_directory), *words, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == result
    assert main(["attention", str(run_directory), "Max", "5", "3", "9", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["expression"] == result["expression"]


def test_predict_answers_each_line_of_its_input(run_directory: Path) -> None:
    process = start_program("predict", str(run_directory), "--json", stdin=subprocess.PIPE)
    # Some editors begin a file with a mark of the byte order.
    out, err = process.communicate("\ufeffmax(1,2,3)\n\nMin 4 5 6\n", timeout=HANG)
    assert process.returncode == 0, err
    assert [json.loads(line)["expected"] for line in out.splitlines()] == ["3", "4"]


def test_a_conversation_survives_a_mistake(
    run_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = iter(["Mux(1 2 3)", "", "max(1 2 3)", "quit", "min(1 2 3)"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    capsys.readouterr()
    assert main(["predict", str(run_directory)]) == 0
    out, err = capsys.readouterr()
    assert "Mux" in err
    assert "Max ( 1 , 2 , 3 ) = " in out
    assert "Min (" not in out
    # The output goes elsewhere, so the prompt is no part of it.
    assert "> " in err and "> " not in out
    assert "readline" in sys.modules


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt])
def test_a_conversation_ends_when_the_user_has_enough(
    end: type[BaseException], run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(prompt: str) -> str:
        raise end

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", leave)
    assert main(["predict", str(run_directory)]) == 0
