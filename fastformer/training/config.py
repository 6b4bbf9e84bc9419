"""The settings of a training run."""

from dataclasses import dataclass, field

from fastformer import checks
from fastformer.models.config import RECOMPUTE

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "warmup", "cosine")

MOST_SHARDS = 64
"""Of a batch."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a model is trained. The defaults are those of the digit task.

    Raises:
        ValueError, TypeError: a value that is not allowed; the message names it.
    """

    epochs: int = field(default=8, metadata={"help": "passes over the training examples"})
    batch_size: int = field(default=32, metadata={"help": "sequences per forward pass"})
    accumulation_steps: int = field(
        default=1,
        metadata={"help": "batches that make one optimizer step, as one large batch would"},
    )
    optimizer: str = field(default="adam", metadata={"help": "adam, adamw or sgd"})
    learning_rate: float = field(default=1e-3, metadata={"help": "peak learning rate"})
    schedule: str = field(
        default="constant",
        metadata={
            "help": "constant, warmup (linear, then "
            "constant) or cosine (linear warm-up, then half a cosine)"
        },
    )
    warmup_steps: int = field(default=0, metadata={"help": "steps of linear warm-up"})
    min_learning_rate: float = field(default=0.0, metadata={"help": "where the cosine ends"})
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW's decay of weight matrices"})
    l2_penalty: float = field(
        default=0.0,
        metadata={
            "help": "times each weight of a matrix is added to its gradient, with adam and sgd: "
            "PyTorch's weight_decay of these"
        },
    )
    beta2: float = field(
        default=0.999, metadata={"help": "decay of the mean square gradient of adam and adamw"}
    )
    amsgrad: bool = field(
        default=False,
        metadata={
            "help": "adam and adamw divide by the largest mean square gradient so far "
            "(Reddi et al. 2018)"
        },
    )
    momentum: float = field(default=0.0, metadata={"help": "momentum of sgd"})
    nesterov: bool = field(
        default=False, metadata={"help": "sgd's steps look ahead by the momentum (Nesterov's)"}
    )
    clip_norm: float = field(
        default=0.0, metadata={"help": "largest norm of the whole gradient; 0 for no clipping"}
    )
    label_smoothing: float = field(
        default=0.0,
        metadata={
            "help": "share of each target that the training loss spreads over all classes "
            "(Szegedy et al. 2016); validation and test losses are without"
        },
    )
    patience: int = field(
        default=0,
        metadata={
            "help": "epochs without a better validation accuracy, or for texts and their labels a "
            "lower loss, after which training stops; 0 for never"
        },
    )
    shards: int = field(
        default=0,
        metadata={
            "help": "parts of a batch, a power of two, whose gradients are added in one fixed "
            "order; processes that mpiexec starts share them; 0 for as many as the sizes of batch "
            "and model say"
        },
    )
    local_steps: int = field(
        default=0,
        metadata={
            "help": "steps that each process of mpiexec makes by itself, on its part of each "
            "batch, before all agree (DiLoCo), for slow networks; 0: they agree on each gradient"
        },
    )
    outer_learning_rate: float = field(
        default=0.7, metadata={"help": "with local steps: of the step by which processes agree"}
    )
    outer_momentum: float = field(
        default=0.9, metadata={"help": "with local steps: Nesterov's momentum of that step"}
    )
    recompute: str = field(
        default="none",
        metadata={
            "help": "what backward computes again and is not kept until then, to save memory: "
            "none, attention or block (Chen et al. 2016); results have the same bits"
        },
    )
    memory_limit: int = field(
        default=0,
        metadata={
            "help": "bytes that a step may keep between forward and backward; larger batches are "
            "computed in parts (0: 128 MiB, or the size of the weights)"
        },
    )
    checkpoint_every: int = field(
        default=0,
        metadata={
            "help": "steps between checkpoints, besides the one after each epoch; 0 for none"
        },
    )

    def __post_init__(self) -> None:
        """Check every value."""
        for name, minimum in (
            ("epochs", 1),
            ("batch_size", 1),
            ("accumulation_steps", 1),
            ("warmup_steps", 0),
            ("patience", 0),
            ("checkpoint_every", 0),
            ("memory_limit", 0),
            ("local_steps", 0),
        ):
            checks.integer(name, getattr(self, name), minimum)
        checks.integer("shards", self.shards, 0, MOST_SHARDS)
        if self.shards & (self.shards - 1):
            checks.fail(f"shards must be a power of two, or 0, got {self.shards}")
        checks.choice("optimizer", self.optimizer, OPTIMIZERS)
        checks.choice("schedule", self.schedule, SCHEDULES)
        checks.choice("recompute", self.recompute, RECOMPUTE)
        checks.number("learning_rate", self.learning_rate, above=0)
        checks.number(
            "min_learning_rate", self.min_learning_rate, at_least=0, at_most=self.learning_rate
        )
        checks.number("weight_decay", self.weight_decay, at_least=0)
        checks.number("l2_penalty", self.l2_penalty, at_least=0)
        checks.boolean("amsgrad", self.amsgrad)
        checks.boolean("nesterov", self.nesterov)
        checks.number("beta2", self.beta2, at_least=0, below=1)
        checks.number("momentum", self.momentum, at_least=0, below=1)
        checks.number("outer_learning_rate", self.outer_learning_rate, above=0)
        checks.number("outer_momentum", self.outer_momentum, at_least=0, below=1)
        checks.number("clip_norm", self.clip_norm, at_least=0)
        checks.number("label_smoothing", self.label_smoothing, at_least=0, below=1)
        self._check_optimizer()

    def _check_optimizer(self) -> None:
        """Refuse what the optimizer would leave out."""
        if self.l2_penalty and self.optimizer == "adamw":
            checks.fail("l2_penalty is for adam and sgd; adamw has weight_decay, give that instead")
        if self.amsgrad and self.optimizer == "sgd":
            checks.fail("amsgrad is for adam and adamw, got optimizer sgd; leave out one of them")
        if self.nesterov and (self.optimizer != "sgd" or not self.momentum):
            checks.fail(
                "nesterov is for sgd with a momentum > 0, got "
                f"optimizer {self.optimizer} and momentum {self.momentum}"
            )
