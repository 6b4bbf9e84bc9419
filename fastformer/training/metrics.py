"""What is known of a training run, in memory and on disk, and how sure an accuracy is."""

import io
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastformer import checks, writing
from fastformer.errors import RunError
from fastformer.training.atomic_file import append_line, os_errors_as, read_file, write_atomically
from fastformer.training.json_text import finite, json_object, json_text

HISTORY_NAMES = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
OVERFITTING_FIRST_EPOCH = 7
OVERFITTING_GAP = 0.15
_MOST_BYTES = 1 << 28
_LARGEST_STEP = (1 << 63) - 1
_LINES_NAMED = 10  # of the damaged ones, in a warning
_NORMAL_975 = 1.959963984540054  # 97.5 % quantile of the normal distribution: 95 % two-sided


class MetricsTracker:
    """Losses and accuracies of all epochs, and which epoch is the best.

    The best epoch is the one with the greatest validation accuracy; among equals, the earliest.
    Loss plays no part, and an accuracy that is NaN, of nothing asked, is below any other. Epochs
    count from 1.
    """

    def __init__(self, by_loss: bool = False) -> None:
        """Begin with no epoch.

        Args:
            by_loss: the best epoch is the one with the lowest validation loss instead.
        """
        self._by_loss = by_loss
        self._history: dict[str, list[float]] = {name: [] for name in HISTORY_NAMES}
        self._best_epoch = 0

    def update(
        self,
        train_loss: float,
        train_accuracy: float,
        validation_loss: float,
        validation_accuracy: float,
    ) -> None:
        """Add an epoch.

        Args:
            train_loss, validation_loss: mean loss per example, finite.
            train_accuracy, validation_accuracy: share of right answers, from 0 to 1; NaN where
                nothing was asked.

        Raises:
            ValueError, TypeError: a value that is not allowed; nothing is added.
        """
        values = (train_loss, train_accuracy, validation_loss, validation_accuracy)
        checked = [_checked(name, v) for name, v in zip(HISTORY_NAMES, values, strict=True)]
        # No float is greater than NaN.
        best = self.best_validation_accuracy
        known = math.isnan(best) and not math.isnan(checked[-1])
        is_best = self.epoch == 0 or checked[-1] > best or known
        if self._by_loss and self.epoch:
            is_best = checked[2] < self._history["validation_loss"][self._best_epoch - 1]
        for name, value in zip(HISTORY_NAMES, checked, strict=True):
            self._history[name].append(value)
        if is_best:
            self._best_epoch = self.epoch

    @property
    def epoch(self) -> int:
        """The latest epoch, counted from 1; 0 before the first."""
        return len(self._history["train_loss"])

    @property
    def best_epoch(self) -> int:
        """The best epoch, counted from 1; 0 before the first."""
        return self._best_epoch

    @property
    def best_validation_accuracy(self) -> float:
        """The validation accuracy of the best epoch; 0.0 before the first."""
        if self._best_epoch == 0:
            return 0.0
        return self._history["validation_accuracy"][self._best_epoch - 1]

    @property
    def history(self) -> dict[str, list[float]]:
        """A copy of all values: train_loss, train_accuracy, validation_loss, validation_accuracy,
        each a list with one value per epoch."""
        return {name: list(values) for name, values in self._history.items()}

    def is_best_epoch(self) -> bool:
        """Tell whether the latest epoch is the best. The first one always is."""
        return self.epoch > 0 and self.epoch == self._best_epoch

    def overfitting_warning(self) -> str | None:
        """Return a warning if the latest epoch looks overfitted.

        It does from the 7th epoch on when training accuracy is more than 15 points above
        validation accuracy. Earlier, the gap says little.

        Returns:
            One sentence, or None.
        """
        if self.epoch < OVERFITTING_FIRST_EPOCH:
            return None
        latest = self._latest()
        gap = latest["train_accuracy"] - latest["validation_accuracy"]
        # Rounded, for a gap of exactly 15 points does not count, but 1.0 - 0.85 > 0.15 in floats.
        if math.isnan(gap) or round(gap, 9) <= OVERFITTING_GAP:
            return None
        return (
            f"training accuracy is {writing.percent(gap)} above validation accuracy: the model may "
            f"be overfitting; the best epoch so far is {self._best_epoch}"
        )

    def summary(self) -> str:
        """Return a few lines for a person: the latest epoch, the best, and any warning."""
        if self.epoch == 0:
            return "no epoch finished yet"
        latest = self._latest()
        lines = [
            f"epoch {self.epoch}: "
            f"train loss {writing.loss(latest['train_loss'])}, "
            f"accuracy {writing.percent(latest['train_accuracy'], 2)}; "
            f"validation loss {writing.loss(latest['validation_loss'])}, "
            f"accuracy {writing.percent(latest['validation_accuracy'], 2)}",
            f"best: validation accuracy {writing.percent(self.best_validation_accuracy, 2)} "
            f"in epoch {self._best_epoch}",
        ]
        warning = self.overfitting_warning()
        if warning is not None:
            lines.append(f"warning: {warning}")
        return "\n".join(lines)

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on, as JSON values: None for an accuracy of nothing."""
        history = self.history.items()
        return {"history": {name: finite(values) for name, values in history}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned. The best epoch is found anew from the history.

        Raises:
            ValueError, TypeError: a state that is not one of `state_dict`; nothing is changed.
        """
        checks.instance("MetricsTracker", "state", state, Mapping)
        checks.known_keys("MetricsTracker state", state, ("history",))
        history = state.get("history")
        if not isinstance(history, Mapping) or set(history) != set(HISTORY_NAMES):
            checks.fail(
                "MetricsTracker state must have a history with exactly the lists "
                f"{', '.join(HISTORY_NAMES)}, got {history!r}"
            )
        if not all(isinstance(values, list) for values in history.values()):
            checks.fail(f"MetricsTracker history must consist of lists, got {history!r}")
        lengths = {name: len(history[name]) for name in HISTORY_NAMES}
        if len(set(lengths.values())) != 1:
            checks.fail(f"MetricsTracker history must have lists of one length, got {lengths}")
        loaded = MetricsTracker()
        for values in zip(*(history[name] for name in HISTORY_NAMES), strict=True):
            loaded.update(*(math.nan if value is None else value for value in values))
        self._history, self._best_epoch = loaded._history, loaded._best_epoch

    def _latest(self) -> dict[str, float]:
        return {name: values[-1] for name, values in self._history.items()}


