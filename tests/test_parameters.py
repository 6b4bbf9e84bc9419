"""Parameters: one flat array, named views into it, initial weights, and weights in and out."""

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import (
    BACKENDS,
    KINDS,
    forward_and_backward,
    make_batch,
    make_config,
    make_model,
    same_bits,
)

import fastformer as ff
from fastformer.backend import get_backend
from fastformer.errors import InvalidTypeError, InvalidValueError
from fastformer.parameters import ALIGNMENT, Parameter, Parameters, aligned_zeros

DTYPES = ("float32", "float64")


@given(size=st.integers(0, 200), dtype=st.sampled_from(DTYPES))
def test_aligned_zeros(size, dtype):
    array = aligned_zeros(size, dtype)
    assert (array.shape, array.dtype) == ((size,), np.dtype(dtype))
    assert not array.any() and array.flags.writeable
    assert array.__array_interface__["data"][0] % ALIGNMENT == 0 or size == 0


def three_parameters(dtype):
    bias = Parameter(np.full(3, 2.0, dtype))
    stacked = Parameter(
        np.arange(12.0).reshape(2, 2, 3).astype(dtype), parts=("q.weight", "k.weight"), decays=True
    )
    weight = Parameter(np.full((5, 7), 3.0, dtype), decays=True)
    return [("a.bias", bias), ("a.qk", stacked), ("weight", weight)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_layout(dtype):
    named = three_parameters(dtype)
    parameters = Parameters(named, dtype, get_backend("reference"))
    step = ALIGNMENT // np.dtype(dtype).itemsize
    assert [name for name, _, _ in parameters] == ["a.bias", "a.q.weight", "a.k.weight", "weight"]
    assert parameters.count == 3 + 12 + 35
    # What decays comes first, and each begins at a cache line.
    starts = {
        name: (p.value.ctypes.data - parameters.values.ctypes.data) // p.value.itemsize
        for name, p in named
    }
    assert sorted(starts, key=starts.get) == ["a.qk", "weight", "a.bias"]
    assert all(start % step == 0 for start in starts.values())
    assert starts["weight"] < parameters.decaying == starts["a.bias"]
    assert all(p.value.ctypes.data % ALIGNMENT == 0 for _, p in named)
    # Values were kept, and views are views.
    assert (named[0][1].value == 2).all() and (named[2][1].value == 3).all()
    parameters.values[...] = 8
    parameters.gradients[...] = 9
    for _, value, gradient in parameters:
        assert (value == 8).all() and (gradient == 9).all()
    parameters.zero_gradients()
    assert not parameters.gradients.any() and not named[1][1].flat_gradient.any()


def test_views_of_another_array_lie_where_the_values_do():
    named = three_parameters("float32")
    parameters = Parameters(named, "float32", get_backend("reference"))
    views = dict(parameters.views_of(parameters.values.copy()))
    for name, value, _ in parameters:
        np.testing.assert_array_equal(views[name], value)
        assert not np.shares_memory(views[name], value)


def test_a_parameter_belongs_to_one_model():
    named = three_parameters("float32")
    first = Parameters(named, "float32", get_backend("reference"))
    with pytest.raises(InvalidValueError, match=r"'a.bias' belongs to a model"):
        Parameters(named, "float32", get_backend("reference"))
    first.values[...] = 5
    assert (named[2][1].value == 5).all(), "the first owner kept it"


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_of_a_model_has_no_parameters_of_its_own(kind):
    model = make_model(kind)
    with pytest.raises(InvalidValueError, match=r"belongs to a model; use the model's"):
        model.blocks[0].parameters()


@pytest.mark.parametrize("kind", KINDS)
def test_every_gradient_of_a_model_is_a_view(kind):
    model = make_model(kind)
    parameters = model.parameters()
    assert model.parameters() is parameters
    for name, value, gradient in parameters:
        assert np.shares_memory(value, parameters.values), name
        assert np.shares_memory(gradient, parameters.gradients), name
        assert value.flags.c_contiguous and value.dtype == model.dtype, name
    total = sum(value.size for _, value, _ in parameters)
    assert total == parameters.count == model.num_parameters
    used = np.zeros(parameters.values.size)
    for _, view in parameters.views_of(used):
        view += 1
    assert set(used) <= {0, 1} and used.sum() == total, "views overlap"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("make_optimizer", [ff.SGD, ff.Adam, ff.AdamW])
def test_gaps_stay_zero(backend, make_optimizer):
    model = make_model("decoder", backend=backend, dtype="float32", embed_dim=9, num_layers=1)
    parameters = model.parameters()
    gaps = np.ones(parameters.values.size, bool)
    for _, view in parameters.views_of(gaps):
        view[...] = False
    assert gaps.any()
    optimizer = make_optimizer(parameters)
    for _ in range(3):
        forward_and_backward(model, make_batch())
        optimizer.step()
    assert not parameters.values[gaps].any() and not parameters.gradients[gaps].any()
    assert np.isfinite(parameters.values).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_decays(kind):
    model = make_model(kind, qkv_bias=True, attention_output_bias=True)
    parameters = model.parameters()
    decaying = np.zeros(parameters.values.size, bool)
    decaying[: parameters.decaying] = True
    for name, view in parameters.views_of(decaying):
        matrix = view.ndim == 2
        assert view.all() == view.any() == matrix, name


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_weights(kind):
    config = make_config(kind)
    model_class = ff.Transformer if kind == "encoder" else ff.TransformerDecoder
    exact = model_class(config, seed=8, dtype="float64").state_dict()
    for backend in BACKENDS:
        for dtype in ("float32", "float64"):
            weights = model_class(config, seed=8, backend=backend, dtype=dtype).state_dict()
            assert list(weights) == list(exact)
            assert all(same_bits(weights[name], exact[name].astype(dtype)) for name in exact)
    others = [model_class(config, seed=seed, dtype="float64").state_dict() for seed in (0, 9)]
    for name, value in exact.items():
        if value.ndim == 2:
            assert not any(np.isclose(other[name], value).any() for other in others), name
    drawn = [value.ravel()[:4].tobytes() for value in exact.values() if value.ndim == 2]
    assert len(set(drawn)) == len(drawn), "two tensors are drawn from the same numbers"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_go_out_and_in(kind, dtype):
    model, other = make_model(kind, dtype=dtype), make_model(kind, dtype=dtype, seed=4)
    weights, batch = model.state_dict(), make_batch()
    logits = model.forward(batch)
    assert not np.allclose(other.forward(batch), logits)
    other.load_state_dict(weights)
    assert same_bits(other.forward(batch), logits) and same_bits(other.state_dict(), weights)
    for value in (*weights.values(), *model.grad_dict().values()):
        value[...] = 99
    assert same_bits(model.forward(batch), logits), "state_dict gives copies"
    assert not np.isin(99, model.parameters().gradients)
    assert same_bits(other.forward(batch), logits), "load_state_dict copies"


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_another_dtype_are_rounded(kind):
    model = make_model(kind, dtype="float64")
    single = make_model(kind, dtype="float32", seed=4)
    single.load_state_dict(model.state_dict())
    for name, value in single.state_dict().items():
        assert same_bits(value, model.state_dict()[name].astype("float32"))
    model.load_state_dict({name: value.tolist() for name, value in single.state_dict().items()})
    for name, value in model.state_dict().items():
        assert same_bits(value.astype("float32"), single.state_dict()[name])


NAME = "blocks.1.feed_forward.expand.bias"
LAST = "output.bias"


def without(weights):
    del weights[LAST]
    return weights


DOES_NOT_FIT = [
    (without, InvalidValueError, rf"Transformer: missing \['{LAST}'\], unknown none"),
    (lambda w: {}, InvalidValueError, r"missing \['blocks.0"),
    (lambda w: w | {"extra": w[LAST]}, InvalidValueError, r"missing none, unknown \['extra'\]"),
    (lambda w: w | {LAST: np.zeros(10)}, InvalidValueError, rf"'{LAST}' must be \(11,\).*\(10,\)"),
    (lambda w: w | {LAST: np.zeros((11, 1))}, InvalidValueError, r"must be \(11,\), got \(11, 1\)"),
    (lambda w: w | {LAST: np.zeros(11, int)}, InvalidTypeError, rf"'{LAST}' must be floats.*int64"),
    (lambda w: w | {LAST: np.zeros(11, complex)}, InvalidTypeError, r"floats, got complex128"),
    (lambda w: w | {LAST: ["a"] * 11}, InvalidTypeError, rf"'{LAST}' must be floats"),
    (lambda w: w | {LAST: None}, InvalidTypeError, rf"'{LAST}' must be floats, got object"),
    (lambda w: w | {LAST: np.full(11, 1e300)}, InvalidValueError, rf"'{LAST}'.*float32"),
    (lambda w: None, InvalidTypeError, r"weights must be a mapping"),
    (lambda w: list(w.items()), InvalidTypeError, r"weights must be a mapping"),
]


@pytest.mark.parametrize(("change", "error", "message"), DOES_NOT_FIT)
def test_weights_that_do_not_fit_change_nothing(change, error, message):
    model = make_model("encoder", dtype="float32")
    before = model.parameters().values.copy()
    weights = {name: value + 1 for name, value in model.state_dict().items()}
    with pytest.raises(error, match=message):
        model.load_state_dict(change(weights))
    assert same_bits(model.parameters().values, before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_is_a_model_of_its_own(kind):
    """Trained on, a deep copy goes where the original would have gone; the original stays."""
    model, batch = make_model(kind), make_batch()
    logits = model.forward(batch)
    twin = copy.deepcopy(model)
    assert same_bits(twin.forward(batch), logits)
    for trained in (twin, model):
        optimizer = ff.Adam(trained.parameters(), lr=0.1)
        forward_and_backward(trained, batch)
        optimizer.step()
        if trained is twin:
            assert same_bits(model.forward(batch), logits)
    assert not np.allclose(model.forward(batch), logits)
    assert same_bits(twin.forward(batch), model.forward(batch))


@pytest.mark.parametrize("options", [{}, {"positions": "learned"}])
@pytest.mark.parametrize("kind", KINDS)
def test_names_of_parameters_do_not_change_with_use(kind, options):
    model = make_model(kind, **options)
    before = [name for name, _ in model.named_parameters()]
    forward_and_backward(model, make_batch())
    assert [name for name, _ in model.named_parameters()] == before
