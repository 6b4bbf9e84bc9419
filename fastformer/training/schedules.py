"""Learning-rate schedules: the rate of a step is a function of its number, so nothing is stored."""

import math

from fastformer import checks
from fastformer.training.config import SCHEDULES


def learning_rate_at(
    step: int,
    *,
    schedule: str,
    learning_rate: float,
    min_learning_rate: float,
    warmup_steps: int,
    total_steps: int,
) -> float:
    """Return the learning rate of an optimizer step.

    - `constant`: `learning_rate` throughout; the other settings have no effect.
    - `warmup`: rises linearly from `learning_rate / warmup_steps` in the first step to
      `learning_rate` in step `warmup_steps - 1`, and stays there.
    - `cosine`: the same rise, then half a cosine from `learning_rate` in step `warmup_steps` down
      towards `min_learning_rate`, which step `total_steps` would have (Loshchilov & Hutter 2017).

    Args:
        step: the step's number, counted from 0.
        schedule: "constant", "warmup" or "cosine".
        learning_rate: the peak, > 0.
        min_learning_rate: where the cosine ends, from 0 to `learning_rate`.
        warmup_steps: steps of linear rise, >= 0.
        total_steps: steps of the whole training, >= 1; steps beyond it have the cosine's end.

    Returns:
        The learning rate, > 0 for every step before `total_steps`.

    Raises:
        ValueError, TypeError: an argument that is not allowed; the message names it.
    """
    checks.integer("step", step, 0)
    checks.choice("schedule", schedule, SCHEDULES)
    checks.number("learning_rate", learning_rate, above=0)
    checks.number("min_learning_rate", min_learning_rate, at_least=0, at_most=learning_rate)
    checks.integer("warmup_steps", warmup_steps, 0)
    checks.integer("total_steps", total_steps, 1)
    if schedule == "constant":
        return float(learning_rate)
    if step < warmup_steps:
        return learning_rate * ((step + 1) / warmup_steps)
    if schedule == "warmup":
        return float(learning_rate)
    if step >= total_steps:
        return float(min_learning_rate)
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    fallen = 0.5 * (1.0 - math.cos(math.pi * progress))
    return learning_rate - (learning_rate - min_learning_rate) * fallen
