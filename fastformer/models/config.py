"""The settings of a model. Every default is a fact about a model that people know."""

from dataclasses import dataclass, field

from fastformer import checks

ACTIVATIONS = ("relu", "gelu", "gelu_exact", "mish", "swiglu", "geglu")
NORMS = ("post", "pre")
NORM_TYPES = ("layernorm", "rmsnorm")
POSITIONS = ("sinusoidal", "learned", "rotary", "alibi")
# Those that attention is told of; the others are added to the embedding.
RELATIVE_POSITIONS = ("rotary", "alibi")
# What backward computes again, so that it is not kept until then.
RECOMPUTE = ("none", "attention", "block")
POOLINGS = ("first", "mean", "last", "none")
DTYPES = ("float32", "float64")
# Beyond these a model would be made for hours, or fill the memory with positions.
MOST_LAYERS, MOST_TOKENS = 4096, 1 << 20


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What the encoder and the decoder have in common.

    Raises:
        ValueError, TypeError: a value that is not allowed; the message names it.
    """

    vocab_size: int = field(metadata={"help": "number of token ids"})
    embed_dim: int = field(default=64, metadata={"help": "width of the residual stream"})
    num_heads: int = field(default=4, metadata={"help": "attention heads; must divide embed_dim"})
    num_kv_heads: int = field(
        default=0,
        metadata={
            "help": "heads of keys and values, which groups of attention heads share; must divide "
            "num_heads (0: as many; 1: multi-query attention)"
        },
    )
    head_size: int = field(
        default=0, metadata={"help": "width of each attention head (0: embed_dim / num_heads)"}
    )
    qk_norm: bool = field(
        default=False,
        metadata={
            "help": "normalise queries and keys of each head, so that scores stay small "
            "(Henry et al. 2020)"
        },
    )
    num_layers: int = field(default=2, metadata={"help": "transformer blocks"})
    ffn_dim: int = field(default=256, metadata={"help": "hidden width of the feed-forward layer"})
    max_seq_len: int = field(default=50, metadata={"help": "longest sequence, in tokens"})
    norm: str = field(
        default="post",
        metadata={
            "help": "norm after each residual sum "
            "(post: Vaswani et al. 2017) or before each sub-layer (pre: GPT-2)"
        },
    )
    norm_type: str = field(
        default="layernorm",
        metadata={"help": "layernorm, or rmsnorm: without mean and bias (Zhang & Sennrich 2019)"},
    )
    activation: str = field(
        default="relu",
        metadata={
            "help": "relu, gelu in its tanh form, gelu_exact (PyTorch's default form), mish (Misra "
            "2019), or swiglu or geglu (Shazeer 2020; with the tanh form): a gate with a matrix of "
            "its own, so that the feed-forward layer is half as large again"
        },
    )
    positions: str = field(
        default="sinusoidal",
        metadata={
            "help": "sinusoidal or learned: added to the embedding; rotary: queries and keys are "
            "turned by their place (Su et al. 2021); alibi: scores fall with the distance "
            "(Press et al. 2022)"
        },
    )
    rotary_base: float = field(
        default=10000.0,
        metadata={"help": "base of rotary positions' angles: larger for longer sequences"},
    )
    rotary_scaling: float = field(
        default=1.0,
        metadata={
            "help": "what places are divided by before rotary positions turn by them, so that "
            "longer sequences have the angles of shorter ones (Chen et al. 2023)"
        },
    )
    embedding_norm: bool = field(
        default=False, metadata={"help": "a norm of the embedding, positions included (BERT)"}
    )
    dropout: float = field(
        default=0.0,
        metadata={"help": "share of sub-layer outputs and embeddings that is zeroed in training"},
    )
    qkv_bias: bool = field(
        default=False, metadata={"help": "biases of the attention's queries, keys and values"}
    )
    attention_output_bias: bool = field(
        default=False, metadata={"help": "a bias of the attention's output projection"}
    )
    ffn_bias: bool = field(
        default=True, metadata={"help": "biases of the feed-forward layer's products"}
    )
    norm_bias: bool = field(default=True, metadata={"help": "a bias of each layernorm"})
    output_bias: bool = field(
        default=True,
        metadata={"help": "a bias of the logits, where their weights are not the embedding table"},
    )
    layernorm_epsilon: float = field(
        default=1e-5, metadata={"help": "added to the variance, or to rmsnorm's mean square"}
    )

    @property
    def num_logits(self) -> int:
        """V, how many logits a row has: one for each token id."""
        return self.vocab_size

    def __post_init__(self) -> None:
        """Check every value."""
        most = {"num_layers": MOST_LAYERS, "max_seq_len": MOST_TOKENS}
        for name in (
            "vocab_size",
            "embed_dim",
            "num_heads",
            "num_layers",
            "ffn_dim",
            "max_seq_len",
        ):
            # As Python has them: NumPy's would overflow in products of sizes.
            value = checks.integer(name, getattr(self, name), 1, most.get(name))
            object.__setattr__(self, name, value)
        checks.head_size(self.embed_dim, self.num_heads, self.head_size)
        checks.kv_heads(self.num_heads, self.num_kv_heads)
        checks.choice("norm", self.norm, NORMS)
        checks.choice("norm_type", self.norm_type, NORM_TYPES)
        checks.choice("activation", self.activation, ACTIVATIONS)
        checks.choice("positions", self.positions, POSITIONS)
        if self.positions == "rotary":
            checks.even_head_size(self.embed_dim, self.num_heads, self.head_size)
        checks.number("rotary_base", self.rotary_base, above=0)
        checks.number("rotary_scaling", self.rotary_scaling, above=0)
        checks.number("dropout", self.dropout, at_least=0, below=1)
        for name in (
            "qk_norm", "embedding_norm", "qkv_bias", "attention_output_bias", "ffn_bias",
            "norm_bias", "output_bias",
        ):  # fmt: skip
            checks.boolean(name, getattr(self, name))
        checks.number("layernorm_epsilon", self.layernorm_epsilon, above=0)


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(ModelConfig):
    """The encoder classifier. Its defaults are llmlearn's model."""

    num_classes: int = field(
        default=0, metadata={"help": "classes to choose from (0: as many as token ids)"}
    )
    pooling: str = field(
        default="first",
        metadata={
            "help": "which token's state is classified: the first, the last, or the mean of all; "
            "none: each token by itself (tagging)"
        },
    )

    @property
    def num_logits(self) -> int:
        """V, how many logits a row has: one for each class."""
        return self.num_classes or self.vocab_size

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        object.__setattr__(self, "num_classes", checks.integer("num_classes", self.num_classes, 0))
        checks.choice("pooling", self.pooling, POOLINGS)


def _with_default(default: str, name: str) -> str:
    """Return a field of every model with another default."""
    return field(default=default, metadata=ModelConfig.__dataclass_fields__[name].metadata)


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(ModelConfig):
    """The causal decoder. Its defaults are GPT-2's choices: pre-norm, GELU, learned positions."""

    norm: str = _with_default("pre", "norm")
    activation: str = _with_default("gelu", "activation")
    positions: str = _with_default("learned", "positions")
    tied_embeddings: bool = field(
        default=True,
        metadata={"help": "use the embedding table as output weights (Press & Wolf 2017)"},
    )

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        checks.boolean("tied_embeddings", self.tied_embeddings)
