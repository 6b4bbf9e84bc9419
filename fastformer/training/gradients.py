"""The norm of the whole gradient, and its clipping."""

from fastformer import checks
from fastformer.parameters import Parameters


def gradient_norm(parameters: Parameters) -> float:
    """Return the Euclidean norm of all gradients together, in float64.

    Raises:
        TypeError: anything else than what `model.parameters()` gives.
    """
    checks.instance("gradient_norm", "parameters", parameters, Parameters)
    return float(parameters.ops.gradient_norm(parameters.gradients))


def clip_gradients(parameters: Parameters, max_norm: float) -> float:
    """Scale all gradients down where their norm is above `max_norm`.

    Args:
        parameters: of a model.    max_norm: > 0.

    Returns:
        The norm before. Where it is not finite nothing is scaled: check it before the step.

    Raises:
        TypeError, ValueError: an argument that is not allowed.
    """
    checks.number("max_norm", max_norm, above=0)
    checks.instance("clip_gradients", "parameters", parameters, Parameters)
    with parameters.guard.lock:
        norm = gradient_norm(parameters)
        if max_norm < norm < float("inf"):
            parameters.ops.scale_gradient(parameters.gradients, max_norm / norm)
    return norm
