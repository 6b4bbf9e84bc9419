"""How long a call takes: samples of many calls, after a warm-up."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

SAMPLES = 20
MOST_SAMPLES = 400


@dataclass(frozen=True)
class Timing:
    """Seconds per call over the samples of one process.

    Attributes:
        median, minimum, maximum, mean: of the samples.    calls: how many calls were timed.
    """

    median: float
    minimum: float
    maximum: float
    mean: float
    calls: int

    def as_dict(self) -> dict[str, float]:
        """Return the values by name."""
        return asdict(self)


def _keep(value: Any) -> None:
    """Wait for nothing."""


def time_calls(
    call: Callable[[], Any],
    *,
    seconds: float,
    least: int = 5,
    finish: Callable[[Any], object] = _keep,
) -> Timing:
    """Time a call.

    Args:
        call: what is timed; called at least twice before the clock runs.
        seconds: how long to measure, about.    least: the fewest samples.
        finish: waits for the result of the last call of a sample, where calls return early.

    Returns:
        Seconds per call. A sample has as many calls as fill its share of the time.
    """
    begin, warm, once = time.perf_counter(), 0, 0.0
    while warm < 2 or (time.perf_counter() - begin < seconds / 10 and warm < 10_000):
        before = time.perf_counter()
        finish(call())
        once = time.perf_counter() - before
        warm += 1
    per_sample = max(1, round(seconds / SAMPLES / max(once, 1e-9)))
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < least or (time.perf_counter() < end and len(samples) < MOST_SAMPLES):
        begin = time.perf_counter()
        for _ in range(per_sample):
            value = call()
        finish(value)
        samples.append((time.perf_counter() - begin) / per_sample)
    calls = len(samples) * per_sample
    mean = statistics.fmean(samples)
    return Timing(statistics.median(samples), min(samples), max(samples), mean, calls)
