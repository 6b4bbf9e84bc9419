"""Questions of the decoder's tasks as a person types them, and how they are written in tokens."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastformer.data.answer_formats import FORMS
from fastformer.data.answers import (
    ANSWER_TASKS,
    ANSWER_TOKENS,
    AnswerTask,
    draw_training,
    draw_unseen,
)
from fastformer.data.questions import parse_question, questions_of
from fastformer.errors import InvalidTypeError, InvalidValueError


def test_every_task_has_a_form() -> None:
    assert tuple(FORMS) == ANSWER_TASKS
    for name, form in FORMS.items():
        assert form.task == name
        assert parse_question(form.example, form).operation in form.operations


@pytest.mark.parametrize("name", ANSWER_TASKS)
def test_what_is_drawn_is_what_is_written(name: str) -> None:
    task, form = AnswerTask(name=name), FORMS[name]
    for drawn in (draw_training(task, 1, 0, 200), draw_unseen(task, 1, "test", 200)):
        questions = questions_of(drawn, form)
        for question, ids, answer in zip(questions, drawn.question, drawn.answer, strict=True):
            assert question.tokens() == [ANSWER_TOKENS[token] for token in ids if token >= 0]
            wanted = [ANSWER_TOKENS[token] for token in answer if token >= 0]
            assert question.answer_tokens() == wanted
            assert form.read_answer(wanted[:-1]) == str(question.answer())
            assert parse_question(str(question), form) == question
        assert len(set(questions)) > 150


@pytest.mark.parametrize(
    ("name", "text", "spelling", "answer"),
    [
        ("nested", "MAX(first(2,8),second(5 1),03)", "Max ( First ( 2 8 ) Second ( 5 1 ) 3 )", 3),
        ("nested", " min\t( 4 last(2\n9) ) ", "Min ( 4 Last ( 2 9 ) )", 4),
        ("arithmetic", "add(max(3 7), min(2 9))", "Add ( Max ( 3 7 ) Min ( 2 9 ) )", 9),
        ("double-digits", "Max(5,37 9)", "Max ( 5 37 9 )", 37),
        ("three-digits", "Last(5,37 999)", "Last ( 5 37 999 )", 999),
        ("long-lists", "second(1 2 3 4 5)", "Second ( 1 2 3 4 5 )", 2),
        ("addition", "007+9999999999=", "7 + 9999999999", 10_000_000_006),
    ],
)
def test_free_text_is_read(name: str, text: str, spelling: str, answer: int) -> None:
    question = parse_question(text, FORMS[name])
    assert (str(question), question.answer()) == (spelling, answer)


def test_tokens_are_those_of_the_task() -> None:
    def tokens(name: str, text: str) -> str:
        question = parse_question(text, FORMS[name])
        return " ".join([*question.tokens(), *question.answer_tokens()])

    assert tokens("double-digits", "Max(5 37 9)") == "Max ( 0 5 , 3 7 , 0 9 ) 3 7 [EOS]"
    assert tokens("arithmetic", "add(max(3 7) min(4 9))") == (
        "Add ( Max ( 3 7 ) Min ( 4 9 ) ) 1 1 [EOS]"
    )
    assert tokens("addition", "12 + 9") == (
        "0 0 0 0 0 0 0 0 1 2 + 0 0 0 0 0 0 0 0 0 9 = 1 2 0 0 0 0 0 0 0 0 0 [EOS]"
    )


@pytest.mark.parametrize(
    ("name", "written", "read"),
    [
        ("nested", "7", "7"),
        ("nested", "", "[EOS]"),
        ("nested", "7 7", "77"),
        ("nested", "0 7", "0 7 [EOS]"),
        ("nested", ")", ") [EOS]"),
        ("arithmetic", "2 1", "12"),
        ("arithmetic", "2 0", "2 0 [EOS]"),
        ("double-digits", "0 7", "7"),
        ("double-digits", "7", "7 [EOS]"),
        ("addition", "7", "7 [EOS]"),
    ],
)
def test_only_numbers_in_the_form_of_the_task_are_answers(
    name: str, written: str, read: str
) -> None:
    # A number that is not written as the task writes it would be wrong, so it must not look right.
    found = FORMS[name].read_answer(written.split())
    assert found == read
    if not read.isdecimal():
        assert not found.isdecimal()
    assert FORMS[name].read_answer(written.split(), ended=False).endswith("...")


MALFORMED = {
    "nested": {
        "": r"^the expression is empty; write for example 'Max \( First \( 2 8 \) 5 \)'$",
        "Max": r"^nothing follows 'Max'; write for example ",
        "5 5": r"^expected an operation, got '5' at character 1; begin with one of First, Second,",
        "Mux(1 2)": r"^unknown operation 'Mux' at character 1; known: .*; did you mean 'Max'",
        "Max ( Add (1 2) 3)": r"^unknown operation 'Add' at character 7; known: First, Second",
        "Max(First 2)": r"^expected '\(' after 'First', got '2' at character 11; write as in ",
        "Max(First(2 8)": r"^unbalanced parentheses: no '\)' closes the '\(' at character 4; add ",
        "Max(First(2 8) 5))": r"^unbalanced parentheses: nothing is open for the '\)' at character",
        "Max(First(2 8) 5) 3": r"^trailing text after the closing '\)': '3' at character 19; give",
        "Max((1 2) 3)": r"^no operation comes before the '\(' at character 5; name one",
        "Max(First(2 8),,1)": r"^no argument follows the ',' at character 15; add one or remove",
        "Max(First(2 8),)": r"^no argument follows the ',' at character 15; add one or remove",
        "Max(,First(2 8))": r"^no argument comes before the ',' at character 5; add one or remove",
        "Max(First(2 8) -1)": r"^negative numbers are not allowed, got '-1' at character 16; use",
        "Max(1+2 3)": r"^unknown token '\+' at character 6; use whole numbers, ',' and parentheses",
        "Max(First(2 8) 12)": r"^numbers of nested are from 0 to 9, got '12' at character 16; use",
        "Max(First(2) 1)": r"^wrong number of arguments: 2 to 3 in nested, got 1 \(1 too few\) for "
        r"'First' at character 5; write as in ",
        "Max(First(2 8) 1 2 3 4)": r"got 5 \(2 too many\) for 'Max' at character 1; write as in ",
        "Max ( 3 7 )": r"^in nested, at least one argument must be an operation itself, which is "
        r"not so in 'Max' at character 1; write as in 'Max \( First",
        "Max(First(Min(1 2) 3) 4)": r"^the expression nests 3 deep, which is 1 more than the 2 of "
        r"nested, at 'Min' at character 11; use numbers as its arguments",
        "Max" + "(Max" * 3000 + "(1 2" + ")" * 3001: r"nests 3,001 deep, which is 2,999 more than",
        "Max(First(2 8) " + "1 " * 80 + ")": r"^the expression with its answer has 89 tokens, "
        r"which is 41 more than the 48 that this model reads \(max_seq_len\); shorten it$",
    },
    "arithmetic": {
        "Add(Max(1 2) 3)": r"^in arithmetic, each argument must be an operation itself",
        "Max(Max(1 2) Max(1 2))": r"^the outermost operation of arithmetic cannot be 'Max' at char",
        "Add(Add(1 2) Max(1 2))": r"^the inner operation of arithmetic cannot be 'Add' at charact",
        "Add(Max(1 2))": r"^wrong number of arguments: 2 in arithmetic, got 1 \(1 too few\) for",
    },
    "addition": {
        "1 +": r"^nothing follows '\+' at character 3; write two numbers as in '12 \+ 345'$",
        "+ 1": r"^expected a number, got '\+' at character 1; write two numbers as in",
        "1 2": r"^expected '\+', got '2' at character 3; write two numbers as in",
        "1 + 2 + 3": r"^trailing text after the sum: '\+' at character 7; give one sum of two numb",
        "1 + 2 = 3": r"^trailing text after the sum: '3' at character 9; give one sum of two numb",
        "99999999999 + 1": r"^numbers of addition are from 0 to 9,999,999,999, got '9{11}' at",
        "1 + "
        + "9" * 19: r"^a number of 19 digits: '9{19}' at character 5; at most 18 are allowed",
        "Max(1 2)": r"^expected a number, got 'Max' at character 1; write two numbers as in",
    },
    "double-digits": {
        "Max(1 2 100)": r"^numbers of double-digits are from 0 to 99, got '100' at character 9;",
        "Max(1 2)": r"^wrong number of arguments: 3 in double-digits, got 2 \(1 too few\) for",
    },
    "long-lists": {
        "Max(1 2 3)": r"^wrong number of arguments: 5 to 10 in long-lists, got 3 \(2 too few\)",
    },
}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [(name, text, message) for name, of in MALFORMED.items() for text, message in of.items()],
)
def test_what_the_task_does_not_have_is_explained(name: str, text: str, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message) as caught:
        parse_question(text, FORMS[name], most_tokens=48)
    said = str(caught.value)
    assert len(said) < 250
    place = re.search(r"'([^']*)' at character (\d+)", said)
    if place is not None:
        assert text[int(place[2]) - 1 :].startswith(place[1])


@given(st.sampled_from(ANSWER_TASKS), st.text(alphabet="MaxSecondFirLtnAd(),+=  0123456789-\n"))
def test_any_text_is_read_or_refused_in_one_line(name: str, text: str) -> None:
    try:
        question = parse_question(text, FORMS[name], most_tokens=48)
    except InvalidValueError as error:
        assert 0 < len(str(error)) < 250
        assert str(error).isprintable()
    else:
        assert parse_question(str(question), FORMS[name]) == question


@pytest.mark.parametrize("text", [None, 5, b"1 + 2"])
def test_only_text_is_read(text: Any) -> None:
    with pytest.raises(InvalidTypeError, match="^an expression must be a string, got "):
        parse_question(text, FORMS["addition"])


@pytest.mark.parametrize("text", ["max 5 3 9", "Max 5, 3 9"])
def test_both_parentheses_may_be_left_out(text: str) -> None:
    form = FORMS["long-lists"]
    assert parse_question(f"{text} 1 2 3 4 5", form) == parse_question("Max(5 3 9 1 2 3 4 5)", form)
    for half in (f"{text})", f"({text}", "max max 1 2"):
        with pytest.raises(InvalidValueError):
            parse_question(half, form)
