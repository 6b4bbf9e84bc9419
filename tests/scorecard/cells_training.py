"""More cells of row D4: training, generation, data, weights, arrays that are NaN or given twice."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import models
import numpy as np

import fastformer as ff
from fastformer.data import DigitTask, decode, encode, generate, split
from fastformer.data.expressions import Expression, parse_expression
from fastformer.generation import beam_search
from fastformer.generation import generate as go_on
from fastformer.models.config import RELATIVE_POSITIONS
from tests.scorecard import cells

Array = np.ndarray[Any, Any]
GOOD, TARGETS = "as it should be", np.array([1, 2, 3, 4])

THINGS = {"None": None, "a word": "x", "a number": 3, "a list": [[1, 2]], "a dict": {},
          "an array": np.ones((2, 2))}  # fmt: skip
TEXTS = {
    "None": None, "a number": 3, "a list": ["Max"], "bytes": b"Max ( 1 2 )", "empty": "",
    "spaces": "  \t", "no operation": "( 1 2 )", "no numbers": "Max ( )", "unknown": "Mux ( 1 2 )",
    "open": "Max ( 1 2", "closed twice": "Max ( 1 2 ) )", "nested": "Max ( Min ( 1 2 ) 3 )",
    "negative": "Max ( -1 2 )", "a fraction": "Max ( 1.5 2 )", "two commas": "Max ( 1 , , 2 )",
    "long number": f"Max ( {'9' * 5000} 1 )", "other digits": "Max ( \u0661 2 )",
    "NUL": "Max\x00( 1 2 )", "lone surrogate": "Max ( \ud800 )",
    "long": "x" * 100_000, "code": "__import__('os')",
    "more": "Max ( 1 2 ) Max", "Second of one": "Second ( 1 )",
}  # fmt: skip
TOKENS = {
    "None": None, "a word": "Max", "a number": 3, "unknown": ["Mux"], "empty token": [""],
    "numbers": [5, 3], "several digits": ["12"], "bytes": [b"Max"], "None in it": ["Max", None],
    "nested": [["Max"]], "lower case": ["max"], "long": ["x" * 10_000],
}  # fmt: skip
DECODED = {
    "None": None, "a number": 3, "an id too large": [0, 20], "negative": [-1], "fractions": [1.5],
    "whole floats": [2.0], "words": ["1"], "True": [True], "nested": [[1]], "huge": [2**70],
    "two axes": np.ones((2, 2), int), "float array": np.ones(3), "bool array": np.ones(3, bool),
}  # fmt: skip
PROMPTS = {
    "None": None, "a number": 3, "a word": "12", "flat": [1, 2], "empty": [], "empty one": [[]],
    "too large": [[1, 99]], "negative": [[1, -1]], "fractions": [[1.5]], "words": [["a"]],
    "too long": [[1] * 9], "three axes": np.ones((1, 1, 1), int), "None in it": [[1, None]],
}  # fmt: skip


def _objects(backend: str) -> dict[str, Any]:
    """Return what a step is given: model, batch, targets, loss_fn and optimizer."""
    model = models.make_model("encoder", backend=backend, dtype="float32")
    return {
        "model": model, "batch": models.make_batch(), "targets": TARGETS,
        "loss_fn": ff.CrossEntropyLoss(backend=backend),
        "optimizer": ff.SGD(model.parameters(), lr=1e-9),
    }  # fmt: skip


def training(backend: str) -> Iterator[cells.Call]:
    """Yield a step and an evaluation with each of their arguments."""
    for name in ("model", "batch", "targets", "loss_fn", "optimizer"):
        ways = cells.IDS if name == "targets" else THINGS

        def step(value: Any, name: str = name) -> Any:
            given = _objects(backend)
            return ff.train_step(**(given | ({} if value is GOOD else {name: value}))).loss

        def accumulate(value: Any, name: str = name) -> Any:
            given = _objects(backend)
            del given["optimizer"]
            return ff.accumulate_gradients(**(given | ({} if value is GOOD else {name: value})))[0]

        def score(value: Any, name: str = name) -> Any:
            given = _objects(backend)
            given = {"inputs": given.pop("batch"), **given}
            del given["optimizer"]
            return ff.evaluate(**(given | ({} if value is GOOD else {name: value}))).loss

        good = TARGETS if name == "targets" else GOOD
        said = "(batch|PackedBatch)" if name == "batch" else name
        yield cells.Call("train_step", said, good, step, ways)
        if name != "optimizer":
            yield cells.Call("accumulate_gradients", said, good, accumulate, ways)
            other = "inputs" if name == "batch" else name
            act = lambda v, score=score, other=other: score(v, other)  # noqa: E731
            said = "(inputs|PackedBatch)" if name == "batch" else name
            yield cells.Call("evaluate", said, good, act, ways)


def _texts(backend: str) -> Iterator[cells.Call]:
    """Yield the calls that take text, tokens and ids."""
    good = "Max ( 5 3 9 )"
    what = "(expression|operation|character|argument|number of arguments)"
    yield cells.Call("parse_expression", what, good, lambda t: str(parse_expression(t)), TEXTS)
    yield cells.Call("encode", "token", ["Max", "("], encode, TOKENS)
    yield cells.Call("decode", "ids?", [1, 2], decode, DECODED)
    operations = {**cells.WORDS, "lower case": "max", "bytes": b"Max"}
    act = lambda o: str(Expression(o, (1, 2)))  # noqa: E731
    yield cells.Call("Expression", "operation", "Max", act, operations)
    arguments = {"None": None, "a number": 3, "a word": "12", "empty": (), "below 0 ": (-1, 2),
                 "fractions": (1.5, 2), "words": ("1", "2"), "True": (True, 2), "huge": (10**18, 1),
                 "NaN": (np.nan, 1), "an array": np.array([1, 2])}  # fmt: skip
    act = lambda a: str(Expression("Max", a))  # noqa: E731
    yield cells.Call("Expression", "(argument|arguments)", (1, 2), act, arguments)


def _tasks(backend: str) -> Iterator[cells.Call]:
    """Yield drawing and splitting of examples, and the task's own settings."""
    task = DigitTask(examples=60)
    examples = generate(task, 1)
    drawn = lambda s: generate(task, s).inputs[:3]  # noqa: E731
    parts = lambda s: split(examples, task, s).test.inputs  # noqa: E731
    seeds = {k: v for k, v in cells.INTEGERS.items() if k not in ("0", "2^62", "10^30")}
    yield cells.Call("generate", "seed", 1, drawn, seeds)
    yield cells.Call("split", "seed", 1, parts, seeds)
    yield cells.Call("generate", "task", task, lambda t: generate(t, 1).inputs[:3], THINGS)
    act = lambda t: split(examples, t, 1).test.inputs  # noqa: E731
    yield cells.Call("split", "task", task, act, THINGS)
    act = lambda e: split(e, task, 1).test.inputs  # noqa: E731
    yield cells.Call("split", "examples", examples, act, THINGS)
    words = {"a word": "Max", "empty": (), "unknown": ("Mux",), "a list": ["Max"], "None": None,
             "twice": ("Max", "Max"), "numbers": (1,), "a set": {"Max"}}  # fmt: skip
    for name in (field.name for field in dataclasses.fields(DigitTask)):
        good = getattr(task, name)
        ways: dict[str, Any] = cells.INTEGERS
        if isinstance(good, bool):
            ways = cells.FLAGS
        elif isinstance(good, float):
            ways = cells.NUMBERS | {"1": 1.0, "0": 0.0}
        elif isinstance(good, tuple):
            ways = words
        allowed = {"0"} if name in ("min_value",) else set()
        allowed |= {"2^62", "10^30"} if name == "examples" else set()
        make = lambda v, name=name: type(DigitTask(**{name: v}))  # noqa: E731
        yield cells.Call("DigitTask", name, good, make, ways, frozenset(allowed))


