"""What is seen while a model trains: a progress bar on a terminal, plain lines elsewhere.

All of it goes to standard error, so that standard output holds nothing but the result.
"""

import math
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from fastformer import launcher, writing
from fastformer.cli import console
from fastformer.training.callbacks import TrainingCallbacks

if TYPE_CHECKING:
    from rich.progress import TaskID

_SECONDS_BETWEEN_UPDATES = 0.1
_WINDOW_SECONDS = 5.0


_HEADER = "epoch  train loss  accuracy  validation loss  accuracy  examples/s"
_TEXT_HEADER = "epoch  train loss  validation loss  bits per byte    tokens/s"


def text_line(record: dict[str, Any], bytes_per_token: float) -> str:
    """Describe a finished epoch of a run on text in one line, below the header.

    Args:
        record: as of `epoch_line`.    bytes_per_token: in the mean.
    """
    losses = writing.loss(record["train_loss"]), writing.loss(record["validation_loss"])
    bits = _bits_per_byte(record["validation_loss"], bytes_per_token)
    return (
        f"{record['epoch']:>5}  {losses[0]:>10}  {losses[1]:>15}  {bits:>13.3f}  "
        f"{record['tokens_per_second']:>10,.0f}{'  best' if record['best'] else ''}"
    )


def _bits_per_byte(loss: float, bytes_per_token: float) -> float:
    return loss / math.log(2) / bytes_per_token


def epoch_line(record: dict[str, Any]) -> str:
    """Describe a finished epoch in one line, below the header.

    Args:
        record: what the loop says of the epoch, as in `metrics.jsonl`.
    """
    train, validation = (
        "none" if share is None else console.percent(share)  # where nothing was asked
        for share in (record["train_accuracy"], record["validation_accuracy"])
    )
    losses = writing.loss(record["train_loss"]), writing.loss(record["validation_loss"])
    return (
        f"{record['epoch']:>5}  {losses[0]:>10}  {train:>8}  {losses[1]:>15}  {validation:>8}  "
        f"{record['examples_per_second']:>10,.0f}{'  best' if record['best'] else ''}"
    )


class LineProgress(TrainingCallbacks):
    """One line per epoch: for log files and pipes."""

    _text: tuple[float, float] | None = None

    def __enter__(self) -> Self:
        """Return these callbacks themselves."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave everything as it is."""

    def text(self, tokens_per_example: float, bytes_per_token: float) -> None:
        """Note that losses are of tokens of a text."""
        self._text = tokens_per_example, bytes_per_token

    def started(self, total_steps: int, first_step: int, description: str) -> None:
        """Say what is trained, and from which step on."""
        self._write(description)
        if first_step:
            self._write(f"going on from step {first_step:,} of {total_steps:,}")
        self._write(_TEXT_HEADER if self._text else _HEADER)

    def epoch_finished(self, record: dict[str, Any]) -> None:
        """Write the epoch's line."""
        self._write(text_line(record, self._text[1]) if self._text else epoch_line(record))

    def message(self, text: str) -> None:
        """Write what the loop has to say."""
        self._write(text)

    def _write(self, text: str) -> None:
        console.notice(text)


class BarProgress(LineProgress):
    """A progress bar with the loss, examples or tokens per second and the time left.

    It is drawn from the training loop itself, at most 10 times a second: a drawing thread would
    take time from the kernels.
    """

    def __init__(self) -> None:
        """Prepare the bar; it appears when training starts."""
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._bar = Progress(
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("step {task.completed:,}/{task.total:,}"),
            TextColumn("{task.fields[loss]}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[left]}"),
            console=Console(stderr=True, highlight=False),
            auto_refresh=False,
            expand=True,
            transient=True,
            speed_estimate_period=_WINDOW_SECONDS,
        )
        self._read = Progress(
            TextColumn("text to tokens"),
            BarColumn(bar_width=None),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self._bar.console,
            auto_refresh=False,
            expand=True,
            transient=True,
        )
        self._reading: TaskID | None = None
        self._task: TaskID | None = None
        self._window: list[tuple[float, int]] = []
        self._examples = 0
        self._drawn = 0.0

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take the bar away, also when training failed or was interrupted."""
        self._read.stop()
        self._bar.stop()

    def reading(self, done: int, total: int) -> None:
        """Show how much of a text is turned into tokens, where that takes long."""
        if self._reading is None:
            if done == total:
                return
            self._reading = self._read.add_task("", total=total)
            self._read.start()
        self._read.update(self._reading, completed=done)
        self._read.refresh()
        if done == total:
            self._read.stop()

    def started(self, total_steps: int, first_step: int, description: str) -> None:
        """Write what is trained, and show the bar."""
        super().started(total_steps, first_step, description)
        self._task = self._bar.add_task(
            "", total=total_steps, completed=first_step, loss="", rate="starting", left=""
        )
        self._bar.start()
        self._bar.refresh()

    def stepped(self, step: int, loss: float, learning_rate: float, examples: int) -> None:
        """Count the step, and redraw where the last drawing is old enough."""
        self._examples += examples
        now = time.perf_counter()
        if self._task is None or now - self._drawn < _SECONDS_BETWEEN_UPDATES:
            return
        self._drawn = now
        shown, rate, unit = f"loss {writing.loss(loss)}", self._rate(now), "examples"
        if self._text is not None:
            shown += f", {_bits_per_byte(loss, self._text[1]):.2f} bits a byte"
            rate, unit = rate * self._text[0], "tokens"
        self._bar.update(
            self._task,
            completed=step,
            loss=shown,
            rate=f"{rate:,.0f} {unit}/s",
            left="left",
        )
        self._bar.refresh()

    def finished(self) -> None:
        """Take the bar away; the lines stay."""
        self._bar.stop()

    def _rate(self, now: float) -> float:
        """Return the examples per second of the last seconds."""
        self._window.append((now, self._examples))
        while now - self._window[0][0] > _WINDOW_SECONDS and len(self._window) > 2:
            del self._window[0]
        (start, before) = self._window[0]
        return (self._examples - before) / (now - start) if now > start else 0.0

    def _write(self, text: str) -> None:
        self._bar.console.print(writing.printable(text), markup=False, soft_wrap=True)


def callbacks() -> LineProgress:
    """Return the callbacks that fit standard error."""
    return BarProgress() if sys.stderr.isatty() and launcher.rank() == 0 else LineProgress()
