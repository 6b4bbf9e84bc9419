"""A trained classifier of a person's own texts: it answers with one of their labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastformer import checks
from fastformer.analysis.evaluation import ClassScores, evaluate_classes
from fastformer.analysis.prediction import Prediction, ReadTokens
from fastformer.batch import pack
from fastformer.data.asked import Asked
from fastformer.data.labelled import LabelledText
from fastformer.data.tokenizers import UNKNOWN
from fastformer.models.transformer import Transformer
from fastformer.sampling import log_softmax
from fastformer.training.labelled_run import LabelledSettings
from fastformer.training.loss import CrossEntropyLoss
from fastformer.training.steps import predict_classes


@dataclass(frozen=True)
class LabelPredictor:
    """See `fastformer.analysis.prediction.Predictor`."""

    model: Transformer
    settings: LabelledSettings

    @property
    def example(self) -> str:
        """What it can be asked."""
        return "any text"

    def read(self, text: str) -> LabelledText:
        """Read a text, whose label nobody has said; see `Predictor`."""
        return self.settings.text(text)

    def predict(self, text: str, top: int = 5) -> Prediction:
        """Name the likeliest label of a text; see `Predictor`."""
        asked, labels = self.read(text), self.settings.labels
        checks.integer("top", top, 1)
        logits = self.model.forward(pack([asked.ids()]))
        probabilities = np.exp(log_softmax(logits))[0]
        likeliest = np.argsort(-probabilities, kind="stable")[:top]
        listed = [(labels[number], float(probabilities[number])) for number in likeliest]
        return Prediction(
            expression=str(asked),
            prediction=listed[0][0],
            probability=listed[0][1],
            expected=None,
            correct=None,
            top=listed,
            unknown=asked.tokens().count(UNKNOWN),
        )

    def answers(self, asked: Sequence[Asked]) -> tuple[list[str], float]:
        """Return the likeliest label of each text, and the mean loss."""
        packed, labels = self.settings.packed(asked), self.settings.labels
        logits = predict_classes(self.model, packed.inputs)
        checks.finite_result("logits", logits)
        loss = CrossEntropyLoss(backend=self.model.ops.name).forward(logits, packed.targets)
        return [labels[number] for number in logits.argmax(axis=1)], loss

    def sequence(self, asked: Asked) -> ReadTokens:
        """Return the text's tokens."""
        tokens = asked.tokens()
        return ReadTokens(tokens, asked.ids(), len(tokens))

    def score(self, answers: Sequence[str], asked: Sequence[Asked]) -> ClassScores:
        """Count what is right, by label, and what was taken for what."""
        return evaluate_classes(answers, [str(one.answer()) for one in asked], self.settings.labels)
