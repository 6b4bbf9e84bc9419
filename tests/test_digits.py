"""The digit task: what is drawn, and above all that no held-out input is ever trained on."""

import itertools
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastformer.checks import from_settings
from fastformer.data.digits import DigitExamples, DigitTask, Splits, generate, split
from fastformer.data.expressions import OPERATIONS, Expression, parse_expression
from fastformer.data.vocabulary import decode
from fastformer.errors import InvalidTypeError, InvalidValueError

SEED = 42


@st.composite
def tasks(draw: st.DrawFn) -> DigitTask:
    """Small tasks of every shape that can be split whatever is drawn."""
    names = draw(st.permutations(OPERATIONS))[: draw(st.integers(1, 5))]
    minimum = draw(st.integers(0, 6))
    return DigitTask(
        operations=tuple(names),
        num_arguments=draw(st.integers(2, 4)),
        min_value=minimum,
        max_value=draw(st.integers(minimum + 2, 9)),
        examples=draw(st.integers(12, 45)) * len(names),
        balance=draw(st.booleans()),
        validation_fraction=draw(st.floats(0.01, 0.45)),
        test_fraction=draw(st.floats(0.01, 0.45)),
    )


def shared_inputs(splits: Splits) -> set[tuple[int, ...]]:
    """Return the token ids of the inputs that are in more than one part."""
    parts = [set(map(tuple, p.inputs)) for p in (splits.train, splits.validation, splits.test)]
    return set().union(*(a & b for a, b in itertools.combinations(parts, 2)))


def per_operation(examples: DigitExamples) -> Counter[str]:
    """Count the distinct inputs of each operation."""
    return Counter(expression.operation for expression in set(examples.expressions))


@pytest.fixture(scope="module")
def default_examples() -> DigitExamples:
    """The 10,000 examples of the default task."""
    return generate(DigitTask(), SEED)


@pytest.mark.smoke
def test_default_task_is_split_without_a_shared_input(default_examples: DigitExamples) -> None:
    splits = split(default_examples, DigitTask(), SEED)
    distinct = set(default_examples.expressions)
    assert len(default_examples) == 10_000
    assert 4200 < len(distinct) < 4450  # 5000 (1 - exp(-2)) = 4323 are expected
    assert shared_inputs(splits) == set()
    assert len(splits.validation) == pytest.approx(0.1 * len(distinct), abs=2.5)
    assert len(splits.test) == pytest.approx(0.1 * len(distinct), abs=2.5)
    assert 7800 < len(splits.train) < 8200


def test_shared_inputs_finds_the_leak_of_a_naive_split(default_examples: DigitExamples) -> None:
    drawn = default_examples.expressions
    naive = Splits(*(DigitExamples(drawn[a:b]) for a, b in [(0, 8000), (8000, 9000), (9000, None)]))
    leaked = shared_inputs(naive)
    assert sum(tuple(ids) in leaked for ids in naive.test.inputs) > 700


@settings(max_examples=50, deadline=None)
@given(tasks(), st.integers(0, 2**63))
def test_split_of_any_task(task: DigitTask, seed: int) -> None:
    examples = generate(task, seed)
    drawn = Counter(examples.expressions)
    available = per_operation(examples)
    if any(available[operation] < 3 for operation in task.operations):
        with pytest.raises(InvalidValueError, match="^too few distinct inputs to split: "):
            split(examples, task, seed)
        return
    splits = split(examples, task, seed)
    train, validation, test = splits.train, splits.validation, splits.test

    assert shared_inputs(splits) == set()
    assert set(drawn) == {*train.expressions, *validation.expressions, *test.expressions}
    assert all(drawn[e] == count for e, count in Counter(train.expressions).items())
    for part in (validation, test):
        assert len(set(part.expressions)) == len(part)
    for part, fraction in ((validation, task.validation_fraction), (test, task.test_fraction)):
        counts = per_operation(part)
        for operation in task.operations:
            room = available[operation] - 2
            wanted = min(max(1.0, fraction * available[operation]), room)
            assert 1 <= counts[operation] <= room
            assert abs(counts[operation] - wanted) <= 1
    assert set(per_operation(train)) == set(task.operations)


