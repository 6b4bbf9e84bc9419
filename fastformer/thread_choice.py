"""How many threads to use for work that comes again and again, found while it runs.

On a quiet machine all threads are the fastest, but for tiny models. Where another program keeps a
core busy, each parallel region waits for the thread that shares that core, for milliseconds, and
fewer threads are faster. No bit of a result depends on the number of threads, so it may change
between two calls: most calls use the number that was the fastest, and now and then one tries
another.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fastformer.threads import is_fixed

# A look at a number of threads takes so long, or one call where that takes longer: other programs
# come and go within some milliseconds.
LOOK_SECONDS = 0.02
# What tries may cost, as a share of all time: while nothing changes, and just after a change.
STEADY_SHARE = 0.01
CHANGED_SHARE = 0.08
# Looks at the number in use between two tries, at least.
FEWEST_LOOKS = 8
# Another number must be better by this factor to be used.
BETTER = 1.03
# Threads that wait for each other do not sleep. Where they had less than this share of their
# cores' time, other programs had the rest; and where speed has changed by a factor as well, other
# programs came or went.
UNDISTURBED = 0.85
CHANGED = 1.5


def numbers_of_threads(most: int) -> list[int]:
    """Return the numbers that are worth trying: powers of two, all but one thread, and all."""
    powers = [2**power for power in range(most.bit_length())]
    return sorted({count for count in (*powers, most - 1, most) if 1 <= count <= most})


class ThreadChoice:
    """Finds the fastest number of threads for one kind of work.

    It is told each call's time and size, and compares numbers of threads by the time for a unit of
    work. What counts of the number in use is the better of its last two looks, so one pause of the
    machine, or a kernel that is compiled, decides nothing. A try costs time, so the next one waits
    until that is a small share of all time: less long where other programs came or went.

    Attributes:
        threads: the number to use for the next call.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.perf_counter) -> None:
        """Begin with all threads.

        Args:
            most: threads there are, >= 1.    clock: tells seconds.
        """
        self.threads = self._chosen = most
        self._numbers, self._clock = numbers_of_threads(most), clock
        self._first_call = True
        # Of the look that is going on: its time, that of all cores, and the work done.
        self._seconds = self._core_seconds = self._work = 0.0
        # Seconds for a unit of work: of each number, as last seen, and of the last looks.
        self._known: dict[int, float] = {}
        self._looks: list[float] = []
        self._looks_since_try = 0
        # Whether other programs disturbed, and how fast it was, when that was last noticed.
        self._disturbed, self._reference = False, 0.0
        self._cost, self._share = 0.0, CHANGED_SHARE
        self._next_try = float("-inf")
        self._upward = False

    def finished(self, seconds: float, core_seconds: float, work: float) -> None:
        """Take note of a call on `threads` threads.

        Args:
            seconds: that it took.    core_seconds: of processor time that this process had in it.
            work: its size, in any unit; > 0.
        """
        if self._first_call:  # it loads kernels, and touches memory for the first time
            self._first_call = False
            return
        self._seconds += seconds
        self._core_seconds += core_seconds
        self._work += work
        if len(self._numbers) == 1 or self._seconds < LOOK_SECONDS:
            return
        pace = self._known[self.threads] = self._seconds / self._work
        if self.threads == self._chosen:
            self._end_look(pace)
        else:
            self._end_try(pace)
        self._seconds = self._core_seconds = self._work = 0.0

    def _end_look(self, pace: float) -> None:
        """Compare the number in use with what is known of others, and try one where it is time."""
        self._looks = [*self._looks[-1:], pace]
        self._looks_since_try += 1
        if len(self._looks) < 2:
            return
        pace = self._known[self._chosen] = min(self._looks)
        fastest = min(self._known, key=lambda number: self._known[number])
        if self._known[fastest] * BETTER < pace:
            self._use(fastest)
            return
        disturbed = self._core_seconds < UNDISTURBED * self.threads * self._seconds
        nothing_known = len(self._known) == 1
        if not self._reference:
            self._disturbed, self._reference = disturbed and not nothing_known, pace
        same_pace = self._reference / CHANGED < pace < self._reference * CHANGED
        if disturbed != self._disturbed and (nothing_known or not same_pace):
            self._disturbed, self._share, self._reference = disturbed, CHANGED_SHARE, pace
            self._next_try = min(self._next_try, self._clock() + self._cost / CHANGED_SHARE)
        elif nothing_known and self._next_try == float("-inf"):
            # Nothing speaks for fewer threads: half of them may take twice as long.
            self._next_try = self._clock() + self._seconds / STEADY_SHARE
        is_time = self._looks_since_try >= FEWEST_LOOKS or (self._disturbed and nothing_known)
        if is_time and self._clock() >= self._next_try:
            self.threads = self._neighbour()

    def _end_try(self, pace: float) -> None:
        """Use the number that was tried where it is better; else say when the next try may be."""
        tried, chosen_pace = self.threads, min(self._looks)
        if pace * BETTER < chosen_pace:
            self._use(tried)
            return
        self.threads, self._looks_since_try = self._chosen, 0
        self._cost = max(0.0, self._seconds - chosen_pace * self._work)
        self._next_try = self._clock() + self._cost / self._share
        self._share = max(STEADY_SHARE, self._share / 2)

    def _use(self, number: int) -> None:
        """Use a number from now on."""
        self.threads = self._chosen = number
        self._looks, self._looks_since_try = [], 0
        self._share, self._reference = CHANGED_SHARE, 0.0
        self._next_try = self._clock() + self._cost / CHANGED_SHARE

    def _neighbour(self) -> int:
        """Return the next smaller or the next larger number, in turn."""
        place, last = self._numbers.index(self._chosen), len(self._numbers) - 1
        self._upward = place == 0 or (place < last and not self._upward)
        return self._numbers[place + 1 if self._upward else place - 1]


class _Ours(threading.local):
    """The number of threads that this thread of Python was last given here, and the most."""

    number, most = 0, 0


_OURS = _Ours()


class AdaptiveThreads:
    """Gives each kind of a model's work the number of threads that is the fastest just now.

    The number stays set after the work, for what follows it: the loss, the optimizer's step. A
    number that somebody else sets with `numba.set_num_threads` is the most from then on. Where
    `threads.configure` was given a number, nothing is set.
    """

    def __init__(self, backend: str) -> None:
        """Begin with all threads, whatever the work; the reference path has none."""
        self._backend = backend
        self._choices: dict[tuple[str, int, int], ThreadChoice] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "AdaptiveThreads":
        """Return one that has seen no work."""
        return AdaptiveThreads(self._backend)

    @contextmanager
    def at(self, kind: str, work: int) -> Iterator[None]:
        """Set the number of threads for what is called within.

        Args:
            kind: of the work; each kind has numbers of its own, for sizes within a power of two.
            work: its size, such as a number of tokens; > 0.
        """
        if self._backend != "numba" or is_fixed():
            yield
            return
        import numba

        number = numba.get_num_threads()
        if number != _OURS.number:
            _OURS.number = _OURS.most = number
        # Small calls take longer for a unit of work than large ones: alike sizes are compared.
        key = kind, work.bit_length(), _OURS.most
        if key not in self._choices:
            self._choices[key] = ThreadChoice(_OURS.most)
        choice = self._choices[key]
        if choice.threads != number:
            numba.set_num_threads(choice.threads)
            _OURS.number = choice.threads
        started, cores_started = time.perf_counter(), time.process_time()
        yield  # where it raises, there is nothing to learn
        choice.finished(time.perf_counter() - started, time.process_time() - cores_started, work)
