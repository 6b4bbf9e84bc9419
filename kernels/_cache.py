"""Compiled kernels on disk, of which a damaged one is compiled again and never loaded.

Numba's own files are loaded as they are found: a torn one ends the program, zeroed machine code is
run (numba#10434), and two processes that compile two types of one kernel at a time can give one of
them the code of the other. Here a file holds one compiled kernel, its checksum, and what it is of.
"""

import contextlib
import glob
import hashlib
import os
import pickle
import stat
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numba
from llvmlite import binding
from numba.core.caching import CompileResultCacheImpl, FunctionCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

DIGEST_SIZE = hashlib.sha256().digest_size


def is_ours_alone(status: os.stat_result) -> bool:
    """Tell whether only we can write to a file or directory: it is ours, and no one else's."""
    if not hasattr(os, "getuid"):
        return True
    others_write = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return status.st_uid == os.getuid() and not others_write


def read_verified(path: Path) -> bytes | None:
    """Return what `write_verified` wrote; None where it is missing, damaged or not ours alone."""
    try:
        with path.open("rb") as file:
            content = file.read() if is_ours_alone(os.fstat(file.fileno())) else b""
    except OSError:
        return None
    digest, data = content[:DIGEST_SIZE], content[DIGEST_SIZE:]
    return data if data and hashlib.sha256(data).digest() == digest else None


def write_verified(path: Path, data: bytes) -> None:
    """Keep data with its checksum; a disk that refuses costs the next start its time, no more."""
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(hashlib.sha256(data).digest() + data)
        os.replace(temporary, path)
    except OSError as error:
        sys.stderr.write(f"fastformer: compiled kernels are not kept: {error}\n")
        with contextlib.suppress(OSError):
            os.unlink(temporary or "")


class _Files:
    """The compiled versions of one kernel, a file for each: what Numba's cache reads and writes."""

    def __init__(self, directory: str, stem: str, stamp: Any) -> None:
        self._directory, self._stem = Path(directory), stem
        self._version = (numba.__version__, stamp)

    def _path(self, key: Any) -> Path:
        name = hashlib.sha256(repr((self._version, key)).encode()).hexdigest()[:16]
        return self._directory / f"{self._stem}.{name}.nbc"

    def load(self, key: Any) -> Any:
        """Return the compiled kernel of a key, or None where it must be compiled."""
        pickled = read_verified(self._path(key))
        if pickled is None:
            return None
        version, saved_key, data = pickle.loads(pickled)
        return data if (version, saved_key) == (self._version, key) else None

    def save(self, key: Any, data: Any) -> None:
        """Keep a compiled kernel."""
        write_verified(self._path(key), dumps((self._version, key, data)))

    def flush(self) -> None:
        """Forget all compiled versions."""
        for path in self._directory.glob(f"{glob.escape(self._stem)}.*.nbc"):
            path.unlink(missing_ok=True)


class _Callee(NamedTuple):
    """A function that others call by its symbol."""

    compiled: CompileResult
    reduced: Any  # what it is made again from in another process
    calls: list[str]  # the symbols that it calls itself


# By their symbols.
_CALLEES: dict[str, _Callee] = {}


def call_by_symbol(dispatcher: Any) -> None:
    """Let callers of a function know its symbol only, as those of a library do.

    Numba links a function's code into each caller and optimises it there again; and what has a
    parallel region is five levels of callers.
    """
    add_overload = dispatcher.add_overload

    def add(compiled: CompileResult) -> None:
        if compiled.fndesc.llvm_func_name not in _CALLEES:
            _make_callee(compiled, compiled._reduce(), _calls_of(compiled))
        add_overload(compiled)

    dispatcher.add_overload = add
    if isinstance(dispatcher._cache, KernelCache):
        dispatcher._cache._impl.is_callee = True


def _make_callee(compiled: CompileResult, reduced: Any, calls: list[str]) -> None:
    """Make a function known by its symbol, and give those that call it nothing to link."""
    name, library = compiled.fndesc.llvm_func_name, compiled.library
    binding.add_symbol(name, library.get_pointer_to_function(name))
    _CALLEES[name] = _Callee(compiled, reduced, calls)
    nothing = binding.parse_assembly(str(library.codegen._create_empty_module(library.name)))
    library._get_module_for_linking = lambda: nothing


def _calls_of(compiled: CompileResult) -> list[str]:
    """Return the symbols that a function calls, which was compiled in this process."""
    functions = compiled.library._final_module.functions
    return [f.name for f in functions if f.is_declaration and f.name in _CALLEES]


def _with_their_own(calls: list[str]) -> list[str]:
    """Return symbols, and before each those that it calls."""
    found: list[str] = []
    for name in calls:
        found += [*_with_their_own(_CALLEES[name].calls), name]
    return list(dict.fromkeys(found))


class _WithCallees(CompileResultCacheImpl):
    """Keeps with a function those that it calls by symbol: symbols are one process's own."""

    is_callee = False

    def reduce(self, compiled: CompileResult) -> Any:
        """Return what to keep."""
        known = _CALLEES.get(compiled.fndesc.llvm_func_name)
        calls = known.calls if known else _calls_of(compiled)
        callees = [
            (_CALLEES[name].reduced, _CALLEES[name].calls) for name in _with_their_own(calls)
        ]
        return callees, (known.reduced if known else compiled._reduce(), calls)

    def rebuild(self, target_context: Any, payload: Any) -> CompileResult:
        """Load a function, and before it those that it calls."""
        callees, own = payload
        for reduced, calls in [*callees, own] if self.is_callee else callees:
            if reduced[1].llvm_func_name not in _CALLEES:
                _make_callee(CompileResult._rebuild(target_context, *reduced), reduced, calls)
        if self.is_callee:
            return _CALLEES[own[0][1].llvm_func_name].compiled
        return CompileResult._rebuild(target_context, *own[0])


class KernelCache(FunctionCache):
    """Numba's cache of a function, with files of our own."""

    _impl_class = _WithCallees

    def __init__(self, function: Any) -> None:
        """Find the directory, which is `numba.config.CACHE_DIR` at this time."""
        super().__init__(function)
        locator = self._impl.locator
        stem, stamp = self._impl.filename_base, locator.get_source_stamp()
        self._cache_file = _Files(locator.get_cache_path(), stem, stamp)
