"""Row E4: kernels in several threads and processes, and a cache that is damaged or not ours.

Each case is a program of its own, that must end well, in time, and with the right result:

- Threads of Python, and processes made in each way, on each threading layer
  (`test_thread_safety.py`).
- Processes that compile into one empty cache together.
- Places for the cache that cannot be written, or that others can write.
- Files of the cache that are damaged, or not ours: compiled again, and never loaded.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from program import HANG, ROOT
from test_compile import HELPER, PROBE, plant
from test_kernel_cache import damage
from test_thread_safety import LAYERS, PROGRAM, RIGHT, WAYS

from fastformer.kernels._cache import read_verified
from tests.scorecard.rows import Finding, Row, Tier

TOGETHER = 8
# A planted fault may hang; the same without it ends within a few seconds.
HANGS = 30
FOREIGN = 65534  # "nobody"
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1

# What a process that compiles together with others runs, and what it must print.
COMPILES = """
import numpy as np
from fastformer.backend import get_backend
ops, x = get_backend("numba"), np.ones((50, 100), np.float32)
out = np.empty_like(x)
ops.softmax_forward(x, out)
norm = ops.gradient_norm(x.reshape(-1))
print(round(float(norm), 3), round(float(out.sum()), 3))
"""
COMPILED = f"{round(5000**0.5, 3)} 50.0"

Case = tuple[str, Callable[[], str]]


def _respect_permissions() -> None:
    """Take from root, in a child, the right to write where nobody may."""
    if os.getuid() == 0:
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)


def run(*arguments: str, timeout: float = HANG, **environment: str) -> str:
    """Run Python; return what it printed, or how it ended."""
    clean = {k: v for k, v in os.environ.items() if k != "XDG_CACHE_HOME"}
    places = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    places |= {"NUMBA_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", *arguments],
        env=clean | places | environment,
        preexec_fn=_respect_permissions,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with the processes that it made
        process.communicate()
        return f"hung for {timeout:g} s"
    ended = output.strip()
    return ended if process.returncode == 0 else f"ended with {process.returncode}: {errors[-300:]}"


# ---- threads and processes ----


def called(place: Path, layer: str, way: str, change: str = "", timeout: float = HANG) -> str:
    """Call kernels in a way, on a layer, with a change of the program; return what is wrong."""
    program = place / f"{layer}_{way}_{abs(hash(change))}.py"
    program.write_text(
        PROGRAM.replace('if __name__ == "__main__":', f'{change}\nif __name__ == "__main__":')
    )
    found = run(str(program), way, timeout=timeout, NUMBA_THREADING_LAYER=layer)
    right = [f"{TOGETHER} {RIGHT}" if way == "threads" else RIGHT]
    if (layer, way) == ("omp", "fork"):
        right.append("told: True")  # GNU's OpenMP cannot go on, and says what to do
    return "" if found in right else found


NO_LOCK = (
    "from fastformer import thread_safety; thread_safety.several_callers_allowed = lambda: True"
)
NO_REFUSAL = "from fastformer import thread_safety; thread_safety._gnu_openmp_runs = lambda: False"


# ---- one empty cache ----


def compiled_together(place: Path) -> list[str]:
    """Compile in several processes at once, then in one more; return what is wrong with each."""
    cache = place / "together"
    cache.mkdir(mode=0o700)
    with ThreadPoolExecutor(TOGETHER) as pool:
        jobs = [
            pool.submit(run, "-c", COMPILES, FASTFORMER_CACHE_DIR=str(cache))
            for _ in range(TOGETHER)
        ]
        ended = [job.result() for job in jobs]
    ended.append(run("-c", COMPILES, FASTFORMER_CACHE_DIR=str(cache)))
    wrong = ["" if one == COMPILED else one for one in ended]
    left = [path.name for path in cache.rglob("*.tmp")]
    return [*wrong, f"left {left}" if left else ""]


# ---- places and files of the cache ----


class Probe:
    """A package of the real cache and a small kernel, with compiled kernels of its own."""

    def __init__(self, place: Path, **changes: str) -> None:
        """Plant the package, with words of `_cache.py` replaced, and compile once."""
        place.mkdir()
        self.place, self.cache = place, place / "cache"
        self.package = plant(place, {"_helper.py": HELPER, "probe.py": PROBE})
        source = self.package / "_cache.py"
        text = source.read_text()
        for old, new in changes.items():
            if REPLACED[old] not in text:
                raise RuntimeError(f"{REPLACED[old]!r} is not in {source}")
            text = text.replace(REPLACED[old], new)
        source.write_text(text)
        self.run()

    def run(self, **environment: str) -> list[str]:
        """Return what the probe computes, how often it came from the cache, and the place."""
        chosen = {"FASTFORMER_CACHE_DIR": str(self.cache)} if "HOME" not in environment else {}
        paths = {"PYTHONPATH": str(self.package.parent)}
        return run("-m", "planted.probe", **(paths | chosen | environment)).split(maxsplit=2)

    def files(self) -> list[Path]:
        """Return the compiled kernels."""
        return sorted(self.cache.rglob("*.nbc"))

    def built_again(self, spoil: Callable[[], object]) -> str:
        """Spoil the cache; return what is wrong unless the kernel is compiled, and then kept."""
        spoil()
        first, second = self.run()[:2], self.run()[:2]
        if (first, second) == (["1", "0"], ["1", "1"]):
            return ""
        return f"first {' '.join(first)}, then {' '.join(second)}"


REPLACED = {
    "checksum": "hashlib.sha256(data).digest() == digest",
    "owner": "return status.st_uid == os.getuid() and not others_write",
}


def _each(probe: Probe, change: Callable[[Path], object]) -> Callable[[], None]:
    def spoil() -> None:
        for file in probe.files():
            change(file)

    return spoil


def _swap(probe: Probe) -> None:
    contents = [file.read_bytes() for file in probe.files()]
    for file, content in zip(probe.files(), reversed(contents), strict=True):
        file.write_bytes(content)


def file_cases(probe: Probe) -> Iterator[Case]:
    """Yield what is done to the files of the cache: each time the kernel is compiled again."""
    for how in ("empty", "truncated", "zeroed", "flipped"):
        spoil = _each(probe, lambda f, how=how: f.write_bytes(damage(f.read_bytes(), how)))
        yield f"files {how}", lambda spoil=spoil: probe.built_again(spoil)
    for mode in (0o666, 0o660, 0o602):
        spoil = _each(probe, lambda f, mode=mode: f.chmod(mode))
        yield f"files of mode {mode:o}", lambda spoil=spoil: probe.built_again(spoil)
    yield "files under each other's names", lambda: probe.built_again(lambda: _swap(probe))
    if os.getuid() == 0:
        spoil = _each(probe, lambda f: os.chown(f, FOREIGN, FOREIGN))
        yield "files of another user", lambda: probe.built_again(spoil)


def place_cases(probe: Probe) -> Iterator[Case]:
    """Yield places for the cache: it is elsewhere, or nowhere, and kernels run all the same."""

    def ended(hits: str, where: str, **environment: str) -> str:
        for count in ("0", hits):
            found = probe.run(**environment)
            if found[:2] != ["1", count] or not found[2].startswith(where):
                return " ".join(found)
        return ""

    home, temporary = probe.place / "home", probe.place / "temporary"
    home.mkdir(mode=0o500)
    temporary.mkdir()
    for label, place in (("a home that is read-only", home), ("no home", Path("/proc/none"))):
        own = temporary / label.replace(" ", "-")
        own.mkdir()
        names = {"HOME": str(place), "TMPDIR": str(own)}
        # Bound now: all cases are made before the first one runs.
        yield label, lambda own=own, names=names: ended("1", str(own), **names)
    for label, path in (("read-only", home), ("a file", probe.package / "probe.py")):
        yield (
            f"a chosen place that is {label}",
            lambda path=path: ended("0", "None", FASTFORMER_CACHE_DIR=str(path)),
        )
    for label, change in (
        ("that others can write", lambda path: path.chmod(0o777)),
        ("of another user", lambda path: os.chown(path, FOREIGN, FOREIGN)),
    ):
        if "user" in label and os.getuid() != 0:
            continue
        other = probe.place / label.replace(" ", "-")
        first = Path(probe.run(FASTFORMER_CACHE_DIR=str(other))[2])
        change(first)
        yield (
            f"a directory {label}",
            lambda other=other: ended("0", "None", FASTFORMER_CACHE_DIR=str(other)),
        )


def bits(file: Path, place: Path, step: int) -> tuple[int, int]:
    """Flip bits of a compiled kernel, and cut it; return how many are not loaded, of how many."""
    good, damaged = file.read_bytes(), place / "damaged"
    held = cases = 0
    for bit in range(0, 8 * len(good), step):
        content = bytearray(good)
        content[bit // 8] ^= 1 << bit % 8
        for spoilt in (bytes(content), good[: bit // 8]):
            damaged.write_bytes(spoilt)
            held += read_verified(damaged) is None
            cases += 1
    return held, cases


def measure(tier: Tier, only: str = "") -> Finding:
    """Run all cases; `only` those whose name has that word, for a test."""
    times = 1 if tier == "fast" else 10
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(2) as pool:
        place = Path(name)
        probe = Probe(place / "probe")
        cases: list[Case] = [
            (f"{way} on {layer}", lambda layer=layer, way=way: called(place, layer, way))
            for layer in LAYERS
            for way in WAYS
            for _ in range(times)
        ]
        cases = [*cases, *place_cases(probe)]
        chosen = [(label, pool.submit(case)) for label, case in cases if only in label]
        ended = [(label, job.result()) for label, job in chosen]
        # These share one cache, one after the other.
        ended += [(label, case()) for label, case in file_cases(probe) if only in label]
        if not only:
            ended += [
                ("compiled together", one)
                for _ in range(times)
                for one in compiled_together(Path(tempfile.mkdtemp(dir=name)))
            ]
        held, cases_of_bits = bits(probe.files()[0], place, 101 if tier == "fast" else 1)
        planted = [bool(one) for one in _planted(place)]
        with contextlib.suppress(OSError):
            (probe.place / "home").chmod(0o700)
    failures = tuple(f"{label}: {one}" for label, one in ended if one)
    return Finding(
        held=held + len(ended) - len(failures),
        cases=cases_of_bits + len(ended),
        planted=sum(planted),
        plants=len(planted),
        number=f"{len(ended)} programs, {cases_of_bits:,} damaged files",
        failures=failures[:10],
    )


def _planted(place: Path) -> Iterator[str]:
    """Yield what is found where a safeguard is taken away."""
    yield called(place, "workqueue", "threads", NO_LOCK, HANGS)
    yield called(place, "omp", "fork", NO_REFUSAL, HANGS)
    unchecked = Probe(place / "unchecked", checksum="True")
    flip = _each(unchecked, lambda f: f.write_bytes(damage(f.read_bytes(), "flipped")))
    yield unchecked.built_again(flip)
    anyone = Probe(place / "anyone", owner="return True")
    yield anyone.built_again(_each(anyone, lambda f: f.chmod(0o666)))


ROWS = (
    Row(
        "E4",
        "threads, fork, spawn and forkserver on each layer; 8 processes compile together; a home "
        "that is read-only; a damaged or foreign kernel cache is rebuilt, never loaded",
        "all end well and right, no hang",
        measure,
        alone=True,
    ),
)
