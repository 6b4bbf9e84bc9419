"""`@kernel`: the only place that calls `numba.njit`.

It holds the options that every kernel shares, and the directory that compiled kernels are kept in.

Build variants, chosen by the environment variable `FASTFORMER_BUILD` before the first import:
    production: what users run.
    checked: serial, with bounds checks, for tests. (Numba's bounds checks see nothing in `prange`.)
    python: not compiled, with the turns of each `prange` in a shuffled order, for tests: a result
        that depends on the order is a race.
"""

import functools
import hashlib
import os
import random
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
import platformdirs

from . import _target
from ._cache import KernelCache, call_by_symbol, is_ours_alone
from ._environment import choice

BUILDS = ("production", "checked", "python")
BUILD = choice("FASTFORMER_BUILD", BUILDS, "production")

# No nnan, no ninf: a NaN must stay visible, and isnan must stay true.
FASTMATH = {"reassoc", "contract", "arcp", "nsz", "afn"}

# Kernels take `prange` from here. The order of its turns in the python build is drawn from ORDER.
ORDER = random.Random(0)
prange: Any = numba.prange


def _shuffled_range(*bounds: int) -> Iterable[int]:
    """Return the numbers of a range in another order."""
    turns = list(range(*bounds))
    ORDER.shuffle(turns)
    return turns


if BUILD == "python":
    prange = _shuffled_range

# A parallel region starts in 2 us on OpenMP, and in 90 us on Numba's own work queue.
numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]


# Numba's settings that change the code of a kernel, and that its own cache does not look at.
CODE_SETTINGS = (
    "OPT",
    "LOOP_VECTORIZE",
    "SLP_VECTORIZE",
    "BOUNDSCHECK",
    "USING_SVML",
    "DEBUGINFO_DEFAULT",
    "EXTEND_VARIABLE_LIFETIMES",
    "LLVM_REFPRUNE_PASS",
    "LLVM_REFPRUNE_FLAGS",
    "DEBUG_NRT",
)


def _digest() -> str:
    """Hash all that decides what a compiled kernel is, but that Numba's own cache does not see.

    Numba looks at the file of the kernel alone, not at the helpers that it calls (numba#1833), nor
    at the settings that these are made by, as the width of registers. It does look at what it
    compiles for, but files beside its own do not: those that say what is compiled already.
    """
    digest = hashlib.sha256()
    parts = [numba.__version__, llvmlite.__version__, np.__version__, BUILD]
    parts += [_target.TRIPLE, _target.CPU_NAME, _target.CPU_FEATURES, _target.VECTOR_BITS]
    parts += [getattr(numba.config, name, None) for name in CODE_SETTINGS]
    digest.update("\0".join(map(str, parts)).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _is_private(directory: Path) -> bool:
    """Tell whether only its owner, who is us, can write to a directory.

    Numba's cache files are pickles: whoever can write them can run code here.
    """
    return is_ours_alone(directory.stat()) and os.access(directory, os.W_OK)


def _cache_directory() -> Path | None:
    """Return the private directory of this build's compiled kernels, or None where none can be."""
    chosen = os.environ.get("FASTFORMER_CACHE_DIR")
    user = getattr(os, "getuid", lambda: "user")()
    roots = (
        [Path(chosen)]
        if chosen
        else [
            Path(platformdirs.user_cache_dir("fastformer", appauthor=False)),
            Path(tempfile.gettempdir()) / f"fastformer-{user}",
        ]
    )
    for root in roots:
        directory = root / f"kernels-{_digest()}"
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if _is_private(directory):
                return directory
        except OSError:
            continue
    return None


CACHE_DIRECTORY = _cache_directory()


def _keep_from_python(dispatcher: Any) -> None:
    """Let other kernels alone call a function, without the code by which Python would call it.

    That code unpacks each array, and takes a quarter of the time that all kernels take to compile.
    """

    def add(compiled: Any) -> None:
        dispatcher.overloads[tuple(compiled.signature.args)] = compiled

    def refuse(*arguments: Any, **options: Any) -> None:
        raise TypeError(f"{dispatcher.py_func.__name__} is called by other kernels only")

    dispatcher.add_overload, dispatcher._compile_for_args = add, refuse


def _refuse_to_return_arrays(dispatcher: Any) -> None:
    """Raise TypeError when a version of a function is compiled that returns an array.

    Where references are not counted, its caller would free what is not its own. (Numba refuses
    those that the function makes, but not its arguments.)
    """
    add_overload = dispatcher.add_overload

    def add(compiled: Any) -> None:
        found = compiled.signature.return_type
        if any(isinstance(part, numba.types.Buffer) for part in getattr(found, "types", [found])):
            raise TypeError(
                f"{dispatcher.py_func.__name__} counts no references, and returns {found}"
            )
        add_overload(compiled)

    dispatcher.add_overload = add


def kernel(
    function: Callable[..., Any] | None = None,
    *,
    parallel: bool = False,
    inline: bool = False,
    once: bool = False,
    part: bool = False,
    allocates: bool = True,
    by_address: bool = False,
) -> Any:
    """Compile a function with the options that all kernels share.

    Of those in this directory, Python can call the parallel ones only.

    Args:
        function: the Python function; it may call other kernels of its own and other files.
        parallel: True for the outermost function of an op, which has the one `prange`.
            All that it calls are serial kernels.
        inline: True for a serial kernel whose call would cost as much as its work: passing a
            dozen arrays takes 100 ns. It allocates nothing.
        once: True for a large serial kernel with several callers: it is compiled once, and not
            again as a part of each.
        part: True for a serial kernel with one caller, which is compiled as if it stood there.
        allocates: False for a serial kernel that makes no array and returns none: it then counts
            no references to its arguments, which takes 5 ns each.

    Returns:
        A Numba dispatcher, compiled on first call for each dtype and kept on disk; in the python
        build the function itself.
    """
    if function is None:
        return functools.partial(
            kernel, parallel=parallel, inline=inline, once=once, part=part, allocates=allocates,
            by_address=by_address,
        )  # fmt: skip
    if BUILD == "python" or numba.config.DISABLE_JIT:
        return function
    checked = BUILD == "checked"
    inner = by_address or (not parallel and function.__module__.startswith(f"{__package__}."))
    previous = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(CACHE_DIRECTORY or "")
    try:
        compiled = numba.njit(
            function,
            parallel=parallel and not checked,
            boundscheck=checked,
            forceinline=inline,
            _nrt=allocates and not inline,
            inline="always" if part else "never",
            no_cpython_wrapper=inner,
            no_cfunc_wrapper=True,
            fastmath=FASTMATH,
            error_model="numpy",
        )
        # What was typed, or is in a notebook, has no file by whose time Numba knows it again.
        if CACHE_DIRECTORY is not None and Path(function.__code__.co_filename).exists():
            compiled._cache = KernelCache(function)
        if inner:
            _keep_from_python(compiled)
        if inline or not allocates:
            _refuse_to_return_arrays(compiled)
        if once:
            call_by_symbol(compiled)
        return compiled
    finally:
        numba.config.CACHE_DIR = previous
