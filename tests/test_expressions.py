"""Expressions: parse and print are inverse, answers agree with a naive oracle, errors say where."""

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastformer.data.expressions import OPERATIONS, Expression, min_arguments, parse_expression
from fastformer.data.vocabulary import encode
from fastformer.errors import InvalidTypeError, InvalidValueError

NAMES = ("First", "Second", "Last", "Max", "Min")
MAX_FIVE = Expression("Max", (5, 3, 9))

expressions = st.builds(
    Expression,
    st.sampled_from(NAMES),
    st.lists(st.integers(0, 10**18 - 1) | st.integers(0, 12), min_size=2, max_size=8).map(tuple),
)
spaces = st.text(alphabet=" \t\n", max_size=3)


def naive_answer(operation: str, numbers: list[int]) -> int:
    """Answer by walking the list, with no indexing and no built-in."""
    result = None
    for place, number in enumerate(numbers):
        if (
            (operation == "First" and place == 0)
            or (operation == "Second" and place == 1)
            or operation == "Last"
            or (operation == "Max" and (result is None or number > result))
            or (operation == "Min" and (result is None or number < result))
        ):
            result = number
    assert result is not None
    return result


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("operation", "answer"), [("First", 5), ("Second", 3), ("Last", 9), ("Max", 9), ("Min", 3)]
)
def test_answers(operation: str, answer: int) -> None:
    assert Expression(operation, (5, 3, 9)).answer() == answer


@given(expressions)
def test_answer_agrees_with_naive_oracle(expression: Expression) -> None:
    assert expression.answer() == naive_answer(expression.operation, list(expression.arguments))


def test_operations_are_known() -> None:
    assert OPERATIONS == NAMES
    assert [min_arguments(name) for name in NAMES] == [1, 2, 1, 1, 1]


@pytest.mark.smoke
@pytest.mark.parametrize(
    "text",
    [
        "Max ( 5 , 3 , 9 )",
        "Max ( 5 3 9 )",
        "max(5,3,9)",
        "MAX(5, 3, 9)",
        "Max 5 3 9",
        "max 5, 3,9",
        "  mAx\t(5   3,\n9)  ",
        "Max(05 003 9)",
    ],
)
def test_parse_accepts_free_text(text: str) -> None:
    assert parse_expression(text) == MAX_FIVE


def test_spelling_and_tokens() -> None:
    assert str(MAX_FIVE) == "Max ( 5 , 3 , 9 )"
    assert encode(MAX_FIVE.tokens()) == [15, 17, 7, 19, 5, 19, 11, 18]
    long = ["First", "(", "2", "5", ",", "0", ",", "1", "0", "0", ")"]
    assert Expression("First", (25, 0, 100)).tokens() == long
    assert Expression("Last", (7,)).tokens() == ["Last", "(", "7", ")"]


@given(expressions)
def test_parse_undoes_str(expression: Expression) -> None:
    assert parse_expression(str(expression)) == expression


@given(expressions)
def test_parse_undoes_joined_tokens(expression: Expression) -> None:
    assert parse_expression("".join(expression.tokens())) == expression


@given(expressions, st.data())
def test_spaces_case_and_commas_mean_nothing(expression: Expression, data: st.DataObject) -> None:
    name = "".join(
        letter.upper() if data.draw(st.booleans()) else letter.lower()
        for letter in expression.operation
    )
    text = data.draw(spaces) + name + data.draw(spaces) + "("
    for place, number in enumerate(expression.arguments):
        separator = data.draw(st.sampled_from([",", " "])) if place else ""
        text += separator + data.draw(spaces) + str(number) + data.draw(spaces)
    text += ")" + data.draw(spaces)
    assert parse_expression(text) == expression


@given(st.text() | st.text(alphabet="MaxSecondFirLtMn(),  0123456789-\n"))
def test_any_text_is_read_or_refused_in_one_short_line(text: str) -> None:
    try:
        expression = parse_expression(text)
    except InvalidValueError as error:
        assert 0 < len(str(error)) < 200
        assert str(error).isprintable()
    else:
        assert parse_expression(str(expression)) == expression


@given(expressions, st.data())
def test_a_missing_bracket_or_name_is_refused(expression: Expression, data: st.DataObject) -> None:
    pieces = str(expression).split()
    del pieces[data.draw(st.sampled_from([0, 1, len(pieces) - 1]))]
    with pytest.raises(InvalidValueError):
        parse_expression(" ".join(pieces))


