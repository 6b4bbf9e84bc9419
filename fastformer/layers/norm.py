"""The norm that a model's settings name."""

from fastformer.layers.layernorm import LayerNorm
from fastformer.layers.rmsnorm import RMSNorm
from fastformer.models.config import ModelConfig

NORM_CLASSES: dict[str, type[LayerNorm] | type[RMSNorm]] = {
    "layernorm": LayerNorm,
    "rmsnorm": RMSNorm,
}


def new_norm(config: ModelConfig, *, backend: str, dtype: str) -> LayerNorm | RMSNorm:
    """Return a norm of a model's rows, of its `norm_type`."""
    norm = NORM_CLASSES[config.norm_type]
    return norm(config.embed_dim, epsilon=config.layernorm_epsilon, backend=backend, dtype=dtype)
