"""A trained model that answers what it is asked: the classifier by a token, the decoder by several.

Answers are text, decimal digits where they are numbers, whichever way a model writes them.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from fastformer import checks
from fastformer.analysis.evaluation import AnswerScores, Scores, evaluate_answers
from fastformer.batch import pack
from fastformer.data.answer_formats import Form
from fastformer.data.answers import ANSWER_TOKENS
from fastformer.data.asked import Asked
from fastformer.data.digits import DigitExamples, DigitTask
from fastformer.data.expressions import Expression, parse_expression
from fastformer.data.questions import Question, check_length, parse_question
from fastformer.data.tokenizers import UNKNOWN
from fastformer.data.vocabulary import DIGIT_TOKENS, EOS, decode, encode
from fastformer.generation import Generated, beam_search, generate
from fastformer.models.decoder import TransformerDecoder
from fastformer.models.transformer import Transformer
from fastformer.sampling import log_softmax
from fastformer.training.loss import CrossEntropyLoss
from fastformer.training.steps import predict_classes, wrong_sequences

_PROMPTS_AT_A_TIME: Final[int] = 256


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A model's answer to one expression.

    Attributes:
        expression: as the model read it.
        prediction: the answer: the likeliest token each time.
        probability: of the prediction.    expected: the right answer, None where nobody said it.
        correct: whether they are the same; None where nobody can tell.
        top: likely answers with their probabilities, the likeliest first.
        unknown: how many words of the expression the model has never seen.
    """

    expression: str
    prediction: str
    probability: float
    expected: str | None
    correct: bool | None
    top: list[tuple[str, float]]
    unknown: int = 0

    @property
    def verdict(self) -> str:
        """Whether it is right, or how much of it was read, in words to be written behind it."""
        if self.unknown:
            words = "one word" if self.unknown == 1 else f"{self.unknown} words"
            return f"   ({words} that the model has never seen)"
        if self.correct is None:
            return ""
        return "   (right)" if self.correct else f"   (wrong, it is {self.expected})"


@dataclass(frozen=True)
class ReadTokens:
    """What a model reads.

    Attributes:
        tokens: as they are shown.    ids: of them.
        given: how many of them it is given; after the last of these it answers.
    """

    tokens: list[str]
    ids: list[int]
    given: int


class Predictor(Protocol):
    """A trained model that answers."""

    @property
    def model(self) -> Transformer | TransformerDecoder:
        """The model."""

    @property
    def example(self) -> str:
        """Something that it can be asked."""

    def read(self, text: str) -> Asked:
        """Read an expression.

        Raises:
            ValueError: text that is no expression, one that the task does not have, or one that is
                too long for the model.
        """

    def predict(self, text: str, top: int = 5) -> Prediction:
        """Answer an expression.

        Args:
            text: for instance "Max ( 5 3 9 )".    top: how many likely answers to list, >= 1.

        Raises:
            ValueError: as of `read`, and where the logits are not finite.
        """

    def answers(self, asked: Sequence[Asked]) -> tuple[list[str], float]:
        """Return the answer to each of at least one expression, and the mean loss.

        Raises:
            ValueError: logits that are not finite.
        """

    def sequence(self, asked: Asked) -> "ReadTokens":
        """Return the tokens that the model reads until its answer is whole."""

    def score(self, answers: Sequence[str], asked: Sequence[Asked]) -> Scores:
        """Return how good the answers to at least one expression are."""


@dataclass(frozen=True)
class DigitPredictor:
    """A classifier that answers expressions of the digit task."""

    model: Transformer
    task: DigitTask

    @property
    def example(self) -> str:
        """Something that it can be asked."""
        span = range(self.task.min_value, self.task.max_value + 1)
        numbers = [span[(5 + 8 * place) % len(span)] for place in range(self.task.num_arguments)]
        return f"{self.task.operations[-2:][0]} ( {' '.join(map(str, numbers))} )"

    def read(self, text: str) -> Expression:
        """Read an expression; see `Predictor`."""
        expression = parse_expression(text)
        length = len(expression.tokens())
        check_length("the expression", length, self.model.config.max_seq_len)
        self.task.check(expression)
        return expression

    def predict(self, text: str, top: int = 5) -> Prediction:
        """Answer an expression, with the likeliest tokens; see `Predictor`."""
        expression = self.read(text)
        checks.integer("top", top, 1, len(DIGIT_TOKENS))
        logits = self.model.forward(pack([encode(expression.tokens())]))
        probabilities = np.exp(log_softmax(logits))[0]
        likeliest = np.argsort(-probabilities, kind="stable")[:top]
        listed = [
            (token, float(probabilities[index]))
            for token, index in zip(decode(likeliest), likeliest, strict=True)
        ]
        answer, expected = listed[0][0], str(expression.answer())
        return Prediction(
            expression=str(expression),
            prediction=answer,
            probability=listed[0][1],
            expected=expected,
            correct=answer == expected,
            top=listed,
        )

    def answers(self, asked: Sequence[Asked]) -> tuple[list[str], float]:
        """Return the likeliest token for each expression, and the mean loss."""
        examples = DigitExamples([one for one in asked if isinstance(one, Expression)])
        logits = predict_classes(self.model, pack(examples.inputs))
        checks.finite_result("logits", logits)
        loss = CrossEntropyLoss(backend=self.model.ops.name).forward(logits, examples.targets)
        return decode(np.asarray(logits.argmax(axis=1), dtype=np.int64)), loss

    def sequence(self, asked: Asked) -> ReadTokens:
        """Return the expression's tokens."""
        tokens = asked.tokens()
        return ReadTokens(tokens, asked.ids(), len(tokens))

    def score(self, answers: Sequence[str], asked: Sequence[Asked]) -> AnswerScores:
        """Count what is right by operation and by digit."""
        return score_numbers(answers, asked)