KNOWN = "known: First, Second, Last, Max, Min"
MALFORMED = {
    # unknown operation
    "Mux ( 5 3 9 )": rf"^unknown operation 'Mux' at character 1; {KNOWN}; did you mean 'Max'\?$",
    "  frist(1 2)": rf"^unknown operation 'frist' at character 3; {KNOWN}; did you mean 'First'\?$",
    "maximum(1 2)": r"^unknown operation 'maximum' .*; did you mean 'Max'\?$",
    "Add ( 5 3 )": rf"^unknown operation 'Add' at character 1; {KNOWN}$",
    # no operation
    "( 5 3 9 )": r"^expected an operation, got '\(' at character 1; begin with one of First, ",
    "5 3 9": r"^expected an operation, got '5' at character 1; begin with one of First, ",
    # unknown token
    "Max ( 5 $ 9 )": r"^unknown token '\$' at character 9; use whole numbers, ",
    "Max ( 5 x 9 )": r"^unknown token 'x' at character 9; use whole numbers, ",
    "Max ( 1.5 2 )": r"^unknown token '\.' at character 8; use whole numbers, ",
    "Max ( +5 2 )": r"^unknown token '\+' at character 7; use whole numbers, ",
    "Max ( \u0663 2 )": "^unknown token '\u0663' at character 7; use whole numbers, ",
    "Max [ 5 2 ]": r"^unknown token '\[' at character 5; use whole numbers, ",
    # empty
    "": r"^the expression is empty; write for example 'Max \( 5 , 3 , 9 \)'$",
    " \t\n ": r"^the expression is empty; write for example 'Max \( 5 , 3 , 9 \)'$",
    # wrong number of arguments
    "Max ( )": r"^wrong number of arguments: Max needs at least 1, got 0; ",
    "Second ( 5 )": r"^wrong number of arguments: Second needs at least 2, got 1; ",
    # numbers
    "Max ( 5 -3 9 )": r"^negative numbers are not allowed, got '-3' at character 9; use numbers fr",
    "Max ( 5 - 3 9 )": r"^negative numbers are not allowed, got '- 3' at character 9; use numbers",
    "Max ( \u22125 )": "^negative numbers are not allowed, got '\u22125' at character 7; ",
    "Max(" + "9" * 19 + ")": r"^a number of 19 digits: '9{19}' at character 5; at most 18 are all",
    # commas
    "Max ( 5 , , 9 )": r"^no number follows the ',' at character 9; add a number or remove the com",
    "Max ( 5 , )": r"^no number follows the ',' at character 9; add a number or remove the comma$",
    "Max ( , 5 )": r"^no number comes before the ',' at character 7; add a number or remove the",
    # parentheses
    "Max": r"^nothing follows 'Max'; write for example 'Max \( 5 , 3 , 9 \)'$",
    "max 5 3 9 )": r"^expected '\(' after 'Max', got '5' at character 5; write as in 'Max \( ",
    "Max ) 5 (": r"^expected '\(' after 'Max', got '\)' at character 5; ",
    "Max ( 5 3 9": r"^unbalanced parentheses: no '\)' closes the '\(' at character 5; add '\)' at",
    "Max (": r"^unbalanced parentheses: no '\)' closes the '\(' at character 5; add '\)' at the",
    "Max ( 5 3 ) )": r"^unbalanced parentheses: nothing is open for the '\)' at character 13; rem",
    "Max ( ( 5 3 ) )": r"^nested parentheses are not allowed, got '\(' at character 7; one pair is",
    "Max ( Min ( 5 ) )": r"^operations cannot be nested, got 'Min' at character 7; use numbers as",
    # trailing text
    "Max ( 5 3 ) 9": r"^trailing text after the closing '\)': '9' at character 13; give one expre",
    "Max(5)Min(5)": r"^trailing text after the closing '\)': 'Min' at character 7; give one expr",
}


@pytest.mark.parametrize(("text", "message"), MALFORMED.items(), ids=map(repr, MALFORMED))
def test_malformed_text_is_explained(text: str, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message) as caught:
        parse_expression(text)
    place = re.search(r"'([^']*)' at character (\d+)", str(caught.value))
    if place is None:  # the fault is in no one place of the text
        assert re.match("the expression is empty|nothing follows|wrong number", str(caught.value))
    else:
        assert text[int(place[2]) - 1 :].startswith(place[1])


@pytest.mark.parametrize("text", ["x" * 100_000, "Max(" + "9" * 100_000, "Max(" + "x" * 100_000])
def test_long_input_is_cut_in_the_message(text: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        parse_expression(text)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("text", [None, 5, b"Max ( 5 )", ["Max", "(", "5", ")"]])
def test_parse_takes_only_strings(text: object) -> None:
    with pytest.raises(InvalidTypeError, match="^an expression must be a string, got "):
        parse_expression(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("operation", "arguments", "error", "message"),
    [
        ("Mox", (1,), InvalidValueError, r"^operation must be one of .*did you mean 'Max'\?$"),
        ("max", (1,), InvalidValueError, r"^operation must be one of .*got 'max'"),
        (5, (1,), InvalidTypeError, "^operation must be one of .*got 5"),
        ("Max", (), InvalidValueError, "^wrong number of arguments: Max needs at least 1, got 0"),
        ("Second", (1,), InvalidValueError, "^wrong number of arguments: Second needs at least 2"),
        ("Max", 5, InvalidTypeError, "^arguments of Max must be a tuple of integers, got 5$"),
        ("Max", "53", InvalidTypeError, "^arguments of Max must be a tuple of integers, got '53'$"),
        ("Max", (1, -1), InvalidValueError, "^argument 2 of Max must be an integer from 0 .*-1$"),
        ("Max", (10**18,), InvalidValueError, "^argument 1 of Max must be an integer from 0 to 9"),
        ("Max", (1.0,), InvalidTypeError, "^argument 1 of Max must be an integer .*got 1.0$"),
        ("Max", (True,), InvalidTypeError, "^argument 1 of Max must be an integer .*got True$"),
    ],
)
def test_expression_checks_its_fields(
    operation: str, arguments: tuple[int, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Expression(operation, arguments)


def test_expression_is_a_plain_value() -> None:
    same = Expression("Max", tuple(np.array([5, 3, 9], dtype=np.int32)))
    assert same == MAX_FIVE
    assert hash(same) == hash(MAX_FIVE)
    assert all(type(number) is int for number in same.arguments)
    assert type(same.answer()) is int
    with pytest.raises(dataclasses.FrozenInstanceError):
        same.operation = "Min"  # type: ignore[misc]
