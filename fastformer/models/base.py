"""What the encoder and the decoder share: embedding, blocks, and the training switch."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from fastformer import checks
from fastformer.backend import check_precision
from fastformer.batch import PackedBatch
from fastformer.errors import InvalidTypeError, NotForwardedError
from fastformer.kernels.program import SEQUENCES
from fastformer.layers.base import Layer, initial_stream
from fastformer.layers.dropout import Dropout, DropoutCounter
from fastformer.layers.embedding import Embedding
from fastformer.layers.linear import Linear, TiedLinear
from fastformer.layers.norm import new_norm
from fastformer.layers.positional_encoding import PositionalEncoding
from fastformer.layers.relative_positions import relative_positions
from fastformer.models.config import RECOMPUTE, ModelConfig
from fastformer.parameters import Array
from fastformer.program import Program
from fastformer.schedule import choose_way
from fastformer.tensors import Axis, Tensor
from fastformer.thread_choice import AdaptiveThreads
from fastformer.warmup import ensure_compiled
from fastformer.workspace import Workspace, Workspaces

ModelT = TypeVar("ModelT", bound="Model")

# Standard deviation of learned tables, as GPT-2 has it; and that of an embedding which must be
# seen beside sines, whose mean square is 1 / 2.
TABLE_STD = 0.02
BESIDE_SINES_STD = 0.5**0.5


class Model(Layer):
    """Embedding with positions, blocks, and a last norm where the blocks are pre-norm.

    Attributes:
        recompute: what a training step computes again in backward, so that it is not kept until
            then: "none", "attention" or "block" (Chen et al. 2016, arXiv:1604.06174). It changes no
            bit of any result. It can be set.
        memory_limit: bytes that a training step may keep between forward and backward, of one part
            of a batch; 0 for 128 MiB, or as many as the weights have. Where one sequence alone
            would keep more, more is computed again than `recompute` says. It can be set.
        tokenizer: what turns text into the model's ids, or None. It can be set, and is saved.
        labels: names of the classes, of each logit one, or None. They can be set, and are saved.
    """

    output: Linear | TiedLinear
    tokenizer: Any = None
    labels: tuple[str, ...] | None = None
    settable: ClassVar[Mapping[str, Callable[[Any], Any]]] = {
        "recompute": lambda value: checks.choice("recompute", value, RECOMPUTE),
        "memory_limit": lambda value: checks.integer("memory_limit", value, 0),
        "labels": lambda value: None if value is None else checks.names("labels", value),
    }

    def __init__(
        self,
        config: ModelConfig,
        config_class: type[ModelConfig],
        *,
        causal: bool,
        tied: bool,
        block: Callable[..., Layer],
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
        self.recompute, self.memory_limit = "none", 0
        self.threads = AdaptiveThreads(backend)
        self._spaces = Workspaces()
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
        norm = config.embedding_norm
        self.embedding_norm = new_norm(config, backend=backend, dtype=dtype) if norm else None
        self.dropout = Dropout(config.dropout, self.dropout_counter, backend=backend, dtype=dtype)
        self.blocks = tuple(
            block(
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
        checks.instance(type(self).__name__, "block", self.blocks[0], Layer)
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

    @property
    def logits_rows(self) -> Axis:
        """A row of the logits for each sequence, or for each token."""
        raise NotImplementedError

    def forward_ops(self, p: Program, logits: Tensor) -> None:
        """Append the ops of forward, which write the logits."""
        raise NotImplementedError

    def backward_ops(self, p: Program, dlogits: Tensor) -> None:
        """Append the ops of backward, which add to all gradients."""
        raise NotImplementedError

    def check(self, batch: PackedBatch) -> None:
        """Raise what `forward` raises of a batch."""
        self.embedding.check(batch, self.positions)
        if self.relative is not None:
            self.relative.check(batch)

    def forward(self, batch: PackedBatch) -> Array:
        """Return logits: (B, V), a row for each sequence, or (N, V), a row for each token.

        V is `config.num_logits`. A classifier has a row for each sequence, or with the pooling
        "none" for each token; a decoder's row for each token is what comes after it. Threads may
        share a model: each gets its own logits, one after the other.

        Raises:
            TypeError, ValueError: not a PackedBatch, or one that the model cannot read.
            OtherThreadError: another thread called one of the layers by itself.
        """
        with self.guard:
            self.guard.begin()
            self._spaces.shown = None  # where this one fails, there is none to undo
            self.check(batch)
            space = self.forward_workspace(batch)
            ensure_compiled(space.kernels((0, 1)))
            self.dropout_counter.count()
            with self.threads.at("forward", batch.num_tokens):
                space.run(batch, stages=(0, 1), numbers=self.numbers_of(space))
            self._spaces.shown = space
            self.show(space)
            return space.left("logits", self.rows_of(batch)).copy()

    def backward(self, dlogits: Array) -> None:  # type: ignore[override]
        """Add the gradients of all parameters, for the gradient by the logits, of their shape.

        Raises:
            TypeError, ValueError: what is no such gradient.
            NotForwardedError: forward was not called, or failed.
            OtherThreadError: another thread called forward in between.
        """
        with self.guard:
            self.guard.check_left()
            space, name = self._spaces.shown, f"{type(self).__name__}.backward"
            if space is None or space.batch is None:
                raise NotForwardedError(
                    f"{name}: there is no forward of the whole model to undo; call forward first"
                )
            rows = self.logits_rows.at(space.sizes)
            checks.matrix(name, "dlogits", dlogits, rows, self.config.num_logits, self.dtype)
            ensure_compiled(space.kernels((1, 2)))
            with self.threads.at("backward", len(dlogits)):
                # With the numbers that forward had, which are still there.
                space.run(space.batch, stages=(1, 2), copied={"dlogits": dlogits})

    def save(self, path: str | Path) -> None:
        """Write the model to one file, which `fastformer.load` reads; see `fastformer.save`."""
        # A file is what training keeps, of which models know nothing until one is written.
        from fastformer.saving import save

        save(self, path)  # type: ignore[arg-type]

    @property
    def workspaces(self) -> tuple[Workspace, ...]:
        """Those of all programs that were made so far."""
        return tuple(self._spaces.made.values())

    def forward_workspace(self, batch: PackedBatch) -> Workspace:
        """Return the workspace of the program of forward and backward, for a batch."""
        return self.workspace("forward", _forward_program, self.way_of(batch))

    def rows_of(self, batch: PackedBatch) -> int:
        """Return how many rows a batch's logits have."""
        return batch.num_sequences if self.logits_rows.size == SEQUENCES else batch.num_tokens

    def way_of(self, batch: PackedBatch, *, whole: bool = False) -> str:
        """Return how threads share a batch; see schedule.py.

        Args:
            whole: whether forward, loss and backward are one program.
        """
        config = self.config
        block = config.embed_dim * (4 * config.embed_dim + 2 * config.ffn_dim)
        return choose_way(
            batch.num_sequences, batch.num_tokens * config.embed_dim, block,
            self.parameters().values.size if whole else None,
        )  # fmt: skip

    def workspace(
        self,
        name: str,
        build: Callable[["Model", Program], None],
        way: str,
        recompute: str = "none",
    ) -> Workspace:
        """Return the workspace of a program of this model, which is made on first use.

        Args:
            name: of the program.    build: appends its ops.    way: see schedule.py.
            recompute: see `Program`.
        """
        key = name, way, self.dropout_counter.training and self.config.dropout > 0, recompute
        flat, made = self.parameters(), self._spaces.made
        if key not in made:
            program = Program(self.dtype.name, self, training=key[2])
            program.recompute = recompute
            build(self, program)
            made[key] = Workspace(
                program, way, ops=self.ops, max_seq_len=self.config.max_seq_len,
                gradients=flat.gradients,
            )  # fmt: skip
        return made[key]

    def put_gradients_in(self, memory: Array) -> None:
        """Keep the gradients in other memory from now on; each program is made anew, then.

        Args:
            memory: as of `Parameters.put_gradients_in`.
        """
        with self.guard:
            self.parameters().put_gradients_in(memory)
            self._spaces = Workspaces()
            self.forget_programs()

    def train(self: ModelT) -> ModelT:
        """Drop from now on, where the config has a dropout."""
        self.dropout_counter.training = True
        return self

    def eval(self: ModelT) -> ModelT:
        """Drop nothing from now on."""
        self.dropout_counter.training = False
        return self

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Drop nothing within, while other threads wait for their turn; then go on as before."""
        with self.guard:
            training = self.dropout_counter.training
            self.eval()
            try:
                yield
            finally:
                self.dropout_counter.training = training

    @property
    def program(self) -> Workspace:
        """The program of forward and backward that was run last: print it to see each op.

        Before the first forward, it is that of one long sequence.
        """
        space = self._spaces.shown or self.workspace("forward", _forward_program, "ops")
        if not space.waits:
            space.grow(self.config.max_seq_len, 1)
        return space

    def _embed_ops(self, p: Program) -> Tensor:
        """Append the embedding, its norm and its dropout."""
        x = p.forward(self.embedding, self.positions)
        if self.embedding_norm is not None:
            x = p.forward(self.embedding_norm, x)
        return p.forward(self.dropout, x)

    def _blocks_ops(self, p: Program, x: Tensor, rows: str | None = None) -> Tensor:
        """Append the blocks, of which the last may compute one row of each sequence alone."""
        inputs = []
        for block in self.blocks:
            options = {"rows": rows} if rows is not None and block is self.blocks[-1] else {}
            inputs.append((x, options))
            x = p.forward(block, x, **options)
        p.save(inputs=inputs)
        return x

    def _blocks_back(self, p: Program, dx: Tensor) -> Tensor:
        """Append the blocks' backward, each a section."""
        for index in reversed(range(len(self.blocks))):
            p.new_section()
            block, (x, options) = self.blocks[index], p.saved.inputs[index]
            if p.recompute == "block" and index < len(self.blocks) - 1:
                p.forward_again(block, x, **options)
            dx = p.backward(block, dx)
        p.new_section()
        return dx

    def _embed_back(self, p: Program, dx: Tensor) -> None:
        """Append the embedding's backward."""
        dx = p.backward(self.dropout, dx)
        if self.embedding_norm is not None:
            dx = p.backward(self.embedding_norm, dx)
        p.backward(self.embedding, dx)


def _forward_program(model: Model, p: Program) -> None:
    """Append forward, and backward as a stage of its own."""
    p.keeps = True
    sizes = model.logits_rows, Axis(model.config.num_logits)
    p.forward(model, p.copied("logits", *sizes))
    p.end_stage()
    p.backward(model, p.copied("dlogits", *sizes))
    p.end_stage()
