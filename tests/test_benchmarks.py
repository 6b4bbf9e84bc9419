"""The folder `benchmarks`: one file for each file of kernels, apart from the tests."""

import importlib.util
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
from program import HANG, ROOT

from fastformer.backend import OPS, get_backend
from fastformer.bench.equivalence import NotEqualError

FOLDER = ROOT / "benchmarks"


def load(name: str):
    """Import a file of the folder under its own name."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Recorder:
    """Stands for pytest-benchmark's fixture: it calls once."""

    def __init__(self) -> None:
        self.called, self.group, self.extra_info = False, "", {}

    def __call__(self, call) -> None:
        call()
        self.called = True


@pytest.mark.smoke
def test_every_file_of_kernels_has_its_benchmarks() -> None:
    names = {path.stem for path in FOLDER.glob("bench_*.py")}
    assert names == {f"bench_{stem}" for stem in OPS} | {"bench_train_step", "bench_start"}
    for stem in OPS:
        text = (FOLDER / f"bench_{stem}.py").read_text()
        assert f'cases_of("{stem}")' in text and f"def bench_{stem}(" in text


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_a_case_is_checked_and_timed(backend: str) -> None:
    harness, recorder = load("harness"), Recorder()
    case = harness.cases_of("softmax")[0]
    harness.time_case(recorder, case, backend)
    assert recorder.called and recorder.group == str(case)
    assert recorder.extra_info == {"flops": case.flops, "traffic": case.traffic}


def test_a_planted_wrong_kernel_fails_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    harness, recorder, ops = load("harness"), Recorder(), get_backend("numba")
    right = ops.softmax_forward

    def wrong(x, out):
        right(x, out)
        out[0, 0] *= np.float32(1.001)

    monkeypatch.setattr(ops, "softmax_forward", wrong)
    for backend in ("numba", "reference"):
        with pytest.raises(NotEqualError, match=r"softmax_forward 32x20: out\[0, 0\]"):
            harness.time_case(recorder, harness.cases_of("softmax")[0], backend)
    assert not recorder.called


def test_a_step_is_checked_and_timed() -> None:
    harness, recorder = load("harness"), Recorder()
    harness.time_step(recorder, "P2", "numba")
    assert recorder.called and recorder.extra_info["flops"] > 1e7


def pytest_run(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANG,
    )


def test_a_plain_run_of_the_tests_has_no_benchmarks(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.getini("testpaths") == ["tests"]
    patterns = pytestconfig.getini("python_files")
    assert not [p for p in FOLDER.iterdir() if any(fnmatch(p.name, one) for one in patterns)]


@pytest.mark.skipif(
    importlib.util.find_spec("pytest_benchmark") is not None, reason="pytest-benchmark is installed"
)
def test_the_folder_says_what_it_needs() -> None:
    done = pytest_run("benchmarks")
    assert done.returncode == 4 and "pip install -e '.[bench]'" in done.stderr


@pytest.mark.needs("pytest_benchmark")
def test_the_folder_is_run_by_its_name() -> None:
    done = pytest_run("benchmarks", "--benchmark-disable", "-k", "softmax_forward and 65x31")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_the_readmes_table_comes_from_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastformer.bench.environment import describe
    from fastformer.bench.goals import GOALS, target_row
    from fastformer.bench.options import Outcome
    from fastformer.bench.processes import spread
    from fastformer.bench.run import keep

    module = load("table")
    rows = [target_row(GOALS["P4"], spread([0.8]), spread([0.1]), {}, "torch")]
    keep("targets", Outcome(rows, {}), describe(2), tmp_path)
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    assert module.main([]) == 0
    out = capsys.readouterr().out
    assert "| P4 | nanoGPT's CPU recipe | 100 ms | - | 0.80 |" in out and "missed" in out
    assert module.main([str(tmp_path / "none.jsonl")]) == 2
    assert "is not a file of rows" in capsys.readouterr().err
