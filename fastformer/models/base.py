"""What the encoder and the decoder share: embedding, blocks, and the training switch."""

from typing import TypeVar

import numpy as np

from fastformer import checks
from fastformer.backend import check_precision
from fastformer.batch import PackedBatch
from fastformer.errors import InvalidTypeError, NotForwardedError
from fastformer.layers.base import Layer, initial_stream
from fastformer.layers.calls import Calls, make
from fastformer.layers.dropout import Dropout, DropoutCounter
from fastformer.layers.embedding import Embedding
from fastformer.layers.linear import Linear, TiedLinear
from fastformer.layers.norm import new_norm
from fastformer.layers.positional_encoding import PositionalEncoding
from fastformer.layers.relative_positions import relative_positions
from fastformer.layers.transformer_block import TransformerBlock
from fastformer.models.config import ModelConfig
from fastformer.parameters import Array
from fastformer.program import Program, Tensor
from fastformer.thread_choice import AdaptiveThreads
from fastformer.warmup import ensure_compiled, kernels_of

ModelT = TypeVar("ModelT", bound="Model")

# Standard deviation of learned tables, as GPT-2 has it; and that of an embedding which must be
# seen beside sines, whose mean square is 1 / 2.
TABLE_STD = 0.02
BESIDE_SINES_STD = 0.5**0.5


