"""Row D4: misuse of every public call is a clear error, or has the result that it should have.

A cell is an argument of a call and a way to spoil it. What is spoilt must be refused by a TypeError
or ValueError of fastformer whose message has the argument's name, what was given and what is
allowed (and the place of the first bad id); or the result must be that of the good argument.
"""

import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import models
import numpy as np

import fastformer as ff
from fastformer.backend import BACKENDS
from fastformer.data.batches import batch_order, iterate_batches
from fastformer.errors import FastformerError, InvalidValueError
from fastformer.models.config import RELATIVE_POSITIONS
from fastformer.training.config import TrainingConfig
from fastformer.training.metrics import wilson_interval
from fastformer.training.schedules import learning_rate_at
from tests.scorecard.rows import Finding, Row, Tier

Array = np.ndarray[Any, Any]
GIVEN = r"\b(got|has|is|missing|differs|unknown|of \d+ digits)\b|' at character \d"


def _misaligned(x: Array) -> Array:
    memory = np.zeros(x.nbytes + 1, np.uint8)
    copy = memory[1:].view(x.dtype).reshape(x.shape)
    copy[...] = x
    return copy


def _read_only(x: Array) -> Array:
    copy = x.copy()
    copy.flags.writeable = False
    return copy


# What may be done to any array.
ARRAYS: dict[str, Callable[[Array], Any]] = {
    "float16": lambda x: x.astype(np.float16), "complex": lambda x: x.astype(complex),
    "bool": lambda x: x.astype(bool), "object": lambda x: x.astype(object),
    "text": lambda x: x.astype(str), "big-endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "0-d": lambda x: x.reshape(-1)[:1].reshape(()), "flat": lambda x: np.stack([x, x]).reshape(-1),
    "one axis more": lambda x: np.stack([x]), "two axes more": lambda x: x[None, None],
    "a row more": lambda x: np.concatenate([x, x[:1]]), "empty": lambda x: x[:0],
    "a column less": lambda x: np.ascontiguousarray(x[..., :-1]),
    "Fortran order": np.asfortranarray,
    "strided": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "reversed": lambda x: x[::-1].copy()[::-1],
    "read-only": _read_only, "misaligned": _misaligned, "a list": lambda x: x.tolist(),
    "None": lambda x: None, "a word": lambda x: "x", "a number": lambda x: 3,
    "other float": lambda x: x.astype(np.float64 if x.dtype == np.float32 else np.float32),
    "integers": lambda x: x.astype(np.int32),
    "huge": lambda x: np.broadcast_to(x.reshape(-1)[0], (2**31, 2**31)),
}  # fmt: skip
IDS: dict[str, Callable[[Array], Any]] = {
    **{name: ARRAYS[name] for name in ARRAYS if name not in ("other float", "huge")},
    "below 0": lambda x: np.where(np.arange(x.size) == 1, -5, x),
    "too large": lambda x: np.where(np.arange(x.size) == 1, 10**6, x),
    "largest": lambda x: np.where(np.arange(x.size) == 1, 2**63 - 1, x),
    "fractions": lambda x: x + 0.5, "NaN": lambda x: x * np.nan,
    "uint64 beyond": lambda x: np.full(x.shape, 2**64 - 1, np.uint64),
}  # fmt: skip
INTEGERS = {
    "0": 0, "-1": -1, "1.5": 1.5, "2.0": 2.0, "True": True, "None": None, "a word": "3",
    "NaN": np.nan, "inf": np.inf, "a list": [3], "an array": np.array([3, 3]), "complex": 3j,
    "2^62": 2**62, "10^30": 10**30,
}  # fmt: skip
NUMBERS = {
    "NaN": np.nan, "inf": np.inf, "-inf": -np.inf, "-1": -1.0, "True": True, "None": None,
    "a word": "0.1", "a list": [0.1], "complex": 1j, "an array": np.ones(2), "huge": 10**400,
}  # fmt: skip
WORDS = {"unknown": "nonsense", "empty": "", "a number": 1, "None": None, "a list": ["numba"]}
FLAGS = {"1": 1, "None": None, "a word": "yes", "NumPy's": np.True_, "a list": [True]}


@dataclass
class Call:
    """A public call: what to do with an argument, the good one, and ways to spoil it."""

    name: str
    argument: str
    good: Any
    act: Callable[[Any], Any]
    ways: dict[str, Any]
    allowed: frozenset[str] = field(default_factory=frozenset)


def _value(way: Any, good: Any) -> Any:
    return way(good) if callable(way) else way


def _bytes(result: Any) -> Any:
    if isinstance(result, np.ndarray):
        return result.shape, np.asarray(result).tobytes()
    return repr(result)