class WritingPredictor(ABC):
    """A decoder that writes answers of several tokens, the likeliest token each time."""

    model: TransformerDecoder

    @property
    @abstractmethod
    def end(self) -> int:
        """The id that ends an answer."""

    @property
    @abstractmethod
    def longest(self) -> int:
        """Tokens of the longest answer, with its end."""

    @abstractmethod
    def read(self, text: str) -> Asked:
        """Read a question; see `Predictor`."""

    @abstractmethod
    def wanted(self, asked: Asked) -> list[int]:
        """Return the ids of the right answer, with its end."""

    @abstractmethod
    def token(self, number: int) -> str:
        """Return the token of an id."""

    @abstractmethod
    def text(self, written: Generated) -> str:
        """Return what was written, as text."""

    def predict(self, text: str, top: int = 5) -> Prediction:
        """Answer a question, with the likeliest whole answers that so many beams find.

        The prediction is written greedily, as `answers` are; a beam may find a likelier one.
        """
        question = self.read(text)
        checks.integer("top", top, 1, self.model.config.vocab_size)
        written = self._write([question])[0]
        found = beam_search(
            self.model, question.ids(), beams=top, max_new_tokens=self.longest, end=self.end
        )
        right = question.answer()
        answer, expected = self.text(written), None if right is None else str(right)
        return Prediction(
            expression=str(question),
            prediction=answer,
            probability=math.exp(written.log_probability),
            expected=expected,
            correct=None if expected is None else answer == expected,
            top=[(self.text(beam), math.exp(beam.log_probability)) for beam in found],
            unknown=question.tokens().count(UNKNOWN),
        )

    def answers(self, asked: Sequence[Asked]) -> tuple[list[str], float]:
        """Return the answer to each question, and the mean loss of the right answers' tokens."""
        pairs = [(one.ids(), self.wanted(one)) for one in asked]
        batch = pack([prompt + answer[:-1] for prompt, answer in pairs])
        targets = np.concatenate([[-1] * (len(p) - 1) + answer for p, answer in pairs])
        logits = predict_classes(self.model, batch)
        checks.finite_result("logits", logits)
        loss = CrossEntropyLoss(backend=self.model.ops.name).forward(logits, targets)
        missed = np.flatnonzero(wrong_sequences(batch, logits, targets))
        # Where each token of the right answer is the likeliest after those before it, that answer
        # is what the model writes. Only the others must be written to be known.
        texts = [
            self.text(Generated(tokens=answer[:-1], log_probability=0.0, ended=True))
            for _, answer in pairs
        ]
        for first in range(0, len(missed), _PROMPTS_AT_A_TIME):
            part = missed[first : first + _PROMPTS_AT_A_TIME]
            found = self._write([asked[place] for place in part])
            for place, written in zip(part, found, strict=True):
                texts[place] = self.text(written)
        return texts, loss

    def sequence(self, asked: Asked) -> ReadTokens:
        """Return the question with the answer that the model writes, without its last token.

        The last token of the answer is not there: the row before it is the one that writes it.
        """
        ids = asked.ids()
        written = self._write([asked])[0].tokens[:-1]
        tokens = [*asked.tokens(), *(self.token(number) for number in written)]
        return ReadTokens(tokens, [*ids, *written], len(ids))

    def _write(self, asked: Sequence[Asked]) -> list[Generated]:
        prompts = [question.ids() for question in asked]
        return generate(self.model, prompts, max_new_tokens=self.longest, end=self.end)


@dataclass(frozen=True)
class AnswerPredictor(WritingPredictor):
    """The decoder of a task whose questions are drawn."""

    model: TransformerDecoder
    form: Form

    @property
    def example(self) -> str:
        """Something that it can be asked."""
        return self.form.example

    @property
    def end(self) -> int:
        """The id that ends an answer."""
        return EOS

    @property
    def longest(self) -> int:
        """Tokens of the longest answer, with its end."""
        return self.form.answer_digits + 1

    def read(self, text: str) -> Question:
        """Read a question; see `Predictor`."""
        return parse_question(text, self.form, self.model.config.max_seq_len)

    def wanted(self, asked: Asked) -> list[int]:
        """Return the ids of the right answer, with its end."""
        assert isinstance(asked, Question)
        return encode(asked.answer_tokens(), ANSWER_TOKENS)

    def token(self, number: int) -> str:
        """Return the token of an id."""
        return ANSWER_TOKENS[number]

    def text(self, written: Generated) -> str:
        """Return the number that was written."""
        return self.form.read_answer(decode(written.tokens, ANSWER_TOKENS), written.ended)

    def score(self, answers: Sequence[str], asked: Sequence[Asked]) -> AnswerScores:
        """Count what is right by operation, by inner operation and by digit."""
        inner = [one.inner_operations for one in asked if isinstance(one, Question)]
        return score_numbers(answers, asked, inner if any(inner) else ())


def score_numbers(
    answers: Sequence[str], asked: Sequence[Asked], inner: Sequence[Sequence[str]] = ()
) -> AnswerScores:
    """Return the scores of answers that are numbers; `inner` as of `evaluate_answers`."""
    correct = [str(one.answer()) for one in asked]
    return evaluate_answers(answers, correct, [one.group for one in asked], inner)
