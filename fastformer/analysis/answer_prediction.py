"""A trained decoder of a person's own questions: it writes the answer."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastformer.analysis.evaluation import Share, WholeScores
from fastformer.analysis.prediction import WritingPredictor
from fastformer.data.answered import AnsweredText, token_of
from fastformer.data.asked import Asked
from fastformer.generation import Generated
from fastformer.models.decoder import TransformerDecoder
from fastformer.training.answered_run import AnsweredSettings


@dataclass(frozen=True)
class TextAnswerPredictor(WritingPredictor):
    """See `fastformer.analysis.prediction.Predictor`."""

    model: TransformerDecoder
    settings: AnsweredSettings

    @property
    def example(self) -> str:
        """What it can be asked."""
        return "any question"

    @property
    def end(self) -> int:
        """The id that ends an answer."""
        return self.settings.tokenizer.vocab_size + 1

    @property
    def longest(self) -> int:
        """Tokens of the longest answer, with its end."""
        return self.settings.task.longest_answer + 1

    def read(self, text: str) -> AnsweredText:
        """Read a question, whose answer nobody has said; see `Predictor`."""
        return self.settings.text(text)

    def wanted(self, asked: Asked) -> list[int]:
        """Return the ids of the right answer, with its end."""
        assert isinstance(asked, AnsweredText)
        return list(asked.written)

    def token(self, number: int) -> str:
        """Return the token of an id."""
        return token_of(self.settings.tokenizer, number)

    def text(self, written: Generated) -> str:
        """Return what was written."""
        known = self.settings.tokenizer.vocab_size
        return self.settings.tokenizer.decode([one for one in written.tokens if one < known])

    def score(self, answers: Sequence[str], asked: Sequence[Asked]) -> WholeScores:
        """Count the answers that are right as a whole."""
        pairs = zip(answers, asked, strict=True)
        right = [
            answer == self.settings.tokenizer.decode(self.wanted(one)[:-1]) for answer, one in pairs
        ]
        return WholeScores(Share(int(np.sum(right)), len(right)))
