"""The norm of the whole gradient, and its clipping."""

import math

import numpy as np
import pytest

import fastformer as ff
from fastformer.errors import InvalidTypeError, InvalidValueError
from fastformer.parameters import Parameters
from fastformer.training.gradients import gradient_norm

CONFIG = ff.TransformerConfig(vocab_size=20, embed_dim=8, num_heads=2, num_layers=1, ffn_dim=12)


def parameters_with_gradients(backend: str, dtype: str, rng: np.random.Generator) -> Parameters:
    parameters = ff.Transformer(CONFIG, seed=1, backend=backend, dtype=dtype).parameters()
    for _, _, gradient in parameters:
        gradient[...] = rng.standard_normal(gradient.shape)
    return parameters


def whole(parameters: Parameters) -> np.ndarray:
    """Return all gradients as one float64 vector, without the gaps of the flat array."""
    return np.concatenate([gradient.ravel().astype(float) for _, _, gradient in parameters])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_clipping_scales_all_gradients_by_one_number(
    backend: str, dtype: str, rng: np.random.Generator
) -> None:
    parameters = parameters_with_gradients(backend, dtype, rng)
    before = whole(parameters)
    norm = float(np.sqrt((before**2).sum()))
    assert gradient_norm(parameters) == pytest.approx(norm, rel=1e-6)
    assert ff.clip_gradients(parameters, norm / 4) == pytest.approx(norm, rel=1e-6)
    np.testing.assert_allclose(whole(parameters), before / 4, rtol=1e-6)
    assert gradient_norm(parameters) == pytest.approx(norm / 4, rel=1e-6)


@pytest.mark.smoke
def test_a_small_gradient_is_left_alone(rng: np.random.Generator) -> None:
    parameters = parameters_with_gradients("numba", "float32", rng)
    before = parameters.gradients.tobytes()
    norm = ff.clip_gradients(parameters, 1e6)
    assert ff.clip_gradients(parameters, norm) == norm  # at the bound is within it
    assert parameters.gradients.tobytes() == before
    parameters.zero_gradients()
    assert ff.clip_gradients(parameters, 1.0) == 0.0
    assert not parameters.gradients.any()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_a_gradient_that_is_not_finite_is_told_and_not_spread(
    backend: str, bad: float, rng: np.random.Generator
) -> None:
    parameters = parameters_with_gradients(backend, "float32", rng)
    parameters.gradients[5] = bad
    before = parameters.gradients.copy()
    assert not math.isfinite(ff.clip_gradients(parameters, 1.0))
    np.testing.assert_array_equal(parameters.gradients, before)


@pytest.mark.parametrize("max_norm", [0, -1.0, math.nan, math.inf])
def test_a_bad_bound_is_refused(max_norm: float, rng: np.random.Generator) -> None:
    parameters = parameters_with_gradients("reference", "float32", rng)
    with pytest.raises(InvalidValueError, match="^max_norm must be a finite number > 0, got"):
        ff.clip_gradients(parameters, max_norm)
    with pytest.raises(InvalidTypeError, match="^max_norm must be a finite number > 0, got '1'"):
        ff.clip_gradients(parameters, "1")  # type: ignore[arg-type]
