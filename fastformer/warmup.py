"""Compile the kernels that a model uses, once, on all cores, and say how long it takes.

Numba compiles a kernel where it is first called, one after the other on one core. Here several
processes share the work, and leave the machine code where every later process finds it. What
several kernels call is compiled by itself, before them.
Each of those processes runs `main`: it reads the names of kernels from its standard input, a line
each, and answers each with a line when it is compiled.
"""

import contextlib
import functools
import gc
import hashlib
import importlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from fastformer import threads

# Arguments of each kernel: r, m, t for real arrays of 1 to 3 axes, k for ids, p for a product's
# plan, scalars f float, i integer, b bool, and o an optional one that is left out. What others wait
# for comes first, then what takes longest. Ops, which are found by their names too, say themselves
# what they are given.
KERNELS = {
    "attention.attention_backward_pairs": "i i i m m m m m m m k k k r b f m m m r",
    "matmul._product_part": "p i i i i r r r r i r r",
    "matmul_bfloat16._product_part": "p i i i i r r r r i r r",
    "attention.attention_forward_pairs": "i i i m m m k k k k r b f m m m r",
    "layernorm.layernorm_backward_rows": "i i m m r r r m m i t",
    "layernorm.layernorm_forward_rows": "i i m r r f m r r",
    "program.run_program": "n n k n k k k m n",
    "gradient.may_step": "r r r r",
    "cross_entropy.cross_entropy_forward": "m k f r r r o",
    "adam.adam_step": "r r r r r f f f f f f i",
    "gradient.zero_gradient": "r",
    "gradient.add_gradient": "r r",
    "gradient.gradient_norm": "r",
}
_OF_PRODUCTS = ("matmul._product_part",)
_OF_BFLOAT16 = ("matmul_bfloat16._product_part",)
# What each kernel calls that is compiled by itself, and so before it.
PARTS = {
    "matmul.linear": _OF_PRODUCTS,
    "matmul.linear_input_gradient": _OF_PRODUCTS,
    "matmul.linear_weight_gradient": _OF_PRODUCTS,
    "matmul_bfloat16.linear_bfloat16": _OF_BFLOAT16,
    "matmul_bfloat16.linear_input_gradient_bfloat16": _OF_BFLOAT16,
    "matmul_bfloat16.linear_weight_gradient_bfloat16": _OF_BFLOAT16,
    "attention.attention": ("attention.attention_forward_pairs",),
    "attention.attention_gradient": ("attention.attention_backward_pairs",),
    "layernorm.layernorm": ("layernorm.layernorm_forward_rows",),
    "layernorm.layernorm_gradient": ("layernorm.layernorm_backward_rows",),
}
# Of an evaluation, besides the model's program, and of a training step.
EVALUATION_KERNELS = ("cross_entropy.cross_entropy_forward",)
STEP_KERNELS = (
    "adam.adam_step", "gradient.gradient_norm", "gradient.may_step", "gradient.zero_gradient",
)  # fmt: skip
# And of one whose batch is cut into shards.
SHARDS_KERNELS = ("gradient.add_gradient",)
# The driver of all programs.
DRIVER = "program.run_program"
MOST_PROCESSES = 4


def signature(name: str) -> tuple[Any, ...]:
    """Return the Numba types of a kernel's arguments, for float32."""
    from numba import types

    from fastformer.kernels.matmul import Plan

    real = types.float32
    kinds = {
        "r": types.Array(real, 1, "C"),
        "m": types.Array(real, 2, "C"),
        "t": types.Array(real, 3, "C"),
        "k": types.Array(types.int64, 1, "C"),
        "n": types.Array(types.int64, 2, "C"),
        "p": types.NamedUniTuple(types.int64, len(Plan._fields), Plan),
        "f": types.float64,
        "i": types.int64,
        "b": types.boolean,
        "o": types.Omitted(None),
    }
    return tuple(kinds[code] for code in KERNELS[name].split())


def dispatcher(name: str) -> Any:
    """Return a kernel, or an op, by its name."""
    stem, _, function = name.partition(".")
    module = importlib.import_module(f"fastformer.kernels.{stem}")
    return getattr(module, function)


def _markers() -> Path | None:
    """Return the directory of files named after what was compiled, or None if nothing is kept.

    Numba finds a kernel only for the file that it is compiled from, at its place and of its time,
    so another installation of the same sources has another directory.
    """
    from fastformer.kernels import _compile

    if _compile.CACHE_DIRECTORY is None or _compile.BUILD != "production":
        return None
    files = sorted(Path(_compile.__file__).parent.glob("*.py"))
    stamps = repr([(str(path), path.stat().st_mtime_ns) for path in files])
    digest = hashlib.sha256(stamps.encode()).hexdigest()[:16]
    return _compile.CACHE_DIRECTORY / f"compiled-{digest}"


def _with_parts(names: Iterable[str]) -> list[str]:
    """Return the names of kernels, their parts, and those of their parts, in KERNELS' order."""
    wanted, more = set[str](), set(names)
    while more:
        wanted |= more
        more = {part for name in more for part in PARTS.get(name, ())}
    order = {name: place for place, name in enumerate(KERNELS)}
    return sorted(wanted, key=lambda name: (order.get(name, len(order)), name))


