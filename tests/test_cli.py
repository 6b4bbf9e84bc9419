"""The command line as a user meets it: help, mistakes, doctor."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from program import HANG, ROOT, start_program

from fastformer.cli import main
from fastformer.data.answered import AnsweredTask
from fastformer.data.answers import AnswerTask
from fastformer.data.digits import DigitTask
from fastformer.data.labelled import LabelledTask
from fastformer.data.text import TextTask
from fastformer.models.config import DecoderConfig, TransformerConfig
from fastformer.training.config import TrainingConfig

COMMANDS = (
    *("train", "evaluate", "predict", "generate", "attention", "embeddings", "plot", "report"),
    *("inspect", "doctor", "sweep"),
)
# Those that run a model.
ASKING = ("evaluate", "predict", "attention", "inspect", "report")


@pytest.mark.smoke
def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(re.search(rf"│ {command} ", out) for command in COMMANDS)
    assert main([]) == 0
    assert capsys.readouterr().out == out


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from fastformer.cli import main; code = main(['--help']); "
        "heavy = {'numpy', 'numba', 'llvmlite', 'matplotlib'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_every_option(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main([command, "--help"]) == 0
    rows = [row for row in capsys.readouterr().out.splitlines() if row.startswith("│ ")]
    unexplained = [row for row in rows if re.fullmatch(r"│ [ *]*--\S+( [A-Z.]+)?( --\S+)? *│", row)]
    assert rows and not unexplained


@pytest.mark.parametrize(
    ("task", "configs"),
    [
        ("digits", (DigitTask, TransformerConfig, TrainingConfig)),
        ("nested", (AnswerTask, DecoderConfig, TrainingConfig)),
        ("text", (TextTask, DecoderConfig, TrainingConfig)),
        ("classify", (LabelledTask, TransformerConfig, TrainingConfig)),
        ("answers", (AnsweredTask, DecoderConfig, TrainingConfig)),
    ],
)
def test_train_has_every_setting_as_an_option(
    task: str,
    configs: tuple[type[Any], ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["train", task, "--help"]) == 0
    out = capsys.readouterr().out
    decided = {"num_classes", "name", "files", "digest", "tokens_digest", "labels"}
    if task in ("digits", "nested"):  # a tokenizer may learn so many
        decided.add("vocab_size")
    if task == "answers":
        decided.add("longest_answer")
    fields = {field.name for config in configs for field in dataclasses.fields(config)} - decided
    assert [name for name in fields if f"--{name.replace('_', '-')} " not in out] == []
    assert not [name for name in decided if f"--{name.replace('_', '-')}" in out]


def test_the_version_is_that_of_the_package() -> None:
    process = start_program("--version")
    out, _ = process.communicate(timeout=HANG)
    assert re.fullmatch(r"\d+\.\d+\.\d+|not installed", out.strip())


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("evalute", 'Unknown command "evalute". Did you mean "evaluate"?'),
        ("train words", "the task must be one of 'digits', "),
        ("train --epoch 3", "Unknown option: --epoch. Did you mean --epochs?"),
        ("train --vocab-size 20", "Unknown option: --vocab-size."),
        ("train --num-classes 10", "Unknown option: --num-classes."),
        ("train --pooling none", "pooling must be 'first', 'mean' or 'last' for the digit task"),
        ("train --examples", "--examples requires an argument"),
        (
            "train --examples many",
            'Invalid value for --examples: unable to convert "many" into int',
        ),
        ("train --examples 5.5", 'Invalid value for --examples: unable to convert "5.5" into int'),
        (
            "train --num-kv-heads 1.5",
            'Invalid value for --num-kv-heads: unable to convert "1.5" into int',
        ),
        ("train --examples 0", "examples must be an integer from 1 to 10000000, got 0"),
        ("train --examples 3 --examples 4", "--examples specified multiple times"),
        ("train --epochs -1", "epochs must be an integer >= 1, got -1"),
        ("train --batch-size 0", "batch_size must be an integer >= 1, got 0"),
        ("train --learning-rate nan", "learning_rate must be a finite number > 0, got nan"),
        ("train --optimizer adm", "optimizer must be one of"),
        ("train --num-heads 3", "num_heads must divide embed_dim"),
        ("train --operations Max Mix", "got 'Mix'; did you mean 'Min'?"),
        ("train --max-value 10", "max_value must be an integer from 0 to 9, got 10"),
        ("train --seed -1 --examples 400", "seed must be an integer >= 0, got -1"),
        ("train --backend numpy", 'Choose from: "numba", "reference"'),
        ("train --dtype float16", 'Choose from: "float32", "float64"'),
        *(
            (f"{command} --threads 0", "threads must be an integer from 1 to 1024, got 0")
            for command in ("train", *(f"{c} run" for c in ASKING))
        ),
        ("train --examples 100000 --distinct", "100000"),
        ("train --resume nowhere", "nowhere"),
        (
            "train --resume nowhere --epochs 3 --norm pre",
            "--resume goes on with the run's own settings",
        ),
        ("train --resume nowhere --seed 42", "--resume goes on with the run's own settings"),
        ("evaluate", "RUN requires an argument"),
        ("evaluate nowhere", "nowhere"),
        ("predict nowhere", "nowhere"),
        ("doctor --json=yes-and-no", "--json"),
    ],
)
def test_a_mistake_gives_one_or_two_lines_and_leaves_no_files(
    arguments: str,
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fastformer: ")
    assert complaint in err
    assert err.count("\n") <= 2
    assert not list(tmp_path.iterdir())


def test_a_mistake_shows_no_traceback_in_a_real_process(tmp_path: Path) -> None:
    process = start_program("train", "--batch-size", "0", cwd=tmp_path)
    out, err = process.communicate(timeout=HANG)
    assert process.returncode == 2
    assert (out, err) == ("", "fastformer: batch_size must be an integer >= 1, got 0\n")


def test_a_reader_that_goes_away_is_no_mistake() -> None:
    process = start_program("doctor")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=HANG) == 1
    assert error == ""


def test_ctrl_c_before_training_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fastformer.threads.configure", interrupt)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "fastformer: interrupted\n"


def test_doctor_reports_the_machine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["cpu"]["name"]
    assert report["cpu"]["vector_bits"] in (0, 128, 256, 512)
    assert report["threads"]["in_use"] >= 1
    assert 0 <= report["threads"]["busy_share"] <= 1
    assert report["threads"]["layer"] in ("omp", "tbb", "workqueue")
    assert {"directory", "files", "bytes"} == set(report["kernel_cache"])
    assert set(report["versions"]) == {
        *("python", "fastformer", "numpy", "numba", "llvmlite", "safetensors"),
    }
    monkeypatch.setattr("fastformer.threads.busy_share", lambda: 0.75)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "other programs use 75% of these CPUs now" in " ".join(out.split())
    for value in (report["cpu"]["name"], report["threads"]["layer"], *report["versions"].values()):
        assert value in out


@pytest.mark.parametrize(
    ("variable", "platform", "advice"),
    [
        ("workqueue", "linux", "unset NUMBA_THREADING_LAYER"),
        ("", "linux", "libgomp1"),
        ("default", "darwin", "libomp"),
        ("omp", "win32", "vcomp140.dll"),
        ("", "freebsd14", "OpenMP"),
    ],
)
def test_doctor_says_how_to_get_openmp(
    variable: str, platform: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastformer.cli import doctor

    monkeypatch.setenv("NUMBA_THREADING_LAYER", variable)
    monkeypatch.setattr(sys, "platform", platform)
    assert advice in doctor._layer_advice()
