"""Row D5: NaN and infinity, put into every tensor, never reach the weights or the disk."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from models import make_batch, make_model
from runs import Recorder, small_settings, tree

import fastformer as ff
import fastformer.training.loop as loop_module
import fastformer.training.steps as steps_module
from fastformer.data.batches import batch_order, iterate_batches
from fastformer.training.classifier_run import ClassifierJob
from fastformer.training.loop import Trainer, TrainingDivergedError
from fastformer.training.optimizers import NotFiniteError
from fastformer.training.run_directory import RunDirectory
from tests.scorecard.rows import Finding, Row, Tier

VALUES = (np.nan, np.inf, -np.inf)
# A finite gradient whose square is not.
GRADIENTS = (*VALUES, 1e30)
Array = np.ndarray[Any, Any]


def _ready(directory: Path, optimizer: str) -> tuple[Trainer, list[Any]]:
    """Return a trainer before its first step, and batches."""
    settings = small_settings(optimizer=optimizer)
    run = RunDirectory.create(directory, settings.tables())
    trainer = ClassifierJob(settings).trainer(run, Recorder())
    trainer.stop = SimpleNamespace(signal=None)
    examples = trainer.train_examples
    order = batch_order(examples.inputs.num_sequences, 1, 0)
    return trainer, list(iterate_batches(examples.inputs, examples.targets, 32, order))


def _places(trainer: Trainer) -> Iterator[tuple[str, str, Array]]:
    """Yield what a message must say, the kind, and the array of each tensor."""
    parameters = trainer.model.parameters()
    for name, value, gradient in parameters:
        yield f"the parameter {name} ", "parameter", value
        yield f"the gradient of {name} ", "gradient", gradient
    for state, flat in trainer.optimizer.state.items():
        for name, view in parameters.views_of(flat):
            yield f"{state} of {name} ", "state", view


def _all(trainer: Trainer) -> bytes:
    """Return the bytes of all parameters and of the optimizer's state, and its steps."""
    state = [flat.tobytes() for flat in trainer.optimizer.state.values()]
    steps = (trainer.optimizer.steps, trainer.progress.step)
    return b"".join([trainer.model.parameters().values.tobytes(), *state, repr(steps).encode()])


def _fault(
    act: Callable[[], Any], array: Array, kind: str, value: float, trainer: Trainer, said: str
) -> str:
    """Damage one element, act, and mend it; return what went wrong, or nothing."""
    index = tuple(np.random.default_rng(len(said)).integers(0, array.shape))
    before = _all(trainer)
    compute, old = steps_module.step_gradients, array[index].copy()

    def damaged(*arguments: Any, **options: Any) -> Any:
        found = compute(*arguments, **options)
        array[index] = value
        return found

    if kind == "gradient":
        loop_module.step_gradients = steps_module.step_gradients = damaged
    else:
        array[index] = value
    try:
        act()
        fault = "nothing was raised"
    except (TrainingDivergedError, NotFiniteError) as error:
        fault = "" if said in f"{error} " else f"the message does not name {said}: {error}"
    finally:
        loop_module.step_gradients = steps_module.step_gradients = compute
        array[index] = old
    return fault or ("" if _all(trainer) == before else "something was changed")


def _cases(trainer: Trainer, batches: list[Any], steps: int) -> Iterator[tuple[str, str]]:
    """Yield the label and the fault of each case: a step of a run, of one's own loop, a save."""
    loss_fn = ff.CrossEntropyLoss()
    for step in range(steps):
        batch = batches[step % len(batches)]
        files = tree(trainer.run.path)

        def run_step(batch: Any = batch) -> None:
            trainer._step([batch])

        def own_step(batch: Any = batch) -> None:
            ff.train_step(trainer.model, *batch, loss_fn, trainer.optimizer)

        for said, kind, array in _places(trainer):
            for value in GRADIENTS if kind == "gradient" else VALUES:
                acts = {"run": run_step, "train_step": own_step}
                acts |= {"save": trainer.save} if kind != "gradient" else {}
                for name, act in acts.items():
                    label = f"{value} in {said}at step {step}, {name}"
                    fault = _fault(act, array, kind, value, trainer, said)
                    changed = "" if tree(trainer.run.path) == files else "a file was changed"
                    yield label, fault or changed
        run_step()
        trainer.save()


def _ignored(backend: str) -> Iterator[tuple[str, str]]:
    """Yield whether a batch whose targets are all ignored gives no loss and no gradient."""
    for kind in ("encoder", "decoder"):
        model, batch = make_model(kind, backend=backend), make_batch()
        loss_fn = ff.CrossEntropyLoss(backend=backend)
        logits = model.forward(batch)
        loss = loss_fn.forward(logits, np.full(len(logits), -1))
        model.zero_grad()
        model.backward(loss_fn.backward())
        quiet = loss == 0.0 and not model.parameters().gradients.any()
        yield f"all ignored, {kind}, {backend}", "" if quiet else "a loss or a gradient"


def _planted(trainer: Trainer, batches: list[Any]) -> list[bool]:
    """Tell for each planted fault whether it is noticed."""
    found = []
    for answer in (None, "the parameter of another name"):
        vars(trainer.optimizer)["first_not_finite"] = lambda gradients=True, a=answer: a
        said, kind, array = next(p for p in _places(trainer) if p[1] == "state")
        before = {k: v.copy() for k, v in trainer.optimizer.state.items()}
        act = lambda: trainer._step([batches[0]])  # noqa: E731
        found.append(bool(_fault(act, array, kind, np.nan, trainer, said)))
        for name, flat in before.items():
            trainer.optimizer.state[name][...] = flat
        del vars(trainer.optimizer)["first_not_finite"]
    return found


def measure(tier: Tier, steps: int | None = None, optimizers: Any = ("sgd", "adamw")) -> Finding:
    """Damage every tensor at some steps of a run."""
    results: list[tuple[str, str]] = [*_ignored("numba"), *_ignored("reference")]
    planted: list[bool] = []
    for optimizer in optimizers:
        with tempfile.TemporaryDirectory() as directory:
            trainer, batches = _ready(Path(directory) / "run", optimizer)
            trainer.save()
            results += _cases(trainer, batches, steps or (3 if tier == "fast" else 10))
            planted += _planted(trainer, batches)
    failures = tuple(f"{label}: {fault}" for label, fault in results if fault)
    held = len(results) - len(failures)
    return Finding(held, len(results), sum(planted), len(planted), failures=failures[:10])


ROW = Row(
    "D5",
    "NaN and infinity never reach weights or disk, and the tensor is named in the same step",
    "100 % of the places, everything unchanged",
    measure,
)
