"""The norm that a model's settings name."""

from fastformer.layers.layernorm import LayerNorm
from fastformer.layers.rmsnorm import RMSNorm
from fastformer.models.config import ModelConfig


def new_norm(config: ModelConfig, *, backend: str, dtype: str) -> LayerNorm | RMSNorm:
    """Return a norm of a model's rows, of its `norm_type`."""
    width, epsilon = config.embed_dim, config.layernorm_epsilon
    if config.norm_type == "rmsnorm":
        return RMSNorm(width, epsilon=epsilon, backend=backend, dtype=dtype)
    return LayerNorm(width, epsilon=epsilon, bias=config.norm_bias, backend=backend, dtype=dtype)
