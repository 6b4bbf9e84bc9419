"""Calls to the operating system of a process, told by `strace`, which can let one of them fail."""

import ctypes
import itertools
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Where a CPU has not all of them, "?" lets strace do without.
CALLS = (
    "?open openat write pwrite64 writev fsync fdatasync ftruncate close ?rename ?renameat "
    "renameat2 ?unlink unlinkat ?mkdir mkdirat ?rmdir"
).split()
PR_SET_PTRACER = 0x59616D61


@dataclass(frozen=True)
class Call:
    """A call to the operating system: its name, which of that name it is, and what was given."""

    name: str
    number: int
    text: str


class Tracer:
    """Attaches strace to a forked process before the command begins; see `supervisor.Watch`."""

    def __init__(self, output: Path, inject: str | None) -> None:
        """Prepare: `inject` is, for instance, "write:error=ENOSPC:when=3"."""
        self.output, self.inject = output, inject
        self._gate, self._ready = os.pipe(), os.pipe()

    def prepare(self) -> None:
        """Wait, in the process that is traced, until it is."""
        ctypes.CDLL(None).prctl(PR_SET_PTRACER, ctypes.c_ulong(2**64 - 1), 0, 0, 0)
        os.close(self._gate[1])
        # What was called before is not counted, however late this process has come here.
        os.write(self._ready[1], b"1")
        os.read(self._gate[0], 1)

    def send(self, process: int, is_alive: Callable[[], bool]) -> None:
        """Attach when the process waits, and let it begin."""
        os.close(self._ready[1])
        os.read(self._ready[0], 1)
        os.close(self._ready[0])
        arguments = ["strace", "-y", "-e", "signal=none", "-o", str(self.output)]
        arguments += ["-e", "trace=" + ",".join(CALLS), "-p", str(process)]
        if self.inject:
            arguments += ["-e", f"inject={self.inject}"]
        self._strace = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
        assert self._strace.stderr is not None
        told = self._strace.stderr.readline()
        os.close(self._gate[0])
        os.close(self._gate[1])  # the process reads the end of the pipe
        if "attached" not in told:
            raise RuntimeError(f"strace does not trace: {told}")

    def calls(self) -> list[Call]:
        """Return the calls that were made, once the process has ended."""
        self._strace.communicate()
        counts: dict[str, itertools.count[int]] = {}
        found = []
        for line in self.output.read_text(errors="replace").splitlines():
            if match := re.match(r"(\w+)\(", line):
                number = next(counts.setdefault(match[1], itertools.count(1)))
                found.append(Call(match[1], number, line))
        return found


def is_output(call: Call) -> bool:
    """Tell whether a call writes to standard output or standard error."""
    return call.name == "write" and re.match(r"write\([12]<", call.text) is not None


def not_forced(calls: list[Call]) -> list[str]:
    """Return the renames whose file was not forced to disk before, or its directory after."""
    wrong = []
    for index, call in enumerate(calls):
        if not call.name.startswith("rename"):
            continue
        temporary = re.findall(r'"([^"]*)"', call.text)[0]
        before = [c.name for c in calls[:index] if temporary in c.text]
        after = [c for c in calls[index:] if c.name == "fsync"]
        directory = f"<{os.path.dirname(temporary)}>"
        if before[-2:] != ["fsync", "close"] or not (after and directory in after[0].text):
            wrong.append(f"{call.text}: not forced to disk")
    return wrong
