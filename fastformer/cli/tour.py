"""`fastformer train --tour`: a training run in ten steps, each of them shown and explained.

At a terminal it waits for Enter after each step; elsewhere it goes straight through.
"""

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fastformer.cli import console
from fastformer.models.config import RELATIVE_POSITIONS
from fastformer.training.callbacks import TrainingCallbacks
from fastformer.writing import percent, signed

if TYPE_CHECKING:
    from fastformer.analysis.loading import LoadedRun
    from fastformer.analysis.prediction import Prediction
    from fastformer.cli.tour_data import TourData
    from fastformer.data.asked import Asked
    from fastformer.models.decoder import TransformerDecoder
    from fastformer.models.transformer import Transformer
    from fastformer.parameters import Array
    from fastformer.training.answers_run import AnswerSettings
    from fastformer.training.digits_run import RunSettings

    AnySettings = RunSettings | AnswerSettings
    AnyModel = Transformer | TransformerDecoder

STEPS: Final[tuple[str, ...]] = (
    "Examples are drawn",
    "They are split, so that no test input is ever trained on",
    "A batch is packed",
    "The model",
    "What it answers untrained",
    "How it will be trained",
    "Training",
    "What it can do now",
    "One answer for each operation",
    "Where it looks, and what it thinks of the tokens",
)
# Positions that nothing is learned of: how they come in.
POSITION_NOTES: Final[dict[str, str]] = {
    "sinusoidal": "sines",
    "rotary": "queries and keys are turned",
    "alibi": "scores fall with the distance",
}
GUESS_EVERY: Final[int] = 2
_NEAREST = 3


def take_tour(
    settings: "AnySettings",
    directory: Path,
    callbacks: TrainingCallbacks,
    *,
    overwrite: bool,
    to_stderr: bool,
) -> dict[str, Any]:
    """Train as `train_run` does, and show each step.

    Args:
        settings, directory, callbacks, overwrite: as for `train_run`.
        to_stderr: write to the standard error, and do not wait for Enter.

    Returns, raises: as `train_run`.
    """
    from fastformer.errors import RunError
    from fastformer.training.atomic_file import os_errors_as
    from fastformer.training.run_place import is_replaceable
    from fastformer.training.runs import train_run

    with os_errors_as(RunError, f"make run {directory}"):
        is_replaceable(directory, overwrite)  # before a person has pressed Enter six times
    paced = not to_stderr and sys.stdin.isatty() and sys.stdout.isatty()
    tour = Tour(settings, console.notice if to_stderr else _line_at_once, paced)
    first = tour.before()
    watcher = GuessingObserver(settings, directory, str(first), callbacks, tour.write)
    result = train_run(settings, directory, watcher, overwrite=overwrite)
    tour.after(directory, result)
    return result


def _line_at_once(text: str) -> None:
    """Write a line to standard output now, for the training's own lines go elsewhere."""
    console.line(text)
    sys.stdout.flush()