def _generation(backend: str) -> Iterator[cells.Call]:
    """Yield generation from a decoder."""
    model = models.make_model("decoder", backend=backend, dtype="float32")
    options: dict[str, Any] = {"max_new_tokens": 2, "end": 3, "temperature": 0.7, "top_k": 4,
                               "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.2,
                               "num_samples": 2, "seed": 1}  # fmt: skip
    numbers = ("temperature", "top_p", "min_p", "repetition_penalty")
    prompts = [[1, 2], [3]]
    act = lambda p: go_on(model, p, max_new_tokens=2)  # noqa: E731
    what = "(prompt|sequence|token|padded|lengths|ids)"
    yield cells.Call("generate", what, prompts, act, PROMPTS, frozenset({"too long"}))
    stops = {name: way for name, way in PROMPTS.items() if name not in ("None", "empty")}
    act = lambda s: go_on(model, prompts, max_new_tokens=2, stop=s)  # noqa: E731
    yield cells.Call("generate", "stop", [[1, 2]], act, stops, frozenset({"too long"}))
    encoder = models.make_model("encoder", backend=backend, dtype="float32")
    act = lambda m: go_on(m, prompts, max_new_tokens=2)  # noqa: E731
    yield cells.Call("generate", "(generation|model)", model, act, THINGS | {"encoder": encoder})
    for name, good in options.items():
        ways = cells.NUMBERS if name in numbers else cells.INTEGERS
        optional = {"end": {"None", "0"}, "top_k": {"None"}, "seed": {"0", "2^62", "10^30"},
                    **{name: {"None"} for name in numbers}}  # fmt: skip
        if name == "temperature":  # without one there are no draws
            ways = {k: v for k, v in ways.items() if k != "None"} | {"0": 0.0}
        act = lambda v, name=name: go_on(model, prompts, **(options | {name: v}))  # noqa: E731
        allowed = frozenset(optional.get(name, set()))
        yield cells.Call("generate", name, good, act, ways, allowed)
    small = {k: v for k, v in cells.INTEGERS.items() if k not in ("2^62", "10^30")}
    act = lambda v: beam_search(model, [1], beams=v, max_new_tokens=2)  # noqa: E731
    yield cells.Call("beam_search", "beams", 2, act, small)