def _checked(name: str, value: object) -> float:
    """Return a loss or an accuracy as a float if it is one."""
    if name.endswith("accuracy"):
        if isinstance(value, float) and math.isnan(value):
            return math.nan
        return checks.number(name, value, at_least=0, at_most=1)
    return checks.number(name, value)


class MetricsLog:
    """A file of records, one JSON object per line, that only grows: `metrics.jsonl`.

    Every record has a `step`, so that the log can be cut back to the step of a checkpoint.

    Attributes:
        file: its path. A file that does not exist is a log without records.
    """

    def __init__(self, file: Path) -> None:
        """Name the file; nothing is read or written."""
        self.file = file

    def append(self, record: Mapping[str, Any]) -> None:
        """Append a record and force it to disk.

        Args:
            record: JSON values with finite numbers; `step` is needed, an integer >= 0.

        Raises:
            TypeError, ValueError: a record that is not allowed; nothing is written.
            RunError: the file could not be written; earlier records are still there.
        """
        checks.integer("step of a metrics record", record.get("step"), 0)
        line = json_text("a metrics record", dict(record)).encode()
        with os_errors_as(RunError, f"write {self.file}"):
            append_line(self.file, line)

    def read(self, skip_damaged: bool = False) -> list[dict[str, Any]]:
        """Return all records, oldest first.

        A last line that is torn, by a kill or a power cut, is left out with a warning.

        Args:
            skip_damaged: leave out other damaged lines too, with a warning that has their numbers:
                for those who only look.

        Raises:
            RunError: another line is damaged, and must not be left out; the message has its number.
        """
        return [record for _, record in self._lines(skip_damaged)]

    def drop_after(self, step: int) -> None:
        """Drop the records of later steps, and a torn last line. The other lines keep their bytes.

        Args:
            step: the last step whose records stay, >= 0.

        Raises:
            RunError: the log is damaged or could not be written; then all records are still there.
        """
        checks.integer("step", step, 0)
        kept = b"".join(line for line, record in self._lines() if record["step"] <= step)
        with os_errors_as(RunError, f"write {self.file}"):
            if self.file.exists() and self.file.stat().st_size != len(kept):
                write_atomically(self.file, kept)

    def _lines(self, skip_damaged: bool = False) -> list[tuple[bytes, dict[str, Any]]]:
        """Every readable line with its line end, and the record in it."""
        with os_errors_as(RunError, f"read {self.file}"):
            if not self.file.exists():
                return []
            lines = list(io.BytesIO(read_file(self.file, _MOST_BYTES)))
        records, damaged = [], []
        for number, line in enumerate(lines, start=1):
            record = json_object(line) if line.endswith(b"\n") else None
            if record is not None and _is_step(record.get("step")):
                records.append((line, record))
            elif number == len(lines):
                warnings.warn(
                    f"{self.file}: line {number}, the last, is torn: left out", stacklevel=4
                )
            elif skip_damaged:
                damaged.append(number)
            else:
                raise RunError(
                    f"{self.file}: line {number} is damaged: it is not a JSON object with a step; "
                    "mend or remove that line"
                )
        if damaged:
            listed = ", ".join(map(str, damaged[:_LINES_NAMED]))
            more = f" and {len(damaged) - _LINES_NAMED} more" * (len(damaged) > _LINES_NAMED)
            warnings.warn(
                f"{self.file}: left out is what is damaged, no JSON object with a step: "
                f"line {listed}{more}",
                stacklevel=4,
            )
        return records


def _is_step(value: object) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST_STEP


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of an accuracy.

    Wilson's score interval stays sensible near 0 and 1, where accuracies of trained models are:
    998 right of 1000 give 99.27 % to 99.95 %. Source: Wilson 1927, J. Am. Stat. Assoc. 22.

    Args:
        correct: number of right answers, from 0 to `total`.
        total: number of answers, >= 1.

    Returns:
        The lower and the upper end, each from 0 to 1.

    Raises:
        ValueError, TypeError: a number that is not allowed.
    """
    total = checks.integer("total", total, 1)
    correct = checks.integer("correct", correct, 0, total)
    share = correct / total
    spread = _NORMAL_975**2 / total
    center = share + spread / 2
    half_width = _NORMAL_975 * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    low = 0.0 if correct == 0 else (center - half_width) / (1 + spread)
    high = 1.0 if correct == total else (center + half_width) / (1 + spread)
    return low, high
