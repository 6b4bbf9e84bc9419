"""A model in one file: its settings, its weights, its tokenizer and labels where it has them.

The file is a checkpoint, a safetensors file in which every damaged bit is noticed.
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fastformer import checks
from fastformer.backend import BACKENDS
from fastformer.data.tokenizers import read_tokenizer
from fastformer.errors import CheckpointError, InvalidTypeError
from fastformer.layers.feed_forward import FeedForward
from fastformer.layers.transformer_block import TransformerBlock
from fastformer.models.config import DecoderConfig, TransformerConfig
from fastformer.models.decoder import TransformerDecoder
from fastformer.models.transformer import Transformer
from fastformer.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fastformer.training.run_directory import RunDirectory
from fastformer.training.runs import best_model, settings_of

_KINDS: dict[str, tuple[type, type]] = {
    "Transformer": (Transformer, TransformerConfig),
    "TransformerDecoder": (TransformerDecoder, DecoderConfig),
}


def save(model: Transformer | TransformerDecoder, path: str | Path) -> None:
    """Write a model to one file; one that was there is replaced when the new one is safe on disk.

    `model.save(path)` is the same.

    Args:
        model: with its `tokenizer` and its `labels`, where it was given them.
        path: the file, such as "model.safetensors"; its directory must exist.

    Raises:
        TypeError: no model, one that is made of layers of one's own, or a tokenizer that is none.
        ValueError: another number of labels than of logits.
        CheckpointError: the file could not be written; an earlier one is still there.
    """
    checks.instance("save", "model", model, Transformer, TransformerDecoder)
    blocks = [block for block in model.blocks if type(block) is TransformerBlock]
    if len(blocks) < len(model.blocks) or any(
        type(block.feed_forward) is not FeedForward for block in blocks
    ):
        raise InvalidTypeError(
            "save: the model has layers of your own, which its settings do not name; save its "
            "state_dict(), for instance with numpy.savez"
        )
    metadata: dict[str, Any] = {
        "model": type(model).__name__,
        "config": asdict(model.config),
        "dtype": model.dtype.name,
        "precision": model.precision,
    }
    if model.tokenizer is not None:
        if not callable(getattr(model.tokenizer, "file", None)):
            raise InvalidTypeError(
                "save: model.tokenizer must be a tokenizer of fastformer.data.tokenizers, got "
                f"{model.tokenizer!r:.60}"
            )
        metadata["tokenizer"] = model.tokenizer.file().decode()
    if model.labels is not None:
        _check_labels("save", model)
        metadata["labels"] = list(model.labels)
    save_checkpoint(path, model.state_dict(), metadata)


def load(path: str | Path, *, backend: str = "numba") -> Any:
    """Return the model of a file that `save` wrote, or the best one of a run.

    Args:
        path: the file, or the directory of a run.    backend: "numba" or "reference".

    Returns:
        A `Transformer` or a `TransformerDecoder`, to train on or to ask, with the `tokenizer` and
        the `labels` that it was saved with, or that its run has.

    Raises:
        CheckpointError: there is no such file, it is damaged, of a newer version, or no model.
        RunError: the directory is no run, is damaged, or has no checkpoint yet.
    """
    if Path(path).is_dir():
        run = RunDirectory.open(path)
        checks.choice("backend", backend, BACKENDS)
        return best_model(run, replace(settings_of(run), backend=backend))[0]
    checkpoint = load_checkpoint(path)
    try:
        kind = checks.choice("model", checkpoint.metadata["model"], tuple(_KINDS))
        model = _model_of(checkpoint, *_KINDS[kind], backend)
        if "tokenizer" in checkpoint.metadata:
            model.tokenizer = read_tokenizer(
                checkpoint.path, checkpoint.metadata["tokenizer"].encode()
            )
        if "labels" in checkpoint.metadata:
            model.labels = checkpoint.metadata["labels"]
            _check_labels("load", model)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        problem = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(
            f"{checkpoint.path} does not hold a model that fastformer.save wrote: {problem}"
        ) from error
    return model


def _check_labels(owner: str, model: Transformer | TransformerDecoder) -> None:
    """Raise where there is another number of labels than of logits."""
    count, wanted = len(model.labels or ()), model.config.num_logits
    if count != wanted:
        checks.fail(
            f"{owner}: model.labels must have {wanted} names, one for each logit of a row, got "
            f"{count}"
        )


def _model_of(checkpoint: Checkpoint, model_class: type, config_class: type, backend: str) -> Any:
    metadata = checkpoint.metadata
    config: Any = checks.from_settings(config_class, metadata["config"])
    # Before a model is made, which may be far larger than the file.
    expected = {"embedding.weight": (config.vocab_size, config.embed_dim)}
    if model_class is Transformer:
        expected["output.weight"] = (config.embed_dim, config.num_logits)
    for name, shape in expected.items():
        given = checkpoint.tensors[name].shape
        if given != shape:
            checks.fail(f"its {name} is {given}, and its settings say {shape}")
    own = {"dtype": metadata["dtype"], "precision": metadata["precision"], "backend": backend}
    model = model_class(config, **own)
    model.load_state_dict(checkpoint.tensors)
    return model