def _weights(backend: str) -> Iterator[cells.Call]:
    """Yield the loading of weights and of an optimizer's state, each array spoilt in turn."""
    ways = {k: v for k, v in cells.ARRAYS.items() if k != "a number"}
    ways |= {"NaN": lambda x: x * np.nan, "infinity": lambda x: x + np.inf,
             "too large for float32": lambda x: x + 1e300}  # fmt: skip
    taken = frozenset({"float16", "other float", "a list", "Fortran order", "strided", "reversed"})
    for kind in models.KINDS:
        model = models.make_model(kind, backend=backend, dtype="float32")
        optimizer = ff.Adam(model.parameters())
        states = model.state_dict(), optimizer.state_dict()
        loaders: tuple[Callable[[Any], None], ...] = (
            model.load_state_dict, lambda s, o=optimizer: o.load_state_dict(s, 1)
        )  # fmt: skip
        owners = f"{kind}.load_state_dict", "Adam.load_state_dict"
        for owner, state, load in zip(owners, states, loaders, strict=True):
            for name in list(state)[:3]:

                def act(
                    value: Any, s: Any = state, n: str = name, go: Any = load, m: Any = model
                ) -> Any:
                    go(s | {n: value})
                    return m.state_dict()[n] if n in m.state_dict() else 0

                yield cells.Call(owner, "(weight|state)", state[name], act, ways, taken)
            whole = THINGS | {"one less": dict(list(state.items())[1:]),
                              "one more": state | {"more": np.ones(2, np.float32)}}  # fmt: skip
            yield cells.Call(owner, "(weights|state)", state, load, whole)


def calls(backend: str) -> Iterator[cells.Call]:
    """Yield all calls of this file."""
    for family in (training, _texts, _tasks, _generation, _weights):
        yield from family(backend)


# ---- arrays that are NaN, or given twice ----


