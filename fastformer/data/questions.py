"""Questions of the decoder's tasks as a person types them: `Max ( First ( 2 8 ) 5 )`, `12 + 345`.

The text is free: any case of letters, any spaces, and a comma or a space between two arguments.
"""

from dataclasses import dataclass, field

from fastformer import checks
from fastformer.data.answer_formats import PART_ARGUMENTS, PLUS, Form
from fastformer.data.answers import ANSWER_TOKENS, Drawn
from fastformer.data.expressions import OPERATIONS, value_of
from fastformer.data.lexer import (
    Token,
    check_end,
    depth_of,
    fail_at,
    read_name,
    read_number,
    scan,
    with_parentheses,
)
from fastformer.data.vocabulary import encode
from fastformer.errors import InvalidTypeError


@dataclass(frozen=True)
class Call:
    """An operation on numbers and other operations.

    Attributes:
        operation: its name, or "+".    arguments: from the left.
        at: where it stands in the text.    places: where each argument does.
    """

    operation: str
    arguments: tuple["int | Call", ...]
    at: Token = field(compare=False, repr=False)
    places: tuple[Token, ...] = field(compare=False, repr=False)

    def answer(self) -> int:
        """Return its value."""
        values = [a.answer() if isinstance(a, Call) else a for a in self.arguments]
        return sum(values) if self.operation in (PLUS, "Add") else value_of(self.operation, values)

    def __str__(self) -> str:
        """Return the usual spelling, with spaces between arguments."""
        inner = [str(argument) for argument in self.arguments]
        if self.operation == PLUS:
            return f" {PLUS} ".join(inner)
        return f"{self.operation} ( {' '.join(inner)} )"


@dataclass(frozen=True)
class Question:
    """A question that its task has. Equal questions are equal as dictionary keys.

    Attributes:
        form: of its task.    call: what is asked.
    """

    form: Form
    call: Call

    @property
    def operation(self) -> str:
        """The outermost operation."""
        return self.call.operation

    @property
    def inner_operations(self) -> list[str]:
        """The operations within it, from the left."""
        return [part.operation for part in self.call.arguments if isinstance(part, Call)]

    @property
    def group(self) -> str:
        """The outermost operation: answers are counted by it."""
        return self.operation

    def ids(self) -> list[int]:
        """Return the ids of the question's tokens."""
        return encode(self.tokens(), ANSWER_TOKENS)

    def answer(self) -> int:
        """Return the value."""
        return self.call.answer()

    def tokens(self) -> list[str]:
        """Return the tokens that a model reads before it answers."""
        return _written(self.form, self.call) + ["="] * self.form.sums

    def answer_tokens(self) -> list[str]:
        """Return what a model should write, with the token that ends it."""
        return self.form.answer_tokens(self.answer())

    def __str__(self) -> str:
        """Return the usual spelling, which `parse_question` reads back."""
        return str(self.call)


def parse_question(text: str, form: Form, most_tokens: int | None = None) -> Question:
    """Read a question of a task from free text.

    Args:
        text: for instance `max(first(2 8), 5)`.    form: of the task.
        most_tokens: how many tokens a model reads, question and answer; None for any number.

    Raises:
        ValueError: text that is not a question of the task, or one that is too long. The message
            says what is wrong, at which character (counted from 1), and what is allowed; of one
            that nests too deep, or is too long, by how much.
        TypeError: `text` is not a string.
    """
    if not isinstance(text, str):
        raise InvalidTypeError(f"an expression must be a string, got {text!r}")
    kinds = f"whole numbers and {PLUS!r}" if form.sums else "whole numbers, ',' and parentheses"
    tokens = scan(text, "(),+=" if form.sums else "(),", f"use {kinds}, {_as_in(form)}")
    if not tokens:
        checks.fail(f"the expression is empty; write for example {form.example!r}")
    call = _read_sum(tokens, form) if form.sums else _read_calls(with_parentheses(tokens), form)
    question = Question(form, call)
    if most_tokens is not None:
        length = len(question.tokens()) + len(question.answer_tokens()) - 1
        check_length("the expression with its answer", length, most_tokens)
    _check_call(call, form, outermost=True)
    return question


def check_length(what: str, length: int, most: int) -> None:
    """Raise where something has more tokens than a model reads, and say by how much."""
    if length > most:
        checks.fail(
            f"{what} has {length:,} tokens, which is {length - most:,} more than the {most:,} that "
            "this model reads (max_seq_len); shorten it"
        )


def questions_of(drawn: Drawn, form: Form) -> list[Question]:
    """Return drawn examples of a task as questions, in their order."""
    between = " " if form.number_digits == 1 else ""
    found = []
    for row in drawn.question:
        tokens = [ANSWER_TOKENS[token] for token in row[row >= 0]]
        found.append(parse_question(between.join(tokens), form))
    return found


def _written(form: Form, call: Call) -> list[str]:
    """Return the tokens of a call, without what ends the question."""
    tokens: list[str] = []
    for place, argument in enumerate(call.arguments):
        if place and (form.sums or form.separator):
            tokens.append(PLUS if form.sums else form.separator)
        if isinstance(argument, Call):
            tokens += _written(form, argument)
        else:
            tokens += f"{argument:0{form.number_digits if form.padded else 1}d}"
    return tokens if form.sums else [call.operation, "(", *tokens, ")"]


