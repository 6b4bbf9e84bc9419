"""`fastformer bench` as a person meets it, and the processes that it starts."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from program import ROOT
from test_bench import MACHINE

from fastformer.bench import kernel_suite
from fastformer.bench.processes import run_worker
from fastformer.cli import main
from fastformer.errors import FastformerError


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("--only layernrom", "did you mean 'layernorm'"),
        ("--only layernorm --shapes 3x4x5", "layernorm_forward takes NxC"),
        ("--shapes 3x", "such as 512x384, got '3x'"),
        ("--suite steps", "Unknown option"),
        ("--systems nunba", "did you mean 'numba'"),
        ("--repeats 1.5", 'unable to convert "1.5" into int'),
        ("--repeats 0", "repeats must be an integer >= 1, got 0"),
        ("--seconds 0", "seconds must be a finite number > 0"),
        ("--threads 0", "threads must be an integer from 1 to"),
        ("--kernel a:b", "--kernel and --against go together"),
        ("--kernel a:b --against layernorm --only adam", "leave out --only"),
        ("--kernel a:b --against layernrom", "did you mean 'layernorm'"),
        ("--profile P3", "profile must be one of"),
    ],
)
def test_a_mistake_is_two_lines_and_exit_code_2(
    arguments: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments.split()]) == 2
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if "left out" not in line and "warning" not in line]
    assert not out and complaint in " ".join(errors) and len(errors) <= 2


def test_kernels_are_measured_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--only softmax_forward --shapes 64x33 --repeats 2 --seconds 0.002 --threads 1 --json"
    systems = ["--systems", "reference", "numba"]
    assert main(["bench", *words.split(), *systems, "--out", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out.splitlines()[-1])
    assert [row["system"] for row in found["rows"]] == ["reference", "numba"]
    reference, ours = found["rows"]
    assert reference["ratio"]["minimum"] <= reference["ratio"]["median"] and "ratio" not in ours
    assert ours["traffic"] == 2 * 64 * 33 * 4 and ours["gbytes"] > 0
    assert found["machine"]["fma"]["float32"]["one"] > 1e8
    assert {path.name for path in tmp_path.iterdir()} == {*("kernels.jsonl", "roofline.png")}
    assert "turn 2 of 2" in err
    kept = (tmp_path / "kernels.jsonl").read_text().splitlines()
    environment, *rows = map(json.loads, kept)
    assert rows == found["rows"] and environment["commit"] == found["environment"]["commit"]


OWN_KERNEL = """
import numpy as np

def right(x, out):
    out[...] = np.exp(x - x.max(axis=1, keepdims=True))
    out /= out.sum(axis=1, keepdims=True)

def wrong(x, out):
    right(x, out)
    out[1, 2] *= 1.01
"""


def work_here(system: str, job: dict[str, Any], threads: int) -> dict[str, Any]:
    """Do a job in this process; that a process of its own does the same is shown by others."""
    given = {name: value for name, value in job.items() if name != "task"}
    module, _, function = job["task"].partition(":")
    found = getattr(importlib.import_module(module), function)(**given)
    return json.loads(json.dumps(found))


def test_a_kernel_of_ones_own_is_checked_and_timed_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernel_suite, "run_worker", work_here)
    monkeypatch.setattr(kernel_suite, "measured_machine", lambda options: MACHINE)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(sys.modules, "mine", None)  # it is forgotten after the test
    del sys.modules["mine"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(OWN_KERNEL)
    words = "--against softmax --shapes 4x5 --repeats 1 --seconds 0.002 --threads 1 --json"
    own = ["bench", "--systems", "numba", *words.split(), "--kernel"]
    assert main([*own, "mine:right"]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [row["system"] for row in rows] == ["numba", "yours"]
    for name, complaint in (
        (
            "mine:wrong",
            "mine:wrong is not equal to the NumPy twin of softmax_forward 4x5: out[1, 2]",
        ),
        ("mine:none", "module 'mine' has no function 'none'"),
        ("nowhere:f", "the kernel 'nowhere:f' cannot be imported"),
    ):
        assert main([*own, name]) == 2
        out, err = capsys.readouterr()
        assert not out and complaint in err and "turn" not in err


# ---- processes ----


def test_a_process_that_fails_shows_its_last_lines() -> None:
    job = {"task": "fastformer.bench.kernel_jobs:time_kernels", "nonsense": 1}
    with pytest.raises(FastformerError, match=r"numba failed in time_kernels[\s\S]*nonsense"):
        run_worker("numba", job, 1)


def test_a_profile_adds_up() -> None:
    task = "fastformer.bench.profile:profile_step"
    found = run_worker("numba", {"task": task, "workload": "P2", "seconds": 0.02}, 1)
    inside = sum(op["seconds"] for op in found["ops"].values())
    assert {"blocks.attention linear", "waiting", "adam_step"} <= found["ops"].keys()
    assert found["ops"]["adam_step"]["calls"] == 1
    assert found["ops"]["blocks.attention attention"]["calls"] == 2
    assert 0 < found["ops"]["blocks.attention linear"]["flops"] < found["peak"]
    assert inside > 0 and found["outside"] >= 0 and found["calling"] > 0
    assert inside + found["outside"] <= found["watched_step"] * (1 + 1e-9)


def test_importing_fastformer_sets_nothing_that_the_peers_threads_read() -> None:
    """Every process of a benchmark imports it, the peers' too; they run with their own defaults."""
    prefixes = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "XLA_")
    code = f"import os, fastformer; print([k for k in os.environ if k.startswith({prefixes})])"
    environment = {key: value for key, value in os.environ.items() if not key.startswith(prefixes)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "[]\n", done.stderr


def test_the_command_imports_no_numba_and_no_matplotlib() -> None:
    code = (
        "import sys, fastformer.cli.bench; from fastformer.bench import run, tables; "
        "sys.exit(str({'numba', 'matplotlib', 'torch', 'jax'} & set(sys.modules) or ''))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stderr.strip() == "", done.stderr
