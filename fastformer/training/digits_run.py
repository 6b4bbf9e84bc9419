"""Runs of the classifier on the digit task."""

from dataclasses import dataclass
from typing import Any, ClassVar

from fastformer import checks
from fastformer.data.digits import DigitTask, Splits, generate, split
from fastformer.data.expressions import OPERATIONS, Expression
from fastformer.data.vocabulary import DIGIT_TOKENS
from fastformer.training.classifier_run import ClassifierSettings
from fastformer.training.split_run import Parts


@dataclass(frozen=True, kw_only=True)
class RunSettings(ClassifierSettings):
    """The settings of a classifier's run on the digit task."""

    kind: ClassVar[str] = "digits"
    task_class: ClassVar[type[Any]] = DigitTask
    groups_are: ClassVar[str] = "operation"
    best_by_loss: ClassVar[bool] = False
    tokens: ClassVar[tuple[str, ...]] = DIGIT_TOKENS

    task: DigitTask

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        if self.model.num_classes:
            checks.fail(
                f"num_classes must be 0 for the digit task, whose answers are token ids, got "
                f"{self.model.num_classes}"
            )

    @property
    def task_name(self) -> str:
        """What the task is called in a message."""
        return "the digit task"

    @property
    def longest(self) -> int:
        """Tokens of an expression."""
        return 2 * self.task.num_arguments + 2

    @property
    def longest_is(self) -> str:
        """What is so long."""
        return f"expressions of {self.task.num_arguments} arguments"

    @property
    def longest_remedy(self) -> str:
        """What to do about it."""
        return "raise max_seq_len or use fewer arguments"

    @property
    def operations(self) -> tuple[str, ...]:
        """The operations in the task's expressions."""
        return self.task.operations

    @property
    def labels(self) -> tuple[str, ...]:
        """The tokens: an answer is one of them."""
        return self.tokens

    def order_of_group(self, group: str) -> int:
        """Return where an operation is listed."""
        return OPERATIONS.index(group)

    def splits(self) -> Splits:
        """Draw the examples, the same ones every time."""
        return split(generate(self.task, self.seed), self.task, self.seed)

    def split_examples(self) -> Parts[Expression]:
        """Draw the examples, the same ones every time."""
        parts = self.splits()
        return Parts(parts.train.expressions, parts.validation.expressions, parts.test.expressions)
