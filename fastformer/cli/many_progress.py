"""What is seen while many runs train: one bar over all of them, and a line for each that ends."""

import sys
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fastformer import writing
from fastformer.cli import console

if TYPE_CHECKING:
    from fastformer.training.planned_run import Outcome


class ManyProgress:
    """A bar over runs at a terminal, plain lines elsewhere; all of it on standard error."""

    def __init__(self, total: int, describe: "Callable[[Outcome], str]") -> None:
        """Begin.

        Args:
            total: runs there are.    describe: says in a line what became of one that is done.
        """
        self._describe, self._ended, self._total = describe, 0, total
        self._bar = self._task = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                BarColumn(bar_width=None),
                TextColumn("{task.completed}/{task.total} runs"),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=Console(stderr=True, highlight=False),
                auto_refresh=False,
                expand=True,
                transient=True,
            )
            self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> Self:
        """Show the bar."""
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take the bar away; the lines stay."""
        if self._bar is not None:
            self._bar.stop()

    def ended(self, outcome: "Outcome") -> None:
        """Tell that a run has ended."""
        for text in outcome.notices:
            self._write(text)
        self._ended += 1
        if outcome.state == "done":
            text = self._describe(outcome)
        elif outcome.error:
            text = f"{outcome.state}: {outcome.error}"
        else:
            text = outcome.state
        width = len(str(self._total))
        self._write(f"{self._ended:>{width}}/{self._total}  {outcome.place.name}  {text}")
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=1)
            self._bar.refresh()

    def _write(self, text: str) -> None:
        if self._bar is None:
            console.notice(text)
        else:
            self._bar.console.print(writing.printable(text), markup=False, soft_wrap=True)
