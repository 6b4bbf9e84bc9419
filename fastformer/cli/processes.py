"""Several processes that mpiexec has started: which one speaks, and where they run."""

import os
import sys
import time
from typing import Final

# What launchers say: of Open MPI, of MPICH and Intel MPI, of PMIx.
_SIZES: Final = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_SIZE")
_RANKS: Final = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")
_LOCAL_SIZES: Final = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")
_THREADS: Final = "NUMBA_NUM_THREADS"
# What several processes find wrong is told by the first one, which ends the others meanwhile.
_PATIENCE: Final = 2.0


def _number(names: tuple[str, ...], usual: int) -> int:
    found = (os.environ.get(name, "") for name in names)
    return next((int(text) for text in found if text.isdecimal()), usual)


def are_several() -> bool:
    """Tell whether a launcher has started more processes than this one."""
    return _number(_SIZES, 1) > 1


def leads() -> bool:
    """Tell whether this process is the one that speaks."""
    return _number(_RANKS, 0) == 0


def share_machine() -> None:
    """Let each process have its part of the machine's cores, wherever the launcher has put it.

    Open MPI binds a process to a single core, where all of its threads would wait for each other.
    """
    if hasattr(os, "sched_setaffinity"):
        bound = len(os.sched_getaffinity(0))
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
        cores = len(os.sched_getaffinity(0))
    else:
        bound = cores = os.cpu_count() or 1
    here = _number(_LOCAL_SIZES, _number(_SIZES, 1))
    os.environ.setdefault(_THREADS, str(max(1, cores // here, bound if bound < cores else 1)))


def be_silent() -> None:
    """Leave standard output to the first process."""
    sys.stdout = open(os.devnull, "w")


def wait_for_first() -> str:
    """Give the first process the time to tell the same; return what a message then begins with."""
    time.sleep(_PATIENCE)
    return f"rank {_number(_RANKS, 0)}: "
