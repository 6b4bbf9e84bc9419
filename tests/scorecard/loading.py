"""Row C6: loading executes no code, and writes nothing, whatever the files hold.

An audit hook (PEP 578) hears every event of the interpreter while a file is loaded: a file that is
opened to read and a directory that is listed are all that may happen. What is loaded is in
`hostile.py`. The rest of this row is the sources: none of them calls what runs data as code.
"""

import ast
import contextlib
import importlib
import multiprocessing
import os
import pickle
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from program import ROOT

from fastformer.errors import FastformerError
from tests.scorecard import hostile
from tests.scorecard.files import MEMORY
from tests.scorecard.rows import Finding, Row, Tier

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
HARMLESS = {"os.listdir", "os.scandir", "builtins.id"}
RUNS_CODE = {"eval", "exec", "compile", "__import__"}
MODULES = {"pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle", "yaml"}
# The first reads its own files only, once their checksum and owner are right:
# `hostile.cache_cases`. The other gives work to processes that it has started, and takes it back.
MAY_UNPICKLE = {"kernels/_cache.py", "fastformer/training/engines.py"}

Load = Callable[[], object]


def _state(place: Path) -> list[tuple[Any, ...]]:
    """Return name, kind, size and time of change of all below a directory."""
    paths = ((path, path.lstat()) for path in sorted(place.rglob("*")))
    return [(path, one.st_mode, one.st_size, one.st_mtime_ns) for path, one in paths]


class Listener:
    """Hears what the interpreter does while `on`; an audit hook cannot be taken away again."""

    def __init__(self) -> None:
        """Begin to listen."""
        self.on = False
        self.events: list[str] = []
        self.heard = 0
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        self.heard += 1
        reads = event == "open" and not int(arguments[2] or 0) & WRITES
        if not reads and event not in HARMLESS:
            self.events.append(f"{event} {arguments!r:.80}")

    def fault(self, load: Load, place: Path) -> str:
        """Load; return what was executed or written, or went wrong otherwise, or ""."""
        before, self.events, problem = _state(place), [], ""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.on = True
            try:
                load()
            except FastformerError:
                pass
            except Exception as error:  # also what a planted fault ends in
                problem = f"{type(error).__name__}: {error}"
            finally:
                self.on = False
        if self.events:
            return f"{len(self.events)} events, first {self.events[0]}"
        return problem or ("" if _state(place) == before else "a file was changed")


def _planted(listener: Listener, place: Path) -> list[bool]:
    """Tell for each loader that executes or writes whether that is noticed."""
    path = place / "planted"
    faults: list[tuple[bytes, Load]] = [
        (hostile.pickled(place / hostile.MARKER), lambda: pickle.loads(path.read_bytes())),
        (b"print.__self__", lambda: eval(path.read_text())),
        (b"x = 1", lambda: exec(path.read_text())),
        (b"this", lambda: importlib.import_module(path.read_text())),
        (b"", lambda: path.write_text("read, and written")),
        (hostile.object_array(place / hostile.MARKER), lambda: np.load(path, allow_pickle=True)),
    ]
    # The one pickle that is read: with the right checksum, of a file that is ours alone.
    _, unpickle = hostile.cache_file(place, hostile.cache_content(place / hostile.MARKER))
    found = []
    with contextlib.redirect_stdout(None):  # the module `this` prints
        for content, load in faults:
            path.write_bytes(content)
            found.append(bool(listener.fault(load, place)))
    # The payload works: what was let in did run.
    found.append(bool(listener.fault(unpickle, place)))
    return [*found, hostile.ran(place)]


def heard(cases: int) -> tuple[int, int, list[bool], list[str]]:
    """Load all that is hostile, in this process; return held, cases, planted, and failures."""
    listener = Listener()
    failures: list[str] = []
    count = 0
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        place = Path(name)
        with hostile.loads(place, cases) as everything:
            for label, load in everything:
                count += 1
                problem = listener.fault(load, place)
                if not problem and hostile.ran(place):
                    problem = "the payload ran"
                failures += [f"{label}: {problem}"] if problem else []
        if not listener.heard > count:
            failures.append(f"only {listener.heard} events were heard")
        planted = _planted(listener, Path(tempfile.mkdtemp(dir=name)))
    return count - len(failures), count, planted, failures[:10]


def banned_calls(source: str) -> list[str]:
    """Return the names in a Python source that run data as code."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found += [node.func.id] if node.func.id in RUNS_CODE else []
        if isinstance(node, ast.Call):
            options = {word.arg: word.value for word in node.keywords}
            allowed = options.get("allow_pickle")
            found += ["allow_pickle"] if getattr(allowed, "value", None) is True else []
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name in MODULES]
        if isinstance(node, ast.ImportFrom) and node.module in MODULES:
            found.append(node.module)
    return found


def sources() -> list[str]:
    """Return what each source of the package must not have, a line for each file."""
    files = [p for top in ("fastformer", "kernels") for p in sorted((ROOT / top).rglob("*.py"))]
    found = []
    for path in files:
        name = str(path.relative_to(ROOT))
        calls = [] if name in MAY_UNPICKLE else banned_calls(path.read_text())
        found.append(f"{name} has {', '.join(calls)}" if calls else "")
    return found


def measure(tier: Tier, cases: int | None = None) -> Finding:
    """Load in a process of its own, which keeps the hook to itself; then look at the sources."""
    fuzzed = cases or (3_000 if tier == "fast" else 100_000)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        held, count, planted, failures = pool.apply(heard, (fuzzed,))
    files = sources()
    failures += [line for line in files if line]
    planted += [
        bool(banned_calls(text)) for text in ("eval(x)", "import pickle", "f(allow_pickle=True)")
    ]
    return Finding(
        held=held + sum(not line for line in files),
        cases=count + len(files),
        planted=sum(planted),
        plants=len(planted),
        number=f"{count:,} loads, {len(files)} sources",
        failures=tuple(failures[:10]),
    )


ROW = Row(
    "C6",
    "loading executes no code and writes nothing: checkpoints, runs, settings, metrics, questions, "
    "compiled kernels",
    "0 events but reading, 0 calls that run data",
    measure,
)

ROWS = (ROW,)