def _layers(backend: str) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """Yield each layer that keeps the shape, with what its forward is given beside x."""
    options = {"backend": backend}
    batch = ff.pack([[1, 2, 3], [4, 5], [6, 7]])
    config = ff.TransformerConfig(vocab_size=9, embed_dim=6, num_heads=2, ffn_dim=8)
    yield "Linear", ff.Linear(6, 6, **options), ()
    yield "LayerNorm", ff.LayerNorm(6, **options), ()
    yield "RMSNorm", ff.RMSNorm(6, **options), ()
    yield "ReLU", ff.ReLU(**options), ()
    yield "GELU", ff.GELU(**options), ()
    yield "ExactGELU", ff.ExactGELU(**options), ()
    yield "Mish", ff.Mish(**options), ()
    yield "Softmax", ff.Softmax(**options), ()
    yield "Dropout", ff.Dropout(0.5, **options), ()
    yield "FeedForward", ff.FeedForward(6, 8, **options), ()
    yield "FeedForward", ff.FeedForward(6, 8, activation="swiglu", **options), ()
    yield "MultiHeadAttention", ff.MultiHeadAttention(6, 2, **options), (batch,)
    for kind in RELATIVE_POSITIONS:
        yield f"MultiHeadAttention, {kind}", cells.attention_with(kind, backend), (batch,)
    yield "PositionalEncoding", ff.PositionalEncoding(6, 9, **options), (batch,)
    yield "TransformerBlock", ff.TransformerBlock(config, **options), (batch,)


def nan_faults(backend: str) -> Iterator[tuple[str, str]]:
    """Yield for each layer and loss whether a NaN in a row is seen in what comes of it."""
    x = np.random.default_rng(0).standard_normal((7, 6)).astype(np.float32)
    for name, layer, more in _layers(backend):
        for value in (np.nan, np.inf):
            if value == np.inf and name in (
                "ReLU",
                "GELU",
                "Linear",
                "Dropout",
                "PositionalEncoding",
            ):
                continue
            spoilt = x.copy()
            spoilt[1, 2] = value
            with np.errstate(all="ignore"):
                found = np.array(layer.forward(spoilt, *more))
            seen = not np.isfinite(found[1]).all()
            yield f"{value} in the x of {name}", "" if seen else f"gives {found[1]}"
    loss = ff.CrossEntropyLoss(backend=backend)
    for place in range(6):
        spoilt = x.copy()
        spoilt[3, place] = np.nan
        with np.errstate(all="ignore"):
            found = loss.forward(spoilt, np.array([1, 2, 3, 4, 5, 0, 1]))
        yield f"NaN in logit {place}", "" if np.isnan(found) else f"gives the loss {found}"


def alias_faults(backend: str) -> Iterator[tuple[str, str]]:
    """Yield for each layer whether its own output, given to it again, has the right result."""
    x = np.random.default_rng(0).standard_normal((7, 6)).astype(np.float32)
    for name, layer, more in _layers(backend):
        expected = np.array(layer.forward(np.array(layer.forward(x.copy(), *more)), *more))
        found = np.array(layer.forward(layer.forward(x.copy(), *more), *more))
        same = np.array_equal(found, expected) or name == "Dropout"
        yield f"{name} of its own output", "" if same else "has another result"
        layer.forward(x.copy(), *more)
        right = np.array(layer.backward(x.copy()))
        out = layer.forward(x.copy(), *more)
        out[...] = x
        given = np.array(layer.backward(out))
        same = np.array_equal(given, right) or name in ("Softmax", "Dropout")
        yield f"{name} of a gradient in its own output", "" if same else "has another result"
        if name in ("Linear", "FeedForward"):
            both = x.copy()
            found = np.array(layer.forward(both, residual=both))
            same = np.array_equal(found, np.array(layer.forward(x.copy(), residual=x.copy())))
            yield f"{name} of x as its own residual", "" if same else "has another result"


def faults(backend: str) -> Iterator[tuple[str, str]]:
    """Yield label and fault of each cell that is not the misuse of an argument."""
    yield from nan_faults(backend)
    yield from alias_faults(backend)


def planted() -> list[bool]:
    """Tell for a layer that hides a NaN, and one that reads what it wrote, if that is noticed."""

    class Hides(ff.ReLU):
        def forward(self, x: Array, *more: Any) -> Array:
            return super().forward(np.nan_to_num(x), *more)

    class Reads(ff.ReLU):
        def forward(self, x: Array, *more: Any) -> Array:
            self.kept = vars(self).get("kept", np.zeros_like(x))
            self.kept[...] = 0
            self.kept += x
            return self.kept

    found = []
    for layer, faults in ((Hides(), nan_faults), (Reads(), alias_faults)):
        with mock.patch(f"{__name__}._layers", lambda _, layer=layer: [("ReLU", layer, ())]):
            found.append(any(problem for _, problem in faults("numba")))
    return found
