"""Before a run starts: all that it will call is compiled, so that no epoch has to wait for it.

Which kernels a model calls depends on the sizes of its batches. So each kind of batch that a run
has goes through the model once, and nothing depends on a list of what that calls.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias, TypeVar

import numpy as np

from fastformer.batch import Ids, PackedBatch
from fastformer.data.batches import batch_order
from fastformer.generation import beam_search, generate
from fastformer.key_value_cache import generation_workspace
from fastformer.models.config import TransformerConfig
from fastformer.models.decoder import TransformerDecoder
from fastformer.models.transformer import Transformer
from fastformer.training.examples import DocumentExamples, Examples, Source
from fastformer.training.gradients import clip_gradients
from fastformer.training.loss import CrossEntropyLoss
from fastformer.training.steps import (
    evaluated_at_once,
    step_gradients,
    training_kernels,
)
from fastformer.warmup import (
    EVALUATION_KERNELS,
    compiling_in_turn,
    ensure_compiled,
    telling_of_compilation,
)

Batch: TypeAlias = tuple[PackedBatch, Ids]
Place = TypeVar("Place")


def batches_of_each_size(
    source: Source, seed: int, epochs: range, batch_size: int
) -> Iterator[Batch]:
    """Yield batches of each number of sequences that these epochs have, with their targets.

    Where lengths differ, those with the fewest and with the most tokens: what a model calls changes
    once from few tokens to many, if at all. Of a source that is no set of examples, the first and
    the last batch of the first epoch.
    """
    if not epochs:
        return
    last = (source.size - 1) // batch_size
    places = [(epochs[0], place) for place in sorted({0, last})]
    if isinstance(source, Examples | DocumentExamples):
        lengths = source.lengths
        if lengths.min() < lengths.max():
            places = _of_each_size(
                (sequences, tokens, (epoch, place))
                for epoch in epochs
                for sequences, tokens, place in _sizes(
                    lengths[batch_order(source.size, seed, epoch)], batch_size
                )
            )
    for epoch, place in places:
        yield next(source.batches(seed, epoch, batch_size, place))


def _sizes(lengths: Ids, batch_size: int) -> Iterator[tuple[int, int, int]]:
    """Yield of sequences of these lengths each batch's number of them, its tokens, its place."""
    tokens = np.add.reduceat(lengths, range(0, lengths.size, batch_size)).tolist()
    for place, count in enumerate(tokens):
        yield min(batch_size, lengths.size - place * batch_size), count, place


def _of_each_size(sizes: Iterable[tuple[int, int, Place]]) -> list[Place]:
    """Return for each number of sequences the place with the fewest tokens, and with the most."""
    fewest: dict[int, tuple[int, Place]] = {}
    most: dict[int, tuple[int, Place]] = {}
    for sequences, tokens, place in sizes:
        if sequences not in fewest or tokens < fewest[sequences][0]:
            fewest[sequences] = tokens, place
        if sequences not in most or tokens > most[sequences][0]:
            most[sequences] = tokens, place
    return list(dict.fromkeys(place for _, place in (*fewest.values(), *most.values())))


def compile_for(
    model: Transformer | TransformerDecoder,
    loss_fn: CrossEntropyLoss,
    trained: Iterable[Batch],
    asked: Iterable[PackedBatch],
    make_step: Callable[[Transformer], None],
    shards: int = 0,
) -> None:
    """Compile what training on some batches calls, and asking about some sequences.

    No weight changes. Those who ask give many sequences at once, or one.

    Args:
        model, loss_fn: that are trained.    trained: batches with their targets.
        asked: sequences, of which so many are computed at a time as `predict_classes` does.
        make_step: makes a step, as training does, of another model that has gradients.
        shards: of a batch; see `step_gradients`.
    """
    if model.ops.name != "numba":
        return
    trained = list(trained)
    forward = [
        part
        for inputs in asked
        for part in _parts_of_each_size(inputs, evaluated_at_once(model, inputs))
    ]
    counter = model.dropout_counter
    training, forwards = counter.training, counter.forwards
    try:
        # What is known by name is compiled by several processes, and all of it at once.
        model.train()
        names = {name for batch, _ in trained for name in training_kernels(model, batch, shards)}
        model.eval()
        for batch in forward:
            names.update(model.forward_workspace(batch).kernels((0, 1)))
        if names and forward:
            names.update(EVALUATION_KERNELS)
        if names and isinstance(model, TransformerDecoder):
            for last_only in (False, True):
                names.update(generation_workspace(model, last_only).kernels())
        with compiling_in_turn(names):
            ensure_compiled(tuple(sorted(names)))
            with telling_of_compilation():
                _call_all(model, loss_fn, trained, forward, shards)
                if trained:
                    _call_step(model, make_step)
    finally:
        counter.training, counter.forwards = training, forwards
        model.zero_grad()


def _parts_of_each_size(inputs: PackedBatch, at_once: int) -> Iterator[PackedBatch]:
    """Yield a part of each size in which `evaluate` computes sequences, and one alone."""
    for place in _of_each_size(_sizes(np.diff(inputs.offsets), at_once)):
        first = place * at_once
        yield inputs.select(np.arange(first, min(first + at_once, inputs.num_sequences)))
    yield inputs.select(np.zeros(1, np.int64))


def _call_all(
    model: Transformer | TransformerDecoder,
    loss_fn: CrossEntropyLoss,
    trained: list[Batch],
    forward: list[PackedBatch],
    shards: int,
) -> None:
    model.train()
    for batch, targets in trained:
        step_gradients(model, batch, targets, loss_fn, shards=shards)
    model.eval()
    for batch in forward:
        logits = model.forward(batch)
        loss_fn.forward(logits, np.zeros(len(logits), np.int64))
    if isinstance(model, TransformerDecoder) and model.config.max_seq_len > 1:
        generate(model, [[0], [0, 0]], max_new_tokens=1)
        generate(model, [[0], [0]], max_new_tokens=2)
        beam_search(model, [0], beams=2, max_new_tokens=2)


def _call_step(
    model: Transformer | TransformerDecoder, make_step: Callable[[Transformer], None]
) -> None:
    """Call what makes a step of gradients, for a model of next to nothing."""
    least = Transformer(
        TransformerConfig(vocab_size=2, embed_dim=2, num_heads=1, num_layers=1, ffn_dim=1),
        backend=model.ops.name,
        dtype=model.dtype.name,
    )
    least.parameters().gradients.fill(1)
    clip_gradients(least.parameters(), 1)
    make_step(least)