class Tour:
    """Leads through a run. `before` is shown before training, `after` after it."""

    def __init__(self, settings: "AnySettings", write: Callable[[str], None], paced: bool) -> None:
        """Prepare the tour; nothing is computed or shown.

        Args:
            settings: of the run.    write: takes each line.    paced: wait for Enter before steps.
        """
        self.settings, self.write, self._paced = settings, write, paced
        self._number = 0

    def before(self) -> "Asked":
        """Show steps 1 to 6, announce the training, and return what it will guess at."""
        from fastformer.cli.tour_data import tour_data

        data, model = tour_data(self.settings), self.settings.new_model()
        for show in (data.draw, data.split, data.batch):
            self._begin()
            show(self.write)
        self._begin()
        self._model(model)
        self._begin()
        self._untrained(model, data.first_test)
        self._begin()
        self._training(data)
        self._begin()
        self.write(
            f"After the first epoch, and then every {GUESS_EVERY}, the model guesses at an input "
            "that it never sees."
        )
        return data.first_test

    def after(self, directory: Path, result: dict[str, Any]) -> None:
        """Show steps 8 to 10, and what to do next.

        Args:
            directory: of the finished run.    result: of its training.
        """
        from fastformer.analysis.loading import load_run

        loaded = load_run(directory)
        self._begin()
        self._results(result)
        self._begin()
        for operation in self.settings.operations:
            chosen = next((e for e in loaded.tests if e.group == operation), None)
            if chosen is not None:
                self._prediction(loaded.predictor.predict(str(chosen)))
        self._begin()
        self._attention(loaded)
        self._embeddings(loaded)
        self.write("")
        self.write(f"All of it is in {directory}. To see more of it:")
        for command in ("plot", "report", "attention", "embeddings", "predict"):
            self.write(f"  fastformer {command} {console.shell_word(directory)}")

    def _begin(self) -> None:
        """Wait for Enter where somebody is there, and write the next step's title."""
        if self._paced and self._number:
            try:
                input("\nEnter goes on. ")
            except EOFError:
                self._paced = False
        self._number += 1
        self.write("")
        self.write(f"{self._number} of {len(STEPS)}  {STEPS[self._number - 1]}")
        self.write("-" * 72)

    def _model(self, model: "AnyModel") -> None:
        """Step 4: the parts of the model, and how many numbers each learns."""
        counts: Counter[str] = Counter()
        for name, value, _ in model.parameters():
            pieces = name.split(".")
            counts[" ".join(pieces[:3] if pieces[0] == "blocks" else pieces[:1])] += value.size
        for name, count in counts.items():
            self.write(f"  {name:<28} {count:>12,}")
        if note := POSITION_NOTES.get(self.settings.model.positions):
            self.write(f"  {'positions':<28} {'0':>12}   {note}, nothing to learn")
        self.write(f"  {'in all':<28} {counts.total():>12,}")

    def _untrained(self, model: "AnyModel", expression: "Asked") -> None:
        """Step 5: the shapes on the way through the model, and its guess."""
        from fastformer.analysis.loading import predictor_of

        config, length = self.settings.model, len(expression.tokens())
        causal = model.blocks[0].attention.causal
        added = config.positions not in RELATIVE_POSITIONS
        self.write(f"Input: {expression}, {length} tokens.")
        for name, shape in (
            ("embedding" + " and positions" * added, (length, config.embed_dim)),
            ("attention weights, a block", (config.num_heads, length, length)),
            ("feed-forward, inside", (length, config.ffn_dim)),
            ("logits", (length if causal else 1, config.vocab_size)),
        ):
            self.write(f"  {name:<28} {shape}")
        self._prediction(predictor_of(self.settings, model).predict(str(expression)))

    def _training(self, data: "TourData") -> None:
        """Step 6: the optimizer's settings, and how many steps it will make."""
        training = self.settings.training
        steps = -(-data.examples // (training.batch_size * training.accumulation_steps))
        for name, text in (
            ("optimizer", training.optimizer),
            ("learning rate", f"{training.learning_rate:g}, schedule {training.schedule}"),
            ("batch", f"{training.batch_size} examples"),
            ("steps", f"about {steps:,} an epoch, {steps * training.epochs:,} in all"),
            ("epochs", f"{training.epochs}; the weights of the best one are kept"),
        ):
            self.write(f"  {name:<14} {text}")

    def _prediction(self, prediction: "Prediction") -> None:
        """Show an answer with the likeliest ones; an arrow is at the right one."""
        self.write(f"{prediction.expression} = {prediction.prediction}{prediction.verdict}")
        widest = max(6, *(len(answer) for answer, _ in prediction.top))
        for answer, share in prediction.top:
            arrow = "->" if answer == prediction.expected else "  "
            self.write(
                f"  {arrow} {answer:<{widest}} {console.bar(share)} {console.percent(share, 2)}"
            )

    def _results(self, result: dict[str, Any]) -> None:
        """Step 8: the accuracy on the test inputs, and of each operation."""
        for name, text in console.unseen_accuracy(result):
            self.write(f"{name:<15} {text}")
        for name, share in sorted(result["per_operation"].items(), key=lambda item: item[1]):
            self.write(f"  {name:<10} {console.bar(share)} {console.percent(share)}")

    def _attention(self, loaded: "LoadedRun") -> None:
        """Step 10: the weights of one head on a real input."""
        from fastformer.analysis.attention import expression_attention
        from fastformer.analysis.attention_text import head_lines, legend

        text = str(loaded.tests[0])
        attention = expression_attention(loaded.predictor, text)
        self.write(f"The attention on {text}; each row is a token, and where it looks.")
        for line in (*head_lines(attention, len(attention.layers), 1), legend()):
            self.write(line)

    def _embeddings(self, loaded: "LoadedRun") -> None:
        """Step 10: which tokens the embedding holds for alike."""
        import numpy as np

        from fastformer.analysis.embeddings import cosine_matrix, rows_of

        tokens = self.settings.named_tokens.mapped
        names = list(tokens)
        cosines: Array = cosine_matrix(rows_of(loaded.model.embedding.weight.value, tokens))
        first, second = np.triu_indices(len(names), 1)
        order = np.argsort(-cosines[first, second])[:_NEAREST]
        pairs = ", ".join(
            f"{names[first[pair]]} and {names[second[pair]]} "
            f"({signed(float(cosines[first[pair], second[pair]]))})"
            for pair in order
        )
        chance = loaded.settings.model.embed_dim**-0.5
        self.write("")
        self.write(f"Most alike in the embedding, by cosine: {pairs}.")
        self.write(f"Random rows differ from 0 by about {chance:.2f}.")


class GuessingObserver(TrainingCallbacks):
    """Tells other callbacks everything, and a guess of the model every few epochs."""

    def __init__(
        self,
        settings: "AnySettings",
        directory: Path,
        text: str,
        inner: TrainingCallbacks,
        write: Callable[[str], None],
    ) -> None:
        """Watch a run.

        Args:
            settings: of the run.    directory: where its checkpoints will be.
            text: the expression to guess at.    inner: the other callbacks.
            write: takes each guess.
        """
        self._settings, self._directory, self._text = settings, directory, text
        self._inner, self._write = inner, write
        self._model = settings.new_model()

    def started(self, total_steps: int, first_step: int, description: str) -> None:
        """Pass it on."""
        self._inner.started(total_steps, first_step, description)

    def stepped(self, step: int, loss: float, learning_rate: float, examples: int) -> None:
        """Pass it on."""
        self._inner.stepped(step, loss, learning_rate, examples)

    def message(self, text: str) -> None:
        """Pass it on."""
        self._inner.message(text)

    def finished(self) -> None:
        """Pass it on."""
        self._inner.finished()

    def epoch_finished(self, record: dict[str, Any]) -> None:
        """Pass it on, and ask the weights that the epoch ended with."""
        self._inner.epoch_finished(record)
        if record["epoch"] != 1 and record["epoch"] % GUESS_EVERY:
            return
        from fastformer.analysis.loading import predictor_of
        from fastformer.training.loop import load_weights
        from fastformer.training.run_directory import RunDirectory

        load_weights(self._model, RunDirectory.open(self._directory).latest())
        guess = predictor_of(self._settings, self._model).predict(self._text)
        probability = percent(guess.probability, 2)
        self._write(
            f"       guess: {guess.expression} = {guess.prediction}   {probability}{guess.verdict}"
        )
