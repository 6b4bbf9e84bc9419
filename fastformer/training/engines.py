"""Where the runs of a sweep are trained: in processes of this machine, or as jobs of a cluster.

joblib and submitit start the processes, give them work and bring back what they return. Here is
what runs need besides: few threads each, and an end when nobody waits for them any more.
"""

import contextlib
import functools
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from fastformer import threads as thread_count
from fastformer.errors import InvalidValueError, MissingLibraryError, RunError

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

_WARNINGS: Final[str] = "PYTHONWARNINGS"
_SECONDS_BETWEEN_LOOKS: Final[float] = 0.5
# What both libraries name alike for every cluster; the rest is Slurm's own.
_OF_EVERY_CLUSTER: Final = frozenset(
    {"name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node"}
)


def in_processes(
    work: Callable[[ItemT], ResultT], items: Iterable[ItemT], jobs: int, threads: int
) -> Iterator[ResultT]:
    """Do work on each item, several at once, in processes of this machine.

    Args:
        work: a function of a module.    items: are taken one by one, when a process is free.
        jobs: processes, >= 1. One is this process itself: each item is then taken when what came
            of the one before has been given.
        threads: of each process, >= 1.

    Yields:
        What the work returned, as it is done. Take all of it: to have less, end the items.

    Raises:
        RunError: a process was killed. And what `items` raises, when the work before it is done.
    """
    import joblib
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    if jobs == 1:
        thread_count.configure(threads)
    else:
        _start_cleaner()
    wrong: list[Exception] = []

    def given() -> Iterator[ItemT]:
        """Give the items, and no exception, which joblib could lose in a thread of its own."""
        try:
            yield from items
        except Exception as error:
            wrong.append(error)

    call = joblib.delayed(functools.partial(_do, work, os.getpid(), threads, os.getcwd()))
    with joblib.parallel_config("loky", inner_max_num_threads=threads):
        parallel = joblib.Parallel(
            n_jobs=jobs,
            return_as="generator_unordered",
            pre_dispatch=jobs,
            batch_size=1,
            initializer=_end_with,
            initargs=(os.getpid(),),
        )
        try:
            yield from parallel(call(item) for item in given())
        except TerminatedWorkerError as error:
            raise RunError(
                "a process that trained was killed, perhaps as memory was short; what was trained "
                "is saved: go on with --resume, and with fewer runs at the same time"
            ) from error
    if wrong:
        raise wrong[0]


def _start_cleaner() -> None:
    """Start the process that removes what a parent that was killed leaves of its queues.

    It does that in silence; by itself, it warns of each on several lines.
    """
    from joblib.externals.loky.backend import resource_tracker

    before = os.environ.get(_WARNINGS)
    quiet = f"ignore::UserWarning:{resource_tracker.__name__}"
    os.environ[_WARNINGS] = quiet if before is None else f"{before},{quiet}"
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ[_WARNINGS]
        else:
            os.environ[_WARNINGS] = before


def _do(
    work: Callable[[ItemT], ResultT], parent: int, threads: int, directory: str, item: ItemT
) -> ResultT:
    """Do the work on an item, in a process that ends when its parent does; 0 for no parent."""
    if os.getpid() == parent:
        return work(item)
    os.chdir(directory)  # joblib keeps processes, from wherever they were started
    thread_count.configure(threads)
    if not parent:
        return work(item)
    found = work(item)
    if os.getppid() != parent:  # nobody waits for it, and there is nothing else to do
        os._exit(0)
    return found


def _end_with(parent: int) -> None:
    """Let this process be told to stop, by SIGTERM, when its parent has ended.

    By that alone: Ctrl-C reaches all processes of a terminal, and an exception could come anywhere.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        os.kill(os.getpid(), signal.SIGTERM)  # training saves the run, and all else just ends

    threading.Thread(target=look, daemon=True).start()


def slurm_options(words: Iterable[str]) -> dict[str, str | int]:
    """Return what words such as partition=cpu ask of submitit, by its names.

    Raises:
        ValueError: a word that is no name=value.
    """
    found: dict[str, str | int] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not (name.replace("_", "").isalnum() and sign and value):
            raise InvalidValueError(
                f"--slurm takes name=value, such as partition=cpu or time=60, got {word!r}"
            )
        found[name] = int(value) if value.isdecimal() else value
    return found


def on_slurm(
    work: Callable[[ItemT], ResultT],
    items: Iterable[ItemT],
    jobs: int,
    options: Mapping[str, str | int],
    directory: Path,
) -> Iterator[ResultT]:
    """Do work on each item, several at once, as jobs of Slurm.

    Args:
        work: a function of a module.    items: are taken one by one, when a job may begin.
        jobs: that may run or wait at the same time, >= 1.
        options: of Slurm's sbatch, or of submitit. cpus_per_task is the number of threads, 1
            without it; cluster is "local" or "debug" where there is no Slurm.
        directory: for what the jobs write.

    Yields:
        What the work returned, as it is done.

    Raises:
        ValueError: options that submitit does not have, or no Slurm.
        ImportError: submitit is not installed.
        RunError: a job came to no end of its own.
    """
    with _clusters_errors():
        import submitit

        given = {"cpus_per_task": 1, "name": "fastformer", **options}
        cluster = str(given.pop("cluster", "")) or None
        executor = submitit.AutoExecutor(directory, cluster=cluster)
        executor.update_parameters(
            **{k if k in _OF_EVERY_CLUSTER else f"slurm_{k}": v for k, v in given.items()}
        )
    call = functools.partial(_do, work, 0, int(given["cpus_per_task"]), os.getcwd())
    waiting, pending = iter(items), list[Any]()
    while True:
        if given_now := list(itertools.islice(waiting, jobs - len(pending))):
            pending += executor.map_array(call, given_now)
        if not pending:
            return
        for job in [one for one in pending if one.done()]:
            pending.remove(job)
            try:
                yield job.result()
            except submitit.core.utils.UncompletedJobError as error:
                raise RunError(
                    f"job {job.job_id} came to no end of its own; {job.paths.stderr} may say why"
                ) from error
        time.sleep(_SECONDS_BETWEEN_LOOKS)


@contextlib.contextmanager
def _clusters_errors() -> Iterator[None]:
    """Turn what is wrong with a cluster or its options into an error for the user."""
    try:
        yield
    except ImportError as error:
        raise MissingLibraryError(
            "jobs of Slurm need submitit: pip install 'fastformer[sweep]'"
        ) from error
    except (AssertionError, NameError, RuntimeError, TypeError, ValueError) as error:
        raise InvalidValueError(f"submitit cannot send jobs to Slurm: {error}") from error