@settings(max_examples=50, deadline=None)
@given(tasks(), st.integers(0, 1000))
def test_generated_examples_fit_their_task(task: DigitTask, seed: int) -> None:
    examples = generate(task, seed)
    assert len(examples) == task.examples
    for expression in examples.expressions:
        task.check(expression)
    if task.balance:
        counts = Counter(expression.operation for expression in examples.expressions)
        ordered = [counts[operation] for operation in task.operations]
        assert max(ordered) - min(ordered) <= 1
        assert ordered == sorted(ordered, reverse=True)
    answers = [str(expression.answer()) for expression in examples.expressions]
    assert decode(examples.targets) == answers
    assert examples.targets.dtype == np.int64
    texts = ["".join(decode(ids)) for ids in examples.inputs]
    assert [parse_expression(text) for text in texts] == examples.expressions


@pytest.mark.parametrize("examples", [5, 6, 7, 8, 9, 10])
def test_balance_gives_the_remainder_to_the_first_operations(examples: int) -> None:
    drawn = generate(DigitTask(examples=examples), SEED).expressions
    counts = Counter(expression.operation for expression in drawn)
    base, extra = divmod(examples, 5)
    assert [counts[name] for name in OPERATIONS] == [base + 1] * extra + [base] * (5 - extra)


def test_without_balance_operations_are_drawn_at_random() -> None:
    drawn = generate(DigitTask(balance=False), SEED).expressions
    counts = Counter(expression.operation for expression in drawn)
    assert set(counts) == set(OPERATIONS)
    assert all(abs(count - 2000) < 5 * 40 for count in counts.values())  # sd is 40
    assert len(set(counts.values())) > 1


def test_arguments_are_uniform_and_shuffled(default_examples: DigitExamples) -> None:
    drawn = default_examples.expressions
    counts = Counter(
        (e.operation, place, number) for e in drawn for place, number in enumerate(e.arguments)
    )
    assert len(counts) == 5 * 3 * 10
    assert all(abs(count - 200) < 5 * 13.5 for count in counts.values())  # sd is 13.4
    for half in (drawn[:5000], drawn[5000:]):
        operations = Counter(expression.operation for expression in half)
        assert all(abs(count - 1000) < 150 for count in operations.values())


@pytest.mark.parametrize("balance", [True, False])
def test_distinct_draws_no_input_twice_and_can_draw_them_all(balance: bool) -> None:
    task = DigitTask(examples=3000, distinct=True, balance=balance)
    some = generate(task, SEED).expressions
    assert len(set(some)) == 3000
    everything = generate(DigitTask(examples=5000, distinct=True, balance=balance), SEED)
    every_list = itertools.product(range(10), repeat=3)
    assert set(everything.expressions) == {
        Expression(name, numbers) for numbers in every_list for name in OPERATIONS
    }
    sizes = split(everything, task, SEED)
    assert [len(sizes.train), len(sizes.validation), len(sizes.test)] == [4000, 500, 500]


@pytest.mark.parametrize("balance", [True, False])
def test_distinct_works_in_the_largest_space(balance: bool) -> None:
    task = DigitTask(examples=100, num_arguments=18, distinct=True, balance=balance)
    drawn = generate(task, SEED).expressions
    assert task.num_inputs == 5 * 10**18 < 2**63
    assert len(set(drawn)) == 100
    assert {len(expression.arguments) for expression in drawn} == {18}
    assert {number for expression in drawn for number in expression.arguments} == set(range(10))


@pytest.mark.parametrize(
    ("options", "each", "total"),
    [
        ({}, 1000, 5000),
        ({"num_arguments": 2}, 100, 500),
        ({"min_value": 3, "max_value": 5, "operations": ("Max", "Min")}, 27, 54),
        ({"min_value": 4, "max_value": 4}, 1, 5),
    ],
)
def test_counts_of_distinct_inputs(options: dict[str, Any], each: int, total: int) -> None:
    task = DigitTask(**options)
    assert (task.inputs_per_operation, task.num_inputs) == (each, total)


