"""The digit task: drawing examples, and splitting them so that no test input is ever trained on."""

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fastformer import checks
from fastformer.data.expressions import OPERATIONS, Expression, min_arguments
from fastformer.data.splitting import FEWEST, TEST, VALIDATION, held_out, part_sizes
from fastformer.data.vocabulary import encode
from fastformer.errors import InvalidTypeError
from fastformer.random import generator

MAX_ARGUMENTS: Final[int] = 18
"""Largest number of arguments: every input then has its own int64 number (5 x 10^18 < 2^63)."""

MOST_EXAMPLES: Final[int] = 10_000_000
"""All examples of a run are in memory at once, with some 500 bytes each."""


@dataclass(frozen=True, kw_only=True)
class DigitTask:
    """Which expressions are drawn, how many, and how they are split.

    Raises:
        ValueError, TypeError: a value that is not allowed; the message names it.
    """

    examples: int = field(default=10_000, metadata={"help": "examples to draw"})
    operations: tuple[str, ...] = field(
        default=OPERATIONS, metadata={"help": "operations to draw: First, Second, Last, Max, Min"}
    )
    num_arguments: int = field(default=3, metadata={"help": "numbers in each expression"})
    min_value: int = field(default=0, metadata={"help": "smallest number"})
    max_value: int = field(
        default=9, metadata={"help": "largest number; at most 9, for the answer is one token"}
    )
    balance: bool = field(
        default=True, metadata={"help": "draw each operation equally often, not at random"}
    )
    distinct: bool = field(default=False, metadata={"help": "never draw an input twice"})
    validation_fraction: float = field(
        default=0.1, metadata={"help": "part of the distinct inputs that is kept for validation"}
    )
    test_fraction: float = field(
        default=0.1, metadata={"help": "part of the distinct inputs that is kept for the test"}
    )

    def __post_init__(self) -> None:
        """Check every value."""
        checks.integer("examples", self.examples, 1, MOST_EXAMPLES)
        self._check_operations()
        checks.integer("num_arguments", self.num_arguments, 1, MAX_ARGUMENTS)
        for operation in self.operations:
            if self.num_arguments < min_arguments(operation):
                checks.fail(
                    f"num_arguments must be >= {min_arguments(operation)} when operations has "
                    f"{operation!r}, got {self.num_arguments}"
                )
        checks.integer("min_value", self.min_value, 0, 9)
        checks.integer("max_value", self.max_value, self.min_value, 9)
        checks.boolean("balance", self.balance)
        checks.boolean("distinct", self.distinct)
        checks.number("validation_fraction", self.validation_fraction, above=0, below=1)
        checks.number("test_fraction", self.test_fraction, above=0, below=1)
        if self.validation_fraction + self.test_fraction >= 1:
            checks.fail(
                "validation_fraction + test_fraction must be < 1, to leave inputs for training, "
                f"got {self.validation_fraction} + {self.test_fraction}"
            )

    def _check_operations(self) -> None:
        """Check that the operations are known names in any case of letters, each there once."""
        if not isinstance(self.operations, tuple):
            raise InvalidTypeError(f"operations must be a tuple of names, got {self.operations!r}")
        if not self.operations:
            checks.fail(f"operations must have at least one of {', '.join(OPERATIONS)}, got none")
        spelled = {name.lower(): name for name in OPERATIONS}
        names = [spelled.get(name.lower(), name) for name in map(str, self.operations)]
        for given, name in zip(self.operations, names, strict=True):
            checks.choice(
                "each of operations", name if isinstance(given, str) else given, OPERATIONS
            )
        object.__setattr__(self, "operations", tuple(names))
        for operation, count in Counter(self.operations).items():
            if count > 1:
                checks.fail(f"operations must be different, got {operation!r} {count} times")

    @property
    def inputs_per_operation(self) -> int:
        """How many distinct inputs exist for each operation."""
        return int((self.max_value - self.min_value + 1) ** self.num_arguments)

    @property
    def num_inputs(self) -> int:
        """How many distinct inputs exist in all."""
        return len(self.operations) * self.inputs_per_operation

    def check(self, expression: Expression) -> None:
        """Raise if an expression is not one that this task can draw.

        Args:
            expression: any expression, for instance one that a person typed.

        Raises:
            ValueError: an operation, a number of arguments or a number that the task does not
                have; the message says which ones it has.
        """
        operation, arguments = expression.operation, expression.arguments
        if operation not in self.operations:
            checks.fail(
                f"unknown operation {operation!r} for this task; use {', '.join(self.operations)}"
            )
        if len(arguments) != self.num_arguments:
            checks.fail(
                f"wrong number of arguments: {operation} takes {self.num_arguments} in this task, "
                f"got {len(arguments)}"
            )
        for place, value in enumerate(arguments, start=1):
            checks.integer(
                f"argument {place} of {operation}", value, self.min_value, self.max_value
            )


