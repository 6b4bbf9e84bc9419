"""What the surroundings of a command do to it: its streams, its terminal, its variables."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from program import ROOT
from test_plots import make_run

from fastformer.cli import app, main
from fastformer.kernels import _environment

WIDTHS = ("0", "1", "2", "3", "19", "20", "21", "-1", "x", "9" * 5000, "9" * 400, "²", "٣", "")


def command(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    changes = {"PYTHONPATH": str(ROOT), "NUMBA_NUM_THREADS": "1"} | options.pop("env", {})
    program = [sys.executable, "-m", "fastformer"]
    shell = options.pop("shell", None)
    if shell is not None:
        program = ["bash", "-c", f'"$@" {shell}', "bash", *program]
    return subprocess.run(
        [*program, *words],
        env=os.environ | changes,
        **{"capture_output": True, "text": True, "timeout": 100} | options,
    )


@pytest.mark.parametrize("shell", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_a_closed_stream_is_no_traceback_and_no_file_takes_its_place(
    shell: str, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run")
    done = command("plot", str(run), shell=shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert (done.stdout == "") == (">&-" in shell.split())
    # Without a null device in its place, the picture would be descriptor 1, and hold the sketch.
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_help_ends_whatever_the_width_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for columns in WIDTHS:
        monkeypatch.setenv("COLUMNS", columns)
        monkeypatch.setenv("LINES", columns)
        for each in (app, app["train"]):  # each has one in a process, of one width
            monkeypatch.setattr(each, "_fallback_console", None)
        assert main(["train", "--help"]) == 0
        widest = max(map(len, capsys.readouterr().out.splitlines()))
        assert widest <= 1000, columns
        if columns in ("0", "1", "2", "3", "19"):
            assert 60 <= widest <= 80


def test_pictures_are_drawn_by_the_library_s_own_style_and_need_no_window(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a$x_$")
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfont.family: nonsense\n")
    done = command("plot", "a$x_$", cwd=tmp_path, env={"MPLBACKEND": "module://not.there"})
    assert (done.returncode, done.stderr) == (0, "")
    assert (run / "curves.png").exists()


def test_a_style_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "matplotlibrc").write_bytes(b"text.usetex: \xff\xfe\n")
    done = command("plot", "run", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("fastformer: Matplotlib cannot be started: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ({"FASTFORMER_BUILD": "fast"}, "FASTFORMER_BUILD must be one of production, checked"),
        ({"FASTFORMER_VECTOR_BITS": "64"}, "FASTFORMER_VECTOR_BITS must be one of 0, 128, 256"),
        ({"NUMBA_DISABLE_JIT": "1"}, "NUMBA_DISABLE_JIT turns off the compiler"),
        ({"NUMBA_THREADING_LAYER": "x\x1b"}, r"NUMBA_THREADING_LAYER must be one of .*got 'x\x1b'"),
    ],
)
def test_a_setting_that_kernels_cannot_have_is_told(
    setting: dict[str, str], complaint: str
) -> None:
    done = command("doctor", env=setting)
    assert (done.returncode, done.stdout) == (2, "")
    start, _, end = complaint.partition(".*")
    assert start in done.stderr and end in done.stderr
    assert done.stderr.count("\n") == 1


def test_twins_run_where_nothing_is_compiled(tmp_path: Path) -> None:
    code = (
        "import fastformer as ff\n"
        "config = ff.TransformerConfig(vocab_size=9, embed_dim=8, num_heads=2, ffn_dim=8)\n"
        "model = ff.Transformer(config, backend='reference')\n"
        "print(model.forward(ff.pack([[1, 2, 3]])).shape)\n"
        "ff.Transformer(config)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT), "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stdout == "(1, 9)\n"
    assert done.stderr.splitlines()[-1].endswith("or use the backend 'reference'")


@pytest.mark.parametrize("layer", ["safe", "tbb", "TBB", "omp", "threadsafe"])
def test_a_threading_layer_that_is_not_there_is_told(
    layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("numba.config.THREADING_LAYER", layer)
    monkeypatch.setattr(_environment, "_is_there", lambda pool: False)
    with pytest.raises(ValueError, match=f"LAYER={layer.lower()} needs a library that is not inst"):
        _environment.check_compiler()
    monkeypatch.setattr(_environment, "_is_there", lambda pool: True)
    _environment.check_compiler()


def test_layers_that_need_nothing_are_never_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_environment, "_is_there", lambda pool: False)
    for layer in ("default", "workqueue", "forksafe"):
        monkeypatch.setattr("numba.config.THREADING_LAYER", layer)
        _environment.check_compiler()


def test_the_name_of_a_run_may_be_bytes_of_no_encoding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/a\xff\x1b[31m $\n$")
    try:
        shutil.move(make_run(tmp_path / "plain"), name)
    except OSError:
        pytest.skip("this file system has names of its encoding only")
    assert main(["plot", name]) == 0
    out, err = capsys.readouterr()
    assert r"a\udcff\x1b[31m $\n$" in out and "\x1b" not in out + err
    assert main(["plot", name, "--json"]) == 0
    assert capsys.readouterr().out.isascii()
    assert main(["evaluate", name]) == 2
    assert capsys.readouterr().err.count("\n") == 1
