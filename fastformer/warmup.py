"""Compile all kernels that training uses, once, on all cores, and say how long it takes.

Numba compiles a kernel where it is first called, one after the other on one core. Here several
processes share the work, and leave the machine code where every later process finds it.
Run as a program, this file is one of those processes: it reads the names of kernels from its
standard input, a line each, and answers each with a line when it is compiled.
"""

import contextlib
import functools
import importlib
import subprocess
import sys
import threading
import time
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from fastformer import threads

PRODUCT = "matmul._product"
# Arguments of each kernel: r, m, t for real arrays of 1 to 3 axes, k for ids, and scalars f float,
# i integer, b bool. Those that take longest come first, and what others call before them.
KERNELS = {
    "attention.attention_backward": "m m m m m m m k k k r b f m m m",
    PRODUCT: "i i m t m r m i m m t",
    "attention.attention_forward": "m m m k k k r b f m m m",
    "layernorm.layernorm_backward": "m m r r r m m r r",
    "transformer_block.transformer_block_backward": (
        "m m k k k b b f i r t t t r t t r r m m m m m m r r m m m m m m m m m m m r r r r"
    ),
    "layernorm.layernorm_forward": "m r r f m r r",
    "transformer_block.transformer_block_forward": (
        "m k k k b b f f i r r t r t r t r r r t r t r m r r m m m m m m m m m r r m m m"
    ),
    "transformer_gradients.transformer_gradients": ("k k k k k k i i f f i b f f k r m m r m m"),
    "adam.adam_step": "r r r r f f f f f i",
    "cross_entropy.cross_entropy_forward": "m k f r r r",
    "cross_entropy.cross_entropy_backward": "m k r r f f m",
    "embedding.embedding_forward": "k k m m m",
    "embedding.embedding_backward": "k m m",
    "gradient.add_gradients": "m r",
    "gradient.gradient_norm": "r",
    "gradient.may_step": "r r r r",
    "gradient.zero_gradient": "r",
    "pooling.gather_rows": "m k m",
    "pooling.scatter_rows": "m k m",
}
# Where products have another precision, its kernel takes the place of theirs, in every layer.
PRODUCTS = {"float32": PRODUCT, "bfloat16": "matmul_bfloat16._product"}
# What only those models call whose training is one kernel, and those whose training is not. Either
# compiles it at the first call where it must.
WHOLE_MODEL = ("transformer_gradients.transformer_gradients", "gradient.add_gradients")
WHOLE_BLOCK = ("transformer_block.transformer_block_backward",)
MOST_PROCESSES = 4


def signature(name: str) -> tuple[Any, ...]:
    """Return the Numba types of a kernel's arguments, for float32."""
    from numba import types

    real = types.float32
    kinds = {
        "r": types.Array(real, 1, "C"),
        "m": types.Array(real, 2, "C"),
        "t": types.Array(real, 3, "C"),
        "k": types.Array(types.int64, 1, "C"),
        "f": types.float64,
        "i": types.int64,
        "b": types.boolean,
    }
    codes = KERNELS[PRODUCT if name in PRODUCTS.values() else name]
    return tuple(kinds[code] for code in codes.split())


def kernels_of(precision: str, in_one: bool) -> list[str]:
    """Return the names of the kernels that training calls.

    Args:
        precision: of products.    in_one: whether the model's gradients are one kernel's.
    """
    if precision == "float32":
        others = WHOLE_BLOCK if in_one else WHOLE_MODEL
        return [name for name in KERNELS if name not in others]
    several = (*WHOLE_MODEL, "transformer_block.")  # whose products are not each its own call
    layers = [name for name in KERNELS if not name.startswith(several)]
    return [PRODUCTS[precision] if name == PRODUCT else name for name in layers]


def dispatcher(name: str) -> Any:
    """Return a kernel of `kernels_of`."""
    stem, _, function = name.partition(".")
    module = importlib.import_module(f"fastformer.kernels.{stem}")
    if name == PRODUCTS["bfloat16"]:
        module.load_tiles()  # compiled code that comes from disk looks for its symbols at once
    return getattr(module, function)


def _markers() -> Path | None:
    """Return the directory of files named after what was compiled, or None if nothing is kept."""
    from fastformer.kernels._compile import BUILD, CACHE_DIRECTORY

    if CACHE_DIRECTORY is None or BUILD != "production":
        return None
    return CACHE_DIRECTORY / "compiled"


@functools.cache
def ensure_compiled(precision: str, in_one: bool) -> None:
    """Compile what is not compiled yet; do nothing where there is no place to keep it.

    A process tries it once.

    Args:
        precision, in_one: as of `kernels_of`; no other kernels are compiled.

    Whatever goes wrong in the processes is left to the first call of the kernel, which compiles
    it again and raises what there is to raise.
    """
    markers = _markers()
    processes = min(MOST_PROCESSES, threads.available_threads())
    if markers is None or processes < 2 or not sys.executable:
        return
    names = [name for name in kernels_of(precision, in_one) if not (markers / name).exists()]
    if not names:
        return
    started = time.monotonic()
    waiting: Queue[str] = Queue()
    for name in names:
        waiting.put(name)
    done: list[str] = []
    workers = [threading.Thread(target=_serve, args=(waiting, done)) for _ in range(processes)]
    _say(f"compiling {len(names)} kernels, once")
    for worker in workers:
        worker.start()
    while len(done) < len(names) and any(worker.is_alive() for worker in workers):
        time.sleep(0.1)
        if sys.stderr.isatty() and done:
            seconds = time.monotonic() - started
            left = seconds / len(done) * (len(names) - len(done))
            _say(f"compiling {len(names)} kernels, once: {left:.0f} s left", "\r")
    # A disk that refuses costs the next start its time, no more.
    with contextlib.suppress(OSError):
        markers.mkdir(exist_ok=True)
        for name in done:
            (markers / name).touch()
    if len(done) == len(names):
        _say(f"compiled {len(names)} kernels in {time.monotonic() - started:.0f} s")


def _say(text: str, end: str = "\n") -> None:
    sys.stderr.write(f"fastformer: {text:<50}{end}")
    sys.stderr.flush()


def _serve(waiting: "Queue[str]", done: list[str]) -> None:
    """Give one process the names of kernels that wait, one at a time, until none is left."""
    command = [sys.executable, "-m", "fastformer.warmup"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        while process.stdin and process.stdout:
            try:
                name = waiting.get_nowait()
                process.stdin.write(name + "\n")
                process.stdin.flush()
            except (Empty, OSError):
                break
            if process.stdout.readline().strip() != name:
                break
            done.append(name)
        process.communicate()


def main() -> None:
    """Compile the kernels whose names come in, a line each."""
    for line in sys.stdin:
        dispatcher(line.strip()).compile(signature(line.strip()))
        sys.stdout.write(line)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