@pytest.mark.parametrize("balance", [True, False])
def test_more_distinct_examples_than_exist_is_an_error(balance: bool) -> None:
    task = DigitTask(examples=5001, distinct=True, balance=balance)
    message = (
        r"^examples must be at most 5000 with distinct, got 5001; only 5000 distinct inputs exist "
        r"\(5 operations x 1000 lists of 3 numbers from 0 to 9\): ask for fewer, or turn distinct"
    )
    with pytest.raises(InvalidValueError, match=message):
        generate(task, SEED)


def test_the_same_seed_gives_the_same_examples_and_parts() -> None:
    task = DigitTask(examples=500)
    first, second = generate(task, 7), generate(task, 7)
    assert first == second
    assert split(first, task, 7) == split(second, task, 7)
    assert generate(task, 8) != first
    assert split(first, task, 8) != split(first, task, 7)


def test_examples_of_a_seed_never_change() -> None:
    # A resumed run draws its examples again: a change here would train it on other data.
    task = DigitTask(examples=30)
    examples = generate(task, SEED)
    first = ["First(2,7,6)", "First(4,6,5)", "Last(2,6,0)"]
    test = ["Min(1,3,6)", "Last(8,6,3)", "First(7,0,3)", "Second(4,6,3)", "Max(0,4,4)"]
    assert examples.expressions[:3] == list(map(parse_expression, first))
    assert split(examples, task, SEED).test.expressions == list(map(parse_expression, test))


def test_draws_do_not_touch_the_global_generators() -> None:
    def states() -> tuple[object, ...]:
        numpy_state: Any = np.random.get_state()  # noqa: NPY002
        return numpy_state[1].tobytes(), numpy_state[2:], random.getstate()

    before = states()
    task = DigitTask(examples=100)
    split(generate(task, SEED), task, SEED)
    assert states() == before
    np.random.random()  # noqa: NPY002
    assert states() != before


def test_split_with_too_few_distinct_inputs_says_what_is_possible() -> None:
    task = DigitTask(examples=10)
    message = (
        r"^too few distinct inputs to split: First has 2 among 10 examples, and train, validation "
        r"and test need at least one each \(1000 exist per operation\); draw more examples$"
    )
    with pytest.raises(InvalidValueError, match=message):
        split(generate(task, SEED), task, SEED)
    narrow = DigitTask(num_arguments=1, min_value=4, max_value=5, operations=("Max",))
    message = r"\(2 exist per operation\); widen min_value to max_value, or raise num_arguments$"
    with pytest.raises(InvalidValueError, match=message):
        split(generate(narrow, SEED), narrow, SEED)


def test_split_without_any_example_of_an_operation_is_an_error() -> None:
    drawn = generate(DigitTask(examples=100, operations=("Max",)), SEED)
    with pytest.raises(InvalidValueError, match="^too few .* Min has 0 among 100 examples"):
        split(drawn, DigitTask(operations=("Max", "Min")), SEED)


def test_split_gives_each_part_one_of_three_inputs_whatever_the_fractions() -> None:
    numbers = [(0,), (1,), (2,)]
    examples = DigitExamples([Expression("Max", number) for number in numbers])
    for validation, test in [(0.01, 0.01), (0.9, 0.05), (0.05, 0.9), (0.49, 0.49)]:
        task = DigitTask(
            operations=("Max",),
            num_arguments=1,
            validation_fraction=validation,
            test_fraction=test,
        )
        splits = split(examples, task, SEED)
        assert [len(splits.train), len(splits.validation), len(splits.test)] == [1, 1, 1]


