"""The number of threads: container quotas from fake control group files, and Numba's pool."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from program import HANG, ROOT

from fastformer import threads
from fastformer.errors import InvalidTypeError, InvalidValueError


def fake_system(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new process, for Numba's pool has its size for the whole process."""
    inherited = {k: v for k, v in os.environ.items() if k != "NUMBA_NUM_THREADS"}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=inherited | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=HANG,
    )


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "5000 100000\n"}, 0.05),
        # The parent is the tighter one.
        (
            {
                "proc/self/cgroup": "0::/app/job\n",
                "sys/fs/cgroup/app/job/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/app/cpu.max": "200000 100000\n",
            },
            2.0,
        ),
        # The host's path is not visible; the container's own files are at the mount's root.
        (
            {
                "proc/self/cgroup": "0::/docker/4f1c\n",
                "sys/fs/cgroup/cpu.max": "300000 100000\n",
            },
            3.0,
        ),
        (
            {
                "proc/self/cgroup": "5:memory:/docker/4f\n4:cpu,cpuacct:/docker/4f\n1:name=x:/\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/4f/cpu.cfs_quota_us": "250000\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/4f/cpu.cfs_period_us": "100000\n",
            },
            2.5,
        ),
        (
            {
                "proc/self/cgroup": "4:cpuacct,cpu:/docker/4f\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        # Another controller's group says nothing of the CPU.
        ({"proc/self/cgroup": "4:cpuset:/\n", "sys/fs/cgroup/cpu.max": "100000 100000\n"}, None),
        # Files that make no sense count as no quota.
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "many\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "1000 0\n"}, None),
        ({"proc/self/cgroup": "nonsense\n", "sys/fs/cgroup/cpu.max": "1000 1000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": ""}, None),
    ],
)
def test_quota_is_read_from_either_version_of_control_groups(
    tmp_path: Path, files: dict[str, str], quota: float | None
) -> None:
    assert threads.thread_limits(fake_system(tmp_path, files)).quota == quota


@pytest.mark.parametrize(
    ("affinity", "quota", "available"),
    [(8, None, 8), (8, 1.5, 2), (8, 2.0, 2), (8, 0.05, 1), (2, 6.0, 2), (1, None, 1)],
)
def test_available_threads_are_the_tighter_limit_rounded_up(
    affinity: int, quota: float | None, available: int
) -> None:
    limits = threads.ThreadLimits(affinity=affinity, quota=quota)
    assert limits.available == available


def test_this_machine_has_at_least_one_thread_and_no_more_than_its_mask() -> None:
    assert 1 <= threads.available_threads() <= threads.thread_limits().affinity


@pytest.mark.parametrize("value", [0, -1, 1025])
def test_a_number_of_threads_outside_the_range_is_refused(value: int) -> None:
    with pytest.raises(InvalidValueError, match=f"threads must be .* from 1 to 1024, got {value}"):
        threads.configure(value)


@pytest.mark.parametrize("value", [1.5, "2", True])
def test_a_number_of_threads_of_another_type_is_refused(value: object) -> None:
    with pytest.raises(InvalidTypeError, match="threads must be an integer"):
        threads.configure(value)  # type: ignore[arg-type]


SHOW = "; import numba; print(used, numba.config.NUMBA_NUM_THREADS, numba.get_num_threads())"


@pytest.mark.parametrize(
    ("argument", "environment", "used"),
    [
        (3, {}, 3),
        (1, {"NUMBA_NUM_THREADS": "4"}, 1),
        (None, {"NUMBA_NUM_THREADS": "4"}, 4),
        (None, {"NUMBA_NUM_THREADS": "9" * 20}, threads.available_threads()),
        (None, {"NUMBA_NUM_THREADS": "9" * 5000}, threads.available_threads()),
        (None, {}, threads.available_threads()),
    ],
)
def test_before_numba_the_pool_gets_the_size(
    argument: int | None, environment: dict[str, str], used: int
) -> None:
    code = f"from fastformer import threads; used = threads.configure({argument})" + SHOW
    result = run_python(code, **environment)
    assert result.stdout.split() == [str(used)] * 3, result.stderr


def test_after_numba_fewer_threads_can_be_used() -> None:
    code = "import numba; from fastformer import threads; used = threads.configure(2)" + SHOW
    result = run_python(code, NUMBA_NUM_THREADS="3")
    assert result.stdout.split() == ["2", "3", "2"], result.stderr


def test_after_numba_more_threads_than_the_pool_has_is_an_error_that_says_what_to_do() -> None:
    code = "import numba; from fastformer import threads; threads.configure(4)"
    result = run_python(code, NUMBA_NUM_THREADS="3")
    message = result.stderr.splitlines()[-1]
    assert "InvalidValueError: threads must be at most 3 here, got 4" in message
    assert "NUMBA_NUM_THREADS=4" in message


def test_after_numba_a_quota_still_counts() -> None:
    code = (
        "import numba; from fastformer import threads; threads.available_threads = lambda: 1; "
        "used = threads.configure()"
    )
    result = run_python(code + SHOW)
    used, _, in_use = result.stdout.split()
    assert (used, in_use) == ("1", "1"), result.stderr


def test_choosing_the_number_does_not_import_numba() -> None:
    code = "import sys; from fastformer import threads; threads.configure(); "
    result = run_python(code + "print('numba' in sys.modules)")
    assert result.stdout.strip() == "False", result.stderr