@functools.cache
def ensure_compiled(names: tuple[str, ...]) -> None:
    """Compile what is not compiled yet; do nothing where there is no place to keep it.

    A process tries it once.

    Args:
        names: of kernels, such as `Workspace.kernels`.

    Whatever goes wrong in the processes is left to the first call of the kernel, which compiles
    it again and raises what there is to raise.
    """
    markers = _markers()
    processes = min(MOST_PROCESSES, threads.available_threads())
    if markers is None or processes < 2 or not sys.executable:
        return
    missing = [name for name in _with_parts(names) if not (markers / name).exists()]
    if not missing:
        return
    started = time.monotonic()
    work = _Work(missing)
    workers = [threading.Thread(target=_serve, args=(work,)) for _ in range(processes)]
    kernels = "1 kernel" if len(missing) == 1 else f"{len(missing)} kernels"
    _say(f"compiling {kernels}, once")
    for worker in workers:
        worker.start()
    while len(work.done) < len(missing) and any(worker.is_alive() for worker in workers):
        time.sleep(0.05)
        if sys.stderr.isatty() and work.done:
            seconds = time.monotonic() - started
            left = seconds / len(work.done) * (len(missing) - len(work.done))
            _say(f"compiling {kernels}, once: {left:.0f} s left", "\r")
    # A disk that refuses costs the next start its time, no more.
    with contextlib.suppress(OSError):
        markers.mkdir(exist_ok=True)
        for name in work.done:
            (markers / name).touch()
    if len(work.done) == len(missing):
        _say(f"compiled {kernels} in {time.monotonic() - started:.0f} s")


@contextlib.contextmanager
def compiling_in_turn(names: Iterable[str]) -> Iterator[None]:
    """Let one process at a time compile, in a `with` block that calls all that it names.

    The others wait, and find on disk what it has compiled. Where nothing is left to compile, or
    nothing is kept, nobody waits.

    Args:
        names: of kernels, as of `ensure_compiled`.
    """
    from filelock import FileLock

    markers, names = _markers(), _with_parts(names)
    if markers is None or all((markers / name).exists() for name in names):
        yield
        return
    with contextlib.ExitStack() as block:
        with contextlib.suppress(OSError):  # where no file can be made, each compiles for itself
            block.enter_context(FileLock(markers.parent / "compiling.lock"))
        yield
        with contextlib.suppress(OSError):
            markers.mkdir(exist_ok=True)
            for name in names:
                (markers / name).touch()


@contextlib.contextmanager
def compilation_clock() -> Iterator[Callable[[], float]]:
    """Measure, within a `with` block, for how long kernels are compiled or come from disk.

    Yields:
        What returns the seconds until now.
    """
    from numba.core import event

    with event.install_recorder("numba:compiler_lock") as recorder:

        def seconds() -> float:
            total, begun, depth = 0.0, 0.0, 0
            for moment, one in recorder.buffer:
                if one.is_start and depth == 0:
                    begun = moment
                depth += 1 if one.is_start else -1
                if depth == 0:
                    total += moment - begun
            return total

        yield seconds


@contextlib.contextmanager
def telling_of_compilation() -> Iterator[None]:
    """Say, within a `with` block, when more is compiled than `ensure_compiled` knows of."""
    from numba.core import event

    class Listener(event.Listener):  # type: ignore[misc]
        started: float | None = None

        def on_start(self, _: Any) -> None:
            if self.started is None:
                self.started = time.monotonic()
                _say("compiling what few models need, once")

        def on_end(self, _: Any) -> None:
            pass

    listener = Listener()
    with event.install_listener("numba:compile", listener):
        yield
    if listener.started is not None:
        _say(f"compiled it in {time.monotonic() - listener.started:.0f} s")


class _Work:
    """Names of kernels that wait, of which each is taken when its parts are compiled.

    Attributes:
        done: names of those that are compiled.
    """

    def __init__(self, names: list[str]) -> None:
        self.done: list[str] = []
        self._waiting, self._unfinished = list(names), set(names)
        self._changed = threading.Condition()

    def take(self) -> str | None:
        """Return a name when there is one whose parts nobody is at; None when none is left."""
        with self._changed:
            while self._waiting:
                for name in self._waiting:
                    if self._unfinished.isdisjoint(PARTS.get(name, ())):
                        self._waiting.remove(name)
                        return name
                self._changed.wait()
        return None

    def end(self, name: str, compiled: bool) -> None:
        """Say that nobody is at a kernel any more."""
        with self._changed:
            self._unfinished.remove(name)
            if compiled:
                self.done.append(name)
            self._changed.notify_all()


def _say(text: str, end: str = "\n") -> None:
    sys.stderr.write(f"fastformer: {text:<50}{end}")
    sys.stderr.flush()


def _command() -> list[str]:
    """Return the command of a process that compiles.

    It has this one's search path, and so the same package: with -m, a folder of its name that lies
    in the current directory would be taken first.
    """
    program = f"import sys; sys.path = {sys.path!r}; from fastformer.warmup import main; main()"
    return [sys.executable, "-c", program]


def _serve(work: _Work) -> None:
    """Give one process the names of kernels that wait, one at a time, until none is left."""
    with subprocess.Popen(
        _command(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        while (name := work.take()) is not None:
            compiled = _compiles(process, name)
            work.end(name, compiled)
            if not compiled:
                break
        process.communicate()


def _compiles(process: "subprocess.Popen[str]", name: str) -> bool:
    """Give a process a name, and tell whether it answers that it has compiled it."""
    if not process.stdin or not process.stdout:
        return False
    try:
        process.stdin.write(name + "\n")
        process.stdin.flush()
    except OSError:
        return False
    return process.stdout.readline().strip() == name


def compile_one(name: str) -> None:
    """Compile a kernel or an op for float32."""
    from fastformer.kernels.op import Op

    found = dispatcher(name)
    if isinstance(found, Op):
        found.address("float32")
    else:
        found.compile(signature(name))


def main() -> None:
    """Compile the kernels whose names come in, a line each."""
    # Numba makes objects by the million, and looking for garbage so often takes a twentieth.
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    for line in sys.stdin:
        compile_one(line.strip())
        sys.stdout.write(line)
        sys.stdout.flush()