def fault(call: Call, name: str, way: Any) -> str | None:
    """Try a cell; return what is wrong with how it ended, "", or None if it makes no sense."""
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            spoilt = _value(way, call.good)
    except (TypeError, ValueError, IndexError):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            expected = _bytes(call.act(call.good))
            found = _bytes(call.act(spoilt))
    except FastformerError as error:
        message = str(error)
        if not isinstance(error, TypeError | ValueError):
            return f"{type(error).__name__} is neither a TypeError nor a ValueError"
        if not re.search(rf"\b{call.argument}", message):
            return f"the message does not name {call.argument}: {message}"
        if not re.search(GIVEN, message) or len(message) < 20:
            return f"the message does not say what was given: {message}"
        if (
            name in ("below 0", "too large")
            and not re.search(r"\b(at|index|token|row|sequence) 1\b", message)
            and re.search(r"ids|targets|tokens", call.argument)
        ):
            return f"the message does not say where: {message}"
        return ""
    except Exception as error:  # a cell may end in anything
        return f"{type(error).__name__}: {str(error)[:120]}"
    if found == expected or name in call.allowed:
        return ""
    return "was taken, with another result"


def attention_with(kind: str, backend: str) -> ff.MultiHeadAttention:
    """Return a layer for 6 columns that is told of relative positions."""
    return ff.MultiHeadAttention(
        6, 3, positions=ff.RelativePositions(kind, 6, 3, 9), backend=backend
    )


def _layers(backend: str) -> Iterator[Call]:
    """Yield forward and backward of every layer."""
    options = {"backend": backend}
    batch = ff.pack([[1, 2, 3], [4, 5], [6, 7]])
    x = np.random.default_rng(0).standard_normal((7, 6)).astype(np.float32)
    config = ff.TransformerConfig(vocab_size=9, embed_dim=6, num_heads=2, ffn_dim=8)
    free = frozenset({"a row more", "empty"})
    any_shape = free | {"0-d", "flat", "one axis more", "two axes more", "a column less"}
    layers: list[tuple[str, Any, tuple[Any, ...], frozenset[str]]] = [
        ("Linear", ff.Linear(6, 6, **options), (), free),
        ("LayerNorm", ff.LayerNorm(6, **options), (), free),
        ("RMSNorm", ff.RMSNorm(6, **options), (), free),
        ("ReLU", ff.ReLU(**options), (), any_shape),
        ("GELU", ff.GELU(**options), (), any_shape),
        ("ExactGELU", ff.ExactGELU(**options), (), any_shape),
        ("Mish", ff.Mish(**options), (), any_shape),
        ("Softmax", ff.Softmax(**options), (), free | {"a column less"}),
        ("Dropout", ff.Dropout(0.5, **options), (), any_shape),
        ("FeedForward", ff.FeedForward(6, 8, **options), (), free),
        ("FeedForward", ff.FeedForward(6, 8, activation="swiglu", **options), (), free),
        ("MultiHeadAttention", ff.MultiHeadAttention(6, 2, **options), (batch,), frozenset()),
        *(
            (f"MultiHeadAttention, {kind}", attention_with(kind, backend), (batch,), frozenset())
            for kind in RELATIVE_POSITIONS
        ),
        ("PositionalEncoding", ff.PositionalEncoding(6, 9, **options), (batch,), frozenset()),
        ("TransformerBlock", ff.TransformerBlock(config, **options), (batch,), frozenset()),
    ]
    for name, layer, more, allowed in layers:
        forward = lambda x, layer=layer, more=more: np.array(layer.forward(x, *more))  # noqa: E731

        def backward(dout: Any, layer: Any = layer, more: Any = more) -> Array:
            layer.forward(x, *more)
            return np.array(layer.backward(dout))

        yield Call(f"{name}.forward", "x", x, forward, ARRAYS, allowed)
        # Without a dropout, and with sines, the gradient is the one that is given.
        if name not in ("Dropout", "PositionalEncoding"):
            yield Call(f"{name}.backward", "dout", x, backward, ARRAYS)
        if name in ("Linear", "FeedForward", "Dropout"):
            added = lambda r, layer=layer: np.array(layer.forward(x, residual=r))  # noqa: E731
            yield Call(name, "residual", x, added, ARRAYS, frozenset({"None"}))


def _optional(backend: str) -> Iterator[Call]:
    """Yield what may be given to batches."""
    batch = ff.pack([[1, 2, 3], [4, 5], [6, 7]])
    select = lambda s: batch.select(s).tokens  # noqa: E731
    some = frozenset({"a row more", "flat", "a column less", "reversed", "integers"})
    yield Call("PackedBatch.select", "sequences", np.array([1, 0, 2]), select, IDS, some)


