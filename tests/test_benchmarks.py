"""The folder `benchmarks`: what pytest times there, apart from the tests, and what it imports."""

import ast
import graphlib
import importlib.util
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
from program import HANG, ROOT

from benchmarks import bench_kernels, bench_train_step, table
from benchmarks.run import keep
from benchmarks.targets import GOALS, target_row
from fastformer.backend import OPS, get_backend
from fastformer.bench.cases import find
from fastformer.bench.environment import describe
from fastformer.bench.equivalence import NotEqualError
from fastformer.bench.options import Outcome
from fastformer.bench.processes import spread

FOLDER = ROOT / "benchmarks"
SOFTMAX = find("softmax_forward", "", (32, 20))


class Recorder:
    """Stands for pytest-benchmark's fixture: it calls once."""

    def __init__(self) -> None:
        self.called, self.group, self.extra_info = False, "", {}

    def __call__(self, call) -> None:
        call()
        self.called = True


@pytest.mark.smoke
def test_every_op_of_every_file_of_kernels_is_timed() -> None:
    timed = {(case.id.split(":")[0], case.values[0].op) for case in bench_kernels.CASES}
    assert timed == {(stem, op) for stem, ops in OPS.items() for op in ops}
    names = {path.stem for path in FOLDER.glob("bench_*.py")}
    assert names == {"bench_kernels", "bench_train_step", "bench_start"}


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_a_case_is_checked_and_timed(backend: str) -> None:
    recorder = Recorder()
    bench_kernels.bench_kernel(recorder, SOFTMAX, backend)
    assert recorder.called and recorder.group == str(SOFTMAX)
    assert recorder.extra_info == {"flops": SOFTMAX.flops, "traffic": SOFTMAX.traffic}


def test_a_planted_wrong_kernel_fails_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, ops = Recorder(), get_backend("numba")
    right = ops.softmax_forward

    def wrong(x, out):
        right(x, out)
        out[0, 0] *= np.float32(1.001)

    monkeypatch.setattr(ops, "softmax_forward", wrong)
    for backend in ("numba", "reference"):
        with pytest.raises(NotEqualError, match=r"softmax_forward 32x20: out\[0, 0\]"):
            bench_kernels.bench_kernel(recorder, SOFTMAX, backend)
    assert not recorder.called


def test_a_step_is_checked_and_timed() -> None:
    recorder = Recorder()
    bench_train_step.bench_train_step(recorder, "P2", "numba")
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
    rows = [target_row(GOALS["P4"], spread([0.8]), spread([0.1]), {}, "torch")]
    keep("targets", Outcome(rows, {}), describe(2), tmp_path)
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    assert table.main([]) == 0
    out = capsys.readouterr().out
    assert "| P4 | nanoGPT's CPU recipe | 100 ms | - | 0.80 |" in out and "missed" in out
    assert table.main([str(tmp_path / "none.jsonl")]) == 2
    assert "is not a file of rows" in capsys.readouterr().err


# ---- imports ----


def imports(path: Path) -> set[str]:
    """Return the modules that a file names in its imports, also within functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def graph(*folders: Path) -> dict[str, set[str]]:
    """Return what each module of some folders imports of them."""
    named = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for folder in folders
        for path in folder.rglob("*.py")
        if path.name != "__init__.py"
    }
    return {name: imports(path) & named.keys() for name, path in named.items()}


def test_nothing_here_imports_in_a_circle_and_the_package_imports_nothing_of_this_folder() -> None:
    package = ROOT / "fastformer"
    found = graph(package / "bench", FOLDER)
    assert "benchmarks.peers.torch_models" in found["benchmarks.steppers"]
    assert "fastformer.bench.row_cases" in found["fastformer.bench.cases"]
    graphlib.TopologicalSorter(found).prepare()  # it raises where there is a circle
    own = [path for folder in (package, ROOT / "kernels") for path in folder.rglob("*.py")]
    assert [path for path in own if any("benchmarks" in name for name in imports(path))] == []


def test_a_circle_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/one.py").write_text("def f():\n    from a.two import g\n")
    (tmp_path / "a/two.py").write_text("from a import one\n")
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(graph(tmp_path / "a")).prepare()
