"""Ctrl-C and SIGTERM: in training a flag that the loop looks at after each step, else the end."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from fastformer import launcher

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """A context in which the first signal sets a flag; a second one acts as it did before.

    Outside the main thread, where Python delivers no signals, nothing is caught. Nor is a signal
    that the process was started to ignore (`nohup`, a shell's background job).

    Attributes:
        signal: the number of the signal that came, or None.
    """

    def __init__(self) -> None:
        """Begin without a request."""
        self.signal: int | None = None

    def __enter__(self) -> "StopRequest":
        """Catch signals from now on."""
        self._previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave signals as they were."""
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


class EndAtOnce(StopRequest):
    """A context in which a signal ends the process: for the time before and after training.

    Every file is whole at any moment, so there is nothing to wait for. An exception instead would
    get lost wherever Python is called from C, as imports and the compiler do.
    """

    def __init__(self, last_words: Callable[[], str]) -> None:
        """Begin; `last_words` says what is left and how to go on."""
        super().__init__()
        self._last_words = last_words

    def _note(self, number: int, frame: FrameType | None) -> None:
        try:
            sys.stdout.flush()
            if launcher.rank() == 0:
                os.write(2, f"{self._last_words()}\n".encode(errors="replace"))
        finally:  # also where standard output is closed, or in the middle of a write
            os._exit(128 + number)  # as shells have it
