"""Row C9: a full disk is a clear error, and takes neither the last good checkpoint nor a bit.

Two ways: a real file system in memory, full after each of its pages; and a limit on the size of
files, which lets a write take a part of its bytes. The first needs a mount, in a namespace of its
own; where the system does not allow that, the row says so.
"""

import ctypes
import json
import os
import resource
import signal
import tempfile
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from program import HANG

from tests.scorecard import supervisor
from tests.scorecard.kills import write_in_place
from tests.scorecard.rows import Finding, Row, Tier, failures_of, shows
from tests.scorecard.supervisor import FORK, MEMORY, OPTIONS, Change
from tests.scorecard.syscalls import REMEDY, swallow_errors

PAGE = 4096
NEW_NAMESPACE, NEW_USER = 0x20000, 0x10000000  # CLONE_NEWNS, CLONE_NEWUSER
PRIVATE, REMOUNT = 0x44000, 0x20  # MS_REC | MS_PRIVATE, MS_REMOUNT
PAGES = 60  # more than the run takes
LARGEST = 40 << 10  # larger than any of its files
REASONS = ("No space left on device", "File too large")


def leave_litter() -> None:
    """Plant a fault: what was written of a file stays when the rest does not fit."""
    unlink = os.unlink

    def remove_no_temporary(path: os.PathLike[str]) -> None:
        if not str(path).endswith(".tmp"):
            unlink(path)

    os.unlink = remove_no_temporary  # type: ignore[assignment]


FAULTS: dict[str, Change] = {
    "files written in place": write_in_place,
    "errors swallowed": swallow_errors,
    "temporary files left": leave_litter,
}


@dataclass(frozen=True)
class Case:
    """One run on a disk that gets full.

    Attributes:
        kind: "mount" or "limit".    size: of the file system, or of a file, in bytes.
        expected: what the run must hold in the end.    fault: a name of FAULTS, or None.
    """

    kind: str
    size: int
    expected: dict[str, str]
    fault: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What is wrong with a case, and whether the disk was full."""

    problems: tuple[str, ...]
    full: bool


def mount(place: Path, size: int, flags: int = 0) -> None:
    """Mount a file system in memory, or change the size of one that is mounted."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", os.fsencode(place), b"tmpfs", flags, f"size={size}".encode()) != 0:
        raise OSError(ctypes.get_errno(), f"cannot mount on {place}")


def own_mounts() -> None:
    """Give this process mounts that nobody else sees, and that go with it."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(NEW_NAMESPACE | (NEW_USER if user else 0)) != 0:
        raise OSError(ctypes.get_errno(), "a namespace of its own is refused")
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    if libc.mount(b"none", b"/", None, PRIVATE, None) != 0:
        raise OSError(ctypes.get_errno(), "mounts cannot be made private")


def can_mount() -> bool:
    """Tell whether a process here may mount a file system for itself."""

    def probe(place: str) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            own_mounts()
            mount(Path(place), PAGE)
        except OSError:
            os._exit(1)
        os._exit(0)

    with tempfile.TemporaryDirectory() as name:
        process = FORK.Process(target=probe, args=(name,))
        process.start()
        process.join()
    return process.exitcode == 0


def fill(case: Case) -> Outcome:
    """Train on a disk that gets full; look at what is left, make room, and go on."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        answer = Path(name) / "answer"
        process = FORK.Process(target=_fill, args=(case, Path(name), answer))
        process.start()
        process.join(HANG)
        if process.exitcode != 0:
            return Outcome((f"the case itself ended with {process.exitcode}",), False)
        problems, full = json.loads(answer.read_text())
    return Outcome(tuple(problems), full)


def _fill(case: Case, place: Path, answer: Path) -> None:
    """Do what `fill` says, in a process that may have mounts of its own."""
    disk = place / "disk"
    disk.mkdir()
    run = disk / "run"
    changes = [FAULTS[case.fault]] if case.fault else []
    if case.kind == "mount":
        own_mounts()
        mount(disk, case.size)
    else:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        changes.append(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (case.size, hard)))
    arguments = supervisor.command(run, OPTIONS)
    ending = supervisor.forked(arguments, place / "log", changes=tuple(changes))
    found = supervisor.problems(run) + lost(run)
    if ending.code == 0:
        found += supervisor.unequal(run, case.expected)
    else:
        named = str(run) in ending.words and REMEDY in ending.words
        if ending.code != 2 or not named or not any(one in ending.words for one in REASONS):
            found.append(f"ended with {ending.code}: {ending.words[-300:]}")
        found += [f"{path} is left" for path in run.rglob(".*.tmp")]
    if case.kind == "mount":
        mount(disk, PAGE << 12, REMOUNT)
    found += supervisor.goes_on(run, OPTIONS, case.expected, log=place / "log")
    answer.write_text(json.dumps([found, ending.code != 0]))


def lost(run: Path) -> list[str]:
    """Return what a run has a record of, but no checkpoint: its best, and its last but one."""
    from fastformer.training.run_directory import RunDirectory

    if not (run / "metrics.jsonl").exists():
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a torn last line
        records = RunDirectory.open(run).read_metrics()
    found = []
    if records and not (run / "checkpoints/best.safetensors").exists():
        found.append("the best checkpoint is lost")
    if len(records) > 1 and supervisor.newest(run) < records[-2]["step"]:
        found.append("the last good checkpoint is lost")
    return found


def measure(tier: Tier, every: int = 1, pool: ProcessPoolExecutor | None = None) -> Finding:
    """C9: a disk of each size, or each so many-th. Planted: see FAULTS."""
    if pool is None:
        with supervisor.workers() as own:
            return measure(tier, every, own)
    expected = supervisor.undisturbed(OPTIONS)
    sizes = range(PAGE, PAGES * PAGE, PAGE) if can_mount() else ()
    limits = range(512, LARGEST, 1024 if tier == "fast" else 128)
    cases = [
        Case(kind, size, expected)
        for kind, several in (("mount", sizes), ("limit", limits))
        for size in several[every - 1 :: every]
    ]
    outcomes = list(pool.map(fill, cases))
    planted = sum(noticed(pool, cases, fault) for fault in FAULTS)
    names = [f"{case.kind}, {case.size} bytes" for case in cases]
    failures = failures_of(zip(names, outcomes, strict=True))
    full = sum(outcome.full for outcome in outcomes)
    number = f"{full} times full" + ("" if sizes else "; no file system could be mounted")
    held = len(cases) - len(failures)
    return Finding(held, len(cases), planted, len(FAULTS), number, failures[:5])


def noticed(pool: ProcessPoolExecutor, cases: list[Case], fault: str) -> bool:
    """Tell whether a planted fault shows on a disk of one of the sizes."""
    planted = [Case(case.kind, case.size, case.expected, fault) for case in cases]
    return shows(pool, fill, planted)


ROWS = (
    Row(
        "C9",
        "a full disk: exit code 2, the file and the remedy named, the last good kept, no litter, "
        "the same bits once there is room",
        "a disk of every size",
        measure,
    ),
)
