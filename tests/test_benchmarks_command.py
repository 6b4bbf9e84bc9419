"""`python -m benchmarks` as a person meets it, and the processes that it starts."""

import json
from pathlib import Path

import numpy as np
import pytest
from test_bench import MACHINE
from test_bench_command import work_here

from benchmarks.__main__ import main
from benchmarks.run import read_rows
from fastformer.bench import kernel_suite
from fastformer.bench.processes import run_worker
from fastformer.errors import FastformerError


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("--suite kernel", "Choose from"),
        ("--suite steps --only matmul", "choose among kernels"),
        ("--suite targets --systems numba", "has its own systems"),
        ("--systems nunba", "did you mean 'numba'"),
        ("--repeats 0", "repeats must be an integer >= 1, got 0"),
        ("--repeats 1.5", 'unable to convert "1.5" into int'),
        ("--kernel a:b", "--kernel and --against go together"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments.split()) == 2
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if "left out" not in line and "warning" not in line]
    assert not out and complaint in " ".join(errors) and len(errors) == 1


def test_kernels_are_measured_and_kept_with_both_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernel_suite, "run_worker", work_here)
    monkeypatch.setattr(kernel_suite, "measured_machine", lambda options: MACHINE)
    words = "--only softmax_forward --shapes 4x5 --repeats 1 --seconds 0.002 --threads 1 --json"
    systems = ["--systems", "reference", "numba"]
    assert main([*words.split(), *systems, "--out", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["system"] for row in found["rows"]] == ["reference", "numba"]
    assert {path.name for path in tmp_path.iterdir()} == {
        *("kernels.jsonl", "kernels-ratios.png", "roofline.png")
    }
    rows, environment = read_rows(tmp_path / "kernels.jsonl")
    assert rows == found["rows"] and environment["commit"] == found["environment"]["commit"]


@pytest.mark.parametrize(
    "system",
    [
        pytest.param("torch", marks=pytest.mark.needs("torch")),
        pytest.param("jax", marks=pytest.mark.needs("jax")),
    ],
)
def test_a_kernel_is_measured_beside_a_peer(system: str) -> None:
    case = {"op": "softmax_backward", "variant": "", "shape": [4, 5]}
    task = {"task": "benchmarks.kernel_jobs:time_kernels", "system": system}
    (timed,) = run_worker(system, {**task, "cases": [case], "seconds": 0.001}, 1)["times"]
    assert timed["median"] > 0 and timed["flops"] == 4 * 4 * 5


# ---- processes ----


def test_steps_are_checked_and_timed_in_processes_of_their_own(tmp_path: Path) -> None:
    path = str(tmp_path / "P2.npz")
    job = {"task": "benchmarks.step_jobs:prepare", "workload": "P2", "path": path}
    prepared = run_worker("reference", job, 1)
    assert len(prepared["losses"]) == 3
    task = {"task": "benchmarks.step_jobs:time_steps", "system": "numba"}
    job = {**task, "data": {"P2": path}, "seconds": 0.01}
    found = run_worker("numba", {**job, "expected": {"P2": prepared["losses"]}}, 1)["P2"]
    assert np.allclose(found["losses"], prepared["losses"], rtol=1e-5)
    assert 0 < found["minimum"] and found["peak_bytes"] > found["bytes_before"] > 1e7
    with pytest.raises(FastformerError, match="its loss at step 2"):
        wrong = [prepared["losses"][0], 1.0, 1.0]
        run_worker("numba", {**job, "expected": {"P2": wrong}}, 1)


@pytest.mark.parametrize(
    "system",
    [
        pytest.param("torch", marks=pytest.mark.needs("torch")),
        pytest.param("jax", marks=pytest.mark.needs("jax")),
    ],
)
def test_peers_compute_the_same_model(system: str, tmp_path: Path) -> None:
    sizes = {"C": 8, "H": 2, "L": 2, "F": 12, "V": 9, "B": 3, "T": 5}
    for kind in ("encoder", "decoder"):
        fields = {"name": kind, "title": "", "kind": kind, **sizes}
        path = str(tmp_path / f"{kind}.npz")
        job = {"task": "benchmarks.step_jobs:prepare", "workload": fields, "path": path}
        losses = run_worker("reference", job, 1)["losses"]
        task = {"task": "benchmarks.step_jobs:time_steps", "system": system, "workload": fields}
        job = {**task, "data": {kind: path}, "seconds": 0.001}
        # It raises unless the losses agree.
        run_worker(system, {**job, "expected": {kind: losses}}, 1)
