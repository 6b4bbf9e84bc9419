"""The training loop: batches -> forward -> loss -> backward -> clip -> step -> log.

A run can be stopped at any step and go on from its last checkpoint with the same bits: what is
saved are weights, moments and a few numbers, and every random number is named by its place.

It is one long file, for the order of a step, a record and a checkpoint is one.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from fastformer import checks
from fastformer.batch import Ids, PackedBatch
from fastformer.errors import CheckpointError, FastformerError
from fastformer.models.decoder import TransformerDecoder
from fastformer.models.transformer import Transformer
from fastformer.training.callbacks import TrainingCallbacks
from fastformer.training.checkpoint import Checkpoint
from fastformer.training.config import TrainingConfig
from fastformer.training.embedding_records import EmbeddingRecords
from fastformer.training.examples import Examples, Source
from fastformer.training.gradients import clip_gradients, gradient_norm
from fastformer.training.json_text import finite
from fastformer.training.local_steps import OuterStep, own_part
from fastformer.training.loss import CrossEntropyLoss
from fastformer.training.metrics import MetricsTracker
from fastformer.training.optimizers import SGD, Adam, AdamW, NotFiniteError, Optimizer
from fastformer.training.preparation import batches_of_each_size, compile_for
from fastformer.training.progress import Progress, checked_progress
from fastformer.training.ranks import ALONE, all_ranks
from fastformer.training.run_directory import RunDirectory
from fastformer.training.schedules import learning_rate_at
from fastformer.training.signals import StopRequest
from fastformer.training.steps import Counts, Scores, evaluate, step_gradients
from fastformer.warmup import compilation_clock

_OPTIMIZER_PREFIX, _OUTER_PREFIX = "optimizer.", "outer."
_REMEDY = "Try a lower learning_rate, warmup_steps or clip_norm"


class TrainingInterrupted(Exception):
    """A signal stopped training after a step; everything is saved.

    Attributes:
        directory: the run.    step: how many steps were made.    signal: the signal's number.
    """

    def __init__(self, directory: Path, step: int, signal: int) -> None:
        """Say where the run can go on from."""
        super().__init__(f"training of {directory} was stopped after step {step}")
        self.directory, self.step, self.signal = directory, step, signal


class TrainingDivergedError(FastformerError, ArithmeticError):
    """A loss or the gradient is not finite; it is raised before anything of that step is kept."""


def make_optimizer(model: Transformer | TransformerDecoder, config: TrainingConfig) -> Optimizer:
    """Return the optimizer that a config names."""
    parameters, lr = model.parameters(), config.learning_rate
    if config.optimizer == "sgd":
        return SGD(parameters, lr, config.momentum, config.l2_penalty, nesterov=config.nesterov)
    kind: type[AdamW] = Adam
    decay = config.l2_penalty
    if config.optimizer == "adamw":
        kind, decay = AdamW, config.weight_decay
    return kind(parameters, lr, beta2=config.beta2, weight_decay=decay, amsgrad=config.amsgrad)


class Trainer:
    """Trains a classifier or a decoder in a run directory."""

    def __init__(
        self,
        model: Transformer | TransformerDecoder,
        config: TrainingConfig,
        train: Source,
        validation: Examples,
        run: RunDirectory,
        seed: int,
        callbacks: TrainingCallbacks,
        whole_answers: bool = False,
        best_by_loss: bool = False,
        class_weights: npt.ArrayLike | None = None,
        after_epoch: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare to train from the beginning; `restore` goes on from a checkpoint.

        Args:
            model: what is trained.    config: how.    train, validation: on what.
            run: where everything is kept.    seed: of the order of examples.
            callbacks: is told of each step and epoch.
            whole_answers: the accuracy of a decoder is that of sequences of which all tokens that
                are asked are right, and not that of tokens.
            best_by_loss: the best epoch has the lowest validation loss, not the best accuracy.
            class_weights: (V,) how much each class counts in the losses; None for alike.
            after_epoch: is called when an epoch is saved; it must not change the model.
        """
        self.model, self.config, self.run = model, config, run
        self.embeddings = EmbeddingRecords(run.path)
        self.train_examples, self.validation_examples = train, validation
        self.seed, self.callbacks, self.whole_answers = seed, callbacks, whole_answers
        self.optimizer = make_optimizer(model, config)
        self.loss_fn = CrossEntropyLoss(
            weight=class_weights, label_smoothing=config.label_smoothing, backend=model.ops.name
        )
        # What runs with and without smoothing are compared by.
        self.validation_loss = CrossEntropyLoss(weight=class_weights, backend=model.ops.name)
        self.tracker = MetricsTracker(by_loss=best_by_loss)
        self.progress = Progress()
        self.ranks = all_ranks()
        self.outer: OuterStep | None = None
        if config.local_steps:
            self.outer = OuterStep(
                self.optimizer, self.ranks, config.outer_learning_rate, config.outer_momentum
            )
        self._after_epoch, self._tokens_seen = after_epoch, 0
        # What this process has trained since all agreed: steps, and their sums.
        self._own_steps, self._own = 0, Progress()
        num_batches = -(-train.size // config.batch_size)
        self.steps_per_epoch = -(-num_batches // config.accumulation_steps)
        self.total_steps = self.steps_per_epoch * config.epochs
        self._is_prepared = False

    def prepare(self, *others: PackedBatch) -> None:
        """Compile what the rest of the run calls, before any clock starts; nothing is trained.

        Args:
            others: sequences that the model is asked about besides.
        """
        if self._is_prepared:
            return
        if not self.ranks.leads:  # what the first one compiles, the others load
            self.ranks.gather(None, alike=False)
        self._prepare(others)
        if self.ranks.leads:
            self.ranks.gather(None, alike=False)
        self.ranks.gather(None, alike=False)  # from here on all have alike much to do
        self._is_prepared = True

    def _prepare(self, others: tuple[PackedBatch, ...]) -> None:
        config = self.config
        epochs = range(self.progress.epoch, 0 if self.ended else config.epochs)
        batches = batches_of_each_size(self.train_examples, self.seed, epochs, config.batch_size)
        if self.outer:
            batches = (own_part(*batch, self.ranks) for batch in batches)
        asked = (self.validation_examples.inputs, *others)
        compile_for(self.model, self.loss_fn, batches, asked, self._make_step, config.shards)

    def _make_step(self, model: Transformer) -> None:
        """Make the steps that training makes, of another model."""
        optimizer = make_optimizer(model, self.config)
        optimizer.step()
        if self.outer:
            OuterStep(optimizer, ALONE, 1.0, 0.5).make()
            gradients = model.parameters().gradients
            model.parameters().ops.add_gradient(gradients, gradients.copy())

    def train(self) -> None:
        """Train to the end.

        Raises:
            TrainingInterrupted: a signal came; the run is saved.
            TrainingDivergedError: a loss or gradient that is not finite.
            RunError: another trainer is at the run, or it was removed, renamed or replaced.
        """
        with self.run.held():
            self.prepare()
            if self.progress.step == 0 and self.ranks.leads:
                with self.run.writing():
                    self.embeddings.drop_after(-1)
                    self.embeddings.save(0, self.model.embedding.weight.value)
            with StopRequest() as self.stop, self.ranks.sharing_gradients(self.model):
                while not self.ended and self._signal() is None:
                    self._train_epoch()
            signal = self._signal()  # of all that came until another one would end the process
        if signal is not None:  # while an epoch was validated and saved
            raise TrainingInterrupted(self.run.path, self.progress.step, signal)

    def _signal(self) -> int | None:
        """Return the signal that has come to any of the processes, or None."""
        return max(filter(None, self.ranks.gather(self.stop.signal)), default=None)

    @property
    def ended(self) -> bool:
        """Whether the last epoch is done, or training stopped early."""
        return self.progress.epoch >= self.config.epochs or self.progress.stopped_early

    def _train_epoch(self) -> None:
        """Train one epoch from where it stands, validate, log and save."""
        started, first_seen = time.perf_counter(), self.progress.seen
        self._tokens_seen = 0
        self.model.train()
        batches = self.train_examples.batches(
            self.seed, self.progress.epoch, self.config.batch_size, self.progress.batch
        )
        group: list[tuple[PackedBatch, Ids]] = []
        # What nobody foresaw is compiled within the epoch; its time is that of no example.
        with compilation_clock() as compiling:
            for batch in batches:
                group.append(batch)
                if len(group) == self.config.accumulation_steps:
                    self._step(group)
                    group = []
            if group:
                self._step(group)
            if self._own_steps:
                self._agree()
            seconds = time.perf_counter() - started - compiling()
        examples = self.progress.seen - first_seen
        self._finish_epoch(seconds, examples / seconds, self._tokens_seen / seconds)

    def _step(self, group: list[tuple[PackedBatch, Ids]]) -> None:
        """Make one optimizer step on a group of batches: that of one large batch of them all."""
        progress, parameters, own = self.progress, self.model.parameters(), self._own
        ranks, num_batches = self.ranks, len(group)
        examples = sum(batch.num_sequences for batch, _ in group)
        self._tokens_seen += sum(batch.num_tokens for batch, _ in group)
        if self.outer:
            group = [own_part(*batch, ranks) for batch in group]
            ranks = ALONE
        self.model.zero_grad()
        # What the loss is the mean of: all targets that are asked in the group, as they count.
        loss_fn, ignored = self.loss_fn, self.loss_fn.ignore_index
        count = sum(
            loss_fn.divisor_of(targets, int(np.count_nonzero(targets != ignored)))
            for _, targets in group
        )
        mean_loss = 0.0
        for place, (batch, targets) in enumerate(group):
            loss, counts = step_gradients(
                self.model, batch, targets, loss_fn, count, shards=self.config.shards,
                ranks=ranks, fresh=place == 0, whole_answers=self.whole_answers,
            )  # fmt: skip
            mean_loss += loss
            own.correct += counts.right
            own.asked += counts.asked
            own.seen += batch.num_sequences
        clip = self.config.clip_norm
        norm = clip_gradients(parameters, clip) if clip else gradient_norm(parameters)
        if not (math.isfinite(mean_loss) and math.isfinite(norm)):
            self._raise_diverged(mean_loss)
        self.optimizer.learning_rate = self._learning_rate(progress.step)
        try:
            self.optimizer.step()
        except NotFiniteError:
            self._raise_diverged(mean_loss)
        progress.step += 1
        progress.batch += num_batches
        own.loss_sum += mean_loss * count
        own.targets += count
        own.norm_sum += norm
        own.norm_steps += 1
        self._own_steps += 1
        rate = self.optimizer.learning_rate
        self.callbacks.stepped(progress.step, mean_loss, rate, examples)
        if self._own_steps >= self.config.local_steps:
            self._agree()

    def _agree(self) -> None:
        """Be of one mind with all processes; then save where that is due, or a signal came."""
        progress, counter, made = self.progress, self.model.dropout_counter, self._own_steps
        if self.outer:
            self.outer.make()
            found = self.ranks.gather((self._own, counter.forwards))
            for own, _ in found:
                progress.add(own)
            counter.forwards = max(forwards for _, forwards in found)
        else:
            progress.add(self._own)
        self._own_steps, self._own = 0, Progress()
        signal, every = self._signal(), self.config.checkpoint_every
        if signal is not None:
            self.save()
            raise TrainingInterrupted(self.run.path, progress.step, signal)
        if every and progress.step // every > (progress.step - made) // every:
            self.save()

    def _finish_epoch(
        self, seconds: float, examples_per_second: float, tokens_per_second: float
    ) -> None:
        """Validate, log, and save the epoch's checkpoint, and the best one.

        The validation loss is without label smoothing, the training loss with it.
        """
        progress = self.progress
        scores = self.ranks.first(self._validate)
        if not math.isfinite(scores.loss):
            raise TrainingDivergedError(
                f"training diverged in epoch {progress.epoch + 1}: the validation loss is "
                f"{scores.loss}; the files are as they were. {_REMEDY}"
            )
        self._refuse_damage()
        train_loss, train_accuracy = (
            progress.loss_sum / (progress.targets or 1),
            Counts(progress.correct, progress.asked).accuracy,
        )
        self.tracker.update(train_loss, train_accuracy, scores.loss, scores.accuracy)
        best = self.tracker.is_best_epoch()
        progress.epoch += 1
        progress.since_best = 0 if best else progress.since_best + 1
        patience = self.config.patience
        progress.stopped_early = bool(patience) and progress.since_best >= patience
        record = {
            "epoch": progress.epoch,
            "step": progress.step,
            "train_loss": train_loss,
            "train_accuracy": finite(train_accuracy),
            "validation_loss": scores.loss,
            "validation_accuracy": finite(scores.accuracy),
            "learning_rate": self._learning_rate(progress.step - 1),
            "gradient_norm": progress.norm_sum / progress.norm_steps,
            "seconds": seconds,
            "examples_per_second": examples_per_second,
            "tokens_per_second": tokens_per_second,
            "best": best,
        }
        progress.begin_epoch()
        if best:
            self.run.save_best(self.model.state_dict(), self._metadata())
        # The record first: a checkpoint whose record is missing could never be mended, while a
        # record whose checkpoint is missing is dropped when the run goes on.
        self.run.append_metrics(record)
        if self.ranks.leads:
            with self.run.writing():
                self.embeddings.save(progress.epoch, self.model.embedding.weight.value)
        self.save()
        self.callbacks.epoch_finished(record)
        if self.ranks.leads:
            self._after_epoch()

    def _validate(self) -> Scores:
        """Return the scores on the validation examples."""
        return evaluate(
            self.model,
            self.validation_examples.inputs,
            self.validation_examples.targets,
            self.validation_loss,
            whole_answers=self.whole_answers,
        )

    def _learning_rate(self, step: int) -> float:
        config = self.config
        return learning_rate_at(
            step,
            schedule=config.schedule,
            learning_rate=config.learning_rate,
            min_learning_rate=config.min_learning_rate,
            warmup_steps=config.warmup_steps,
            total_steps=self.total_steps,
        )

    def _raise_diverged(self, loss: float) -> NoReturn:
        """Name the first tensor that is not finite."""
        where = self.optimizer.first_not_finite() or "the loss"
        raise TrainingDivergedError(
            f"training diverged at step {self.progress.step + 1}: the loss is {loss}, and {where} "
            f"is not finite; weights and files are as they were. {_REMEDY}"
        )

    def _refuse_damage(self) -> None:
        """Raise where a file would have NaN or infinity."""
        where = self.optimizer.first_not_finite(gradients=False)
        if where is not None:
            raise TrainingDivergedError(
                f"training diverged in step {self.progress.step}: {where} is not finite; the files "
                f"are as they were. {_REMEDY}"
            )

    def save(self) -> None:
        """Save a checkpoint to go on from, unless something in it is not finite."""
        self._refuse_damage()
        tensors = self.model.state_dict()
        for name, array in self.optimizer.state_dict().items():
            tensors[_OPTIMIZER_PREFIX + name] = array
        if self.outer:
            for name, array in self.outer.optimizer.state_dict().items():
                tensors[_OUTER_PREFIX + name] = array
        self.run.save_step(self.progress.step, tensors, self._metadata())

    def _metadata(self) -> dict[str, Any]:
        return {
            "progress": asdict(self.progress),
            "tracker": self.tracker.state_dict(),
            "optimizer_steps": self.optimizer.steps,
            "dropout_forwards": self.model.dropout_counter.forwards,
            **({"outer_steps": self.outer.optimizer.steps} if self.outer else {}),
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint.

        Raises:
            CheckpointError: it does not fit the model or the optimizer.
        """
        state, outer = (
            {
                name.removeprefix(prefix): array
                for name, array in checkpoint.tensors.items()
                if name.startswith(prefix)
            }
            for prefix in (_OPTIMIZER_PREFIX, _OUTER_PREFIX)
        )
        metadata = checkpoint.metadata
        load_weights(self.model, checkpoint)
        try:
            self.optimizer.load_state_dict(state, metadata["optimizer_steps"])
            if self.outer:
                self.outer.optimizer.load_state_dict(outer, metadata["outer_steps"])
                self.outer.begin()
            progress = dict(metadata["progress"])
            # Without what the sums are of, of an older version, they are those of examples.
            seen = progress.get("seen", 0)
            self.progress = checked_progress(
                {"targets": seen, "asked": seen} | progress,
                num_batches=-(-self.train_examples.size // self.config.batch_size),
                steps_per_epoch=self.steps_per_epoch,
                accumulation_steps=self.config.accumulation_steps,
            )
            self.tracker.load_state_dict(metadata["tracker"])
            forwards = checks.integer("dropout_forwards", metadata["dropout_forwards"], 0)
            self.model.dropout_counter.forwards = forwards
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"checkpoint {checkpoint.path} does not fit this training run: {error}"
            ) from error
        # A record of this very step is that of an epoch which the checkpoint is still within.
        self.run.go_on_from(self.progress.step - (self.progress.batch > 0))
        if self.ranks.leads:
            with self.run.writing():
                self.embeddings.drop_after(self.progress.epoch)


def load_weights(model: Transformer | TransformerDecoder, checkpoint: Checkpoint) -> None:
    """Load a checkpoint's weights into a model.

    Raises:
        CheckpointError: they do not fit the model.
    """
    weights = {
        name: array
        for name, array in checkpoint.tensors.items()
        if not name.startswith((_OPTIMIZER_PREFIX, _OUTER_PREFIX))
    }
    try:
        model.load_state_dict(weights)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {checkpoint.path} does not fit the model: {error}"
        ) from error
