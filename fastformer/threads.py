"""How many threads to use: what the CPU mask allows, and what the container may really run.

Numba starts one thread for every CPU of the affinity mask. A container's CPU quota is not in that
mask, and threads beyond the quota are stopped for most of every period. So the quota is read here,
and `configure` tells Numba before it starts its threads.
"""

import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fastformer import launcher
from fastformer.errors import InvalidValueError

_VARIABLE = "NUMBA_NUM_THREADS"
_MOST_THREADS = 1024
# Whether `configure` was given a number, which nothing else changes then.
_fixed = False


@dataclass(frozen=True, kw_only=True)
class ThreadLimits:
    """What limits the number of threads.

    Attributes:
        affinity: CPUs that this process may run on.
        quota: CPUs' worth of time that its container may use, or None where there is no limit.
    """

    affinity: int
    quota: float | None

    @property
    def available(self) -> int:
        """The number of threads that both limits leave, at least 1; a part of a CPU counts."""
        quota = math.inf if self.quota is None else max(1, math.ceil(self.quota))
        return int(min(self.affinity, quota))


def thread_limits(root: Path = Path("/")) -> ThreadLimits:
    """Read the affinity mask and the container's CPU quota.

    Args:
        root: where `proc` and `sys` are; another directory only in tests.

    Returns:
        Both limits. A quota that cannot be read counts as no quota.
    """
    if hasattr(os, "sched_getaffinity"):
        affinity = len(os.sched_getaffinity(0))
    else:
        affinity = os.cpu_count() or 1
    return ThreadLimits(affinity=affinity, quota=_cpu_quota(root))


def available_threads() -> int:
    """Return the number of threads that this process can keep busy, at least 1."""
    return thread_limits().available


def is_fixed() -> bool:
    """Tell whether `configure` was given a number of threads: nothing else changes it then."""
    return _fixed


def configure(threads: int | None = None) -> int:
    """Choose the number of threads. Call it before anything imports Numba.

    Numba starts its pool once and can only use fewer threads later. Before Numba is imported,
    the pool's size is set through the environment variable NUMBA_NUM_THREADS; afterwards, the
    number of threads in use is set within the pool. A number that is given here stays; without
    it, training uses at most that many threads, and fewer while those are faster.

    Args:
        threads: from 1 to 1024; None for NUMBA_NUM_THREADS where the user has set it, and for
            `available_threads()` where not.

    Returns:
        The number of threads that kernels will use.

    Raises:
        ValueError, TypeError: not a number of threads, or more than a pool that is already there.
    """
    global _fixed
    if threads is not None:
        from fastformer import checks  # it imports NumPy, which `import fastformer` can do without

        checks.integer("threads", threads, 1, _MOST_THREADS)
    _fixed = threads is not None
    if "numba" in sys.modules:
        return _configure_pool(threads)
    if launcher.are_several():
        os.environ.setdefault(_VARIABLE, str(launcher.share_machine()))
    if threads is None:
        given = os.environ.get(_VARIABLE, "")
        # Numba warns of a value that it cannot read and falls back to the affinity mask; it starts
        # as many threads as it can read, or ends at that.
        readable = given.isdecimal() and len(given) <= len(str(_MOST_THREADS))
        usable = readable and 1 <= int(given) <= _MOST_THREADS
        threads = int(given) if usable else available_threads()
    os.environ[_VARIABLE] = str(threads)
    return threads


def busy_share(seconds: float = 0.3) -> float:
    """Return how busy the CPUs of this process are, from 0 to 1, while it does nothing itself.

    Args:
        seconds: how long to look.
    """
    import psutil

    shares = psutil.cpu_percent(interval=seconds, percpu=True)
    if hasattr(os, "sched_getaffinity"):
        shares = [shares[cpu] for cpu in os.sched_getaffinity(0) if cpu < len(shares)] or shares
    return float(sum(shares)) / len(shares) / 100


def configure_before_numba() -> None:
    """Choose the number of threads where Numba is not imported yet; do nothing where it is."""
    if "numba" not in sys.modules:
        configure()


def _configure_pool(threads: int | None) -> int:
    """Set the number of threads in use where Numba's pool has its size already."""
    import numba

    pool: int = numba.config.NUMBA_NUM_THREADS
    if threads is None:
        threads = numba.get_num_threads()
        if _VARIABLE not in os.environ:
            threads = min(threads, available_threads())
    if threads > pool:
        raise InvalidValueError(
            f"threads must be at most {pool} here, got {threads}: numba was imported before and "
            f"its pool has {pool}; set the environment variable {_VARIABLE}={threads} before "
            "Python starts, or call fastformer.threads.configure before anything imports numba"
        )
    numba.set_num_threads(threads)
    return threads


def _cpu_quota(root: Path) -> float | None:
    """Return the tightest CPU quota of this process's control groups, in CPUs, or None."""
    cgroups = root / "sys/fs/cgroup"
    quotas: list[float] = []
    for controllers, group in _own_groups(root):
        # A parent's limit holds for its children. Within a container the host's path may not
        # exist, and the limit is then the one at the mount's root.
        for directory in (group, *group.parents):
            inside = str(directory).lstrip("/")
            if not controllers:
                quotas += _quota_v2(cgroups / inside)
            elif "cpu" in controllers:
                for mount in (",".join(controllers), "cpu"):
                    quotas += _quota_v1(cgroups / mount / inside)
    return min(quotas, default=None)


def _own_groups(root: Path) -> list[tuple[list[str], PurePosixPath]]:
    """Return the controllers (none for version 2) and path of each control group we are in."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    fields = [line.split(":", 2) for line in lines if line.count(":") >= 2]
    return [(names.split(",") if names else [], PurePosixPath(path)) for _, names, path in fields]


def _quota_v2(directory: Path) -> list[float]:
    """Read `cpu.max`: a quota or "max", and the period, in microseconds."""
    try:
        quota, period = (directory / "cpu.max").read_text().split()
        return [] if quota == "max" else [int(quota) / int(period)]
    except (OSError, ValueError, ZeroDivisionError):
        return []


def _quota_v1(directory: Path) -> list[float]:
    """Read `cpu.cfs_quota_us` (-1 for no limit) and `cpu.cfs_period_us`."""
    try:
        quota = int((directory / "cpu.cfs_quota_us").read_text())
        period = int((directory / "cpu.cfs_period_us").read_text())
        return [quota / period] if quota > 0 else []
    except (OSError, ValueError, ZeroDivisionError):
        return []
