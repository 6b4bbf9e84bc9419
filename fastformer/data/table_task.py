"""Tasks on tables of a person's own: which columns are read, and how examples are split."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fastformer import checks
from fastformer.data.example_files import Pair, read_files
from fastformer.data.tokenized import TokenizedTask, tokenizer_field


def column_field(what: str, usual: Sequence[str], place: str) -> Any:
    """Return the field of a task that names one of two columns.

    Args:
        what: is in it.    usual: its usual names.    place: which of two columns it is.
    """
    names = " or ".join(usual)
    text = f"column of the {what}; without it one that is called {names}, or the {place} of two"
    return field(default="", metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class TableTask(TokenizedTask):
    """What tasks on tables have in common: two columns, and how examples are split.

    Attributes:
        column_names: of the kind: which options name the two columns.
        known: of the kind: usual names of either column.

    Raises:
        ValueError, TypeError: a value that is not allowed; the message names it.
    """

    column_names: ClassVar[tuple[str, str]]
    known: ClassVar[tuple[Sequence[str], Sequence[str]]]

    tokenizer: str = tokenizer_field("words")
    validation_fraction: float = field(
        default=0.1, metadata={"help": "part of the distinct inputs that is kept for validation"}
    )
    test_fraction: float = field(
        default=0.1, metadata={"help": "part of the distinct inputs that is kept for the test"}
    )

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        for name in ("validation_fraction", "test_fraction"):
            checks.number(name, getattr(self, name), above=0, below=1)
        if self.validation_fraction + self.test_fraction >= 1:
            checks.fail(
                "validation_fraction + test_fraction must be < 1, to leave inputs for training, "
                f"got {self.validation_fraction} + {self.test_fraction}"
            )
        for name in self.column_names:
            checks.instance(type(self).__name__, name, getattr(self, name), str)

    @property
    def columns(self) -> tuple[str, str]:
        """The names of the two columns; "" where they are to be found."""
        first, second = self.column_names
        return getattr(self, first), getattr(self, second)

    def read(self) -> tuple[list[Pair], tuple[str, str]]:
        """Return the examples of the files, and the names of their columns; see `read_pairs`."""
        return read_files(self.files, self.columns, self.known)
