"""What a launcher such as mpiexec tells the processes that it has started. Cheap to import."""

import os
import shutil
import sys
from pathlib import Path
from typing import Final

from fastformer.errors import InvalidValueError, MissingLibraryError

# Of Open MPI, of MPICH and Intel MPI, and of PMIx, as Slurm has it.
_SIZES: Final = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_SIZE")
_RANKS: Final = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")
_SIZES_HERE: Final = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")


def _number(names: tuple[str, ...], usual: int) -> int:
    found = (os.environ.get(name, "") for name in names)
    return next((int(text) for text in found if text.isdecimal()), usual)


def are_several() -> bool:
    """Tell whether a launcher has started more processes than this one."""
    return _number(_SIZES, 1) > 1


def mpiexec() -> str:
    """Return the program that starts processes: that of this environment, or of the system.

    Raises:
        ImportError: there is none.
    """
    beside = str(Path(sys.executable).parent)
    found = shutil.which("mpiexec", path=beside) or shutil.which("mpiexec")
    if found is None:
        raise MissingLibraryError("several processes need mpiexec: pip install 'fastformer[mpi]'")
    return found


def refuse_several() -> None:
    """Raise where several processes would each train all of several runs.

    Raises:
        ValueError: a launcher has started several.
    """
    if are_several():
        raise InvalidValueError(
            "several runs are trained by processes that fastformer starts itself; start this one "
            "command without mpiexec"
        )


def rank() -> int:
    """Return the number of this process among them, from 0; 0 where it is alone."""
    return _number(_RANKS, 0)


def share_machine() -> int:
    """Let this process run on all of the machine's cores, and return its share of threads.

    Open MPI binds a process to a single core, where all of its threads would wait for each other.
    """
    if hasattr(os, "sched_setaffinity"):
        bound = len(os.sched_getaffinity(0))
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
        cores = len(os.sched_getaffinity(0))
    else:
        bound = cores = os.cpu_count() or 1
    here = _number(_SIZES_HERE, _number(_SIZES, 1))
    return max(1, cores // here, bound if bound < cores else 1)
