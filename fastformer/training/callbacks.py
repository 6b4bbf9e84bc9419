"""What a training run tells whoever watches it: the command line's progress bar, a notebook."""

from typing import Any


class TrainingCallbacks:
    """Watches a training run. Every method does nothing; a subclass overrides what it needs.

    The methods are called from the training loop and between its steps, so they should be quick.
    They must not change what they are given.
    """

    def reading(self, done: int, total: int) -> None:
        """Text is turned into tokens, before training begins; about once a second.

        Args:
            done, total: bytes that are read, and that there are.
        """

    def text(self, tokens_per_example: float, bytes_per_token: float) -> None:
        """What is trained on is text: speed may be shown in tokens, and a loss in bits per byte.

        Args:
            tokens_per_example: in the mean.    bytes_per_token: of UTF-8, in the mean.
        """

    def started(self, total_steps: int, first_step: int, description: str) -> None:
        """Training begins.

        Args:
            total_steps: optimizer steps of the whole run.
            first_step: the step that it begins with: 0, or more in a resumed run.
            description: one line that says what is trained, on what and how.
        """

    def stepped(self, step: int, loss: float, learning_rate: float, examples: int) -> None:
        """An optimizer step is done.

        Args:
            step: steps done so far, this one included.
            loss: mean loss over all targets of this step.
            learning_rate: the learning rate of this step.
            examples: number of examples in this step.
        """

    def epoch_finished(self, record: dict[str, Any]) -> None:
        """An epoch and its validation are done.

        Args:
            record: the line of `metrics.jsonl`: epoch, step, train_loss, train_accuracy,
                validation_loss, validation_accuracy (an accuracy is None where nothing was asked),
                learning_rate, seconds, examples_per_second, tokens_per_second, and best (whether
                its validation accuracy is the best yet).
        """

    def message(self, text: str) -> None:
        """Something worth telling a person happened, in one sentence."""

    def finished(self) -> None:
        """Training is over, whether it came to its end, stopped early or failed."""