def test_split_refuses_examples_of_another_task() -> None:
    examples = generate(DigitTask(examples=100, num_arguments=2), SEED)
    with pytest.raises(InvalidValueError, match="takes 3 in this task, got 2"):
        split(examples, DigitTask(), SEED)


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("First(5 3 9)", r"^unknown operation 'First' for this task; use Max, Min$"),
        ("Max(5 3)", r"^wrong number of arguments: Max takes 3 in this task, got 2$"),
        ("Max(5 3 9 1)", r"^wrong number of arguments: Max takes 3 in this task, got 4$"),
        ("Max(5 33 9)", r"^argument 2 of Max must be an integer from 1 to 9, got 33$"),
        ("Min(5 3 0)", r"^argument 3 of Min must be an integer from 1 to 9, got 0$"),
    ],
)
def test_check_explains_what_does_not_fit(text: str, message: str) -> None:
    task = DigitTask(operations=("Max", "Min"), min_value=1)
    task.check(parse_expression("Max(5 3 9)"))
    with pytest.raises(InvalidValueError, match=message):
        task.check(parse_expression(text))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"examples": 0}, "^examples must be an integer from 1 to 10000000, got 0$"),
        ({"examples": 10**12}, "^examples must be an integer from 1 to 10000000, got 10{12}$"),
        ({"operations": ()}, "^operations must have at least one of First, .* got none$"),
        ({"operations": ("Mac",)}, r"^each of operations must be one of .*did you mean 'Max'\?$"),
        ({"operations": ("Max", "Max")}, "^operations must be different, got 'Max' 2 times$"),
        ({"num_arguments": 0}, "^num_arguments must be an integer from 1 to 18, got 0$"),
        ({"num_arguments": 19}, "^num_arguments must be an integer from 1 to 18, got 19$"),
        ({"num_arguments": 1}, "^num_arguments must be >= 2 when operations has 'Second', got 1$"),
        ({"min_value": -1}, "^min_value must be an integer from 0 to 9, got -1$"),
        ({"max_value": 10}, "^max_value must be an integer from 0 to 9, got 10$"),
        ({"min_value": 5, "max_value": 4}, "^max_value must be an integer from 5 to 9, got 4$"),
        ({"validation_fraction": 0}, "^validation_fraction must be a finite number > 0 and < 1, "),
        ({"test_fraction": 1.0}, "^test_fraction must be a finite number > 0 and < 1, got 1.0$"),
        ({"test_fraction": float("nan")}, "^test_fraction must be a finite number .*got nan$"),
        (
            {"validation_fraction": 0.5, "test_fraction": 0.5},
            r"^validation_fraction \+ test_fraction must be < 1, .* got 0.5 \+ 0.5$",
        ),
    ],
)
def test_task_refuses_values(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        DigitTask(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"examples": 10.0}, "^examples must be an integer from 1 to 10000000, got 10.0$"),
        ({"operations": "Max"}, "^operations must be a tuple of names, got 'Max'$"),
        ({"operations": (5,)}, "^each of operations must be one of .*, got 5$"),
        ({"balance": 1}, "^balance must be True or False, got 1$"),
        ({"distinct": "yes"}, "^distinct must be True or False, got 'yes'$"),
        ({"test_fraction": "0.1"}, "^test_fraction must be a finite number .*, got '0.1'$"),
    ],
)
def test_task_refuses_types(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidTypeError, match=message):
        DigitTask(**options)


def test_task_is_built_from_a_settings_table() -> None:
    task = from_settings(DigitTask, {"operations": ["Max", "Min"], "examples": 50})
    assert task == DigitTask(operations=("Max", "Min"), examples=50)


def test_seed_must_not_be_negative(default_examples: DigitExamples) -> None:
    message = "^seed must be an integer >= 0, got -1$"
    with pytest.raises(InvalidValueError, match=message):
        generate(DigitTask(), -1)
    with pytest.raises(InvalidValueError, match=message):
        split(default_examples, DigitTask(), -1)


def test_answers_of_several_digits_have_no_target() -> None:
    examples = DigitExamples([Expression("Max", (5, 12))])
    assert decode(examples.inputs[0]) == ["Max", "(", "5", ",", "1", "2", ")"]
    with pytest.raises(InvalidValueError, match="^the answer of Max must be from 0 to 9, one tok"):
        _ = examples.targets


def test_operations_are_known_in_any_case_of_letters() -> None:
    assert DigitTask(operations=("max", "MIN", "Last")).operations == ("Max", "Min", "Last")
    with pytest.raises(InvalidValueError, match="must be different, got 'Max' 2 times"):
        DigitTask(operations=("max", "Max"))