def _read_sum(tokens: list[Token], form: Form) -> Call:
    """Read `number + number`, with or without a `=` after it."""
    wanted = ("number", PLUS, "number", "=")
    for place, token in enumerate(tokens):
        if place == len(wanted) or (place == 3 and token.text != "="):
            fail_at(token, "trailing text after the sum:", "give one sum of two numbers at a time")
        if wanted[place] not in (token.kind, token.text):
            what = "a number" if wanted[place] == "number" else repr(wanted[place])
            fail_at(token, f"expected {what}, got", f"write two numbers {_as_in(form)}")
    if len(tokens) < 3:
        fail_at(tokens[-1], "nothing follows", f"write two numbers {_as_in(form)}")
    left, plus, right = tokens[:3]
    return Call(PLUS, (read_number(left), read_number(right)), plus, (left, right))


@dataclass
class _Open:
    """A call whose `)` has not come yet."""

    operation: str
    at: Token
    bracket: Token
    arguments: list[int | Call]
    places: list[Token]


def _read_calls(tokens: list[Token], form: Form) -> Call:
    """Read nested operations; not by recursion, for the text may nest without end."""
    open_calls: list[_Open] = []
    deepest: Token | None = None
    for place, token in enumerate(tokens):
        before = tokens[place - 1].text if place else ""
        if token.kind == "word":
            following = tokens[place + 1] if place + 1 < len(tokens) else None
            operation = _operation(token, following, form)
            if len(open_calls) == form.depth:
                deepest = deepest or token
            if following is not None:
                open_calls.append(_Open(operation, token, following, [], []))
        elif not open_calls:
            names = ", ".join(form.operations)
            fail_at(token, "expected an operation, got", f"begin with one of {names}")
        elif token.kind == "number":
            open_calls[-1].arguments.append(read_number(token))
            open_calls[-1].places.append(token)
        elif token.text == "(":
            if token is not open_calls[-1].bracket:
                fail_at(token, "no operation comes before the", "name one, or remove it")
        elif before == "," or (token.text == "," and before == "("):
            comma = token if before == "(" else tokens[place - 1]
            side = "comes before" if before == "(" else "follows"
            fail_at(comma, f"no argument {side} the", "add one or remove the comma")
        elif token.text == ")":
            done = open_calls.pop()
            call = Call(done.operation, tuple(done.arguments), done.at, tuple(done.places))
            if not open_calls:
                check_end(tokens, place + 1)
                break
            open_calls[-1].arguments.append(call)
            open_calls[-1].places.append(done.at)
    if open_calls:
        bracket = open_calls[-1].bracket
        fail_at(bracket, "unbalanced parentheses: no ')' closes the", "add ')' at the end")
    if deepest is not None:
        depth = depth_of(tokens)
        fail_at(
            deepest,
            f"the expression nests {depth:,} deep, which is {depth - form.depth:,} more than the "
            f"{form.depth} of {form.task}, at",
            f"use numbers as its arguments, {_as_in(form)}",
        )
    return call


def _operation(token: Token, following: Token | None, form: Form) -> str:
    """Return the operation that a word names, in any case of letters."""
    name = read_name(token, form.all_operations)
    if following is None:
        checks.fail(f"nothing follows {name!r}; write for example {form.example!r}")
    if following.text != "(":
        fail_at(following, f"expected '(' after {name!r}, got", f"write {_as_in(form)}")
    return name


def _check_call(call: Call, form: Form, *, outermost: bool) -> None:
    """Raise where a call is not one that the task has."""
    operations = form.operations if outermost else OPERATIONS
    if call.operation not in operations:
        where = "outermost" if outermost else "inner"
        names = ", ".join(operations)
        fail_at(call.at, f"the {where} operation of {form.task} cannot be", f"use {names}")
    low, high = form.arguments if outermost else PART_ARGUMENTS
    count = len(call.arguments)
    if not low <= count <= high:
        takes = f"{low}" if low == high else f"{low} to {high}"
        off = f"{count - high:,} too many" if count > high else f"{low - count} too few"
        fail_at(
            call.at,
            f"wrong number of arguments: {takes} in {form.task}, got {count:,} ({off}) for",
            f"write {_as_in(form)}",
        )
    largest = 10**form.number_digits - 1
    for argument, place in zip(call.arguments, call.places, strict=True):
        if isinstance(argument, Call):
            _check_call(argument, form, outermost=False)
        elif argument > largest:
            allowed = f"numbers of {form.task} are from 0 to {largest:,}"
            fail_at(place, f"{allowed}, got", "use a smaller one")
    parts = sum(isinstance(argument, Call) for argument in call.arguments)
    if outermost and form.parts is not None and parts < form.parts:
        wanted = "each argument" if form.parts == high else "at least one argument"
        fail_at(
            call.at,
            f"in {form.task}, {wanted} must be an operation itself, which is not so in",
            f"write {_as_in(form)}",
        )


def _as_in(form: Form) -> str:
    return f"as in {form.example!r}"
