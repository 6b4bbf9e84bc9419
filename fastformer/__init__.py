"""fastformer: small transformers, trained fast on a CPU.

Names are imported when they are first used, so that `import fastformer` itself is quick and
imports neither Numba nor Matplotlib.
"""

import importlib
from typing import TYPE_CHECKING, Any

from fastformer import threads

__version__ = "0.1.0"

_HOMES = {
    "fastformer.batch": ("PackedBatch", "pack", "pack_targets", "pack_text"),
    "fastformer.data.tokenizers": (
        "BPETokenizer",
        "ByteTokenizer",
        "CharacterTokenizer",
        "WordTokenizer",
    ),
    "fastformer.generation": ("generate", "generate_stream"),
    "fastformer.kernels.op": ("op",),
    "fastformer.layer_check": ("check_layer",),
    "fastformer.layers.activation": ("ExactGELU", "GELU", "Mish", "ReLU"),
    "fastformer.layers.base": ("Layer",),
    "fastformer.layers.attention": ("MultiHeadAttention",),
    "fastformer.layers.dropout": ("Dropout",),
    "fastformer.layers.embedding": ("Embedding",),
    "fastformer.layers.feed_forward": ("FeedForward",),
    "fastformer.layers.layernorm": ("LayerNorm",),
    "fastformer.layers.linear": ("Linear",),
    "fastformer.layers.positional_encoding": ("PositionalEncoding",),
    "fastformer.layers.relative_positions": ("RelativePositions",),
    "fastformer.layers.rmsnorm": ("RMSNorm",),
    "fastformer.layers.softmax": ("Softmax",),
    "fastformer.layers.transformer_block": ("TransformerBlock",),
    "fastformer.models.config": ("DecoderConfig", "TransformerConfig"),
    "fastformer.models.decoder": ("TransformerDecoder",),
    "fastformer.models.transformer": ("Transformer",),
    "fastformer.parameters": ("Parameter",),
    "fastformer.saving": ("load", "save"),
    "fastformer.training.callbacks": ("TrainingCallbacks",),
    "fastformer.training.fit": ("fit",),
    "fastformer.training.gradients": ("clip_gradients",),
    "fastformer.training.loss": ("CrossEntropyLoss",),
    "fastformer.training.moving_average": ("EMA",),
    "fastformer.training.optimizers": ("SGD", "Adam", "AdamW"),
    "fastformer.training.steps": ("accumulate_gradients", "evaluate", "train_step"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME_OF)]

# Before Numba is imported, so that a container's CPU quota counts. Where it is imported already,
# its pool is left as it is.
threads.configure_before_numba()

if TYPE_CHECKING:
    from fastformer.batch import PackedBatch as PackedBatch
    from fastformer.batch import pack as pack
    from fastformer.batch import pack_targets as pack_targets
    from fastformer.batch import pack_text as pack_text
    from fastformer.data.tokenizers import BPETokenizer as BPETokenizer
    from fastformer.data.tokenizers import ByteTokenizer as ByteTokenizer
    from fastformer.data.tokenizers import CharacterTokenizer as CharacterTokenizer
    from fastformer.data.tokenizers import WordTokenizer as WordTokenizer
    from fastformer.generation import generate as generate
    from fastformer.generation import generate_stream as generate_stream
    from fastformer.kernels.op import op as op
    from fastformer.layer_check import check_layer as check_layer
    from fastformer.layers.activation import GELU as GELU
    from fastformer.layers.activation import ExactGELU as ExactGELU
    from fastformer.layers.activation import Mish as Mish
    from fastformer.layers.activation import ReLU as ReLU
    from fastformer.layers.attention import MultiHeadAttention as MultiHeadAttention
    from fastformer.layers.base import Layer as Layer
    from fastformer.layers.dropout import Dropout as Dropout
    from fastformer.layers.embedding import Embedding as Embedding
    from fastformer.layers.feed_forward import FeedForward as FeedForward
    from fastformer.layers.layernorm import LayerNorm as LayerNorm
    from fastformer.layers.linear import Linear as Linear
    from fastformer.layers.positional_encoding import PositionalEncoding as PositionalEncoding
    from fastformer.layers.relative_positions import RelativePositions as RelativePositions
    from fastformer.layers.rmsnorm import RMSNorm as RMSNorm
    from fastformer.layers.softmax import Softmax as Softmax
    from fastformer.layers.transformer_block import TransformerBlock as TransformerBlock
    from fastformer.models.config import DecoderConfig as DecoderConfig
    from fastformer.models.config import TransformerConfig as TransformerConfig
    from fastformer.models.decoder import TransformerDecoder as TransformerDecoder
    from fastformer.models.transformer import Transformer as Transformer
    from fastformer.parameters import Parameter as Parameter
    from fastformer.saving import load as load
    from fastformer.saving import save as save
    from fastformer.training.callbacks import TrainingCallbacks as TrainingCallbacks
    from fastformer.training.fit import fit as fit
    from fastformer.training.gradients import clip_gradients as clip_gradients
    from fastformer.training.loss import CrossEntropyLoss as CrossEntropyLoss
    from fastformer.training.moving_average import EMA as EMA
    from fastformer.training.optimizers import SGD as SGD
    from fastformer.training.optimizers import Adam as Adam
    from fastformer.training.optimizers import AdamW as AdamW
    from fastformer.training.steps import accumulate_gradients as accumulate_gradients
    from fastformer.training.steps import evaluate as evaluate
    from fastformer.training.steps import train_step as train_step


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'fastformer' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