def _batches(backend: str) -> Iterator[Call]:
    """Yield the calls that are given ids."""
    ids, none = (
        np.array([1, 2, 3, 1, 2, 3, 1, 2]),
        frozenset({"too large", "largest", "a row more"}),
    )
    offsets = np.array([0, 3, 8])
    tokens = lambda batch: batch.tokens  # noqa: E731
    free = none | {"reversed", "flat", "a column less", "integers"}
    yield Call("PackedBatch", "tokens", ids, lambda t: tokens(ff.PackedBatch(t, offsets)), IDS,
               frozenset({"too large", "largest"}))  # fmt: skip
    yield Call("PackedBatch", "offset", offsets, lambda o: tokens(ff.PackedBatch(ids, o)), IDS)
    yield Call("pack", "sequence", ids, lambda t: tokens(ff.pack([t])), IDS, free)
    padded = ids.reshape(2, 4)
    lengths = np.array([2, 4])
    yield Call("pack", "lengths", lengths, lambda n: tokens(ff.pack(padded, n)), IDS,
               frozenset({"None"}))  # fmt: skip
    logits = np.random.default_rng(1).standard_normal((8, 5)).astype(np.float32)
    loss = ff.CrossEntropyLoss(backend=backend)
    yield Call("CrossEntropyLoss", "targets", ids, lambda t: loss.forward(logits, t), IDS)
    yield Call("CrossEntropyLoss", "logits", logits, lambda z: loss.forward(z, ids), ARRAYS,
               frozenset({"other float", "a column less"}))  # fmt: skip
    order = np.array([1, 0, 2])
    inputs, targets = ff.pack([[1], [2], [3]]), np.array([1, 2, 3])
    first = lambda o: [t.tolist() for _, t in iterate_batches(inputs, targets, 3, o)]  # noqa: E731
    yield Call("iterate_batches", "order", order, first, IDS,
               frozenset({"a row more", "a column less", "flat", "empty"}))  # fmt: skip
    table = ff.Embedding(5, 4, backend=backend)
    looked_up = lambda t: np.array(table.forward(ff.PackedBatch(t, offsets)))  # noqa: E731
    yield Call("Embedding", "tokens?", ids, looked_up, IDS)
    for kind in models.KINDS:
        model = models.make_model(kind, backend=backend, dtype="float32")
        run = lambda batch, model=model: model.forward(batch)  # noqa: E731
        batch = models.make_batch()
        wrong = {"a list": [[1, 2]], "None": None, "an array": ids, "a word": "x", "a number": 3}
        yield Call(f"{kind}.forward", "(a model is given|PackedBatch)", batch, run, wrong)


