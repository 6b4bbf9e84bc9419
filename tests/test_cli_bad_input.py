"""Bad input of every kind: one clear message, exit code 2, and all files as they were."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from program import HANG, start_program
from runs import one_thread, tree

from fastformer.cli import main
from fastformer.training import checkpoint
from fastformer.training.checkpoint import load_checkpoint, save_checkpoint

__all__ = ["one_thread"]  # a fixture that every test here uses

SMALL = "--examples 400 --embed-dim 16 --num-heads 2 --num-layers 1 --ffn-dim 32 --epochs 2".split()
BEST = "run/checkpoints/best.safetensors"
NEWEST = "run/checkpoints/step-00000020.safetensors"
OLDER = "run/checkpoints/step-00000010.safetensors"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a small model."""
    directory = tmp_path_factory.mktemp("finished")
    assert main(["train", "--out", str(directory / "run"), *SMALL]) == 0
    return directory


@pytest.fixture
def place(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a directory that holds a run and a file of somebody else."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def assert_refused(
    arguments: list[str], complaint: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run a command that must fail for one clear reason and change nothing."""
    before = tree(place)
    capsys.readouterr()
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fastformer: ")
    assert complaint in err
    assert err.count("\n") <= 2
    assert "Traceback" not in err
    assert tree(place) == before


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("", "the expression is empty; write for example 'Max ( 5 , 3 , 9 )'"),
        ("  ", "the expression is empty"),
        ("Mux ( 1 2 3 )", "unknown operation 'Mux' at character 1; known: First, Second, Last"),
        ("Mux ( 1 2 3 )", "did you mean 'Max'?"),
        ("Max ( 1 2 # )", "unknown token '#' at character 11; use whole numbers"),
        ("[PAD]", "unknown token '[' at character 1"),
        ("Max ( 1 2 )", "wrong number of arguments: Max takes 3 in this task, got 2"),
        ("Max ( )", "wrong number of arguments: Max needs at least 1, got 0"),
        ("Max ( 1 2 33 )", "argument 3 of Max must be an integer from 0 to 9, got 33"),
        ("Max ( 1 2 -3 )", "negative numbers are not allowed, got '-3'"),
        ("Max ( 1 , , 2 )", "no number follows the ',' at character 9"),
        ("Max ( 1 2 3", "no ')' closes the '(' at character 5; add ')' at the end"),
        ("Max ( 1 2 3 ) Min", "trailing text after the closing ')'"),
        ("Max ( Min ( 1 2 ) 3 4 )", "nests 2 deep, which is 1 more than the 1 allowed"),
        (
            f"Max ( {'1 ' * 60})",
            "has 122 tokens, which is 72 more than the 50 that this model reads",
        ),
    ],
)
def test_an_expression_that_cannot_be_answered(
    expression: str, complaint: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(["predict", "run", expression], complaint, place, capsys)
    assert_refused(["predict", "run", expression, "--json"], complaint, place, capsys)


def cut(name: str) -> Callable[[Path], None]:
    return lambda place: (place / name).write_bytes((place / name).read_bytes()[:-7])


def flip(name: str) -> Callable[[Path], None]:
    def damage(place: Path) -> None:
        content = bytearray((place / name).read_bytes())
        content[-100] ^= 1
        (place / name).write_bytes(content)

    return damage


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda place: (place / name).write_text(text)


def replace(old: str, new: str) -> Callable[[Path], None]:
    def damage(place: Path) -> None:
        config = place / "run/config.toml"
        text = config.read_text()
        assert text.count(old) == 1
        config.write_text(text.replace(old, new))

    return damage


def newer_checkpoint(place: Path) -> None:
    saved = load_checkpoint(place / BEST)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT_VERSION", 2)
        save_checkpoint(place / BEST, saved.tensors, saved.metadata)


def foreign_checkpoint(place: Path) -> None:
    import safetensors.numpy

    safetensors.numpy.save_file({"output.bias": np.zeros(20, np.float32)}, place / BEST)


DAMAGED_RUNS: list[tuple[Callable[[Path], object], str]] = [
    (lambda place: shutil.rmtree(place / "run"), "run run does not exist; give the directory"),
    (lambda place: (place / "run/config.toml").unlink(), "run is not a run of fastformer"),
    (write("run/config.toml", "seed = "), "run/config.toml is damaged: "),
    (write("run/config.toml", "\x00"), "run/config.toml is damaged: "),
    (write("run/config.toml", "[run]\nseed = 1\n"), "is not of a run of fastformer"),
    (replace("format_version = 1", "format_version = 2"), "has format version 2, this fastformer"),
    (replace("seed = 42", "seed = -1"), "seed must be an integer >= 0, got -1"),
    (replace("[model]", "[models]"), "'model' is missing"),
    (replace("embed_dim = 16", "embed_dim = 32"), "does not fit the model: weights: "),
    (replace("num_layers = 1", "num_layers = 2"), "does not fit the model: "),
    (lambda place: (place / BEST).unlink(), "no best checkpoint yet"),
    (cut(BEST), "best.safetensors is truncated, damaged or not a safetensors file"),
    (flip(BEST), "best.safetensors is damaged: tensor '"),
    (write(BEST, ""), "best.safetensors is truncated, damaged or not a safetensors file"),
    (newer_checkpoint, "best.safetensors has format version 2, this fastformer reads version 1"),
    (foreign_checkpoint, "best.safetensors was not written by fastformer"),
]


@pytest.mark.parametrize("command", ["evaluate run", "predict run max(1,2,3)"])
@pytest.mark.parametrize(("damage", "complaint"), DAMAGED_RUNS)
def test_a_run_that_cannot_be_used(
    damage: Callable[[Path], object],
    complaint: str,
    command: str,
    place: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(place)
    assert_refused(command.split(), complaint, place, capsys)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [(damage, complaint) for damage, complaint in DAMAGED_RUNS if "best" not in complaint],
)
def test_a_run_that_cannot_go_on(
    damage: Callable[[Path], object],
    complaint: str,
    place: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(place)
    assert_refused(["train", "--resume", "run"], complaint, place, capsys)


def test_a_run_whose_checkpoints_are_all_damaged(place: Path) -> None:
    for name in (NEWEST, OLDER):
        flip(name)(place)
    before = tree(place)
    # In a process of its own, where warnings are not errors.
    process = start_program("train", "--resume", "run", "--json", cwd=place)
    out, err = process.communicate(timeout=HANG)
    assert (process.returncode, out) == (2, "")
    *skipped, last = err.splitlines()
    assert [line.partition(": checkpoint")[0] for line in skipped] == [
        "fastformer: warning: a checkpoint is skipped"
    ] * 2
    assert last.startswith("fastformer: run run cannot go on: none of its checkpoints can be read")
    assert tree(place) == before


def test_a_warning_is_one_line_and_leaves_the_json_alone(place: Path) -> None:
    good = json.loads((place / "run/result.json").read_text())
    flip(NEWEST)(place)
    process = start_program("train", "--resume", "run", "--json", cwd=place)
    out, err = process.communicate(timeout=HANG)
    assert process.returncode == 0, err
    warnings = [line for line in err.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith("fastformer: warning: a checkpoint is skipped: checkpoint run/")
    result = json.loads(out)
    assert out.count("\n") == 1
    assert (result["steps"], result["test_loss"]) == (20, good["test_loss"])


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("--batch-size 0", "batch_size must be an integer >= 1, got 0"),
        ("--seed -1", "seed must be an integer >= 0, got -1"),
        ("--backend numpy", 'Choose from: "numba", "reference"'),
        ("--examples 5", "too few distinct inputs to split"),
        ("--examples 6000 --distinct", "only 5000 distinct inputs exist"),
        ("--num-arguments 18 --max-seq-len 20", "which is 18 more than max_seq_len=20"),
        ("--resume run", "--resume goes on with the run's own settings"),
        ("--embed-dim 10000000000 --num-heads 1", "out of memory: Unable to allocate"),
        ("--embed-dim 1000000000000000 --num-heads 1", "must be at most 1099511627776 elements"),
    ],
)
def test_a_run_is_not_overwritten_by_one_that_cannot_start(
    options: str, complaint: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "--out", "run", "--overwrite", *options.split()]
    assert_refused(arguments, complaint, place, capsys)


@pytest.mark.parametrize(
    ("out", "complaint"),
    [
        ("run", "run run is already there; choose another directory with --out, or replace"),
        ("notes", "notes is not empty, and not a run that --overwrite could replace"),
        ("notes/mine.txt", "notes/mine.txt exists and is not a directory"),
        ("notes/mine.txt/run", "cannot create run notes/mine.txt/run"),
    ],
)
def test_a_place_where_no_run_can_be_made(
    out: str, complaint: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(["train", "--out", out, *SMALL], complaint, place, capsys)
    if out != "run":
        arguments = ["train", "--out", out, "--overwrite", *SMALL]
        assert_refused(arguments, complaint, place, capsys)


def test_training_that_diverges_says_so_and_keeps_what_was_saved(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--learning-rate", "1e30", "--checkpoint-every", "1"]
    assert main(["train", "--out", "diverged", *SMALL, *options, "--json"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (message,) = (line for line in err.splitlines() if line.startswith("fastformer: "))
    assert "training diverged at step 2: " in message
    assert "the gradient of embedding.weight is not finite" in message
    assert "lower learning_rate" in message
    saved = load_checkpoint(place / "diverged/checkpoints/step-00000001.safetensors")
    assert all(np.isfinite(array).all() for array in saved.tensors.values())


def test_a_mistake_in_a_list_of_expressions_names_its_line(place: Path) -> None:
    process = start_program("predict", "run", "--json", cwd=place, stdin=subprocess.PIPE)
    out, err = process.communicate("max(1,2,3)\n\nmax(1,2)\nmin(1,2,3)\n", timeout=HANG)
    assert process.returncode == 2
    assert [json.loads(line)["expected"] for line in out.splitlines()] == ["3"]
    assert err == (
        "fastformer: line 3: wrong number of arguments: Max takes 3 in this task, got 2\n"
    )
