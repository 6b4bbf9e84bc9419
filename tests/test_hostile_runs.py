"""Whatever a run's files hold: a result, or one clear message, in bounded time and memory."""

import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_runs import spoil
from runs import Recorder, one_thread, small_settings

from fastformer.analysis.loading import load_run
from fastformer.cli import main
from fastformer.errors import FastformerError
from fastformer.training.checkpoint import load_checkpoint, save_checkpoint
from fastformer.training.runs import train_run

__all__ = ["one_thread"]  # a fixture that every test here uses

BEST = "checkpoints/best.safetensors"
NEWEST = "checkpoints/step-00000020.safetensors"
QUESTION = ["Max", "5", "3", "9"]
COMMANDS = (
    ["predict", "run", *QUESTION],
    ["evaluate", "run"],
    ["attention", "run", *QUESTION],
    ["embeddings", "run"],
    ["train", "--resume", "run"],
    ["plot", "run"],
    ["report", "run"],
)
SEEDS = range(35)
Spoil = Callable[[Path], object]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    train_run(small_settings(epochs=2), run, Recorder())
    return run


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    """Let nothing take more than 4 GB beside what the process has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if os.path.exists("/proc") else 0
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (4 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(trained, "run"))


def no_number(text: str) -> None:
    raise AssertionError(f"{text} is no JSON")


def ended_well(words: list[str], capsys: pytest.CaptureFixture[str]) -> int:
    """Run a command as a program would, and return its exit code if all that it wrote is right."""
    capsys.readouterr()
    code = main([*words, "--json"])
    out, err = capsys.readouterr()
    assert code in (0, 2), err
    assert "\x1b" not in out + err and "\x9b" not in out + err
    assert "out of memory" not in err and "encountered in" not in err
    if code == 0:
        json.loads(out.splitlines()[-1], parse_constant=no_number)
    else:
        told = [line for line in err.splitlines() if line.startswith("fastformer: ")]
        told = [line for line in told if not line.startswith("fastformer: warning: ")]
        assert len(told) == 1 and len(told[0]) < 2_100
        assert words[0] == "train" or not out
    return code


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("seed", SEEDS)
def test_a_run_with_a_spoiled_file_gives_a_result_or_a_message(
    seed: int, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print(spoil(run, seed))
    ended_well(COMMANDS[seed % len(COMMANDS)], capsys)
    try:
        load_run("run")
    except FastformerError:
        assert ended_well(["predict", "run", *QUESTION], capsys) == 2


def metrics(**changes: Any) -> Spoil:
    def change(run: Path) -> None:
        file = run / "metrics.jsonl"
        first, *others = file.read_text().splitlines()
        file.write_text("\n".join([json.dumps(json.loads(first) | changes), *others, ""]))

    return change


def result(**changes: Any) -> Spoil:
    def change(run: Path) -> None:
        file = run / "result.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def config(old: str, new: str) -> Spoil:
    def change(run: Path) -> None:
        file = run / "config.toml"
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))

    return change


def tensors(name: str, factor: float) -> Spoil:
    def change(run: Path) -> None:
        found = load_checkpoint(run / name)
        scaled = {key: (v * np.float64(factor)).astype(v.dtype) for key, v in found.tensors.items()}
        save_checkpoint(run / name, scaled, found.metadata)

    return change


def metadata(**changes: Any) -> Spoil:
    def change(run: Path) -> None:
        found = load_checkpoint(run / NEWEST)
        save_checkpoint(run / NEWEST, found.tensors, found.metadata | changes)

    return change


def progress(**changes: Any) -> Spoil:
    def change(run: Path) -> None:
        found = load_checkpoint(run / NEWEST).metadata["progress"]
        metadata(progress=found | changes)(run)

    return change


def table(shape: tuple[int, ...]) -> Spoil:
    def change(run: Path) -> None:
        file = run / "embeddings/epoch-0000.safetensors"
        save_checkpoint(file, {"embedding.weight": np.ones(shape, np.float32)}, {"epoch": 0})

    return change


def named(name: str) -> Spoil:
    return lambda run: shutil.copy(run / "embeddings/epoch-0001.safetensors", run / name)


def sparse(name: str) -> Spoil:
    return lambda run: os.truncate(run / name, 1 << 40)


PLOT, REPORT, RESUME = ["plot", "run"], ["report", "run"], ["train", "--resume", "run"]
PREDICT, EMBEDDINGS = ["predict", "run", *QUESTION], ["embeddings", "run"]
CASES: dict[str, tuple[Spoil, list[str], int]] = {
    "a loss of 400 digits": (metrics(train_loss=10**400), PLOT, 0),
    "an epoch of 1e308": (metrics(epoch=1e308), PLOT, 0),
    "parameters that are text": (result(parameters="x"), REPORT, 0),
    "a result that is none": (result(test_accuracy="x"), RESUME, 0),
    "finite weights, logits that are not": (tensors(BEST, 1e18), PREDICT, 2),
    "the same for all test inputs": (tensors(BEST, 1e18), ["evaluate", "run"], 2),
    "weights that are not finite": (tensors(BEST, float("nan")), EMBEDDINGS, 2),
    "a record of another shape": (table((5, 16)), EMBEDDINGS, 2),
    "a record without a shape": (table(()), REPORT, 0),
    "a record of a late epoch": (named("embeddings/epoch-999999999.safetensors"), EMBEDDINGS, 0),
    "an epoch of 20 digits": (named(f"embeddings/epoch-{'9' * 20}.safetensors"), EMBEDDINGS, 0),
    "a step of 20 digits": (named(f"checkpoints/step-{'9' * 20}.safetensors"), RESUME, 0),
    "progress that is text": (progress(epoch="x"), RESUME, 2),
    "a batch beyond the epoch": (progress(batch=10**6), RESUME, 2),
    "an epoch of which nothing was seen": (progress(epoch=1, batch=10, step=20), RESUME, 2),
    "a step of another epoch": (progress(step=7), RESUME, 2),
    "a tracker that is a list": (metadata(tracker=[]), RESUME, 2),
    "forwards that are text": (metadata(dropout_forwards="x"), RESUME, 2),
    "layers without end": (config("num_layers = 1", "num_layers = 1000000000"), PREDICT, 2),
    "layers that the file has not": (config("num_layers = 1", "num_layers = 4096"), PREDICT, 2),
    "a width beyond memory": (config("ffn_dim = 32", "ffn_dim = 500000000"), PREDICT, 2),
    "positions beyond memory": (config("max_seq_len = 50", "max_seq_len = 400000000"), PREDICT, 2),
    "examples beyond memory": (config("examples = 400", "examples = 1000000000"), PREDICT, 2),
    "a seed of 5,000 digits": (config("seed = 42", f"seed = 0x{'f' * 4000}"), PREDICT, 2),
    "a table of nobody": (config("[model]", "[extra]\na.b = 1\n[model]"), PREDICT, 2),
    "a config of a terabyte": (sparse("config.toml"), PREDICT, 2),
    "metrics of a terabyte": (sparse("metrics.jsonl"), PLOT, 2),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", CASES)
def test_odd_but_well_formed_files(
    name: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, words, code = CASES[name]
    change(run)
    assert ended_well(words, capsys) == code


def test_marks_of_byte_order_are_no_content(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("config.toml", "metrics.jsonl", "result.json"):
        file = run / name
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert main(["report", "run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["missing"] == []


@pytest.mark.parametrize("path", ["a\0b", "x" * 300, "run/config.toml", "run/config.toml/x"])
def test_paths_that_the_system_refuses(
    path: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FastformerError):
        load_run(path)
    for words in (
        ["plot", path],
        ["predict", path, *QUESTION],
        ["train", "--resume", path],
        ["evaluate", "run", "--data", f"{path}/questions"],
        ["train", "--out", f"{path}/run", "--examples", "400", "--embed-dim", "16"],
    ):
        assert main(words) == 2, words
        assert capsys.readouterr().err.count("\n") <= 2, words


def test_a_file_where_a_directory_is_meant(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["plot", "run", "--out", "run/config.toml/p.png"],
        ["embeddings", "run", "--out", "run/config.toml"],
        ["evaluate", "run", "--data", "run"],
    ):
        assert main(words) == 2, words
        assert capsys.readouterr().err.startswith("fastformer: cannot "), words


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--out", "new", "--seeds", str(10**12)],
        ["train", "--out", "new", "--seed", "9" * 400],
        ["train", "--out", "new", "--seed", "9" * 5000],
        ["train", "--out", "new", "--epochs", "9" * 400],
        ["train", "--out", "new", "--learning-rate", "9" * 400],
        ["train", "--out", "new", "--num-layers", "9" * 12],
        ["train", "--out", "new", "--examples", "9" * 12],
        ["train", "--out", "new", "--embed-dim", "9" * 18, "--num-heads", "7"],
        ["train", "--out", "new", "--threads", "9" * 400],
        ["predict", "run", f"max {'9' * 400}"],
        ["predict", "run", *QUESTION, "--top", "9" * 400],
        ["attention", "run", *QUESTION, "--layer", "9" * 400],
        ["inspect", "run", "--points", "9" * 400],
        ["inspect", "run", "--extent", "9" * 400],
        ["inspect", "run", "--seed", "9" * 400],
    ],
)
def test_numbers_without_measure_on_the_command_line(
    words: list[str], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") <= 2
    assert not Path("new").exists()