def _settings(backend: str) -> Iterator[Call]:
    """Yield the numbers, words and flags that calls are given."""
    makers: list[tuple[Any, dict[str, Any]]] = [
        (ff.Linear, {"in_features": 4, "out_features": 4}),
        (ff.LayerNorm, {"embed_dim": 4}),
        (ff.RMSNorm, {"embed_dim": 4}),
        (ff.Embedding, {"vocab_size": 4, "embed_dim": 4}),
        (ff.PositionalEncoding, {"embed_dim": 4, "max_seq_len": 4}),
        (ff.FeedForward, {"embed_dim": 4, "ffn_dim": 4}),
        (ff.MultiHeadAttention, {"embed_dim": 4, "num_heads": 2}),
        (ff.TransformerConfig, {"vocab_size": 4, "embed_dim": 4, "num_heads": 2, "num_layers": 1,
                                "ffn_dim": 4, "max_seq_len": 4}),
        (ff.DecoderConfig, {"vocab_size": 4, "embed_dim": 4, "num_heads": 2, "num_layers": 1,
                            "ffn_dim": 4, "max_seq_len": 4}),
        (batch_order, {"num_examples": 4, "seed": 1, "epoch": 1}),
        (wilson_interval, {"correct": 1, "total": 2}),
    ]  # fmt: skip
    small = {k: v for k, v in INTEGERS.items() if k not in ("2^62", "10^30")}
    for make, good in makers:
        for name, value in good.items():
            act = lambda v, make=make, good=good, name=name: type(make(**{**good, name: v}))  # noqa: E731
            huge = make in (ff.TransformerConfig, ff.DecoderConfig, batch_order, wilson_interval)
            yield Call(make.__name__, name, value, act, small if huge else INTEGERS)
    numbers: list[tuple[Any, str, float]] = [
        (lambda v: ff.Dropout(v), "rate", 0.1),
        (lambda v: ff.LayerNorm(4, epsilon=v), "epsilon", 0.1),
        (lambda v: ff.RMSNorm(4, epsilon=v), "epsilon", 0.1),
        (lambda v: ff.CrossEntropyLoss(label_smoothing=v), "label_smoothing", 0.1),
        (lambda v: TrainingConfig(label_smoothing=v), "label_smoothing", 0.1),
        (lambda v: ff.Embedding(4, 4, std=v), "std", 0.1),
        (lambda v: ff.FeedForward(4, 4, dropout=v), "rate", 0.1),
        (lambda v: ff.TransformerConfig(vocab_size=4, dropout=v), "dropout", 0.1),
        (lambda v: ff.DecoderConfig(vocab_size=4, layernorm_epsilon=v), "layernorm_epsilon", 0.1),
        (lambda v: learning_rate_at(1, schedule="cosine", learning_rate=v, min_learning_rate=0.0,
                                    warmup_steps=1, total_steps=5), "learning_rate", 0.1),
    ]  # fmt: skip
    model = models.make_model("encoder", backend=backend)
    parameters = model.parameters()
    for optimizer in (ff.SGD, ff.Adam, ff.AdamW):
        numbers.append((lambda v, o=optimizer: o(parameters, lr=v), "lr", 0.1))
        decayed = lambda v, o=optimizer: o(parameters, weight_decay=v)  # noqa: E731
        numbers.append((decayed, "weight_decay", 0.1))
    numbers.append((lambda v: ff.EMA(model, decay=v), "decay", 0.1))
    numbers.append((lambda v: ff.clip_gradients(parameters, v), "max_norm", 1.0))
    for act, name, value in numbers:
        yield Call("number", name, value, lambda v, a=act: type(a(v)), NUMBERS)
    for make in (ff.ReLU, ff.Softmax, ff.GELU, ff.ExactGELU, ff.Mish):
        for name, value in (("backend", backend), ("dtype", "float32")):
            word = lambda v, make=make, name=name: type(make(**{name: v}))  # noqa: E731
            yield Call(make.__name__, name, value, word, WORDS)
    words = (
        ("norm", "pre"), ("norm_type", "rmsnorm"), ("activation", "relu"), ("pooling", "mean"),
        ("positions", "rotary"), ("positions", "alibi"),
    )  # fmt: skip
    for name, value in words:
        config = lambda v, name=name: type(ff.TransformerConfig(vocab_size=4, **{name: v}))  # noqa: E731
        yield Call("TransformerConfig", name, value, config, WORDS)
    for name in ("qkv_bias", "tied_embeddings"):
        flag = lambda v, name=name: type(ff.DecoderConfig(vocab_size=4, **{name: v}))  # noqa: E731
        yield Call("DecoderConfig", name, True, flag, FLAGS)


def cells(backend: str) -> Iterator[tuple[Call, str, Any]]:
    """Yield every cell of a backend."""
    from tests.scorecard import cells_training  # it imports from here

    for family in (_layers, _optional, _batches, _settings, cells_training.calls):
        for call in family(backend):
            for name, way in call.ways.items():
                yield call, name, way


def _planted() -> list[bool]:
    """Tell for calls that take what is wrong, or refuse it badly, whether that is noticed."""
    good = np.array([1, 2, 3])

    def silent(x: Any) -> Any:
        return float(np.asarray(x).astype(float).sum())

    def unnamed(x: Any) -> Any:
        if x is not good:
            raise InvalidValueError("this is wrong, and must not be given")
        return 0

    def crash(x: Any) -> Any:
        return 1 / (x is good)

    return [
        bool(fault(Call("", "tokens", good, act, IDS), "below 0", IDS["below 0"]))
        for act in (silent, unnamed, crash)
    ]


def measure(tier: Tier, backends: tuple[str, ...] = BACKENDS) -> Finding:
    """Try every cell on both backends."""
    from tests.scorecard import cells_training

    failures, count = [], 0
    for backend in backends:
        for call, name, way in cells(backend):
            problem = fault(call, name, way)
            count += problem is not None
            if problem:
                failures.append(f"{backend}, {call.name}, {call.argument}, {name}: {problem}")
        for label, problem in cells_training.faults(backend):
            count += 1
            if problem:
                failures.append(f"{backend}, {label}: {problem}")
    planted = [*_planted(), *cells_training.planted()]
    held = count - len(failures)
    return Finding(held, count, sum(planted), len(planted), failures=tuple(failures))


ROW = Row(
    "D4",
    "misuse is a clear error: argument, what was given, what is allowed, the first bad index",
    ">= 1,000 cells, each an error that says so, or the right result",
    measure,
)