class Model(Layer):
    """Embedding with positions, blocks, and a last norm where the blocks are pre-norm."""

    output: Linear | TiedLinear

    def __init__(
        self,
        config: ModelConfig,
        config_class: type[ModelConfig],
        *,
        causal: bool,
        tied: bool,
        seed: int,
        backend: str,
        dtype: str,
        precision: str,
    ) -> None:
        """Make all but the read-out; subclasses then call `parameters`."""
        if not isinstance(config, config_class):
            raise InvalidTypeError(
                f"config must be a {config_class.__name__}, got {type(config).__name__}"
            )
        check_precision(precision, dtype)
        super().__init__(backend, dtype, precision)
        self.config = config
        self.threads = AdaptiveThreads(backend)
        self.dropout_counter = DropoutCounter(checks.integer("seed", seed, 0))
        self.stream = initial_stream(seed)
        self.relative = relative_positions(config, dtype)
        self.embedding = Embedding(
            config.vocab_size,
            config.embed_dim,
            std=BESIDE_SINES_STD if config.positions == "sinusoidal" and not tied else TABLE_STD,
            seed=self.stream,
            backend=backend,
            dtype=dtype,
        )
        self.positions = None if self.relative else self._added_positions(backend, dtype)
        self.dropout = Dropout(config.dropout, self.dropout_counter, backend=backend, dtype=dtype)
        self.blocks = tuple(
            TransformerBlock(
                config,
                causal=causal,
                counter=self.dropout_counter,
                positions=self.relative,
                seed=self.stream,
                backend=backend,
                dtype=dtype,
                precision=precision,
            )
            for _ in range(config.num_layers)
        )
        self.final_norm = (
            new_norm(config, backend=backend, dtype=dtype) if config.norm == "pre" else None
        )

    def _added_positions(self, backend: str, dtype: str) -> PositionalEncoding:
        return PositionalEncoding(
            self.config.embed_dim,
            self.config.max_seq_len,
            learned=self.config.positions == "learned",
            std=TABLE_STD,
            seed=self.stream,
            backend=backend,
            dtype=dtype,
        )

    def forward(self, batch: PackedBatch) -> Array:
        """Return logits: (B, V) of a classifier, a row for each sequence; (N, V) of a decoder.

        A decoder's row for each token is what comes after it. Threads may share a model: each gets
        its own logits, one after the other.

        Raises:
            TypeError, ValueError: not a PackedBatch, or one that the model cannot read.
            OtherThreadError: another thread called one of the layers by itself.
        """
        calls: Calls = []
        with self.guard:
            result = self.plan_forward(batch, calls)
            with self.threads.at("forward", batch.num_tokens):
                return make(calls, result)

    def backward(self, dlogits: Array) -> None:
        """Add the gradients of all parameters, for the gradient by the logits, of their shape.

        Raises:
            TypeError, ValueError: what is no such gradient.
            NotForwardedError: forward was not called, or failed, or what it left is overwritten.
            OtherThreadError: another thread called forward in between.
        """
        calls: Calls = []
        with self.guard:
            self.guard.check_left()
            if not self.guard.whole:
                raise NotForwardedError(
                    f"{type(self).__name__}.backward: there is no forward of the whole model to "
                    "undo, or a layer was called or text generated since; call forward first"
                )
            self.plan_backward(dlogits, calls)
            with self.threads.at("backward", len(dlogits)):
                make(calls, dlogits)

    def plan_forward(self, batch: PackedBatch, calls: Calls) -> Array:
        """Do what `forward` does, whose result is there when the calls are made."""
        self.guard.begin()
        logits = self._plan_forward(batch, calls)
        self.guard.whole = True
        return logits

    def _plan_forward(self, batch: PackedBatch, calls: Calls) -> Array:
        raise NotImplementedError

    def plan_backward(self, dlogits: Array, calls: Calls) -> None:
        """Do what `backward` does, as soon as the calls are made."""
        raise NotImplementedError

    def train(self: ModelT) -> ModelT:
        """Drop from now on, where the config has a dropout."""
        self.dropout_counter.training = True
        return self

    def eval(self: ModelT) -> ModelT:
        """Drop nothing from now on."""
        self.dropout_counter.training = False
        return self

    def kernels(self, *, block_op: str | None, training: bool = False) -> tuple[str, ...]:
        """Return the names of the kernels that are compiled ahead for forward, or training too.

        None of the reference, and none in float64, whose kernels are compiled at their first call.

        Args:
            block_op: of whole blocks; None where their layers are called.
        """
        if self.ops.name != "numba" or self.dtype != np.float32:
            return ()
        return kernels_of(
            self.precision,
            block_op=block_op,
            last_norm=self.final_norm is not None,
            chooses_rows=getattr(self.config, "pooling", "mean") != "mean",
            training=training,
        )

    def prepare(self, *, block_op: str | None, training: bool = False) -> None:
        """Compile what forward calls, and backward and a step too if they follow, on all cores.

        Only the first model of its kind takes time, and only where nothing is kept on disk yet.
        Arguments are those of `kernels`.
        """
        ensure_compiled(self.kernels(block_op=block_op, training=training))

    def _embed(self, batch: PackedBatch, calls: Calls | None = None) -> Array:
        if isinstance(batch, PackedBatch):  # the embedding refuses others
            self.prepare(block_op=self.blocks[0].op_for(batch))
        self.dropout_counter.count()
        x = self.embedding.forward(batch, self.positions, calls=calls)
        return self.dropout.forward(x, calls=calls)

    def _embed_backward(self, dx: Array, calls: Calls) -> None:
        self.embedding.backward(self.dropout.backward(dx, calls=calls), calls=calls)

    def _logits(self, x: Array, calls: Calls) -> Array:
        """Read out x: an array of the caller's own, which the next forward must not change."""
        out = np.empty((len(x), self.config.vocab_size), self.dtype)
        return self.output.forward(x, out=out, calls=calls)

    def _embed_ops(self, p: Program) -> Tensor:
        """Append the embedding and its dropout."""
        return p.forward(self.dropout, p.forward(self.embedding, self.positions))

    def _blocks_back(self, p: Program, dx: Tensor) -> Tensor:
        """Append the blocks' backward, each a section."""
        for block in reversed(self.blocks):
            p.new_section()
            dx = p.backward(block, dx)
        p.new_section()
        return dx

    def _embed_back(self, p: Program, dx: Tensor) -> None:
        """Append the embedding's backward."""
        p.backward(self.embedding, p.backward(self.dropout, dx))