@dataclass(frozen=True)
class DigitExamples:
    """Expressions with one-digit answers, and the ids that a model reads and predicts.

    Args:
        expressions: in the order in which they were drawn.
    """

    expressions: list[Expression]

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.expressions)

    @cached_property
    def inputs(self) -> list[list[int]]:
        """The token ids of each expression."""
        return [encode(expression.tokens()) for expression in self.expressions]

    @cached_property
    def targets(self) -> NDArray[np.int64]:
        """(len,) int64: the token id of each answer.

        Raises:
            ValueError: an answer of more than one digit, which is more than one token.
        """
        answers = [expression.answer() for expression in self.expressions]
        for expression, answer in zip(self.expressions, answers, strict=True):
            if answer > 9:
                checks.fail(
                    f"the answer of {expression.operation} must be from 0 to 9, one token, "
                    f"got {answer}"
                )
        return np.array(encode(map(str, answers)), dtype=np.int64)


@dataclass(frozen=True)
class Splits:
    """Three sets of examples of which no two share an input.

    Args:
        train: inputs repeat as often as they were drawn.
        validation, test: every input is there once.
    """

    train: DigitExamples
    validation: DigitExamples
    test: DigitExamples


def generate(task: DigitTask, seed: int) -> DigitExamples:
    """Draw the examples of a task.

    Numbers are uniform and independent. With `balance`, operations differ by at most one in how
    often they come, the earlier ones first; else each is drawn at random. The order is shuffled.

    Args:
        task: what to draw.
        seed: >= 0. The same task and seed give the same examples.

    Returns:
        `task.examples` examples, with repeats unless `task.distinct`.

    Raises:
        ValueError: more distinct examples are asked for than exist, or a negative seed.
    """
    checks.integer("seed", seed, 0)
    checks.instance("generate", "task", task, DigitTask)
    if task.distinct and task.examples > task.num_inputs:
        checks.fail(
            f"examples must be at most {task.num_inputs} with distinct, got {task.examples}; only "
            f"{task.num_inputs} distinct inputs exist ({len(task.operations)} operations x "
            f"{task.inputs_per_operation} lists of {task.num_arguments} numbers from "
            f"{task.min_value} to {task.max_value}): ask for fewer, or turn distinct off"
        )
    random = generator(seed, "digit examples")

    def draw(space: int, count: int) -> NDArray[np.int64]:
        numbers = random.choice(space, count, replace=not task.distinct, shuffle=False)
        return np.asarray(numbers, dtype=np.int64)

    if task.balance:
        base, extra = divmod(task.examples, len(task.operations))
        parts = [
            index * task.inputs_per_operation
            + draw(task.inputs_per_operation, base + (index < extra))
            for index in range(len(task.operations))
        ]
        numbers = np.concatenate(parts)
    else:
        numbers = draw(task.num_inputs, task.examples)
    shuffled = random.permutation(numbers)
    return DigitExamples([_numbered_input(task, int(number)) for number in shuffled])


def split(examples: DigitExamples, task: DigitTask, seed: int) -> Splits:
    """Give every distinct input to one of train, validation and test.

    The fractions of the task are taken of the distinct inputs of each operation, so every part has
    every operation. Train keeps repeated examples as they were drawn: repeats are more training.
    Validation and test keep each input once: repeats would only count one answer twice.

    Args:
        examples: what to split; each must fit the task.
        task: its operations and fractions.
        seed: >= 0. The same examples, task and seed give the same parts.

    Returns:
        The three parts, each in the order of `examples`.

    Raises:
        ValueError: an operation has too few distinct inputs for three parts, an example does not
            fit the task, or the seed is negative.
    """
    checks.integer("seed", seed, 0)
    checks.instance("split", "examples", examples, DigitExamples)
    checks.instance("split", "task", task, DigitTask)
    distinct = dict.fromkeys(examples.expressions)
    for expression in distinct:
        task.check(expression)
    inputs = [e for operation in task.operations for e in distinct if e.operation == operation]
    counts = Counter(expression.operation for expression in inputs)
    sizes = [
        _part_sizes(task, operation, counts[operation], len(examples))
        for operation in task.operations
    ]
    groups = [expression.operation for expression in inputs]
    kept_apart = held_out(inputs, groups, sizes, seed, "digit split")
    return Splits(
        train=DigitExamples([e for e in examples.expressions if e not in kept_apart]),
        validation=DigitExamples([e for e in distinct if kept_apart.get(e) == VALIDATION]),
        test=DigitExamples([e for e in distinct if kept_apart.get(e) == TEST]),
    )


def _part_sizes(task: DigitTask, operation: str, count: int, drawn: int) -> tuple[int, int]:
    """Return how many of `count` inputs validation and test get; no part gets none."""
    if count < FEWEST:
        exist = task.inputs_per_operation
        remedy = (
            "draw more examples"
            if exist >= FEWEST
            else "widen min_value to max_value, or raise num_arguments"
        )
        checks.fail(
            f"too few distinct inputs to split: {operation} has {count} among {drawn} examples, "
            f"and train, validation and test need at least one each ({exist} exist per operation); "
            f"{remedy}"
        )
    return part_sizes(count, task.validation_fraction, task.test_fraction)


def _numbered_input(task: DigitTask, number: int) -> Expression:
    """Return the input of a number: operation first, then each argument as a digit of its base."""
    index, rest = divmod(number, task.inputs_per_operation)
    arguments = []
    for _ in range(task.num_arguments):
        rest, value = divmod(rest, task.max_value - task.min_value + 1)
        arguments.append(task.min_value + value)
    return Expression(task.operations[index], tuple(arguments))
