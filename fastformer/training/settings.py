"""What the settings of every kind of run have in common: checks, and `config.toml`."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from fastformer import checks
from fastformer.backend import BACKENDS, check_precision
from fastformer.data.tokenizers import FILE, Tokenizer, read_tokenizer, tokenizer_digest
from fastformer.data.vocabulary import NamedTokens
from fastformer.errors import CheckpointError, InvalidTypeError, RunError
from fastformer.models.config import DTYPES, ModelConfig, TransformerConfig
from fastformer.models.decoder import TransformerDecoder
from fastformer.models.transformer import Transformer
from fastformer.training.atomic_file import os_errors_as, read_file
from fastformer.training.checkpoint import Checkpoint
from fastformer.training.config import TrainingConfig
from fastformer.training.run_directory import RunDirectory

ModelT = TypeVar("ModelT", Transformer, TransformerDecoder)

_TABLES = ("task", "model", "training")
_OWN = ("seed", "backend", "dtype", "precision")
TOKENIZER_DIGEST = "tokenizer_digest"
_MOST_TOKENIZER_BYTES = 1 << 28


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that decides the bits of a run.

    A kind of run is a subclass with the classes of its task and model. One with `has_tokenizer`
    keeps its tokenizer in a file of its own, `tokenizer.json`, and in `config.toml` that file's
    digest alone.

    Attributes:
        best_by_loss: whether the best epoch has the lowest validation loss, not the best accuracy.
        start_from: directory of the run whose best weights it begins with; "" for none.
        tokenizer: what turns text into tokens, and back; None for a kind that has none.

    Raises:
        ValueError, TypeError: a value that is not allowed, or a model that the task does not fit.
    """

    kind: ClassVar[str]
    task_class: ClassVar[type[Any]]
    model_class: ClassVar[type[ModelConfig]]
    tokens: ClassVar[tuple[str, ...]] = ()
    has_tokenizer: ClassVar[bool] = False
    best_by_loss: ClassVar[bool] = False

    task: Any
    model: ModelConfig
    training: TrainingConfig
    seed: int = 42
    backend: str = "numba"
    dtype: str = "float32"
    precision: str = "float32"
    start_from: str = ""
    tokenizer: Tokenizer | None = None

    def __post_init__(self) -> None:
        """Check every value."""
        if (self.tokenizer is not None) != self.has_tokenizer:
            raise InvalidTypeError(
                f"{type(self).__name__} must have {'a' if self.has_tokenizer else 'no'} tokenizer, "
                f"got {self.tokenizer!r:.60}"
            )
        checks.integer("seed", self.seed, 0)
        checks.choice("backend", self.backend, BACKENDS)
        checks.choice("dtype", self.dtype, DTYPES)
        check_precision(self.precision, self.dtype)
        if not isinstance(self.start_from, str):
            raise InvalidTypeError(
                f"start_from must be the directory of a run, got {self.start_from!r}"
            )
        if self.model.vocab_size != self.vocab_size:
            checks.fail(
                f"vocab_size must be {self.vocab_size} for {self.task_name}, "
                f"got {self.model.vocab_size}"
            )
        longest, most = self.longest, self.model.max_seq_len
        if longest > most:
            checks.fail(
                f"{self.longest_is} have {longest} tokens, which is {longest - most} more than "
                f"max_seq_len={most}; {self.longest_remedy}"
            )

    @property
    def vocab_size(self) -> int:
        """How many token ids the task has."""
        return len(self.tokens) if self.tokenizer is None else self.tokenizer.vocab_size

    @property
    def task_name(self) -> str:
        """What the task is called in a message."""
        raise NotImplementedError

    @property
    def computed_with(self) -> str:
        """How the run computes, as a message says it."""
        rounded = "" if self.precision == "float32" else f" with {self.precision} products"
        return f"backend {self.backend}, {self.dtype}{rounded}"

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that the model must read."""
        raise NotImplementedError

    @property
    def longest_is(self) -> str:
        """What these sequences are called in a message."""
        raise NotImplementedError

    @property
    def longest_remedy(self) -> str:
        """What a message about them tells to do."""
        return "raise max_seq_len"

    @property
    def operations(self) -> tuple[str, ...]:
        """The operations in the task's questions."""
        raise NotImplementedError

    @property
    def named_tokens(self) -> NamedTokens:
        """The tokens that are looked at in the embedding."""
        return NamedTokens.of(self.tokens, self.operations)

    def new_model(self) -> Transformer | TransformerDecoder:
        """Return the model with its initial weights."""
        raise NotImplementedError

    def with_epochs(self, epochs: int) -> Self:
        """Return these settings with another number of epochs.

        Raises:
            ValueError, TypeError: it is not an integer >= 1.
        """
        return replace(self, training=replace(self.training, epochs=epochs))

    def check_sizes(self, checkpoint: Checkpoint) -> None:
        """Raise where a checkpoint is of another size than the model, before the model is made.

        Raises:
            CheckpointError: the message names the array.
        """
        model = self.model
        expected = {
            "embedding.weight": (model.vocab_size, model.embed_dim),
            f"blocks.{model.num_layers - 1}.feed_forward.expand.weight": (
                model.embed_dim,
                model.ffn_dim,
            ),
        }
        if isinstance(model, TransformerConfig):
            expected["output.weight"] = (model.embed_dim, model.num_logits)
        if model.positions == "learned":
            expected["positions.weight"] = (model.max_seq_len, model.embed_dim)
        for name, shape in expected.items():
            given = checkpoint.tensors.get(name)
            if given is None or given.shape != shape:
                found = "it is missing" if given is None else f"got {given.shape}"
                raise CheckpointError(
                    f"checkpoint {checkpoint.path} does not fit the model: weights: {name!r} must "
                    f"be {shape}, {found}; use the config.toml and the checkpoint of one run"
                )

    def made(self, model_class: type[ModelT]) -> ModelT:
        """Return a new model of a class, which is told how much memory training may take."""
        model = model_class(
            self.model,  # type: ignore[arg-type]
            seed=self.seed,
            backend=self.backend,
            dtype=self.dtype,
            precision=self.precision,
        )
        model.recompute, model.memory_limit = self.training.recompute, self.training.memory_limit
        return model

    def tables(self) -> dict[str, dict[str, Any]]:
        """Return the tables of `config.toml`."""
        own = {name: getattr(self, name) for name in ("kind", *_OWN)}
        if self.start_from:
            own["start_from"] = self.start_from
        tables = {"run": own, **{name: asdict(getattr(self, name)) for name in _TABLES}}
        if self.tokenizer is not None:
            tables["task"][TOKENIZER_DIGEST] = tokenizer_digest(self.tokenizer.file())
        return tables

    def files(self) -> dict[str, bytes]:
        """Return what the directory of a run holds besides `config.toml`: names and contents."""
        return {} if self.tokenizer is None else {FILE: self.tokenizer.file()}

    @classmethod
    def from_tables(
        cls, tables: Mapping[str, Mapping[str, Any]], directory: Path | None = None
    ) -> Self:
        """Return the settings that tables hold.

        Args:
            tables: of `config.toml`.    directory: where `files` are; for a kind that has any.

        Raises:
            KeyError, ValueError, TypeError: they are missing, unknown or not allowed.
            RunError: a file is missing, or is another one; the message names it.
        """
        own, task = dict(tables["run"]), dict(tables["task"])
        names = {field.name for field in fields(cls)} - {*_TABLES, "tokenizer"}
        checks.known_keys("run", own, {"kind"} | names)
        checks.choice("kind", own.pop("kind"), (cls.kind,))
        if cls.has_tokenizer:
            own["tokenizer"] = _read_tokenizer(task.pop(TOKENIZER_DIGEST), directory or Path())
        found = cls(
            task=checks.from_settings(cls.task_class, task),
            model=checks.from_settings(cls.model_class, tables["model"]),
            training=checks.from_settings(TrainingConfig, tables["training"]),
            **own,
        )
        checks.known_keys("config.toml", tables, ("run", *_TABLES))
        return found

    @classmethod
    def from_run(cls, run: RunDirectory) -> Self:
        """Read the settings of a run.

        Raises:
            RunError: they are missing, unknown or not allowed.
        """
        with settings_errors(run):
            return cls.from_tables(run.config, run.path)


