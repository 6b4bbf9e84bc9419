"""What a model of any kind can be asked."""

from typing import Protocol


class Asked(Protocol):
    """An input with its right answer. Equal ones are equal as dictionary keys."""

    def __hash__(self) -> int:
        """Return a number that equal ones share."""

    @property
    def group(self) -> str:
        """What answers are counted by: the operation that is asked for, or the right class."""

    def tokens(self) -> list[str]:
        """Return the tokens that a model reads before it answers."""

    def ids(self) -> list[int]:
        """Return the ids of these tokens."""

    def answer(self) -> int | str | None:
        """Return the right answer; None where nobody has said it."""
