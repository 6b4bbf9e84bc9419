"""Checks of where a checkpoint says that a run stands: a file from elsewhere may say anything."""

from dataclasses import fields
from typing import Any, TypeVar

from fastformer import checks

ProgressT = TypeVar("ProgressT")


def checked_progress(
    progress_class: type[ProgressT],
    given: Any,
    *,
    num_batches: int,
    steps_per_epoch: int,
    accumulation_steps: int,
) -> ProgressT:
    """Return the progress that a checkpoint holds, if a run of these sizes can stand there.

    Args:
        progress_class: a dataclass with epoch, step, batch, seen, norm_steps, and other numbers
            >= 0 and flags.
        given: a JSON value.    num_batches: of an epoch.    steps_per_epoch: optimizer steps.
        accumulation_steps: batches of a step.

    Raises:
        ValueError, TypeError: it is none.
    """
    checks.instance("checkpoint", "progress", given, dict)
    checks.known_keys("progress", given, [field.name for field in fields(progress_class)])  # type: ignore[arg-type]
    found: Any = progress_class(**given)
    for field in fields(found):
        value = getattr(found, field.name)
        if isinstance(field.default, bool):
            checks.boolean(field.name, value)
        elif isinstance(field.default, int):
            checks.integer(field.name, value, 0)
        else:
            checks.number(field.name, value, at_least=0)
    steps = found.epoch * steps_per_epoch + -(-found.batch // accumulation_steps)
    # After an epoch's last batch it is validated; what was seen of it is then divided by.
    nothing_seen = found.batch > 0 and not (found.seen and found.norm_steps)
    if found.batch > num_batches or found.step != steps or nothing_seen:
        checks.fail(
            f"step {found.step} cannot be after batch {found.batch} of epoch {found.epoch + 1}, of "
            f"which {found.seen} examples were seen: an epoch has {num_batches} batches and "
            f"{steps_per_epoch} steps"
        )
    return found  # type: ignore[no-any-return]