@dataclass(frozen=True, kw_only=True)
class TokenizedSettings(Settings):
    """The settings of a run on texts of one's own, whose tokenizer is kept with it."""

    has_tokenizer: ClassVar[bool] = True

    tokenizer: Tokenizer

    @property
    def task_name(self) -> str:
        """What the task is called in a message."""
        return f"the {self.tokenizer.kind} of these texts' tokenizer"

    @property
    def operations(self) -> tuple[str, ...]:
        """There are none."""
        return ()

    @property
    def named_tokens(self) -> NamedTokens:
        """The first tokens of the vocabulary: of words, the most frequent ones."""
        return NamedTokens.of_tokenizer(self.tokenizer)


def _read_tokenizer(digest: str, directory: Path) -> Tokenizer:
    """Return the tokenizer of a run, if its file is the one that the run began with."""
    path = directory / FILE
    with os_errors_as(RunError, f"read the run's tokenizer, {path}"):
        content = read_file(path, _MOST_TOKENIZER_BYTES)
    found = tokenizer_digest(content)
    if found != digest:
        raise RunError(
            f"{path} is not the tokenizer that the run began with: its digest is {found}, and "
            f"config.toml has {digest!r:.60}; put the old file back, or use another run"
        )
    return read_tokenizer(path, content)


@contextlib.contextmanager
def settings_errors(run: RunDirectory) -> Iterator[None]:
    """Turn what is wrong with settings into a RunError that names the run's file."""
    try:
        yield
    except RunError:  # of another file, which its message names
        raise
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        problem = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise RunError(
            f"{run.path / 'config.toml'} does not hold the settings of a run: {problem}; mend it "
            "or use another run"
        ) from error
